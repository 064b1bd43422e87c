"""Gradient checkpointing for a denoiser or a text encoder, whoever wrote it: blocks compute their activations twice."""
from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

# Repeated blocks, by class name: diffusers, the original code (and ComfyUI), transformers.
BLOCKS = ("ResnetBlock2D", "BasicTransformerBlock", "ResBlock", "CLIPEncoderLayer")


class CheckpointedForward:
    """The forward of a block that keeps only its inputs and runs again in the backward pass.

    Non-reentrant: with re-entrant checkpointing and frozen inputs the adapters would get no gradients. The libraries' own
    switches are not used because they differ by version, and some are re-entrant or need the training mode.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.before = module.__dict__.get("forward")

    def __call__(self, *args, **kwargs):
        if torch.is_grad_enabled():
            return checkpoint(self.base, *map(_as_now, args), use_reentrant=False, **{key: _as_now(value) for key, value in kwargs.items()})
        return self.base(*args, **kwargs)

    def base(self, *args, **kwargs):
        if self.before is not None:
            return self.before(*args, **kwargs)
        return type(self.module).forward(self.module, *args, **kwargs)


def _as_now(argument: Any) -> Any:
    """ComfyUI tells its blocks by a dictionary which one they are, and writes the next one into it: the second run must read what the first read."""
    return dict(argument) if type(argument) is dict else argument


def set_checkpointing(module: nn.Module, on: bool) -> None:
    """Switch gradient checkpointing of the module's residual and transformer blocks on or off. Doing it again changes nothing.

    Raises ValueError when the module has no block of a kind that is known.
    """
    blocks = [part for part in module.modules() if type(part).__name__ in BLOCKS]
    if on and not blocks:
        raise ValueError(f"gradient checkpointing does not know the blocks of {type(module).__name__}; "
                         "turn gradient_checkpointing off")
    for block in blocks:
        forward = block.__dict__.get("forward")
        if on and not isinstance(forward, CheckpointedForward):
            block.__dict__["forward"] = CheckpointedForward(block)
        elif not on and isinstance(forward, CheckpointedForward):
            block.__dict__.pop("forward")
            if forward.before is not None:
                block.__dict__["forward"] = forward.before
