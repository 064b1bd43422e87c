"""What Forge and reForge have in common: three patchers for each checkpoint, layers whose weights may lie elsewhere, and LoRAs by name.

Such a host keeps a checkpoint as patchers (`forge_objects`): with LoRAs as the last prompt had them, and bare ones (`..._original`).
Which of them is loaded into the modules changes with each prompt; what is not on the device is moved there layer by layer.
"""
from __future__ import annotations

import sys
from contextlib import ExitStack, contextmanager
from typing import Any, Callable, Iterator

import torch
from modules import sd_models, shared
from torch import nn

from .attributes import set_for_now
from ..frozen import FrozenForward, HalfNorm, frozen_forward, has_plain_weight, is_linear, is_usual_conv2d, safe_attention

_bare: Any = None


@contextmanager
def bare_objects(model: Any) -> Iterator[None]:
    """The checkpoint without what the last prompt's LoRAs and extensions made of it, in whatever the host does meanwhile."""
    global _bare
    if model.forge_objects is _bare:
        yield
        return
    before, _bare = model.forge_objects, model.forge_objects_original.shallow_copy()
    model.forge_objects = _bare
    if hasattr(model, "set_clip_skip"):
        model.set_clip_skip(int(shared.opts.CLIP_stop_at_last_layers))  # as Forge does before it encodes
    try:
        yield
    finally:
        model.forge_objects, _bare = before, None


class ForgeForward(FrozenForward):
    """Forward of a layer of the host. Its weight may lie in main memory, from where the frozen operation copies it for each use."""

    def has_weight_at_hand(self, device: torch.device) -> bool:
        return self.module.weight.device == device


def layer_forward(module: nn.Module, operations: Any) -> Callable | None:
    """What is put over a layer while it is trained, None for one that is left as it is; `operations` is the host's module of layers."""
    if isinstance(module, (nn.GroupNorm, nn.LayerNorm)) and module.weight is not None:
        return HalfNorm(module)
    if type(module).forward.__module__ == operations.__name__ and (is_linear(module) or is_usual_conv2d(module)):
        return ForgeForward(module)
    return frozen_forward(module)


@contextmanager
def attention_with_backward(owner: Any, names: tuple[str, ...], attention: Callable) -> Iterator[None]:
    """The host's way by torch (`attention`) in place of what the user has chosen, which `owner` has under `names`: others have a slow backward or none."""
    def safe(q: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        with safe_attention(q):
            return attention(q, *args, **kwargs)

    with ExitStack() as stack:
        for name in names:
            set_for_now(stack, owner, name, safe)
        yield


def check_plain(unet: nn.Module, message: str) -> None:
    """ValueError for a denoiser that is packed into a form whose gradient the host alone could give; `message` with the layer's path."""
    for path, module in unet.named_modules():
        if not (is_linear(module) or is_usual_conv2d(module)):
            continue
        if getattr(module, "weight", None) is None or not has_plain_weight(module) or getattr(module, "scale_weight", None) is not None:
            raise ValueError(message.format(path))


def lora_extension() -> Any | None:
    """The module of the host's own Lora extension; None where it is switched off or another module has its name."""
    module = sys.modules.get("networks")
    needed = ("load_lora_state_dict", "available_networks", "available_network_aliases", "loaded_networks")
    return module if all(hasattr(module, name) for name in needed) else None


def forget_network(filename: str) -> None:
    """Have the host read the file anew: it knows what it has loaded and merged by names and weights alone."""
    lora_extension().load_lora_state_dict.cache_clear()
    model = sd_models.model_data.sd_model
    if getattr(model, "forge_objects_original", None) is None:
        return
    model.current_lora_hash = ""
    # a prompt that names a LoRA which is not there leaves in force what the one before it had
    model.forge_objects_after_applying_lora = model.forge_objects_original.shallow_copy()
    for patcher in (model.forge_objects_original.unet, model.forge_objects_original.clip.patcher):
        loader = getattr(patcher, "lora_loader", None)
        if loader is not None and filename in loader.loaded_hash:
            loader.loaded_hash = ""
