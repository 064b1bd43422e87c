"""Counter-based randomness: each random number is a function of (seed, purpose, step, sample) and of nothing else.

So a resumed run needs no saved generator state to be bit-exact, and one batch of 4 draws what 4 accumulated batches of 1
draw. `sample` counts the pictures of a step across all its batches; `purpose` ("noise", "timestep", "flip", ...) keeps
draws for different things independent.
"""
from __future__ import annotations

import hashlib
import random
from contextlib import contextmanager
from typing import Iterator, Sequence

import torch


def hashed_seed(seed: int, purpose: str, step: int, sample: int) -> int:
    """64 bits, 0 to 2**64 - 1, that depend on every bit of the four and are the same on every machine and version."""
    text = f"{int(seed)}|{purpose}|{int(step)}|{int(sample)}"
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "little")


def generator(seed: int, purpose: str, step: int, sample: int) -> torch.Generator:
    """A fresh generator on the CPU, whatever device trains, so that devices start from the same numbers.

    Torch's CPU generator keeps 32 of the 64 bits: in a run of 100,000 pictures about one pair shares its noise, which does no
    harm, as timesteps and everything else come from `python_random`.
    """
    return torch.Generator(device="cpu").manual_seed(hashed_seed(seed, purpose, step, sample))


def python_random(seed: int, purpose: str, step: int, sample: int) -> random.Random:
    """A fresh generator of Python's own, for choices (captions, crops, flips) and for augmentations."""
    return random.Random(hashed_seed(seed, purpose, step, sample))


def uniform(seed: int, purpose: str, step: int, samples: Sequence[int]) -> torch.Tensor:
    """One number per sample, float64 `(B,)`, uniform in [0, 1)."""
    return torch.tensor([python_random(seed, purpose, step, sample).random() for sample in samples], dtype=torch.float64)


def noise(shape_CHW: Sequence[int], seed: int, step: int, sample: int, purpose: str = "noise") -> torch.Tensor:
    """Standard normal numbers, float32 `(C, H, W)` on the CPU."""
    return torch.randn(tuple(shape_CHW), generator=generator(seed, purpose, step, sample), dtype=torch.float32)


@contextmanager
def global_seed(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators inside, and put their state back."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
