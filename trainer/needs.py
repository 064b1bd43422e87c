"""About how much memory and time a run needs, from known sizes: said on a page before anything is loaded or measured."""
from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

from .backend import SampleRequest
from .config import TrainConfig
from .device_memory import memory_of

ADAM = 16
"""Bytes for each trained weight: itself, its gradient and Adam's two moments, in float32."""
BACKWARD, CHECKPOINTED = 2.0, 3.0
"""A step with frozen weights is a forward and a backward for activations only; with checkpointing there is a second forward. In arithmetic."""
CALLED, CALLED_CONVS, CALLED_CHECKPOINTED = 3.5, 5.0, 1.7
"""Operations of a step for each one of a forward, with the LoRA's own; with the convolutions' too; and how many times more with checkpointing.
Measured on the embedded base on a CPU, and the last and the first on a GPU (README, table of the memory)."""
KEPT_BY_CHECKPOINTING = 0.3
"""Share of what a step keeps for its backward that is still kept then."""
USED = {"cpu": 0.6, "other": 0.45}
"""Share of a matrix product's speed that a step comes to."""
CALL = {"cpu": 24e-6, "other": 27e-6}
"""Seconds for each operation besides its arithmetic, which a GPU does meanwhile."""
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
    "demo": Sizes(4.9e6, 0.021e6, 3950, (0.0, 3.35e9, 0.0), 700, 64),
}


@dataclass(frozen=True)
class Needs:
    """`bytes` at the peak of `total` that the device has; `seconds_per_picture` of training, and `seconds_per_preview` of drawing."""

    bytes: int
    total: int | None
    seconds_per_picture: float
    seconds_per_preview: float


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
                 _seconds_of_step(sizes, pixels, config, kind, device) / config.batch_size,
                 SampleRequest.steps * _seconds(2 * _flops(sizes, pixels), sizes.calls, kind, device))


def _flops(sizes: Sizes, pixels: float) -> float:
    """Of one picture's forward."""
    units = pixels / 256**2
    return sizes.flops[0] + sizes.flops[1] * units + sizes.flops[2] * units**2


def _seconds_of_step(sizes: Sizes, pixels: float, config: TrainConfig, kind: str, device: torch.device) -> float:
    """Of one batch."""
    called = CALLED_CONVS if config.conv_rank else CALLED
    if config.gradient_checkpointing:
        times, called = CHECKPOINTED, called * CALLED_CHECKPOINTED
    else:
        times = BACKWARD
    return _seconds(config.batch_size * times * _flops(sizes, pixels), called * sizes.calls, kind, device)


def _seconds(flops: float, calls: float, kind: str, device: torch.device) -> float:
    working, calling = flops / (USED[kind] * speed_of(str(device))), calls * CALL[kind]
    return working + calling if kind == "cpu" else max(working, calling)


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
