import json

import pytest
import torch
from safetensors.torch import save_file

from hotlora.trainer.config import TrainConfig
from hotlora.trainer.inspect_file import inspect_data, inspect_file
from hotlora.trainer.lora_file import build_metadata, save_lora

WEIGHTS = {
    "lora_unet_mid_block_attentions_0_proj_in": {"down": torch.ones(8, 16), "up": torch.ones(16, 8), "alpha": 4.0},
    "lora_unet_mid_block_resnets_0_conv1": {"down": torch.ones(2, 16, 3, 3), "up": torch.ones(16, 2, 1, 1), "alpha": 1.0},
    "lora_te_text_model_encoder_layers_0_mlp_fc1": {"down": torch.ones(8, 16), "up": torch.ones(16, 8), "alpha": 4.0},
}


@pytest.fixture
def ours(tmp_path):
    config = TrainConfig.from_dict(
        {"train_data_dir": "x", "learning_rate": 3e-4, "lora_rank": 8, "lora_alpha": 4, "steps": 250, "seed": 11}
    )
    metadata = build_metadata(
        config,
        name="face",
        family="sd15",
        base_hash="cd" * 32,
        base_name="dreams",
        trigger="sks 脸",
        pictures=12,
        tag_counts={"smile": 3, "sks 脸": 12},
        steps=250,
        resolution=512,
        finished_at=0.0,
    )
    path = tmp_path / "face.safetensors"
    save_lora(path, WEIGHTS, metadata)
    return path


def test_the_report_has_one_line_per_fact(ours):
    report = dict(line.split("  ", 1) for line in inspect_file(ours).splitlines())
    report = {label: value.strip() for label, value in report.items()}
    assert report["file"] == "face.safetensors"
    assert report["size"] == f"{ours.stat().st_size / 1e6:.2f} MB, float16"
    assert (report["format"], report["method"]) == ("kohya", "LoRA")
    assert report["UNet"] == "2 layers, 1 of them convolutions, rank 2 to 8, alpha 1 to 4"
    assert report["text encoder"] == "1 layers, rank 8, alpha 4"
    assert (report["base"], report["base hash"], report["trigger"]) == ("dreams, sd_v1", "cd" * 32, "sks 脸")
    assert report["frequent tags"] == "sks 脸 (12), smile (3)"
    assert (report["steps"], report["pictures"], report["learning rate"], report["optimizer"], report["seed"]) == (
        "250",
        "12",
        "0.0003",
        "adamw",
        "11",
    )


def test_json_has_the_same_facts(ours):
    facts = json.loads(inspect_file(ours, as_json=True))
    assert facts == inspect_data(ours)
    assert facts["components"]["unet"] == {"layers": 2, "conv_layers": 1, "ranks": [2, 8], "alphas": [1.0, 4.0]}
    assert facts["metadata"]["ss_output_name"] == "face"


@pytest.mark.parametrize(
    "name, form",
    [
        ("unet.conv_in.lora_A.weight", "diffusers / PEFT"),
        ("unet.conv_in.lora.down.weight", "diffusers / PEFT"),
        ("diffusion_model.conv_in.lora_down.weight", "ComfyUI"),
        ("lora_unet_conv_in.lora_down.weight", "kohya"),
    ],
)
def test_files_of_others_without_metadata(tmp_path, name, form):
    path = tmp_path / "x.safetensors"
    save_file({name: torch.ones(2, 3), name.replace("down", "up").replace("lora_A", "lora_B"): torch.ones(4, 2)}, path)
    report = inspect_file(path)
    assert form in report and "rank 2, alpha 2" in report
    assert report.count("not stated") == 3


def test_metadata_of_others_cannot_break_the_report_or_the_terminal(tmp_path):
    path = tmp_path / "x.safetensors"
    pair = {"lora_unet_conv_in.lora_down.weight": torch.ones(2, 3), "lora_unet_conv_in.lora_up.weight": torch.ones(4, 2)}
    save_file(
        pair,
        path,
        {
            "ss_tag_frequency": '{"a": {"x\\u001b[31m": 2, "y": "z"}, "b": 3}',
            "hotlora.config": "[",
            "ss_seed": "7\n8",
            "ss_sd_model_name": "\x1b]0;",
        },
    )
    report = inspect_file(path)
    assert report.replace("\n", "").isprintable()
    assert "x [31m (2)" in report and "seed" in report


def test_what_is_no_lora_is_an_error(tmp_path):
    save_file({"a.weight": torch.ones(2)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="not a LoRA"):
        inspect_file(tmp_path / "x.safetensors")
