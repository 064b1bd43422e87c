"""Names from a settings file to module paths."""
from __future__ import annotations

import pytest
import torch
from torch import nn

from hotlora.trainer.targets import find_targets

PATHS = ["conv_in", "down.0.conv1", "down.0.attn.to_q", "down.0.attn.to_v", "down.0.attn.to_out.0", "down.0.ff.net.0.proj",
         "down.0.ff.net.2", "down.0.proj_in", "time_emb", "up.1.attn.q_proj", "up.1.attn.out_proj", "up.1.mlp.fc1", "conv_out"]


def tree():
    model = nn.Module()
    for path in PATHS:
        *parents, name = path.split(".")
        part = model
        for parent in parents:
            if parent not in part._modules:
                part.add_module(parent, nn.Module())
            part = part._modules[parent]
        part.add_module(name, nn.Conv2d(2, 2, 3) if "conv" in name or name == "proj_in" else nn.Linear(2, 2))
    model.pooling = nn.MultiheadAttention(2, 1)
    model.norm = nn.LayerNorm(2)
    model.upsample = nn.ConvTranspose2d(2, 2, 2)
    model.depthwise = nn.Conv2d(2, 2, 3, groups=2)
    return model


LINEAR = [path for path in PATHS if "conv" not in path and "proj_in" not in path]


@pytest.mark.parametrize("entries, expected", [
    (None, [path for path in LINEAR if path != "time_emb"]),
    (["q_proj", "v_proj"], ["down.0.attn.to_q", "down.0.attn.to_v", "up.1.attn.q_proj"]),
    (["to_q"], ["down.0.attn.to_q", "up.1.attn.q_proj"]),
    (["out_proj"], ["down.0.attn.to_out.0", "up.1.attn.out_proj"]),
    (["to_out.0"], ["down.0.attn.to_out.0", "up.1.attn.out_proj"]),
    (["0.attn.q_proj"], ["down.0.attn.to_q"]),
    (["net.2", "time_emb"], ["down.0.ff.net.2", "time_emb"]),
    (["proj_in"], ["down.0.proj_in"]),
    (["all-linear"], LINEAR),
    (["conv1", "conv_in"], ["conv_in", "down.0.conv1"]),
], ids=str)
def test_entries(entries, expected):
    assert list(find_targets(tree(), entries)) == expected


def test_convolutions_are_added_but_not_those_at_the_ends():
    added = ["down.0.conv1", "down.0.attn.to_q", "down.0.proj_in", "up.1.attn.q_proj"]
    assert list(find_targets(tree(), ["to_q"], convs=True)) == added


@pytest.mark.parametrize("entry", ["to_z", "attn", "q", "", "norm", "depthwise", "pooling.out_proj", "upsample"])
def test_an_entry_that_matches_nothing_lists_what_exists(entry):
    with pytest.raises(ValueError, match=f"'{entry}'.*conv1, conv_in, .*net.2, out_proj.*to_out.0, to_q, to_v"):
        find_targets(tree(), [entry])


def test_default_targets_of_a_diffusers_denoiser():
    diffusers = pytest.importorskip("diffusers")
    with torch.device("meta"):
        unet = diffusers.UNet2DConditionModel(
            block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=16, attention_head_dim=4, norm_num_groups=8,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))
    found = find_targets(unet, None)
    assert len(found) == 4 * 10, "four transformer blocks of eight projections and two layers of an MLP"
    assert all(".attn" in path or ".ff.net." in path for path in found)
