"""Out of memory at any operation of a whole run, from the first picture that is encoded to the file that is saved: the run equals one
that was planned on the rung that was taken from the start, and no step is lost or done twice."""
from __future__ import annotations

import random
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hotlora.trainer.lora_file import load_lora
from hotlora.trainer.run import make_session, read_material
from hotlora.trainer.session import Listener

STEPS, DEEPEST = 2, 4
RUNGS = ["gradient", "a batch", "a batch", "the optimizer's"]
"""What the rungs begin with, on a CPU, with batches of three pictures."""
EIGHT_BITS = 4


class FailsAt(TorchDispatchMode):
    """torch's own error at the operation with this number; `seen` counts them. Files are written of what is in main memory already."""

    def __init__(self, number: int | None = None) -> None:
        super().__init__()
        self.number, self.seen, self.phase, self.failed_in = number, 0, "preparing", None

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen += self.phase != "a file"
        if self.seen == self.number and self.failed_in is None:
            self.failed_in = self.phase
            raise torch.cuda.OutOfMemoryError("CUDA out of memory, on purpose")
        return function(*args, **(kwargs or {}))

    @contextmanager
    def within(self, phase):
        before = self.phase
        self.phase = before if before == "a preview" else phase
        try:
            yield
        finally:
            self.phase = before

    def naming(self, phase, function):
        def inside(*args, **kwargs):
            with self.within(phase):
                return function(*args, **kwargs)

        return inside


class Watch(Listener):
    def __init__(self):
        self.rungs, self.steps, self.losses, self.drawn = [], [], [], []

    def lightened(self, session, rung):
        self.rungs.append(rung)

    def stepped(self, session, report):
        self.steps.append(report.step)
        self.losses.append(report.loss)

    def drew(self, session, step, prompts, pictures):
        self.drawn.append((step, len(pictures)))


@pytest.fixture(scope="module")
def tiny():
    """A base of few operations, so that a whole run takes a fraction of a second."""
    diffusers = pytest.importorskip("diffusers", reason="the base is made of diffusers' modules")
    import transformers

    from hotlora.trainer.hosts.parts import Parts, TextEncoder, clip_tokenizer
    from hotlora.trainer.hosts.standalone import StandaloneBackend

    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(16, 16), cross_attention_dim=16, attention_head_dim=4,
        norm_num_groups=8, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))
    vae = diffusers.AutoencoderKL(block_out_channels=(8, 8, 8), norm_num_groups=4, layers_per_block=1, latent_channels=4, sample_size=32,
                                  down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3)
    encoder = transformers.CLIPTextModel(transformers.CLIPTextConfig(
        vocab_size=49408, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, pad_token_id=49407))
    scheduler = diffusers.DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    modules = [module.requires_grad_(False).eval() for module in (unet, vae, encoder)]
    parts = Parts("sd15", "tiny", 32, *modules[:2], [TextEncoder(modules[2], clip_tokenizer(), 49407)], scheduler)
    return StandaloneBackend(parts, torch.device("cpu"), torch.float32)


@pytest.fixture
def run(tiny, config, tmp_path, monkeypatch):
    """A whole run that was planned on the rung `depth` and fails at operation `number`; in its middle the host takes the base for itself."""
    settings = replace(config, steps=STEPS, batch_size=3, resolution=32, lora_rank=2, unet_target_modules=["to_q", "to_v"], ema_decay=0.9,
                       lr_scheduler="linear", preview_steps=2, preview_guidance=1.0, save_steps=1)
    made = [0]

    def borrow(mode, genuine):
        @contextmanager
        def host():
            with mode.within("loading"):  # as a host that brings its weights to the device first
                torch.cat([torch.zeros(8) for _ in range(8)])
            with genuine():
                yield

        return host

    def whole(depth=0, number=None):
        made[0] += 1
        watch, mode = Watch(), FailsAt(number)
        with monkeypatch.context() as patch, mode:
            for phase, name in (("encoding a picture", "encode_image"), ("encoding a caption", "encode_text"), ("a forward", "predict")):
                patch.setattr(tiny, name, mode.naming(phase, getattr(tiny, name)))
            patch.setattr(tiny, "sample", mode.naming("a preview", lambda request, draw=tiny.sample: draw(replace(request, steps=2))))
            patch.setattr(tiny, "borrow", borrow(mode, tiny.borrow))
            patch.setattr(tiny, "free_memory", lambda: None)  # Python's garbage collection would take most of the time
            folder = str(tmp_path / f"{made[0]}")
            session = make_session(read_material(replace(settings, output_dir=folder)), tiny, [watch])
            for name, phase in (("_plan", "planning"), ("_gradients", "a backward"), ("_update", "the optimizer"),
                                ("_weights_to_save", "saving"), ("_write_lora", "a file")):
                patch.setattr(session, name, mode.naming(phase, getattr(session, name)))
            patch.setattr(tiny, "wanted", lambda: session.step == 1)
            for _ in range(depth):
                session.plan.step_down()
            with mode.within("the loop"):
                outcome = session.train()
        assert outcome.status == "completed" and watch.steps == [1, 2] and session.scheduler.last_epoch == session.ema.updates == STEPS
        assert {int(state["step"]) for state in session.optimizer.state.values()} == {STEPS}
        weights, _ = load_lora(outcome.lora)
        flat = torch.cat([x.flatten() for _, layer in sorted(weights.items(), key=lambda item: str(item[0])) for x in (layer["up"],)])
        assert not [m for m in tiny.unet.modules() if "forward" in m.__dict__]
        return flat, watch, mode

    return whole


def check(run, count, seed):
    run()  # what is worked out once in a process, such as hashes of weights, is no part of what is counted
    planned = [run(depth) for depth in range(DEEPEST + 1)]
    rng, hit = random.Random(seed), {}
    for _ in range(count):
        depth = rng.randrange(DEEPEST)
        point = rng.randrange(1, planned[depth][2].seen + 1)
        weights, watch, mode = run(depth, point)
        hit[mode.failed_in] = hit.get(mode.failed_in, 0) + 1
        assert mode.failed_in is not None, (depth, point)
        taken = len(watch.rungs)
        # pictures are encoded one by one first, and a preview is drawn again: neither takes a rung of the steps
        assert taken <= 1 and (taken == 0 or watch.rungs[0].startswith(RUNGS[depth])), (depth, point, mode.failed_in, watch.rungs)
        assert taken == 1 or mode.failed_in in ("preparing", "encoding a picture", "encoding a caption", "a preview", "loading", "saving", "the loop", "planning"), (
            depth, point, mode.failed_in)
        expected, before, _ = planned[depth + taken]
        off = ((weights - expected).norm() / expected.norm()).item()
        # moments that were held in full for a step or two make a small difference to those that never were
        assert off < (0.02 if depth + taken == EIGHT_BITS else 1e-5), (depth, point, mode.failed_in, off)
        assert watch.losses == pytest.approx(before.losses, rel=1e-2 if depth + taken == EIGHT_BITS else 1e-5)
        assert watch.drawn == before.drawn
    return hit


def test_a_whole_run_that_runs_out_of_memory_somewhere_is_one_that_was_planned_so(run):
    assert len(check(run, 6, seed=3)) >= 3


@pytest.mark.slow
def test_the_same_at_200_random_points(run):
    hit = check(run, 200, seed=4)
    wanted = {"encoding a picture", "encoding a caption", "a forward", "a backward", "the optimizer", "a preview", "planning"}
    assert wanted <= hit.keys(), hit
    print(hit)
