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


def away(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy in main memory, in pages that `device` reads and writes by itself if the system grants that. It is written in the order of the
    device's work, so `x` may be given up at once."""
    try:
        copy = torch.empty_like(x, device="cpu", pin_memory=device.type == "cuda")
    except RuntimeError as error:
        log.debug("no pinned memory: %s", error)
        copy = torch.empty_like(x, device="cpu")
    return copy.copy_(x, non_blocking=x.is_cuda)


def saved_in_main_memory(least: int = LEAST) -> ContextManager[None]:
    """Around a forward: what autograd keeps of it for the backward goes to main memory, apart from weights and what is small (`least`
    bytes). With gradient checkpointing these are the inputs of the blocks."""

    def pack(x: torch.Tensor):
        if isinstance(x, nn.Parameter) or x.numel() * x.element_size() < least:
            return x
        return x.device, away(x.detach(), x.device)

    def unpack(kept):
        if torch.is_tensor(kept):
            return kept
        device, copy = kept
        return copy.to(device, non_blocking=device.type == "cuda")

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


class StreamedWeights:
    """Weights of a borrowed module's linear and convolution layers that lie in main memory and are copied to `device` for each use.

    The frozen operations take a weight wherever it lies, in forward and backward, so nothing but its place changes.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self.module, self.device, self._streamed = module, device, {}

    def send(self, share: float) -> int:
        """Let this share of their bytes lie in main memory, the largest first; returns how many do."""
        layers = [part for part in self.module.modules() if _reads_weight_at_each_use(part)]
        layers.sort(key=lambda part: part.weight.numel(), reverse=True)
        wanted, gone = share * sum(_size(part.weight) for part in layers), 0
        for part in layers:
            if gone >= wanted:
                break
            gone += _size(part.weight)
            if id(part.weight) not in self._streamed:
                part.weight.data = away(part.weight.data, self.device)
                self._streamed[id(part.weight)] = part.weight
        return gone

    def load(self) -> None:
        """Everything else of the module to the device; what is there already is not touched."""
        for x in (*self.module.parameters(), *self.module.buffers()):
            if id(x) not in self._streamed:
                x.data = x.data.to(self.device)

    def bring_back(self) -> None:
        """Every weight is where it was, bit for bit."""
        self._streamed.clear()
        self.load()


def _size(x: torch.Tensor) -> int:
    return x.numel() * x.element_size()


def _reads_weight_at_each_use(part: nn.Module) -> bool:
    """Layers that go through the frozen operations, with LoRAs on them or without."""
    forward = part.__dict__.get("forward")
    while hasattr(forward, "lora"):
        forward = forward.before
    return isinstance(forward, FrozenForward)
