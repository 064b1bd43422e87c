"""What Forge has set up for drawing, prepared for training and put back: its layers, its attention, its objects, its LoRAs.

Forge keeps a checkpoint as three patchers (`forge_objects`): with LoRAs as the last prompt had them, and bare ones (`..._original`).
Which of them is loaded into the modules changes with each prompt; what is not on the device is moved there layer by layer.
"""
from __future__ import annotations

import sys
from contextlib import ExitStack, contextmanager
from typing import Any, Callable, Iterator

import backend.nn.unet
import torch
from backend import attention, operations
from backend.text_processing import emphasis
from modules import sd_models, shared
from torch import nn

from .attributes import set_for_now
from .webui_model import plain_captions
from ..frozen import FrozenForward, HalfNorm, frozen_forward, has_plain_weight, is_linear, is_usual_conv2d, safe_attention


class ForgeForward(FrozenForward):
    """Forward of a layer of Forge. Its weight may lie in main memory, from where the frozen operation copies it for each use."""

    def has_weight_at_hand(self, device: torch.device) -> bool:
        return self.module.weight.device == device


class CopyingNorm(HalfNorm):
    """Of a transformer block, which adds in place to what its norms have read and autograd has kept."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return super().__call__(x.clone() if torch.is_grad_enabled() and x.dtype == torch.float32 else x)


class CopyingBlock:
    """Forward of a transformer block, which would add in place to its input: gradient checkpointing computes it again from that."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        return type(self.module).forward(self.module, x.clone() if torch.is_grad_enabled() else x, *args, **kwargs)


def forge_forward(module: nn.Module) -> Callable | None:
    """What is put over a layer of Forge while it is trained; None for a layer that is left as it is."""
    if type(module) is backend.nn.unet.BasicTransformerBlock:
        return CopyingBlock(module)
    if isinstance(module, (nn.GroupNorm, nn.LayerNorm)) and module.weight is not None:
        return CopyingNorm(module) if isinstance(module, nn.LayerNorm) else HalfNorm(module)
    if type(module).forward.__module__ == operations.__name__ and (is_linear(module) or is_usual_conv2d(module)):
        return ForgeForward(module)
    return frozen_forward(module)


def check_trainable(unet: nn.Module, name: str) -> None:
    """ValueError for a denoiser that is packed into a form whose gradient Forge alone could give."""
    for path, module in unet.named_modules():
        if not (is_linear(module) or is_usual_conv2d(module)):
            continue
        if getattr(module, "weight", None) is None or not has_plain_weight(module) or getattr(module, "scale_weight", None) is not None:
            raise ValueError(f"{name} is held in a packed form ({path}), which cannot be trained; set \"Diffusion in Low Bits\" at the top of Forge to "
                             "Automatic or a float8 form, and use a checkpoint file that is not packed itself (GGUF, NF4, scaled float8)")


_bare: Any = None


@contextmanager
def bare_objects(model: Any) -> Iterator[None]:
    """The checkpoint without what the last prompt's LoRAs and extensions made of it, in whatever Forge does meanwhile."""
    global _bare
    if model.forge_objects is _bare:
        yield
        return
    before, _bare = model.forge_objects, model.forge_objects_original.shallow_copy()
    model.forge_objects = _bare
    model.set_clip_skip(int(shared.opts.CLIP_stop_at_last_layers))  # as Forge does before it encodes
    try:
        yield
    finally:
        model.forge_objects, _bare = before, None


@contextmanager
def attention_with_backward() -> Iterator[None]:
    """torch's own attention in place of the user's choice: others have a slow backward or none."""
    with ExitStack() as stack:
        set_for_now(stack, backend.nn.unet, "attention_function", _attention)
        yield


def _attention(q: torch.Tensor, *args, **kwargs) -> torch.Tensor:
    with safe_attention(q):
        return attention.attention_pytorch(q, *args, **kwargs)


@contextmanager
def mean_of_the_posterior(vae: Any) -> Iterator[None]:
    """The autoencoder gives the mean of what it finds, not a sample."""
    options, name = vae.patcher.model_options, "model_vae_regulation"
    had, before = name in options, options.get(name)
    options[name] = lambda posterior: posterior.mode()
    try:
        yield
    finally:
        if had:
            options[name] = before
        else:
            del options[name]


def engines(model: Any) -> list[Any]:
    """What reads texts: one for each text encoder."""
    names = ("text_processing_engine", "text_processing_engine_l", "text_processing_engine_g")
    return [getattr(model, name) for name in names if hasattr(model, name)]


@contextmanager
def plain_texts(model: Any) -> Iterator[None]:
    """Captions are texts, as in `plain_captions`. Forge's engines note what they found last, which ends up under the next picture."""
    with plain_captions(), ExitStack() as stack:
        for engine in engines(model):
            set_for_now(stack, engine, "emphasis", emphasis.EmphasisNone())
        stack.callback(_noted().update, dict(_noted()))
        stack.callback(_noted().clear)
        yield


def _noted() -> dict:
    return sys.modules["backend.text_processing.classic_engine"].last_extra_generation_params


def lora_extension() -> Any | None:
    """The module of Forge's own Lora extension; None where it is switched off or another module has its name."""
    module = sys.modules.get("networks")
    needed = ("load_lora_state_dict", "available_networks", "available_network_aliases", "loaded_networks")
    return module if all(hasattr(module, name) for name in needed) else None


def forget_network(filename: str) -> None:
    """Have Forge read the file anew: it knows what it has loaded and merged by names and weights alone."""
    lora_extension().load_lora_state_dict.cache_clear()
    model = sd_models.model_data.sd_model
    if getattr(model, "forge_objects_original", None) is None:
        return
    model.current_lora_hash = ""
    # a prompt that names a LoRA which is not there leaves in force what the one before it had
    model.forge_objects_after_applying_lora = model.forge_objects_original.shallow_copy()
    for patcher in (model.forge_objects_original.unet, model.forge_objects_original.clip.patcher):
        if filename in patcher.lora_loader.loaded_hash:
            patcher.lora_loader.loaded_hash = ""
