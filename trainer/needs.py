"""About how much memory and time a run needs, from known sizes: said on a page before anything is loaded or measured."""
from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from .config import TrainConfig
from .device_memory import memory_of

ADAM = 16
"""Bytes for each trained weight: itself, its gradient and Adam's two moments, in float32."""
BACKWARD, CHECKPOINTED = 2.0, 3.0
"""A step with frozen weights is a forward and a backward for activations only; with checkpointing there is a second forward."""
KEPT_BY_CHECKPOINTING = 0.3
"""Share of what a step keeps for its backward that is still kept then."""
USED = {"cpu": 0.6, "other": 0.45}
"""Share of a matrix product's speed that a step comes to."""
CALL = {"cpu": 12e-6, "other": 9e-6}
"""Seconds for each operation besides its arithmetic."""
PROGRAM = {"cpu": 0.7e9, "other": 0.8e9}
"""Bytes of the program itself: Python and torch, or what a GPU's driver and libraries hold."""


@dataclass(frozen=True)
class Sizes:
    """Of a family of bases. `weights` of all parts; `per_rank` trained weights for each unit of rank with the default targets; `kept` bytes
    that a step keeps for its backward, for each pixel in float32; `flops` of a forward as constant, linear and quadratic in units of 256x256
    pixels; `calls` operations of a forward. Counted on diffusers' models without data (torch's FlopCounterMode and saved tensors); see the test.
    """

    weights: float
    per_rank: float
    kept: float
    flops: tuple[float, float, float]
    calls: int
    side: int


FAMILIES = {
    "sd15": Sizes(1.067e9, 0.374e6, 5740, (3.0e9, 169.4e9, 7.66e9), 1600, 512),
    "sd2": Sizes(1.290e9, 0.382e6, 5340, (4.0e9, 169.4e9, 7.66e9), 1600, 512),
    "sdxl": Sizes(3.469e9, 2.616e6, 10360, (52.6e9, 372.3e9, 2.94e9), 4500, 1024),
    "demo": Sizes(4.9e6, 0.021e6, 3950, (0.0, 15.35e9, 0.0), 650, 64),
}


@dataclass(frozen=True)
class Needs:
    """`bytes` at the peak of `total` that the device has; `seconds_per_picture` of training."""

    bytes: int
    total: int | None
    seconds_per_picture: float


def needs_of(config: TrainConfig, family: str | None, device: torch.device) -> Needs | None:
    """None for a base whose sizes are not known."""
    sizes = FAMILIES.get(family or "")
    if sizes is None:
        return None
    kind = "cpu" if device.type == "cpu" else "other"
    pixels = float(config.resolution or sizes.side) ** 2
    width = 4 if kind == "cpu" else 2
    precise = 4 if kind == "cpu" and config.mixed_precision != "bf16" else 2
    kept = sizes.kept * pixels * precise / 4 * (KEPT_BY_CHECKPOINTING if config.gradient_checkpointing else 1.0) * config.batch_size
    trained = sizes.per_rank * (config.lora_rank or 16)
    return Needs(int(PROGRAM[kind] + sizes.weights * width + trained * ADAM + kept), memory_of(device),
                 _seconds(sizes, pixels, config, kind, device))


def _seconds(sizes: Sizes, pixels: float, config: TrainConfig, kind: str, device: torch.device) -> float:
    """Of one picture. Operations are called once for a batch, and arithmetic is done for each picture."""
    units = pixels / 256**2
    flops = sizes.flops[0] + sizes.flops[1] * units + sizes.flops[2] * units**2
    times = CHECKPOINTED if config.gradient_checkpointing else BACKWARD
    return times * (flops / (USED[kind] * speed_of(str(device))) + sizes.calls * CALL[kind] / config.batch_size)


@lru_cache(maxsize=None)
def speed_of(device: str) -> float:
    """Floating-point operations a second in a large matrix product, in the type that is trained with; measured once, in about 0.2 s."""
    side = 1024 if device == "cpu" else 4096
    dtype = torch.float32 if device in ("cpu", "mps") else torch.bfloat16
    one = torch.ones(side, side, device=device, dtype=dtype)
    best, until = 0.0, time.perf_counter() + 0.15
    while True:
        began = time.perf_counter()
        (one @ one)[0, 0].item()
        now = time.perf_counter()
        best = max(best, 2 * side**3 / (now - began))
        if now > until:
            return best


@lru_cache(maxsize=500)
def _family(path: str, modified: int) -> str | None:
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length)) if 0 < length < 100_000_000 else {}
    widths = {entry["shape"][1] for name, entry in header.items()
              if name.startswith("model.diffusion_model.") and name.endswith("attn2.to_k.weight") and len(entry["shape"]) == 2}
    return {768: "sd15", 1024: "sd2", 2048: "sdxl"}.get(widths.pop()) if len(widths) == 1 else None


def family_of_file(path: str | Path | None) -> str | None:
    """Of a checkpoint in the original layout, from its list of weights; None for anything else. Reads a few hundred kB at most."""
    try:
        return _family(str(path), os.stat(path).st_mtime_ns) if str(path).endswith(".safetensors") else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError):
        return None
