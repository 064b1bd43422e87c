"""Out of memory at any operation of a run: the same step is done again on the next rung, and what is learned is the same."""
from __future__ import annotations

import gc
import random
import weakref
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hotlora.trainer import offloading
from hotlora.trainer.memory import MemoryFull, Plan, Undo, attempt, encode_image, is_out_of_memory
from hotlora.trainer.optimizers import EMA
from hotlora.trainer.session import Listener


class FailsAt(TorchDispatchMode):
    """torch's own error at the operations with these numbers; `seen` counts them."""

    def __init__(self, *numbers: int) -> None:
        super().__init__()
        self.numbers, self.seen = set(numbers), 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen += 1
        if self.seen in self.numbers:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory, on purpose")
        return function(*args, **(kwargs or {}))


class Rungs(Listener):
    def __init__(self):
        self.taken = []

    def lightened(self, session, rung):
        self.taken.append(rung)


def weights_of(session):
    return {name: p.detach().clone() for name, p in session.adapter.named_parameters()}


def steps_with_failures(session, count, *numbers):
    """Run `count` steps inside `borrow`, with failures at these operations; returns how many operations there were."""
    with session._borrowed(), FailsAt(*numbers) as mode:
        for _ in range(count):
            session.train_step()
    return mode.seen


def assert_close(a, b):
    """Relative error of all weights together under 1e-5: Adam's first steps make rounding of single small gradients large."""
    assert a.keys() == b.keys()
    first, second = (torch.cat([x[key].flatten() for key in a]) for x in (a, b))
    assert ((first - second).norm() / second.norm()).item() < 1e-5


@pytest.fixture
def light(config, tmp_path):
    """A short run of few layers, so that it can be done many times; EMA and a schedule have to stay in step as well."""
    return replace(config, steps=3, batch_size=3, lora_rank=2, unet_target_modules=["to_q", "to_v"], ema_decay=0.9, lr_scheduler="linear")


def check_points(session_of, light, tmp_path, points, seed):
    undisturbed = session_of(light, output_dir=str(tmp_path / "undisturbed"))
    operations = steps_with_failures(undisturbed, 2)
    expected, average = weights_of(undisturbed), [x.clone() for x in undisturbed.ema.averages]
    rng = random.Random(seed)
    for point in sorted(rng.randrange(1, operations + 1) for _ in range(points)):
        watch = Rungs()
        session = session_of(light, [watch], output_dir=str(tmp_path / "failing"))
        steps_with_failures(session, 2, point)
        assert session.step == 2 and len(watch.taken) == 1, point
        assert_close(weights_of(session), expected)
        for a, b in zip(session.ema.averages, average):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
        assert session.scheduler.get_last_lr() == undisturbed.scheduler.get_last_lr()


def test_a_run_that_runs_out_of_memory_anywhere_learns_the_same(session_of, light, tmp_path):
    check_points(session_of, light, tmp_path, 6, seed=1)


@pytest.mark.slow
def test_the_same_at_200_points(session_of, light, tmp_path):
    check_points(session_of, light, tmp_path, 200, seed=2)


def test_every_rung_is_taken_in_order_and_gives_the_same_weights(session_of, light, tmp_path):
    undisturbed = session_of(light, output_dir=str(tmp_path / "undisturbed"))
    operations = steps_with_failures(undisturbed, 1)
    watch = Rungs()
    session = session_of(light, [watch], output_dir=str(tmp_path / "failing"))
    steps_with_failures(session, 1, *(operations // 2 + i for i in (0, 100, 300, 500)))
    assert [rung.split()[0:2] for rung in watch.taken] == [["gradient", "checkpointing"], ["a", "batch"], ["a", "batch"], ["the", "optimizer's"]]
    assert session.plan.batch_size == 1 and session.plan.checkpointing and session.plan.packs_moments and session.moments.bytes()
    assert_close(weights_of(session), weights_of(undisturbed))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_activations_in_main_memory_give_the_same_weights(session_of, light, tmp_path, checkpointing, monkeypatch):
    sent = []
    monkeypatch.setattr(offloading, "away", lambda x, device, away=offloading.away: sent.append(x.numel()) or away(x, device))
    plain, away = (session_of(light, output_dir=str(tmp_path / name), gradient_checkpointing=checkpointing) for name in ("plain", "away"))
    steps_with_failures(plain, 2)
    assert not sent
    away.plan.activations_away = True
    steps_with_failures(away, 2)
    assert len(sent) > (2 if checkpointing else 20)
    assert_close(weights_of(away), weights_of(plain))


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_weights_in_main_memory_give_the_same_weights_and_come_back(session_of, light, backend, tmp_path, share):
    """On a CPU main memory is where they are: what is looked at is that each layer is asked anew, and that nothing is changed."""
    plain, streamed = (session_of(light, output_dir=str(tmp_path / name)) for name in ("plain", "streamed"))
    steps_with_failures(plain, 2)
    unet = backend.components()["unet"]
    before = {name: (p, p.data_ptr(), p.detach().clone()) for name, p in unet.named_parameters()}
    weights = offloading.StreamedWeights(unet, backend.device)
    with streamed._borrowed():
        gone = weights.send(share)
        moved = [name for name, (p, place, _) in before.items() if p.data_ptr() != place]
        weights.load()
        assert moved == [name for name, (p, place, _) in before.items() if p.data_ptr() != place]
        assert len(moved) > 10 and all(name.endswith("weight") for name in moved)
        total = sum(p.numel() * 4 for name, p in unet.named_parameters() if name.endswith("weight") and p.dim() > 1)
        assert share * total <= gone <= total and (share == 1) == (gone == total)
        assert weights.send(share / 2) < gone  # what is away already stays away
        for _ in range(2):
            streamed.train_step()
        weights.bring_back()
    assert all(p is before[name][0] and torch.equal(p, before[name][2]) and not p.requires_grad for name, p in unet.named_parameters())
    assert_close(weights_of(streamed), weights_of(plain))


def test_after_the_last_rung_the_work_is_kept_and_the_error_says_what_would_fit(session_of, light, backend, tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text("import torch\ndef fail(out, target, t, batch):\n    if batch['step'] == 1:\n"
                    "        raise torch.cuda.OutOfMemoryError('CUDA out of memory, on purpose')\n    return 0.0 * out.sum()\n")
    ends = []

    class Watch(Listener):
        def ended(self, session, outcome):
            ends.append(outcome)

    session = session_of(light, [Watch()], loss_term=f"{mine}:fail")
    with pytest.raises(MemoryFull) as caught:
        session.train()
    [outcome] = ends
    assert str(caught.value) in outcome.message and "\n" not in outcome.message and "on purpose" in outcome.message
    assert outcome.status == "failed" and outcome.step == 1 and outcome.lora.is_file()
    assert "resolution" in outcome.message and "gradient checkpointing" in outcome.message and "parts of 1" in outcome.message
    assert not [m for m in backend.components()["unet"].modules() if "forward" in m.__dict__]


def test_what_a_failed_step_held_is_free_when_the_run_has_ended(session_of, light, backend, monkeypatch):
    """Whoever shows the error keeps it: a host would go on with what the last step's activations take."""
    held, predict = [], backend.predict

    def full(*args):
        out_BCHW = predict(*args)
        held.append(weakref.ref(out_BCHW))
        raise torch.cuda.OutOfMemoryError("CUDA out of memory, on purpose")

    monkeypatch.setattr(backend, "predict", full)
    with pytest.raises(MemoryFull) as caught:
        session_of(light).train()
    gc.collect()
    assert len(held) > 1 and not any(ref() is not None for ref in held) and isinstance(caught.value.__cause__, torch.cuda.OutOfMemoryError)


@pytest.mark.parametrize("times, fits", [(1, True), (10**6, False)])
def test_a_caption_that_does_not_fit_is_encoded_with_the_other_encoders_away(session_of, light, backend, monkeypatch, times, fits):
    encode, calls, away = backend.encode_text, [], []

    def full(captions, grad=False):
        calls.append(captions)
        if len(calls) <= times:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory, on purpose")
        return encode(captions, grad)

    monkeypatch.setattr(backend, "encode_text", full)
    monkeypatch.setattr(backend, "offload_encoders", lambda: away.append(len(calls)))
    if fits:
        assert session_of(light).train().status == "completed"
    else:
        with pytest.raises(MemoryFull, match="on purpose.*resolution"):
            session_of(light)
    assert away[0] == 1


@pytest.mark.parametrize("times, fits", [(1, True), (10**6, False)])
def test_a_host_that_cannot_load_what_is_lent_is_asked_again_with_less(session_of, light, backend, monkeypatch, times, fits):
    borrow, calls, watch = backend.borrow, [], Rungs()

    @contextmanager
    def full():
        with borrow():
            calls.append(1)
            if len(calls) <= times:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory, on purpose")
            yield

    session = session_of(light, [watch])
    monkeypatch.setattr(backend, "borrow", full)
    if fits:
        assert session.train().status == "completed" and len(watch.taken) == 1
    else:
        with pytest.raises(MemoryFull, match="on purpose"):
            session.train()
    assert not [m for m in backend.components()["unet"].modules() if "forward" in m.__dict__]


def test_previews_without_memory_are_left_out(session_of, config, monkeypatch, caplog, backend):
    def sample(request):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory, on purpose")

    monkeypatch.setattr(backend, "sample", sample)
    session = session_of(config, preview_steps=2)
    assert session.train().status == "completed"
    assert "no memory to draw previews" in caplog.text


def test_pictures_are_encoded_one_by_one_where_a_batch_does_not_fit(backend, monkeypatch):
    x_B3HW = torch.rand(3, 3, 64, 64) * 2 - 1
    expected, limit = backend.encode_image(x_B3HW), 1
    encode = backend.encode_image

    def tight(x):
        if len(x) > limit:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory, on purpose")
        return encode(x)

    monkeypatch.setattr(backend, "encode_image", tight)
    torch.testing.assert_close(encode_image(backend, x_B3HW), expected, rtol=1e-4, atol=1e-5)
    limit = 0
    with pytest.raises(ValueError, match="64 x 64; set resolution lower"):
        encode_image(backend, x_B3HW)


@pytest.mark.parametrize("error, is_one", [
    (torch.cuda.OutOfMemoryError("x"), True), (MemoryError(), True), (RuntimeError("CUDA error: out of memory"), True),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"), True),
    (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False), (ValueError("out of memory"), False)])
def test_what_counts_as_out_of_memory(error, is_one):
    assert is_out_of_memory(error) is is_one


def test_an_error_of_another_kind_is_not_tried_again(backend):
    calls = []

    def work():
        calls.append(1)
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match="something else"):
        attempt(Plan(backend, False, 4), work)
    assert calls == [1]


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad])
def test_undo_takes_back_weights_optimizer_and_average(kind):
    torch.manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(3)) for _ in range(2)]
    optimizer, ema = kind(parameters, lr=0.1), EMA(parameters, 0.9)

    def step():
        for p in parameters:
            p.grad = torch.ones_like(p)
        optimizer.step()
        ema.update()

    for _ in range(2):  # before and after the optimizer has made its state
        expected = [p.detach().clone() for p in parameters], [x.clone() for x in ema.averages], ema.updates
        undo = Undo(parameters, optimizer, ema)
        step()
        once = [p.detach().clone() for p in parameters]
        undo.restore()
        found = [p.detach().clone() for p in parameters], [x.clone() for x in ema.averages], ema.updates
        assert all(torch.equal(a, b) for x, y in zip(found[:2], expected[:2]) for a, b in zip(x, y)) and found[2] == expected[2]
        step()
        assert all(torch.equal(p, x) for p, x in zip(parameters, once))
