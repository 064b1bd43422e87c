"""What stable-diffusion-webui has set up for drawing, prepared for training and put back exactly: each a context manager.

All of it is entered with the host's queue held, so that no picture is drawn meanwhile.
"""
from __future__ import annotations

import sys
from contextlib import ExitStack, contextmanager
from typing import Any, Iterator

import ldm.modules.attention
import sgm.modules.attention
import torch
from modules import lowvram, sd_hijack_optimizations, sd_models, sd_unet, shared
from torch import nn

from .attributes import set_for_now
from ..frozen import HalfNorm, frozen_forward, safe_attention

def lora_extension() -> Any | None:
    """The module of the host's own Lora extension; None where it is switched off or another module has its name."""
    module = sys.modules.get("networks")
    needed = ("loaded_networks", "network_apply_weights", "available_networks", "networks_in_memory")
    return module if all(hasattr(module, name) for name in needed) else None


def bake_out(model: Any) -> None:
    """Have the Lora extension put the bare weights back wherever something else is baked in; nothing may be in `loaded_networks`."""
    networks = lora_extension()
    with torch.no_grad():
        for module in getattr(model, "network_layer_mapping", {}).values():
            if getattr(module, "network_current_names", ()) != ():
                networks.network_apply_weights(module)


_set_aside: list = []
"""Networks of the last prompt, while they are out of the weights."""


@contextmanager
def without_loras(model: Any) -> Iterator[None]:
    """The weights as in the checkpoint. What the last prompt had in them comes back, as the host does it, when a layer is next used."""
    networks = lora_extension()
    if networks is None:
        yield
        return
    _set_aside[:] = networks.loaded_networks
    networks.loaded_networks.clear()
    try:
        bake_out(model)
        yield
    finally:
        networks.loaded_networks[:] = _set_aside
        _set_aside.clear()


def forget_network(filename: str) -> None:
    """Drop what was loaded from a LoRA file, from the weights too."""
    networks = lora_extension()
    stale = [name for name, network in networks.networks_in_memory.items() if network.network_on_disk.filename == filename]
    for name in stale:
        networks.networks_in_memory.pop(name, None)
    for loaded in (networks.loaded_networks, _set_aside):
        kept = [network for network in loaded if network.network_on_disk.filename != filename]
        if len(kept) < len(loaded):
            loaded[:] = kept
    others = list(networks.loaded_networks)
    networks.loaded_networks.clear()
    try:
        # the webui may keep several checkpoints in memory, each with what was baked in when it was last used
        for model in {id(model): model for model in (sd_models.model_data.sd_model, *sd_models.model_data.loaded_sd_models)}.values():
            bake_out(model)
    finally:
        networks.loaded_networks[:] = others


@contextmanager
def attention_with_backward() -> Iterator[None]:
    """torch's own attention in place of the user's choice: others have a slow backward or none. Hypernetworks stay out."""
    classes = (ldm.modules.attention.CrossAttention, sgm.modules.attention.CrossAttention)
    with ExitStack() as stack:
        for kind in classes:
            set_for_now(stack, kind, "forward", _attention)
        set_for_now(stack, shared, "loaded_hypernetworks", [])
        yield


def _attention(self: nn.Module, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
    """torch's, for the host's layers."""
    with safe_attention(x):
        return sd_hijack_optimizations.scaled_dot_product_attention_forward(self, x, *args, **kwargs)


@contextmanager
def whole_attention(model: Any) -> Iterator[None]:
    """Without what draws faster by leaving out or cutting up: token merging and hypertile, which keeps an attention of its own."""
    ratio = getattr(model, "applied_token_merged_ratio", 0)
    with ExitStack() as stack:
        if ratio:
            stack.callback(sd_models.apply_token_merging, model, ratio)
            sd_models.apply_token_merging(model, 0)
        for part in model.model.modules():
            tiling = part.__dict__.get("__webui_hypertile_params")
            if tiling is not None:
                set_for_now(stack, tiling, "enabled", False)
                set_for_now(stack, tiling, "forward", type(part).forward.__get__(part))
        yield


@contextmanager
def own_unet() -> Iterator[None]:
    """The checkpoint's denoiser and not a compiled one that the user has chosen in its place."""
    option = sd_unet.current_unet_option
    if option is None:
        yield
        return
    sd_unet.apply_unet("None")
    try:
        yield
    finally:
        sd_unet.apply_unet(option.label)


@contextmanager
def no_checkpointing(unet: nn.Module) -> Iterator[None]:
    """The original code's own switches off: what they do is re-entrant, and adapters over frozen inputs would get no gradient."""
    with ExitStack() as stack:
        for part in unet.modules():
            for name in ("checkpoint", "use_checkpoint"):
                if part.__dict__.get(name) is True:
                    set_for_now(stack, part, name, False)
        yield


def pin_unet(model: Any, device: torch.device) -> None:
    """With --medvram, have the host move the denoiser in and the others out, as it does before it draws."""
    if lowvram.is_enabled(model) and next(model.model.parameters()).device != device:
        for hook in list(model.model._forward_pre_hooks.values()):
            hook(model.model, None)


def webui_forward(module: nn.Module):
    """What is put over a layer while it is trained; None for one that is left as it is."""
    if isinstance(module, (nn.GroupNorm, nn.LayerNorm)) and module.weight is not None and module.weight.dtype != torch.float32:
        return HalfNorm(module)
    return frozen_forward(module)
