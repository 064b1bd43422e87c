"""The step bench on a tiny model: that it compares like with like and that its output can be read. Speed is not tested."""
from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("peft", "0.7", reason="older peft builds its layers in another way")
from hotlora.bench import step  # noqa: E402

SCRIPT = Path(step.__file__)


@pytest.fixture(scope="module")
def bench():
    bench = step.Bench(tiny=True)
    bench.prepare(list(step.VARIANTS))
    return bench


def test_the_shape_is_that_of_stable_diffusion_1_5():
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**step.SD15)
    assert sum(p.numel() for p in unet.parameters()) == 859_520_964


def test_both_train_the_same_layers_of_the_same_weights(bench):
    ours = {path: layer for (_, path), layer in bench.adapter.layers.items()}
    theirs = {path: layer for path, layer in bench.peft_unet.named_modules() if hasattr(layer, "lora_A")}
    assert ours.keys() == theirs.keys()
    assert sum(p.numel() for p in bench.adapter.parameters()) == sum(p.numel() for p in bench.peft_parameters)
    for path, layer in theirs.items():
        assert layer.base_layer.weight.data_ptr() == bench.unet.get_submodule(path).weight.data_ptr()


def test_steps_train_the_adapters_and_leave_the_model_as_it_was(bench):
    inputs = bench.latents, bench.t, bench.hidden
    with torch.no_grad():
        before = bench.unet(*inputs).sample
    for name in ("step", "checkpointed", "peft", "peft_checkpointed"):
        parameters = bench.peft_parameters if "peft" in name else list(bench.adapter.parameters())
        old = [p.detach().clone() for p in parameters]
        seconds, outside = getattr(bench, name)()
        assert 0 < outside < seconds
        assert not any(torch.equal(a, b) for a, b in zip(old, parameters) if b.shape[1] == step.RANK), "every `up` has moved"
    with torch.no_grad():
        assert torch.equal(bench.unet(*inputs).sample, before)


@pytest.mark.slow
def test_the_command_prints_one_json_object_and_a_table():
    command = [sys.executable, str(SCRIPT), "--tiny", "--json", "--repeats", "1", "--variants", "step"]
    printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    result = json.loads(printed)
    assert result["bench"] == "step" and result["rank"] == 8 and result["picture"] == 64
    seconds = result["seconds"]
    assert list(seconds) == ["forward", "step"] and min(seconds.values()) > 0
    assert result["ratio"] == {"step": seconds["step"] / (2 * seconds["forward"])}
    assert 0 < result["outside"]["step"] < 1
    on_cpu = result["dtype"] == "float32"
    assert all(peak > (50e6 if on_cpu else result["parameters"] * 2) for peak in result["peak_bytes"].values())
    table = step.report(result)
    assert "| training step |" in table and "peft" not in table
