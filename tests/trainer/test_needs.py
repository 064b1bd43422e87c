"""Estimates before a run: the sizes are those of the real models, and what is said fits what happens."""
import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hotlora.trainer.config import TrainConfig
from hotlora.trainer.hosts.parts import MODELS_DIR
from hotlora.trainer.needs import FAMILIES, family_of_file, memory_of, needs_of, speed_of

CPU = torch.device("cpu")


@pytest.mark.parametrize("family", ["sd15", "sd2", "sdxl"])
def test_sizes_are_those_of_the_models(family):
    """Counted on models without data."""
    diffusers = pytest.importorskip("diffusers", reason="the shapes are diffusers'")
    from torch.utils.flop_counter import FlopCounterMode

    shapes = json.loads((MODELS_DIR / f"{family}.json").read_text(encoding="utf-8"))
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(**shapes["unet"])
        more = {"text_embeds": torch.empty(1, 1280), "time_ids": torch.empty(1, 6)} if family == "sdxl" else None
        arguments = torch.empty(1, 4, 64, 64), torch.zeros(1), torch.empty(1, 77, shapes["unet"]["cross_attention_dim"])
    sizes = FAMILIES[family]
    trained = [m for name, m in unet.named_modules() if isinstance(m, nn.Linear) and (".attn" in name or ".ff." in name)]
    assert sizes.per_rank == pytest.approx(sum(m.in_features + m.out_features for m in trained), rel=0.02)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        unet(*arguments, added_cond_kwargs=more)
    constant, linear, quadratic = sizes.flops
    assert constant + 4 * linear + 16 * quadratic == pytest.approx(counter.get_total_flops(), rel=0.03)
    assert sizes.weights > sum(p.numel() for p in unet.parameters())


def test_sizes_of_the_embedded_base():
    pytest.importorskip("diffusers", reason="the embedded base needs diffusers, which hosts may lack")
    from torch.utils.flop_counter import FlopCounterMode

    from hotlora.trainer.hosts.standalone import load_base
    from hotlora.trainer.targets import find_targets

    base, sizes = load_base("demo", "cpu"), FAMILIES["demo"]
    unet = base.components()["unet"]
    assert sizes.per_rank == pytest.approx(sum(m.in_features + m.out_features for m in find_targets(unet, None).values()), rel=0.02)
    with base.borrow(), torch.no_grad(), FlopCounterMode(display=False) as counter:
        base.predict(torch.zeros(1, base.latent_channels, 32, 32), torch.zeros(1, dtype=torch.long), base.encode_text([""]), torch.zeros(1, 6))
    assert counter.get_total_flops() == pytest.approx(sizes.flops[1], rel=0.03)


def test_the_time_follows_the_speed_of_this_machine(monkeypatch):
    def needs(speed: float, device: str = "cpu", **changes):
        monkeypatch.setattr("hotlora.trainer.needs.speed_of", lambda device: speed)
        monkeypatch.setattr("hotlora.trainer.needs.memory_of", lambda device: None)
        return needs_of(TrainConfig(train_data_dir="x", **changes), "demo", torch.device(device))

    def seconds(speed: float, **changes) -> float:
        return needs(speed, **changes).seconds_per_picture

    slow, fast = 1e8, 1e15  # so slow that calling the operations costs nothing beside; so fast that the arithmetic costs nothing
    assert seconds(slow) == pytest.approx(2 * seconds(2 * slow), rel=0.02)
    assert seconds(slow, resolution=128) == pytest.approx(4 * seconds(slow, resolution=64), rel=0.02)
    assert seconds(slow, gradient_checkpointing=True) == pytest.approx(1.5 * seconds(slow), rel=0.02)
    assert seconds(fast, batch_size=4) == pytest.approx(seconds(fast) / 4, rel=0.02)
    assert seconds(fast, conv_rank=4) > 1.3 * seconds(fast) and seconds(fast, gradient_checkpointing=True) > 1.5 * seconds(fast)
    # 25 times a forward with and without the prompt, of which a step has two
    assert needs(slow).seconds_per_preview == pytest.approx(25 * seconds(slow), rel=0.02)
    assert 5 * seconds(fast) < needs(fast).seconds_per_preview < 10 * seconds(fast)
    # a GPU works while it is told what comes next
    assert needs(fast, "cuda").seconds_per_picture == needs(fast * 100, "cuda").seconds_per_picture


def test_what_makes_a_run_larger_makes_the_estimate_larger():
    def needs(**changes):
        return needs_of(TrainConfig(train_data_dir="x", **changes), "sd15", CPU)

    plain = needs(resolution=256)
    # measured in ComfyUI: 4.5 GB of base and program, and 0.6 GB more for a step
    assert 4.5e9 < plain.bytes < 6e9 and plain.total == memory_of(CPU) > 1e9
    assert needs(resolution=512).bytes > needs(resolution=256, batch_size=2).bytes > plain.bytes
    assert needs(resolution=512, gradient_checkpointing=True).bytes < needs(resolution=512).bytes
    assert needs(resolution=512).seconds_per_picture > 3.5 * plain.seconds_per_picture
    assert needs_of(TrainConfig(train_data_dir="x"), None, CPU) is None and needs_of(TrainConfig(train_data_dir="x"), "flux", CPU) is None
    assert speed_of("cpu") > 1e8


@pytest.mark.parametrize("width, family", [(768, "sd15"), (1024, "sd2"), (2048, "sdxl"), (640, None)])
def test_a_file_is_told_by_its_names(tmp_path, width, family):
    file = tmp_path / "model.safetensors"
    save_file({"model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": torch.zeros(4, width), "other": torch.zeros(3)}, file)
    assert family_of_file(file) == family


def test_other_files_have_no_family(tmp_path):
    for name, data in (("a.safetensors", b""), ("b.safetensors", b"\xff" * 40), ("c.safetensors", (9).to_bytes(8, "little") + b"[1, 2, 3]"), ("d.ckpt", b"x")):
        (tmp_path / name).write_bytes(data)
        assert family_of_file(tmp_path / name) is None
    assert family_of_file(tmp_path / "none.safetensors") is None and family_of_file(None) is None
