"""Clean pictures that look drawn or photographed, and ways to damage them: what the thresholds of the check were calibrated on."""
from __future__ import annotations

import io
import random

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from hotlora.trainer.demo import drawings


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
    """A flat drawing with clean edges, of the demo's shapes, on a plain or patterned background."""
    rng = random.Random(seed)
    size, step = drawings.SIZE, drawings._SUPERSAMPLING
    try:
        drawings.SIZE, drawings._SUPERSAMPLING = 64, side * 2 // 64
        canvas, draw = drawings._background(rng.choice(list(drawings.BACKGROUNDS)), rng.choice(drawings.TEXTURES), rng)
        for _ in range(rng.randint(2, 6)):
            drawings._shape(draw, rng.choice(drawings.SHAPES), rng.uniform(10, 54), rng.uniform(10, 54), rng.uniform(4, 15),
                            drawings.object_colour(rng.choice(list(drawings.COLOURS)), rng), rng.uniform(-2, 2))
    finally:
        drawings.SIZE, drawings._SUPERSAMPLING = size, step
    return canvas.resize((side, side), Image.BOX)


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
