"""The names of layers: how LoRA files and model trees spell one and the same layer.

A *path* is a module's path with dots, a *key prefix* is what stands before `.lora_down.weight` in a kohya file:
`lora_unet_`, `lora_te_` (one text encoder), `lora_te1_` or `lora_te2_` (two), then a path with every dot an underscore. UNets
come in two spellings, that of diffusers (`down_blocks.1.attentions.0`) and that of the original code, LDM (`input_blocks.4.1`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Callable, Iterable

_OUTSIDE_BLOCKS = {  # LDM -> diffusers
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
}
_IN_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_MIDDLE = {"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"}
_OUTSIDE_BLOCKS_LDM = {value: key for key, value in _OUTSIDE_BLOCKS.items()}
_IN_RESNET_LDM = {value: key for key, value in _IN_RESNET.items()}
_MIDDLE_LDM = {value: key for key, value in _MIDDLE.items()}

# Names that contain an underscore themselves; everything else between two underscores is one step of a path.
_COMPOUNDS = """
    down_blocks mid_block up_blocks transformer_blocks input_blocks middle_block output_blocks in_layers out_layers emb_layers
    skip_connection time_embed label_emb time_embedding add_embedding class_embedding linear_1 linear_2 conv_in conv_out
    conv_norm_out conv_shortcut time_emb_proj proj_in proj_out to_q to_k to_v to_out norm_out group_norm
    text_model self_attn q_proj k_proj v_proj out_proj layer_norm1 layer_norm2 final_layer_norm text_projection
    token_embedding position_embedding cond_proj
""".split()
_STEP = re.compile("(?:" + "|".join(sorted(_COMPOUNDS, key=len, reverse=True)) + r")(?=_|$)|[^_]+")

# What a path in diffusers' spelling starts with.
_UNET_ROOTS = set(
    "conv_in time_embedding add_embedding class_embedding down_blocks mid_block up_blocks conv_norm_out conv_out".split()
)
_TEXT_ROOTS = {"text_model", "text_projection"}

# What stands before a path in files that spell paths with dots, and the component that it means.
_DOTTED_PREFIXES = (
    ("model.diffusion_model.", "unet"),
    ("diffusion_model.", "unet"),
    ("unet.", "unet"),
    ("transformer.", "unet"),
    ("text_encoder_2.", "te2"),
    ("text_encoder.", "te"),
    ("clip_l.transformer.", "te"),
    ("clip_h.transformer.", "te"),
    ("clip_g.transformer.", "te2"),
)
_TEXT_PATH = re.compile(r"^(text_model|encoder\.layers|text_projection)\b")
_OLD_ATTENTION = re.compile(r"\.(?:processor\.)?to_(q|k|v|out)(_lora)?$")
_OLD_TEXT = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "out_proj"}


@dataclass(frozen=True)
class UNetLayout:
    """What is needed to translate between the two spellings of a UNet: SD1.5, SD2 and SDXL have 2 resnets per level."""

    resnets: int = 2
    up_attention: tuple[bool, ...] = (False, True, True, True)
    """For each level of the upward half, whether it has attention: the upsampler's number in LDM depends on it."""


SDXL_LAYOUT = UNetLayout(2, (True, True, False))


def layout_of(paths: Iterable[str]) -> UNetLayout:
    """The layout of a UNet from the paths of its modules, in either spelling."""
    paths = list(paths)
    resnets = _numbers(r"down_blocks\.0\.resnets\.(\d+)\.conv1$", paths)
    if resnets:
        up = _numbers(r"up_blocks\.(\d+)\.", paths)
        attention = _numbers(r"up_blocks\.(\d+)\.attentions\.", paths)
        return UNetLayout(max(resnets) + 1, tuple(level in attention for level in range(max(up, default=-1) + 1)))
    downsamplers = _numbers(r"input_blocks\.(\d+)\.0\.op$", paths)
    blocks = _numbers(r"input_blocks\.(\d+)\.", paths)
    per_level = min(downsamplers) if downsamplers else max(blocks, default=2) + 1
    attention = {block // per_level for block in _numbers(r"output_blocks\.(\d+)\.1\.transformer_blocks\.", paths)}
    levels = max(_numbers(r"output_blocks\.(\d+)\.", paths), default=-1) // per_level + 1
    return UNetLayout(per_level - 1, tuple(level in attention for level in range(levels)))


def diffusers_path(path: str, layout: UNetLayout = UNetLayout()) -> str:
    """A UNet path in diffusers' spelling; anything that is not LDM's spelling comes back as it is."""
    if path in _OUTSIDE_BLOCKS:
        return _OUTSIDE_BLOCKS[path]
    match = re.match(r"(input|output)_blocks\.(\d+)\.(\d+)\.(.+)$", path)
    if match:
        half, number, slot, rest = match[1], int(match[2]), match[3], match[4]
        level, position = divmod(number - 1 if half == "input" else number, layout.resnets + 1)
        side = "down" if half == "input" else "up"
        if rest in ("op", "conv"):
            return f"{side}_blocks.{level}.{side}samplers.0.conv"
        kind = "resnets" if slot == "0" else "attentions"
        return f"{side}_blocks.{level}.{kind}.{position}.{_IN_RESNET.get(rest, rest)}"
    match = re.match(r"middle_block\.([012])\.(.+)$", path)
    return f"mid_block.{_MIDDLE[match[1]]}.{_IN_RESNET.get(match[2], match[2])}" if match else path


def ldm_path(path: str, layout: UNetLayout = UNetLayout()) -> str:
    """A UNet path in LDM's spelling, the inverse of `diffusers_path`."""
    if path in _OUTSIDE_BLOCKS_LDM:
        return _OUTSIDE_BLOCKS_LDM[path]
    per_level = layout.resnets + 1
    match = re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.+)$", path)
    if match:
        number, slot = int(match[2]) * per_level + int(match[4]), 0 if match[3] == "resnets" else 1
        block = f"input_blocks.{number + 1}" if match[1] == "down" else f"output_blocks.{number}"
        return f"{block}.{slot}.{_IN_RESNET_LDM.get(match[5], match[5])}"
    match = re.match(r"(down|up)_blocks\.(\d+)\.(?:down|up)samplers\.0\.conv$", path)
    if match and match[1] == "down":
        return f"input_blocks.{(int(match[2]) + 1) * per_level}.0.op"
    if match:
        level = int(match[2])
        has_attention = level < len(layout.up_attention) and layout.up_attention[level]
        return f"output_blocks.{level * per_level + layout.resnets}.{2 if has_attention else 1}.conv"
    match = re.match(r"mid_block\.((?:resnets|attentions)\.\d+)\.(.+)$", path)
    if match and match[1] in _MIDDLE_LDM:
        return f"middle_block.{_MIDDLE_LDM[match[1]]}.{_IN_RESNET_LDM.get(match[2], match[2])}"
    return path


def text_path(path: str) -> str:
    """A CLIP path as files spell it: it starts with `text_model`, which transformers 5 no longer has, or `text_projection`."""
    start = path.find("text_model.")
    if start >= 0:
        return path[start:]
    return path if path.startswith("text_projection") else f"text_model.{path}"


def key_prefix(name: str) -> str:
    """The kohya key prefix of a layer as any file spells it.

    `name` is what stands before `.lora_down`, `.lora_A`, `.alpha` and so on: a kohya prefix already, or a path with dots as
    diffusers, PEFT and ComfyUI write it, old attention processors (`attn1.processor.to_q_lora`) included.
    """
    if name.startswith("lora_") and "." not in name:
        return name
    component, path = split_dotted(name)
    if component == "unet":
        path = _OLD_ATTENTION.sub(lambda match: f".to_{match[1]}{'.0' if match[1] == 'out' else ''}", path)
    else:
        path = text_path(_OLD_ATTENTION.sub(lambda match: f".{_OLD_TEXT[match[1]]}", path))
    return f"lora_{component}_{path.replace('.', '_')}"


def split_dotted(name: str) -> tuple[str, str]:
    """Component (`unet`, `te`, `te2`) and module path of a layer that a file spells with dots."""
    for wrapper in ("base_model.model.", "text_encoders."):
        name = name[len(wrapper) :] if name.startswith(wrapper) else name
    for prefix, component in _DOTTED_PREFIXES:
        if name.startswith(prefix):
            return component, name[len(prefix) :]
    return ("te" if _TEXT_PATH.match(name) else "unet"), name


def split_prefix(prefix: str) -> tuple[str, str]:
    """Component and path, with dots, of a kohya key prefix. Only for the names of SD UNets and CLIP text encoders."""
    match = re.match(r"lora_(unet|te1|te2|te)_(.+)$", prefix)
    if not match:
        raise ValueError(
            f"the LoRA key {prefix!r} is not one of a UNet or a CLIP text encoder (lora_unet_, lora_te_, lora_te1_, lora_te2_)"
        )
    return match[1], ".".join(_STEP.findall(match[2]))


def diffusers_name(prefix: str) -> tuple[str, str]:
    """Component and path, as diffusers has it, of a kohya key prefix. ValueError for a layer of anything but an SD UNet or a CLIP text encoder."""
    component, path = split_prefix(prefix)
    path = diffusers_path(path) if component == "unet" else path
    if path.split(".")[0] not in (_UNET_ROOTS if component == "unet" else _TEXT_ROOTS):
        raise ValueError(
            f"the LoRA key {prefix!r} is not one of a Stable Diffusion UNet or its text encoders, and only those have names in the form of "
            "diffusers; use the kohya form"
        )
    return component, path


def spellings(component: str, path: str, layout: UNetLayout, lora_key: Callable[[str, str], str] | None = None) -> list[str]:
    """All key prefixes under which files may keep the layer, the host's own first."""
    found = [lora_key(component, path)] if lora_key else []
    if component == "unet":
        in_diffusers = diffusers_path(path, layout)
        paths, components = (path, in_diffusers, ldm_path(in_diffusers, layout)), ("unet",)
    else:
        paths = (text_path(path), path)
        components = {"te": ("te", "te1"), "te1": ("te1", "te")}.get(component, (component,))
    found += [f"lora_{name}_{spelled.replace('.', '_')}" for name in components for spelled in paths]
    return list(dict.fromkeys(found))


def _numbers(pattern: str, paths: list[str]) -> set[int]:
    matches = (re.match(pattern, path) for path in paths)
    return {int(match[1]) for match in matches if match}
