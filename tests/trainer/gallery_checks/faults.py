"""Clean pictures that look drawn or photographed, and ways to damage them: what the thresholds of the check were calibrated on."""
from __future__ import annotations

import colorsys
import io
import random

import numpy as np
from PIL import Image, ImageDraw, ImageFilter


def photo(seed: int, width: int = 640, height: int = 480) -> Image.Image:
    """Shaded surfaces with textures of the statistics of natural pictures (1/f), sharp and soft edges, and a little sensor noise."""
    rng = np.random.default_rng(seed)
    size = (height * 2, width * 2)
    scene = _surface(rng, size, rng.uniform(60, 190, 3))
    yy, xx = np.mgrid[:size[0], :size[1]].astype(np.float32)
    for _ in range(int(rng.integers(7, 13))):
        mask = _shape(rng, size, yy, xx)
        # what is out of focus stands beside what is in focus
        if rng.random() < 0.25:
            mask = _smooth(mask, rng.uniform(3, 14))
        scene += mask[..., None] * (_surface(rng, size, rng.uniform(15, 240, 3)) - scene)
    light = 0.75 + 0.5 * (xx / size[1] * rng.uniform(-0.5, 0.5) + yy / size[0] * rng.uniform(-0.5, 0.5) + 0.5)
    scene *= light[..., None]
    small = scene.reshape(height, 2, width, 2, 3).mean((1, 3)) + rng.normal(0, rng.uniform(0.5, 2.5), (height, width, 3))
    return Image.fromarray(np.clip(small, 2, 252).astype(np.uint8))


def drawing(seed: int, side: int = 512) -> Image.Image:
    """A drawing with clean edges: flat shapes on a plain or patterned background, and in half of them outlines, pen strokes and shading."""
    rng = random.Random(seed)
    canvas = Image.new("RGB", (2 * side, 2 * side), rng.choice(PAPERS))
    draw, unit, is_rich = ImageDraw.Draw(canvas), 2 * side / 64, rng.random() < 0.5
    _pattern(draw, rng, unit)
    for _ in range(rng.randint(2, 6)):
        x, y, r, turn = rng.uniform(10, 54) * unit, rng.uniform(10, 54) * unit, rng.uniform(4, 15) * unit, rng.uniform(-2, 2)
        colour = _colour(rng)
        outline = tuple(c // 4 for c in colour) if is_rich and rng.random() < 0.7 else colour
        _flat_shape(draw, rng.choice(("disc", "ring", "star", "square", "triangle", "diamond")), x, y, r, turn, colour, outline, round(0.5 * unit))
        if is_rich and rng.random() < 0.5:
            _flat_shape(draw, "disc", x - r / 4, y - r / 4, r / 4, 0.0, tuple(min(255, c + 40) for c in colour), colour, 1)
    for _ in range(rng.randint(1, 4) if is_rich else 0):
        start = rng.uniform(0, 64), rng.uniform(0, 64)
        points = [(start[0] * unit + 4 * unit * i, (start[1] + 4 * np.sin(i + start[0])) * unit) for i in range(rng.randint(3, 8))]
        draw.line(points, fill=_colour(rng, 0.4), width=round(rng.uniform(0.3, 0.8) * unit), joint="curve")
    return canvas.resize((side, side), Image.BOX)


PAPERS = ((240, 240, 238), (150, 152, 154), (28, 28, 30), (214, 204, 184), (196, 214, 226))


def _pattern(draw: ImageDraw.ImageDraw, rng: random.Random, unit: float) -> None:
    """Nothing, stripes, dots or checks in a tone of the paper."""
    paper = rng.choice(PAPERS)
    kind, cell = rng.choice(("plain", "striped", "dotted", "checkered")), 8 * unit
    if kind == "plain":
        return
    draw.rectangle((0, 0, 64 * unit, 64 * unit), fill=paper)
    step = 42 if sum(paper) < 380 else -42
    other = tuple(min(255, max(0, c + step)) for c in paper)
    for i in range(8):
        for j in range(8):
            box = (j * cell, i * cell, (j + 1) * cell - 1, (i + 1) * cell - 1)
            if kind == "dotted" and i % 2 == j % 2 == 0:
                draw.ellipse(box, fill=other)
            elif kind == "striped" and i % 2 or kind == "checkered" and (i + j) % 2:
                draw.rectangle(box, fill=other)


def _colour(rng: random.Random, value: float = 0.95) -> tuple[int, int, int]:
    return tuple(round(255 * c) for c in colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.5, 0.9), value))


def _flat_shape(draw: ImageDraw.ImageDraw, kind: str, x: float, y: float, r: float, turn: float, colour, outline, width: int) -> None:
    if kind in ("disc", "ring"):
        box = (x - r, y - r, x + r, y + r)
        draw.ellipse(box, fill=None if kind == "ring" else colour, outline=colour if kind == "ring" else outline, width=round(0.4 * r) if kind == "ring" else width)
        return
    radii = {"star": (1.0, 0.42) * 5, "square": (1.1,) * 4, "triangle": (1.2,) * 3, "diamond": (1.15, 0.8) * 2}[kind]
    angles = [turn + 2 * np.pi * i / len(radii) for i in range(len(radii))]
    draw.polygon([(x + r * q * np.sin(t), y - r * q * np.cos(t)) for q, t in zip(radii, angles)], fill=colour, outline=outline, width=width)


def _surface(rng: np.random.Generator, size: tuple[int, int], colour: np.ndarray) -> np.ndarray:
    """A colour with a texture whose amplitude falls with the frequency."""
    frequency = np.hypot(np.fft.fftfreq(size[0])[:, None], np.fft.rfftfreq(size[1])[None]) + 1 / max(size)
    spectrum = np.exp(2j * np.pi * rng.random(frequency.shape)) / frequency ** rng.uniform(1.0, 1.4)
    texture = np.fft.irfft2(spectrum, size)
    texture *= rng.uniform(6, 22) / texture.std()
    return (np.asarray(colour)[None, None] + texture[..., None] * rng.uniform(0.6, 1.2, 3)).astype(np.float32)


def _shape(rng: np.random.Generator, size: tuple[int, int], yy: np.ndarray, xx: np.ndarray) -> np.ndarray:
    cx, cy = rng.uniform(0, size[1]), rng.uniform(0, size[0])
    a, b, turn = rng.uniform(40, 300), rng.uniform(40, 300), rng.uniform(0, np.pi)
    u = ((xx - cx) * np.cos(turn) + (yy - cy) * np.sin(turn)) / a
    v = (-(xx - cx) * np.sin(turn) + (yy - cy) * np.cos(turn)) / b
    inside = u * u + v * v < 1 if rng.random() < 0.5 else np.maximum(np.abs(u), np.abs(v)) < 1
    return inside.astype(np.float32)


def _smooth(mask: np.ndarray, sigma: float) -> np.ndarray:
    return np.asarray(Image.fromarray((mask * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(sigma)), dtype=np.float32) / 255


def blurred(picture: Image.Image, rng: random.Random) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(rng.uniform(2.4, 6)))


def moved(picture: Image.Image, rng: random.Random) -> Image.Image:
    values, length = np.asarray(picture, dtype=np.float32), rng.randint(14, 30)
    axis = rng.randint(0, 1)
    return Image.fromarray(np.mean([np.roll(values, i, axis) for i in range(length)], axis=0).astype(np.uint8))


def noisy(picture: Image.Image, rng: random.Random) -> Image.Image:
    values = np.asarray(picture, dtype=np.float32) + np.random.default_rng(rng.randrange(10**6)).normal(0, rng.uniform(20, 40), (*picture.size[::-1], 3))
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def blocky(picture: Image.Image, rng: random.Random) -> Image.Image:
    """Saved as a bad JPEG, cut, and saved as PNG."""
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=rng.randint(5, 22))
    cut = rng.randint(0, 7)
    return Image.open(data).convert("RGB").crop((cut, cut, picture.width, picture.height))


def enlarged(picture: Image.Image, rng: random.Random) -> Image.Image:
    factor = rng.choice((2, 2.5, 3, 4))
    small = picture.resize((round(picture.width / factor), round(picture.height / factor)), Image.LANCZOS)
    return small.resize(picture.size, rng.choice((Image.BILINEAR, Image.BICUBIC, Image.LANCZOS, Image.NEAREST)))


def uniform(picture: Image.Image, rng: random.Random) -> Image.Image:
    values = rng.choice(((0, 0, 0), (255, 255, 255), (90, 120, 60))) + np.random.default_rng(0).normal(0, 1, (*picture.size[::-1], 3))
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def broken(picture: Image.Image, rng: random.Random) -> Image.Image:
    copy = picture.copy()
    copy.paste((128, 128, 128), (0, round(picture.height * rng.uniform(0.3, 0.9)), picture.width, picture.height))
    return copy


def bars(picture: Image.Image, rng: random.Random) -> Image.Image:
    copy, thick = picture.copy(), rng.uniform(0.05, 0.2)
    colour = rng.choice(((0, 0, 0), (255, 255, 255), (20, 18, 25)))
    if rng.random() < 0.5:
        across = round(picture.height * thick)
        boxes = (0, 0, picture.width, across), (0, picture.height - across, picture.width, picture.height)
    else:
        across = round(picture.width * thick)
        boxes = (0, 0, across, picture.height), (picture.width - across, 0, picture.width, picture.height)
    for box in boxes:
        copy.paste(colour, box)
    return copy


def stamped(picture: Image.Image) -> Image.Image:
    """With the same logo in the lower right corner."""
    copy = picture.copy()
    draw = ImageDraw.Draw(copy)
    width, height = picture.size
    for i in range(6):
        x = width - 150 + 22 * i
        draw.rectangle((x, height - 50, x + 10, height - 22), outline=(250, 250, 250), width=5)
    return copy


FAULTS = {"blurred": blurred, "moved": moved, "noisy": noisy, "blocky": blocky, "enlarged": enlarged, "uniform": uniform, "broken": broken, "bars": bars}
