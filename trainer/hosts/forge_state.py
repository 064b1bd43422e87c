"""What Forge has set up for drawing, prepared for training and put back: its layers, its autoencoder, its text engines."""
from __future__ import annotations

import sys
from contextlib import ExitStack, contextmanager
from typing import Any, Callable, Iterator

import backend.nn.unet
import torch
from backend import operations
from backend.text_processing import emphasis
from torch import nn

from .attributes import set_for_now
from .forge_objects import layer_forward
from .webui_model import plain_captions
from ..frozen import HalfNorm


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
    if isinstance(module, nn.LayerNorm) and module.weight is not None:
        return CopyingNorm(module)
    return layer_forward(module, operations)


PACKED = ("the checkpoint is held in a packed form ({}), which cannot be trained; set \"Diffusion in Low Bits\" at the top of Forge to Automatic or a float8 form, and "
          "use a checkpoint file that is not packed itself (GGUF, NF4, scaled float8)")


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
