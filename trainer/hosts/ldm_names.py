"""Names of weights in single-file checkpoints (LDM, open_clip), from their names in diffusers and transformers.

A name that a function does not know comes back as it is.
"""
from __future__ import annotations

import re
from typing import Any, Mapping

from ..lora_keys import UNetLayout, ldm_path

_VAE_ATTENTION = {
    "group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out",
    "query": "q", "key": "k", "value": "v", "proj_attn": "proj_out",
}
_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
}


def unet_name(key: str, layout: UNetLayout) -> str:
    """`down_blocks.1.attentions.0.proj_in.weight` -> `input_blocks.4.1.proj_in.weight`."""
    path, _, kind = key.rpartition(".")
    return f"{ldm_path(path, layout)}.{kind}"


def vae_name(path: str, config: Mapping[str, Any]) -> str:
    """`decoder.up_blocks.0.resnets.1.conv1.weight` -> `decoder.up.3.block.1.conv1.weight`."""
    match = re.match(r"(encoder|decoder)\.(?:down|up)_blocks\.(\d+)\.(resnets|downsamplers|upsamplers)\.(\d+)\.(.*)$", path)
    if match:
        part, block, kind, layer, rest = match[1], int(match[2]), match[3], match[4], match[5]
        place = f"encoder.down.{block}" if part == "encoder" else f"decoder.up.{len(config['block_out_channels']) - 1 - block}"
        if kind == "resnets":
            return f"{place}.block.{layer}." + rest.replace("conv_shortcut", "nin_shortcut")
        return f"{place}.{'downsample' if kind == 'downsamplers' else 'upsample'}.{rest}"
    match = re.match(r"(encoder|decoder)\.mid_block\.(resnets|attentions)\.(\d+)\.(.*)$", path)
    if match:
        part, kind, layer, rest = match[1], match[2], int(match[3]), match[4]
        if kind == "attentions":
            return f"{part}.mid.attn_{layer + 1}." + _replace_start(rest, _VAE_ATTENTION)
        return f"{part}.mid.block_{layer + 1}." + rest.replace("conv_shortcut", "nin_shortcut")
    return path.replace("conv_norm_out", "norm_out")


def open_clip_name(path: str) -> tuple[str, int | None]:
    """Name in open_clip, and which third of it (q, k, v are stored as one) or None for the whole."""
    path = path[len("text_model."):] if path.startswith("text_model.") else path
    match = re.match(r"encoder\.layers\.(\d+)\.(.*)$", path)
    if match:
        place, rest = f"transformer.resblocks.{match[1]}", match[2]
        fused = re.match(r"self_attn\.([qkv])_proj\.(weight|bias)$", rest)
        if fused:
            return f"{place}.attn.in_proj_{fused[2]}", "qkv".index(fused[1])
        return f"{place}." + _replace_start(rest, _OPEN_CLIP_LAYER), None
    outside = {
        "embeddings.token_embedding.weight": "token_embedding.weight",
        "embeddings.position_embedding.weight": "positional_embedding",
        "final_layer_norm.weight": "ln_final.weight", "final_layer_norm.bias": "ln_final.bias",
        "text_projection.weight": "text_projection",
    }
    return outside.get(path, path), None


def _replace_start(path: str, names: Mapping[str, str]) -> str:
    for old, new in names.items():
        if path == old or path.startswith(old + "."):
            return new + path[len(old):]
    return path
