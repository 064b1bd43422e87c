"""Aspect-ratio buckets: pictures of similar shape share a size, so that little is cut off and batches can be stacked."""
from __future__ import annotations

import random


def choose_bucket(width: int, height: int, resolution: int, step: int = 64, upscale: bool = False,
                  bucketing: bool = True) -> tuple[int, int]:
    """The (width, height) in pixels at which a picture is trained.

    Sides are multiples of `step`, the area is at most about `resolution` squared, and the shape is as near to the picture's as
    these allow (as in NovelAI's "Improvements on Stable Diffusion", 2022). Without `upscale` a small picture gets a small
    bucket; one that is smaller than a single step has to be enlarged to it. Without `bucketing` it is a square.
    """
    assert width > 0 and height > 0 and step > 0
    largest = max(step, resolution // step * step)
    if not bucketing:
        side = largest if upscale else min(largest, max(step, min(width, height) // step * step))
        return side, side
    area = float(max(resolution, step)) ** 2
    shrink = min(1.0, (area / (width * height)) ** 0.5) if not upscale else (area / (width * height)) ** 0.5
    wanted_width, wanted_height = width * shrink, height * shrink
    candidates = []
    for w in _sides(wanted_width, step):
        for h in _sides(wanted_height, step):
            fits = w * h <= area * 1.0001 and (upscale or (w <= width and h <= height))
            if fits or (w == step and h == step):
                candidates.append((w, h))
    if not candidates:
        candidates = [(max(step, int(wanted_width) // step * step), max(step, int(wanted_height) // step * step))]
    # what is cut off counts first, then detail that is lost by a smaller size
    return min(candidates, key=lambda size: (round(lost_share(width, height, *size) + 0.5 * (1 - min(1.0, size[0] * size[1] / (wanted_width * wanted_height))), 6),
                                             -size[0] * size[1]))


def _sides(wanted: float, step: int) -> set[int]:
    below = max(step, int(wanted + 1e-6) // step * step)
    return {below, below + step}


def lost_share(width: int, height: int, bucket_width: int, bucket_height: int) -> float:
    """Share of the picture, 0 to 1, that falls outside when it is scaled to cover the bucket."""
    scale = max(bucket_width / width, bucket_height / height)
    return 1 - bucket_width * bucket_height / (width * height * scale * scale)


def cover_size(width: int, height: int, bucket: tuple[int, int]) -> tuple[int, int]:
    """The picture's size when it is scaled to just cover the bucket."""
    scale = max(bucket[0] / width, bucket[1] / height)
    return max(bucket[0], round(width * scale)), max(bucket[1], round(height * scale))


def crop_box(width: int, height: int, bucket: tuple[int, int], rng: random.Random | None) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of a cut of the bucket's size; in the middle without `rng`."""
    spare_x, spare_y = width - bucket[0], height - bucket[1]
    assert spare_x >= 0 and spare_y >= 0
    left = spare_x // 2 if rng is None else rng.randint(0, spare_x)
    top = spare_y // 2 if rng is None else rng.randint(0, spare_y)
    return left, top, left + bucket[0], top + bucket[1]
