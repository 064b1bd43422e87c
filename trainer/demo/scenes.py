"""Which scenes the base is trained on and which are kept for measuring it."""
from __future__ import annotations

import random
import zlib

from .drawings import Scene, random_scene


def is_held_out(scene: Scene) -> bool:
    """A tenth of all scenes is never shown in training: prompts of those are what the base is measured on."""
    return zlib.crc32(scene.caption.encode()) % 10 == 0


def training_scene(rng: random.Random) -> Scene:
    while True:
        scene = random_scene(rng)
        if not is_held_out(scene):
            return scene
