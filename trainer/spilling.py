"""Notices memory that has spilled over: nothing fails, but a step suddenly takes many times as long.

NVIDIA's driver for Windows (since 536.40) hands out main memory when that of the GPU is full; a machine without a GPU pages to its disk.
"""
from __future__ import annotations

from collections import deque
from statistics import median

import torch

from .device_memory import stands_at_its_limit

SUDDEN = 3.0
"""A step that takes so many times as long as the steps before it."""
RUNG = 1.5
"""What a step may take longer after a rung of the ladder, before that counts."""
FEWEST, MOST = 3, 20
"""Steps before this one that tell what is usual."""


class Spilling:
    """Is told of each step of a run on `device`."""

    def __init__(self, device: torch.device) -> None:
        self.device, self._seconds = device, deque(maxlen=MOST)

    def noticed(self, seconds: float) -> float | None:
        """The seconds that were usual, when this step is a sudden exception while the memory is full; None otherwise."""
        usual = median(self._seconds) if len(self._seconds) >= FEWEST else None
        if usual is not None and seconds > SUDDEN * usual and stands_at_its_limit(self.device):
            # the memory that is looked at only now costs nothing as long as all goes well
            self._seconds = deque([RUNG * usual] * FEWEST, MOST)
            return usual
        self._seconds.append(seconds)
        return None
