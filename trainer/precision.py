"""Mixed precision: through accelerate where it is installed, by torch itself in hosts that do not have it."""
from __future__ import annotations

from contextlib import nullcontext
from importlib.util import find_spec
from typing import Any, ContextManager, Iterable

import torch


def has_bf16(device: torch.device) -> bool:
    """Whether a CUDA or ROCm GPU computes in bfloat16 by itself; `is_bf16_supported` counts those, too, on which torch emulates it."""
    return torch.cuda.is_bf16_supported() and (bool(torch.version.hip) or torch.cuda.get_device_capability(device)[0] >= 8)


def pick_precision(setting: str, device: torch.device, weights: torch.dtype | None = None) -> str:
    """"no", "fp16" or "bf16" for the setting. ValueError if it cannot be had.

    "auto" takes bf16 on a GPU that has it. Elsewhere fp16, with its scaler, for frozen `weights` in float16, as small gradients are
    lost without one; else no. With no `weights` told, bf16 that torch emulates will do.
    """
    if setting == "auto":
        if device.type != "cuda":
            return "no"
        if has_bf16(device) or weights is None and torch.cuda.is_bf16_supported():
            return "bf16"
        return "fp16" if weights == torch.float16 else "no"
    if setting == "fp16" and device.type != "cuda":
        raise ValueError(f"mixed_precision is fp16, which needs a CUDA or ROCm GPU, but the device is {device.type}; use no or bf16")
    if setting == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ValueError("mixed_precision is bf16, which this GPU does not have; use fp16")
    return setting


class Precision:
    """Autocast, backward and optimizer step of one run. fp16 scales the loss, and a step that overflows is left out."""

    def __init__(self, setting: str, device: torch.device, optimizer: torch.optim.Optimizer, weights: torch.dtype | None = None) -> None:
        self.kind, self.device, self.optimizer = pick_precision(setting, device, weights), device, optimizer
        self.scaler = None
        self.accelerator = None
        # among several processes it would take over the group that trainer/ranks.py has made
        several = torch.distributed.is_available() and torch.distributed.is_initialized()
        if self.kind != "no" and find_spec("accelerate") and not several:
            from accelerate import Accelerator
            from accelerate.state import AcceleratorState

            # accelerate keeps the precision of the first run for the whole process
            AcceleratorState._reset_state()
            self.accelerator = Accelerator(mixed_precision=self.kind, cpu=device.type == "cpu")
            self.scaler = self.accelerator.scaler
        elif self.kind == "fp16":
            self.scaler = torch.cuda.amp.GradScaler()

    def autocast(self) -> ContextManager[Any]:
        if self.kind == "no":
            return nullcontext()
        if self.accelerator is not None:
            return self.accelerator.autocast()
        return torch.autocast(self.device.type, dtype=torch.bfloat16 if self.kind == "bf16" else torch.float16)

    def backward(self, loss: torch.Tensor) -> None:
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def unscale(self) -> None:
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)

    def step(self) -> bool:
        """Take the optimizer's step; False when fp16 overflowed and it was left out."""
        if self.scaler is None:
            self.optimizer.step()
            return True
        before = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return self.scaler.get_scale() >= before

    def forget(self) -> None:
        """A step that failed half way is done again: the scaler may have unscaled its gradients already."""
        if self.scaler is not None:
            self.scaler.update(self.scaler.get_scale())

    def state_dict(self) -> dict[str, Any]:
        return {} if self.scaler is None else self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.scaler is not None and state:
            self.scaler.load_state_dict(state)


def gradient_norm(parameters: Iterable[torch.Tensor], limit: float) -> torch.Tensor:
    """Norm of all gradients, which are scaled down to `limit` where they exceed it (0: no limit)."""
    return torch.nn.utils.clip_grad_norm_(parameters, limit if limit > 0 else float("inf"))
