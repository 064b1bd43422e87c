"""The moments of Adam and its kin in 8 bits, while no step of the optimizer is being taken.

Block-wise dynamic quantization (Dettmers et al. 2021, 2110.02861): each 256 numbers are divided by the largest of them, and each quotient
becomes the nearest of 256 numbers that lie close together near 0. Second moments are kept as their square roots, which is what Adam
divides by, so that none that counts becomes 0. The optimizer itself sees float32 and needs no package: at its step the memory of
the forward and backward is free again.
"""
from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Iterator

import torch
import torch.nn.functional as F

BLOCK = 256
AT_ONCE = 1 << 22
"""Numbers that are packed at a time: what is needed beside them stays small, and small layers share their operations."""
PACKED = 1 / 4 + 1 / BLOCK
"""Bytes that are left of each byte in float32."""
NAMES = {"exp_avg": False, "exp_avg_sq": True}
"""Names of an optimizer's moments, and whether they are squares."""


@dataclass
class _Packed:
    """Some parameters' moments of one name, one after the other, each filled up to whole blocks."""

    name: str
    parameters: list[torch.Tensor]
    codes_NK: torch.Tensor
    scale_N1: torch.Tensor


class PackedMoments:
    """Those of `optimizer`. `pack` and `unpack` change nothing but how they are held, and may be called at any time."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer, self._packed = optimizer, []

    def can_pack(self) -> bool:
        """Whether the optimizer keeps moments in full; before its first step, whether it is of a kind that will."""
        if not self.optimizer.state:
            return "betas" in self.optimizer.defaults and not type(self.optimizer).__module__.startswith("bitsandbytes")
        return bool(self._packed) or any(name in state for state in self.optimizer.state.values() for name in NAMES)

    @torch.no_grad()
    def pack(self) -> None:
        """As a whole: when the memory runs out meanwhile, nothing is packed."""
        packed = [_pack(name, group, self._moments(name, group)) for name in NAMES for group in self._groups(name)]
        for one in packed:
            for p in one.parameters:
                del self.optimizer.state[p][one.name]
        self._packed += packed

    @torch.no_grad()
    def unpack(self) -> None:
        """As a whole, too."""
        unpacked = [(one, _unpack(one)) for one in self._packed]
        for one, moments in unpacked:
            for p, x in zip(one.parameters, moments):
                self.optimizer.state[p][one.name] = x
        self._packed = []

    def state_dict(self) -> dict[str, Any]:
        """That of the optimizer, whole, as if nothing had been packed."""
        packed = self._packed
        self.unpack()
        try:
            found = self.optimizer.state_dict()
            # what torch gives are the optimizer's own dictionaries
            return {**found, "state": {key: dict(state) for key, state in found["state"].items()}}
        finally:
            for one in packed:
                for p in one.parameters:
                    del self.optimizer.state[p][one.name]
            self._packed = packed

    def bytes(self) -> int:
        """That are held in packed form."""
        return sum(x.numel() * x.element_size() for one in self._packed for x in (one.codes_NK, one.scale_N1))

    def _groups(self, name: str) -> Iterator[list[torch.Tensor]]:
        """Parameters with a moment of this name, about `AT_ONCE` numbers at a time."""
        group, numbers = [], 0
        for p, state in self.optimizer.state.items():
            if not torch.is_tensor(state.get(name)) or state[name].dtype != torch.float32 or state[name].shape != p.shape:
                continue
            group.append(p)
            numbers += p.numel()
            if numbers >= AT_ONCE:
                yield group
                group, numbers = [], 0
        if group:
            yield group

    def _moments(self, name: str, group: list[torch.Tensor]) -> list[torch.Tensor]:
        return [self.optimizer.state[p][name] for p in group]


@lru_cache(maxsize=2)
def code_book(signed: bool) -> torch.Tensor:
    """256 numbers in rising order from -1 or 0 to 1: seven decades, each with twice as many steps as the one below."""
    numbers = [0.0, 1.0]
    for decade in range(7):
        edges = torch.linspace(0.1, 1, 2 ** (decade + (not signed)) + 1, dtype=torch.float64)
        steps = 10.0 ** (decade - 6) * (edges[1:] + edges[:-1]) / 2
        numbers += [*steps.tolist(), *((-steps).tolist() if signed else [])]
    return torch.tensor(sorted(numbers), dtype=torch.float64).float()


def quantize(x_NK: torch.Tensor, signed: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of numbers to codes (uint8) and the scale `(N, 1)` of each row, which is its largest number with its sign."""
    largest_N1 = x_NK.abs().argmax(1, keepdim=True)
    scale_N1 = x_NK.gather(1, largest_N1)
    ratio_NK = (x_NK / scale_N1.where(scale_N1 != 0, torch.ones_like(scale_N1))).contiguous()
    book = code_book(signed).to(x_NK.device)
    codes_NK = torch.bucketize(ratio_NK, (book[1:] + book[:-1]) / 2, out_int32=True)
    return codes_NK.to(torch.uint8), scale_N1


def dequantize(codes_NK: torch.Tensor, scale_N1: torch.Tensor, signed: bool) -> torch.Tensor:
    return code_book(signed).to(codes_NK.device)[codes_NK.int()] * scale_N1


def _pack(name: str, parameters: list[torch.Tensor], moments: list[torch.Tensor]) -> _Packed:
    squares = NAMES[name]
    whole = [F.pad(x.flatten(), (0, -x.numel() % BLOCK)) for x in moments]
    x_NK = torch.cat(whole).view(-1, BLOCK)
    return _Packed(name, parameters, *quantize(x_NK.sqrt() if squares else x_NK, signed=not squares))


def _unpack(one: _Packed) -> list[torch.Tensor]:
    squares = NAMES[one.name]
    x_NK = dequantize(one.codes_NK, one.scale_N1, signed=not squares)
    flat, start, moments = (x_NK.square_() if squares else x_NK).view(-1), 0, []
    for p in one.parameters:
        moments.append(flat[start:start + p.numel()].view(p.shape))
        start += p.numel() + -p.numel() % BLOCK
    return moments
