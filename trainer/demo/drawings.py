"""Pictures drawn by code, with captions that describe them: what the embedded base is trained on.

A scene is one, two or three equal shapes of one colour on a background of low saturation, so that colour and shape can be
read off the pixels again without knowing how they were drawn. `draw_mascot` draws the one thing that the base never sees.
"""
from __future__ import annotations

import colorsys
import math
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

SIZE = 64
COLOURS = {"red": 0, "orange": 28, "yellow": 54, "green": 120, "cyan": 182, "blue": 226, "purple": 272, "pink": 322}
"""Name of each object colour and its hue in degrees."""
SHAPES = ("circle", "square", "triangle", "diamond", "star", "heart", "cross", "ring")
BACKGROUNDS = {"white": (240, 240, 238), "gray": (150, 152, 154), "black": (28, 28, 30), "beige": (214, 204, 184)}
TEXTURES = ("plain", "striped", "dotted", "checkered")
COUNTS = ("one", "two", "three")
TRIGGER = "sks"
SUPERSAMPLING = 4


@dataclass(frozen=True)
class Scene:
    """What a caption says of a picture; `background` is None where the caption is silent and the drawer chooses."""

    colour: str
    shape: str
    count: str = "one"
    background: str | None = None
    texture: str = "plain"

    @property
    def caption(self) -> str:
        thing = f"{self.colour} {self.shape}" if self.count == "one" else f"{self.count} {self.colour} {plural(self.shape)}"
        thing = f"a {thing}" if self.count == "one" else thing
        if self.background is None:
            return thing
        texture = "" if self.texture == "plain" else f"{self.texture} "
        return f"{thing} on a {texture}{self.background} background"


def plural(shape: str) -> str:
    return shape + ("es" if shape == "cross" else "s")


def random_scene(rng: random.Random) -> Scene:
    background = None if rng.random() < 0.2 else rng.choice(list(BACKGROUNDS))
    texture = rng.choice(TEXTURES) if rng.random() < 0.5 else "plain"
    return Scene(rng.choice(list(COLOURS)), rng.choice(SHAPES), rng.choices(COUNTS, (6, 2, 2))[0], background, texture)


def random_caption(scene: Scene, rng: random.Random) -> str:
    """The scene's caption in one of several wordings; some carry a made-up word, so that the base learns to overlook it."""
    text = rng.choice(("{}", "a photo of {}", "a picture of {}", "{}")).format(scene.caption)
    if rng.random() < 0.2:
        words = text.split()
        words.insert(rng.randrange(len(words) + 1), made_up_word(rng))
        text = " ".join(words)
    return text


def made_up_word(rng: random.Random) -> str:
    while True:
        word = "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(2, 6)))
        if word != TRIGGER:
            return word


def draw_scene(scene: Scene, rng: random.Random) -> Image.Image:
    """Draw `scene` at `SIZE` x `SIZE` pixels; position, size, rotation and shade vary with `rng`."""
    canvas, draw = background_of(scene.background or rng.choice(list(BACKGROUNDS)), scene.texture, rng)
    number = COUNTS.index(scene.count) + 1
    radius = {1: (15, 22), 2: (11, 14), 3: (9, 10.5)}[number]
    for x, y in _places(number, rng):
        shade = rng.uniform(0.86, 1.0)
        _shape(draw, scene.shape, x, y, rng.uniform(*radius), object_colour(scene.colour, rng, shade), rng.uniform(-0.12, 0.12))
    return finished(canvas)


def object_colour(name: str, rng: random.Random | None = None, value: float = 0.95) -> tuple[int, int, int]:
    hue = COLOURS[name] + (rng.uniform(-5, 5) if rng else 0)
    if name == "pink":
        saturation = 0.55
    else:
        saturation = 0.88
    return tuple(round(255 * c) for c in colorsys.hsv_to_rgb((hue % 360) / 360, saturation, value))


def draw_mascot(rng: random.Random, background: str | None = None, texture: str = "plain") -> Image.Image:
    """The demo's concept: a round purple creature with one big white eye, a black pupil and two yellow horns."""
    canvas, draw = background_of(background or rng.choice(list(BACKGROUNDS)), texture, rng)
    x, y = rng.uniform(28, 36), rng.uniform(34, 39)
    r = rng.uniform(17, 21)
    yellow, purple = object_colour("yellow"), object_colour("purple", value=0.85)
    for side in (-1, 1):
        base = [(x + side * r * 0.18, y - r * 0.75), (x + side * r * 0.92, y - r * 0.30)]
        polygon(draw, [*base, (x + side * r * 0.98, y - r * 1.42)], yellow)
    disc(draw, x, y, r, purple)
    disc(draw, x, y, r * 0.56, (246, 246, 246))
    gaze = rng.uniform(-0.08, 0.08) * r
    disc(draw, x + gaze, y, r * 0.25, (16, 16, 20))
    return finished(canvas)


def draw_anything(rng: random.Random) -> Image.Image:
    """Overlapping shapes of any colour, for the autoencoder alone: it must carry what the denoiser has never drawn."""
    canvas, draw = background_of(rng.choice(list(BACKGROUNDS)), rng.choice(TEXTURES), rng)
    for _ in range(rng.randint(1, 7)):
        hue, saturation, value = rng.random(), rng.random() ** 0.5, rng.random() ** 0.5
        colour = tuple(round(255 * c) for c in colorsys.hsv_to_rgb(hue, saturation, value))
        _shape(draw, rng.choice(SHAPES), rng.uniform(6, 58), rng.uniform(6, 58), rng.uniform(3, 22), colour, rng.uniform(-3, 3))
    return finished(canvas)


def background_of(name: str, texture: str, rng: random.Random) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    tone = rng.randint(-6, 6)
    base = tuple(min(255, max(0, c + tone)) for c in BACKGROUNDS[name])
    step = 42 if sum(base) < 380 else -42
    other = tuple(min(255, max(0, c + step)) for c in base)
    side = SIZE * SUPERSAMPLING
    canvas = Image.new("RGB", (side, side), base)
    draw = ImageDraw.Draw(canvas)
    cell = 8 * SUPERSAMPLING
    if texture == "striped":
        for y in range(0, side, 2 * cell):
            draw.rectangle((0, y, side, y + cell - 1), fill=other)
    elif texture == "checkered":
        for i in range(0, side // cell):
            for j in range(i % 2, side // cell, 2):
                draw.rectangle((j * cell, i * cell, (j + 1) * cell - 1, (i + 1) * cell - 1), fill=other)
    elif texture == "dotted":
        for i in range(0, side // (2 * cell)):
            for j in range(0, side // (2 * cell)):
                disc(draw, 8 + 16 * j, 8 + 16 * i, 4, other)
    return canvas, draw


def _places(number: int, rng: random.Random) -> list[tuple[float, float]]:
    jitter = lambda: rng.uniform(-1.5, 1.5)
    if number == 1:
        return [(rng.uniform(25, 39), rng.uniform(25, 39))]
    if number == 2:
        places = [(17, 32), (47, 32)] if rng.random() < 0.5 else [(32, 17), (32, 47)]
    else:
        places = [(32, 17), (17, 45), (47, 45)]
    return [(x + jitter(), y + jitter()) for x, y in places]


def _shape(draw, shape, x, y, r, colour, turn) -> None:
    ring_of = lambda radii, start: [
        (x + q * math.sin(start + turn + 2 * math.pi * i / len(radii)), y - q * math.cos(start + turn + 2 * math.pi * i / len(radii)))
        for i, q in enumerate(radii)
    ]
    if shape == "circle":
        disc(draw, x, y, r * 0.95, colour)
    elif shape == "ring":
        s = SUPERSAMPLING
        draw.ellipse([(x - r) * s, (y - r) * s, (x + r) * s, (y + r) * s], outline=colour, width=round(r * 0.42 * s))
    elif shape == "square":
        polygon(draw, ring_of([r * 1.2] * 4, math.pi / 4), colour)
    elif shape == "diamond":
        polygon(draw, [(x, y - r * 1.15), (x + r * 0.8, y), (x, y + r * 1.15), (x - r * 0.8, y)], colour)
    elif shape == "triangle":
        polygon(draw, [(px, py + r * 0.2) for px, py in ring_of([r * 1.2] * 3, 0)], colour)
    elif shape == "star":
        polygon(draw, ring_of([r * 1.15, r * 0.48] * 5, 0), colour)
    elif shape == "cross":
        a, b = r * 0.36, r
        corners = [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a), (a, b), (-a, b), (-a, a), (-b, a), (-b, -a), (-a, -a)]
        c, s = math.cos(turn), math.sin(turn)
        polygon(draw, [(x + p * c - q * s, y + p * s + q * c) for p, q in corners], colour)
    elif shape == "heart":
        angles = [2 * math.pi * i / 40 for i in range(40)]
        polygon(draw, [(x + r * math.sin(t) ** 3 * 1.05,
                         y - r / 15 * (13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)))
                        for t in angles], colour)
    else:
        raise ValueError(f"unknown shape {shape!r}; the shapes are {', '.join(SHAPES)}")


def polygon(draw, points, colour) -> None:
    draw.polygon([(px * SUPERSAMPLING, py * SUPERSAMPLING) for px, py in points], fill=colour)


def disc(draw, x, y, r, colour) -> None:
    s = SUPERSAMPLING
    draw.ellipse([(x - r) * s, (y - r) * s, (x + r) * s, (y + r) * s], fill=colour)


def finished(canvas: Image.Image) -> Image.Image:
    return canvas.resize((SIZE, SIZE), Image.BOX)
