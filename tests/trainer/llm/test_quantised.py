"""Bases whose weights are quantised already: told before anything is loaded what cannot be done with them, and counted as they lie on the disk."""
from __future__ import annotations

import json
import shutil
from dataclasses import replace
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file, save_file

from hotlora.trainer.cli import main
from hotlora.trainer.llm import needs
from hotlora.trainer.llm.quantised import check_quantised, stored_bytes

CPU = torch.device("cpu")
KINDS = {"bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True}, "optimum": {"quant_method": "gptq", "bits": 4},
         "gptqmodel": {"quant_method": "awq", "bits": 4}, "compressed_tensors": {"quant_method": "compressed-tensors", "config_groups": {}}}
"""What config.json says, by the package that is needed."""


def quantised(base, folder, kind):
    """A copy of `base` whose config.json says that its weights are quantised."""
    shutil.copytree(base, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": kind}))
    return folder


@pytest.fixture
def fp8_base(base, tmp_path):
    """A base in FP8 with a scale for each weight, which transformers reads without another package."""
    folder = quantised(base, tmp_path / "fp8", {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]})
    weights = load_file(folder / "model.safetensors")
    for name in [name for name in weights if "_proj" in name]:
        scale = weights[name].abs().max() / 448
        weights[name] = (weights[name] / scale).to(torch.float8_e4m3fn)
        weights[f"{name}_scale_inv"] = scale.view(1, 1)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("package", KINDS)
def test_a_package_that_is_missing_is_named_before_anything_is_loaded(config, base, run_of, tmp_path, package, capsys):
    if find_spec(package):
        pytest.skip(f"{package} is installed")
    folder = quantised(base, tmp_path / "base", KINDS[package])
    (folder / "model.safetensors").unlink()
    method = KINDS[package]["quant_method"]
    expected = f"the weights of the base .*base are quantised already .{method}., and that cannot be used here: .*{package.replace('_', '.')}.*Install what is missing"
    with pytest.raises(ValueError, match=expected):
        run_of(replace(config, base_model=str(folder)))
    assert main(["generate", "--base", str(folder), "--prompt", "a", "--device", "cpu"]) == 1
    assert package.replace("_", "-") in capsys.readouterr().err


@pytest.mark.parametrize("changes, expected", [
    ({"merge": True}, "merge is true, but the weights of the base .* are quantised already .fp8., and a LoRA cannot be worked into such weights; set merge: false"),
    ({"load_in": "4bit"}, "load_in is 4bit, but the weights of the base .* are quantised already .fp8.; remove load_in"),
])
def test_what_cannot_be_done_with_such_a_base_is_said_before_the_training(config, fp8_base, run_of, changes, expected):
    with pytest.raises(ValueError, match=expected):
        run_of(replace(config, base_model=str(fp8_base), **changes))


@pytest.mark.skipif(torch.cuda.is_available(), reason="transformers widens FP8 where there is no GPU")
def test_an_fp8_base_is_trained(config, fp8_base, run_of):
    run = run_of(replace(config, base_model=str(fp8_base)))
    assert not run.in_bits and run.train().status == "completed"


def test_weights_in_few_bits_are_counted_as_they_lie_on_the_disk(config, base, tmp_path, monkeypatch):
    folder = quantised(base, tmp_path / "base", KINDS["bitsandbytes"])
    (folder / "consolidated.safetensors").write_bytes(bytes(5000))
    size = (folder / "model.safetensors").stat().st_size
    assert needs.weights_on_paper(folder, torch.float32, None, in_bits=True) == stored_bytes(folder) == size
    parts = {"a": "model-00001-of-00002.safetensors", "b": "model-00001-of-00002.safetensors", "c": "model-00002-of-00002.safetensors"}
    for name, amount in zip(sorted(set(parts.values())), (300, 40)):
        (folder / name).write_bytes(bytes(amount))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    assert stored_bytes(folder) == 340
    monkeypatch.setattr(needs, "free_memory", lambda device: 1000)
    with pytest.raises(ValueError, match="for its weights alone .* try gradient_checkpointing: true") as error:
        needs.check_fits(folder, 2000, CPU, config)
    assert "load_in" not in str(error.value)


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_a_bitsandbytes_base_is_trained_and_its_count_is_that_of_its_weights(config, base, run_of, tmp_path, bits):
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM

    from hotlora.trainer.llm.model import quantization

    folder = tmp_path / "base"
    shutil.copytree(base, folder)
    AutoModelForCausalLM.from_pretrained(base, quantization_config=quantization(bits, torch.float32), device_map={"": "cpu"}).save_pretrained(folder)
    run = run_of(replace(config, base_model=str(folder)))
    assert run.in_bits and run.needs.weights < stored_bytes(folder) < 1.5 * run.needs.weights
    assert run.train().status == "completed"


def test_a_usual_base_is_not_quantised(base):
    assert check_quantised(base, CPU, "4bit") is False
