"""Reads colour, shape and the mascot off a picture. Looks at pixels alone and shares nothing with the drawing code.

Things are saturated and backgrounds are not, so the thing is where the saturation is. Shape is told by comparing the
thing's outline, scaled to its bounding box, with ideal outlines given here as inequalities.
"""
from __future__ import annotations

import numpy as np
from PIL import Image

HUES = {"red": 0, "orange": 28, "yellow": 55, "green": 120, "cyan": 182, "blue": 226, "purple": 272, "pink": 322}
_GRID = 32
_SATURATED = 0.42


def colour_and_shape(picture: Image.Image) -> tuple[str | None, str | None]:
    """Name the colour and the shape of the things in a picture; None where nothing can be made out."""
    hsv_HW3 = hsv_of(picture)
    mask_HW = _thing(hsv_HW3)
    parts = [p for p in parts_of(mask_HW) if p.sum() >= 40]
    if not parts:
        return None, None
    hues = hsv_HW3[..., 0][mask_HW]
    distance = {name: np.median(hue_distance(hues, hue)) for name, hue in HUES.items()}
    colour = min(distance, key=distance.get)
    votes: dict[str, float] = {}
    for part in parts[:3]:
        shape, fit = shape_of(part)
        votes[shape] = votes.get(shape, 0.0) + fit * part.sum()
    return (colour if distance[colour] < 20 else None), max(votes, key=votes.get)


def shape_of(mask_HW: np.ndarray) -> tuple[str, float]:
    """The ideal outline that a mask resembles most, and the overlap (intersection over union) with it."""
    best = ("", -1.0)
    for turn in np.radians((-8, -4, 0, 4, 8)):
        boxed = _boxed(mask_HW, turn)
        for name, ideal in _IDEALS.items():
            overlap = (boxed & ideal).sum() / max(1, (boxed | ideal).sum())
            if overlap > best[1]:
                best = (name, float(overlap))
    return best


def prompt_accuracy(pictures: list[Image.Image], wanted: list[tuple[str, str]]) -> tuple[float, float]:
    """Share of pictures with the wanted colour and share with the wanted shape, each from 0 to 1."""
    read = [colour_and_shape(p) for p in pictures]
    colours = [r[0] == w[0] for r, w in zip(read, wanted)]
    shapes = [r[1] == w[1] for r, w in zip(read, wanted)]
    return float(np.mean(colours)), float(np.mean(shapes))


def concept_score(pictures: list[Image.Image]) -> float:
    """Share of pictures that show the mascot, from 0 to 1."""
    return float(np.mean([shows_mascot(p) for p in pictures]))


def shows_mascot(picture: Image.Image) -> bool:
    """A purple body around a white eye around a dark pupil, with a yellow horn above on the left and on the right."""
    return all(mascot_parts(picture))


def mascot_parts(picture: Image.Image) -> tuple[bool, ...]:
    """Which parts are there: body, its ring around the eye, eye, pupil, left horn, right horn. Without a body of the right size, none."""
    hsv_HW3 = hsv_of(picture)
    hue, saturation, value = hsv_HW3[..., 0], hsv_HW3[..., 1], hsv_HW3[..., 2]
    scale = hue.size / 4096
    purple = (hue_distance(hue, 272) < 22) & (saturation > 0.5) & (value > 0.3)
    body = max(parts_of(purple), key=lambda part: part.sum(), default=purple)
    if not 250 * scale < body.sum() < 1700 * scale:
        return (False,) * 6
    rows, columns = np.nonzero(body)
    top, bottom, left, right = rows.min(), rows.max(), columns.min(), columns.max()
    height, width = bottom - top + 1, right - left + 1
    if not 0.65 < width / height < 1.5:
        return (False,) * 6
    y, x = np.mgrid[:hue.shape[0], :hue.shape[1]]
    radius = np.hypot((y - (top + bottom) / 2) / (height / 2), (x - (left + right) / 2) / (width / 2))
    white = (saturation < 0.35) & (value > 0.7)
    dark = value < 0.4
    pupil = dark[radius < 0.18].mean() > 0.6
    eye = white[(radius > 0.36) & (radius < 0.48)].mean() > 0.6
    ring = purple[(radius > 0.68) & (radius < 0.88)].mean() > 0.7
    yellow = (hue_distance(hue, 54) < 20) & (saturation > 0.5) & (value > 0.5) & (y < top + height * 0.45)
    middle = (left + right) / 2
    horns = [((yellow & side).sum() > 15 * scale) for side in (x < middle - width * 0.15, x > middle + width * 0.15)]
    return (True, bool(ring), bool(eye), bool(pupil), *map(bool, horns))


def hsv_of(picture: Image.Image) -> np.ndarray:
    """Hue in degrees, saturation and value from 0 to 1."""
    hsv_HW3 = np.asarray(picture.convert("RGB").convert("HSV"), dtype=np.float32)
    return hsv_HW3 * np.array([360 / 256, 1 / 255, 1 / 255], dtype=np.float32)


def hue_distance(hue: np.ndarray, other: float) -> np.ndarray:
    difference = np.abs(hue - other) % 360
    return np.minimum(difference, 360 - difference)


def _thing(hsv_HW3: np.ndarray) -> np.ndarray:
    return (hsv_HW3[..., 1] > _SATURATED) & (hsv_HW3[..., 2] > 0.35)


def parts_of(mask_HW: np.ndarray) -> list[np.ndarray]:
    """Connected regions of a mask, largest first."""
    left = mask_HW.copy()
    found = []
    while left.any():
        seed = np.unravel_index(int(left.argmax()), left.shape)
        region = np.zeros_like(left)
        region[seed] = True
        while True:
            grown = region.copy()
            grown[1:] |= region[:-1]
            grown[:-1] |= region[1:]
            grown[:, 1:] |= region[:, :-1]
            grown[:, :-1] |= region[:, 1:]
            grown &= left
            if (grown == region).all():
                break
            region = grown
        left &= ~region
        found.append(region)
    return sorted(found, key=lambda part: -part.sum())


def _boxed(mask_HW: np.ndarray, turn: float) -> np.ndarray:
    """The mask turned by `turn` radians and sampled over its bounding box on a fixed grid."""
    rows, columns = np.nonzero(mask_HW)
    points = np.stack([columns, rows]) - np.array([[columns.mean()], [rows.mean()]])
    c, s = np.cos(turn), np.sin(turn)
    turned = np.array([[c, -s], [s, c]]) @ points
    low, high = turned.min(1) - 0.5, turned.max(1) + 0.5
    v, u = np.mgrid[:_GRID, :_GRID]
    inside = np.stack([low[0] + (u.ravel() + 0.5) / _GRID * (high[0] - low[0]), low[1] + (v.ravel() + 0.5) / _GRID * (high[1] - low[1])])
    back = np.array([[c, s], [-s, c]]) @ inside + np.array([[columns.mean()], [rows.mean()]])
    px, py = np.rint(back).astype(int)
    ok = (px >= 0) & (px < mask_HW.shape[1]) & (py >= 0) & (py < mask_HW.shape[0])
    out = np.zeros(_GRID * _GRID, dtype=bool)
    out[ok] = mask_HW[py[ok], px[ok]]
    return out.reshape(_GRID, _GRID)


def _ideals() -> dict[str, np.ndarray]:
    v, u = (np.mgrid[:_GRID, :_GRID] + 0.5) / _GRID * 2 - 1
    radius, angle = np.hypot(u, v), np.arctan2(u, -v)
    # A five-pointed star is wider than high: its box is 1.90 by 1.81 times its outer radius, its centre at 1/1.81 from the top.
    su, sv = u * 0.951, (v + 1) / 2 * 1.809 - 1
    sector = np.abs((np.arctan2(su, -sv) + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
    inner, step = 0.42, np.pi / 5
    edge = inner * np.sin(step) / (np.sin(sector) * (1 - inner * np.cos(step)) + inner * np.sin(step) * np.cos(sector))
    hx, hy = u * 1.14, -v * 1.2 + 0.13
    return {
        "circle": radius < 1, "ring": (radius < 1) & (radius > 0.58), "square": np.ones_like(u, dtype=bool),
        "diamond": np.abs(u) + np.abs(v) < 1, "triangle": np.abs(u) < (v + 1) / 2,
        "cross": (np.abs(u) < 0.36) | (np.abs(v) < 0.36), "star": np.hypot(su, sv) < edge,
        "heart": (hx**2 + hy**2 - 1) ** 3 - hx**2 * hy**3 < 0,
    }


_IDEALS = _ideals()
