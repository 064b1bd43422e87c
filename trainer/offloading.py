"""What a step does not need at once waits in main memory: what a forward keeps for its backward, and the weights of layers."""
from __future__ import annotations

import logging
from typing import ContextManager

import torch
from torch import nn

from .frozen import FrozenForward

log = logging.getLogger(__name__)
LEAST = 1 << 16
"""Smaller tensors stay: bringing them back would take longer than what they free is worth."""


def main_memory_like(x: torch.Tensor) -> torch.Tensor:
    """Room for `x` in main memory, where a GPU can read and write it without waiting if the system grants that."""
    try:
        return torch.empty_like(x, device="cpu", pin_memory=x.device.type == "cuda")
    except RuntimeError as error:
        log.debug("no pinned memory: %s", error)
        return torch.empty_like(x, device="cpu")


def away(x: torch.Tensor) -> torch.Tensor:
    """A copy in main memory. The device does it in the order of its work, so `x` may be given up at once."""
    copy = main_memory_like(x)
    copy.copy_(x, non_blocking=copy.is_pinned() if x.device.type == "cuda" else False)
    return copy


def saved_in_main_memory(least: int = LEAST) -> ContextManager[None]:
    """Around a forward: what autograd keeps of it for the backward goes to main memory, apart from weights and what is small (`least`
    bytes). With gradient checkpointing these are the inputs of the blocks."""

    def pack(x: torch.Tensor):
        if isinstance(x, nn.Parameter) or x.numel() * x.element_size() < least:
            return x
        return x.device, away(x.detach())

    def unpack(kept):
        if torch.is_tensor(kept):
            return kept
        device, copy = kept
        return copy.to(device, non_blocking=copy.is_pinned() if device.type == "cuda" else False)

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


class StreamedWeights:
    """Weights of a borrowed module's linear and convolution layers that lie in main memory and are copied for each use.

    The frozen operations take a weight wherever it lies, in forward and backward, so nothing but its place changes.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module, self._home = module, []

    def send(self, share: float) -> int:
        """Let this share of their bytes lie in main memory, the largest first; returns the bytes that have left the device."""
        layers = [part for part in self.module.modules() if _reads_weight_at_each_use(part)]
        layers.sort(key=lambda part: part.weight.numel(), reverse=True)
        wanted, gone = share * sum(_size(part.weight) for part in layers), 0
        for part in layers:
            if gone >= wanted:
                break
            gone += _size(part.weight)
            if not any(part is known for known, _ in self._home):
                self._home.append((part, part.weight.device))
                part.weight.data = away(part.weight.data)
        return gone

    def bring_back(self) -> None:
        """Every weight is where it was, bit for bit."""
        while self._home:
            part, device = self._home[-1]
            part.weight.data = part.weight.data.to(device)
            self._home.pop()


def _size(x: torch.Tensor) -> int:
    return x.numel() * x.element_size()


def _reads_weight_at_each_use(part: nn.Module) -> bool:
    """Layers that go through the frozen operations, with LoRAs on them or without."""
    forward = part.__dict__.get("forward")
    while hasattr(forward, "lora"):
        forward = forward.before
    return isinstance(forward, FrozenForward)
