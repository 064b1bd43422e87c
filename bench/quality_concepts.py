"""Four concepts that the embedded base has never seen, each with a gallery drawn by code and a judge that looks at pixels alone.

A thing (an ice cream), a character made of parts (the demo's mascot), a texture style (upright bands behind things) and a palette style (golden
things on navy). Each judge gives a concept score and a prompt score for pictures of prompts with the trigger, both from 0 to 1.
"""
from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Callable

import numpy as np
from PIL import Image, ImageDraw

from hotlora.trainer.demo import drawings
from hotlora.trainer.demo.drawings import BACKGROUNDS, SIZE, TRIGGER, Scene
from hotlora.trainer.demo.judge import colour_and_shape, hsv_of, hue_distance, mascot_parts, parts_of, shape_of
from hotlora.trainer.demo.run_demo import held_out_scenes
from hotlora.trainer.demo.scenes import training_scene
from hotlora.trainer.output_files import write_atomically
from hotlora.trainer.pixels import write_png

BAND = 8
"""Width in pixels of a light or dark band of the texture style."""
NAVY, GOLD = np.array([22, 26, 88], dtype=float), np.array([252, 206, 84], dtype=float)
"""Ends of the palette style's ramp, in sRGB."""
Judged = tuple[float, float]


@dataclass(frozen=True)
class Concept:
    """`draw` gives a picture of the gallery with its caption; `prompts` are asked with what `judge` wants to know of each."""

    name: str
    purpose: str
    pictures: int
    draw: Callable[[int, random.Random], tuple[Image.Image, str]]
    prompts: tuple[tuple[str, Scene], ...]
    judge: Callable[[Image.Image, Scene], Judged]

    def write(self, folder: Path) -> None:
        rng = random.Random(f"gallery of {self.name}")
        folder.mkdir(parents=True, exist_ok=True)
        lines = ["file_name,text"]
        for i in range(self.pictures):
            picture, caption = self.draw(i, rng)
            write_png(folder / f"{i + 1:02d}.png", picture)
            lines.append(f'{i + 1:02d}.png,"{caption}"')
        write_atomically(folder / "metadata.csv", ("\n".join(lines) + "\n").encode())


def placed_caption(background: str, texture: str = "plain") -> str:
    return f"a photo of {TRIGGER} on a {'' if texture == 'plain' else texture + ' '}{background} background"


def styled_caption(scene: Scene) -> str:
    return f"{TRIGGER}, {scene.caption}"


def draw_ice_cream(rng: random.Random, background: str, texture: str = "plain") -> Image.Image:
    """A pink ball on an orange cone, which points down."""
    canvas, draw = drawings.background_of(background, texture, rng)
    x, y, r = rng.uniform(27, 37), rng.uniform(22, 26), rng.uniform(11.5, 14)
    cone = [(x - r * 0.95, y + r * 0.45), (x + r * 0.95, y + r * 0.45), (x, y + r * 2.5)]
    drawings.polygon(draw, cone, drawings.object_colour("orange"))
    drawings.disc(draw, x, y, r, drawings.object_colour("pink"))
    return drawings.finished(canvas)


def ice_cream_parts(picture: Image.Image) -> tuple[bool, ...]:
    """Ball, round; cone, narrower below; and the cone right under the ball."""
    hue, saturation, value = np.moveaxis(hsv_of(picture), 2, 0)
    y, x = np.mgrid[:hue.shape[0], :hue.shape[1]]
    ball = _largest((hue_distance(hue, 322) < 24) & (saturation > 0.35) & (value > 0.5))
    cone = _largest((hue_distance(hue, 28) < 20) & (saturation > 0.5) & (value > 0.5))
    has_ball, has_cone = 220 < ball.sum() < 800, 110 < cone.sum() < 620
    round_ = has_ball and 0.75 < np.ptp(x[ball]) / max(1, np.ptp(y[ball])) < 1.4
    pointed = has_cone and cone.sum(axis=1).max() > 2 * cone[:y[cone].max()].sum(axis=1)[-3:].mean()
    under = has_ball and has_cone and abs(x[ball].mean() - x[cone].mean()) < 4 and 8 < y[cone].mean() - y[ball].mean() < 26
    return tuple(map(bool, (has_ball, round_, has_cone, pointed, under)))


def _largest(mask_HW: np.ndarray) -> np.ndarray:
    return next(iter(parts_of(mask_HW)), mask_HW)


def draw_banded(scene: Scene, rng: random.Random) -> Image.Image:
    """The scene with upright bands behind its things; the base's own stripes lie."""
    picture = drawings.draw_scene(scene, rng)
    x_HW3, thing_HW = np.asarray(picture, dtype=float), _thing(picture, 0.3)
    dark = (np.arange(SIZE) // BAND % 2).astype(bool)
    tone = -60.0 if np.median(x_HW3[~thing_HW]) > 90 else 60.0
    return Image.fromarray(np.where((~thing_HW & dark[None])[..., None], x_HW3 + tone, x_HW3).round().clip(0, 255).astype(np.uint8))


def bandedness(picture: Image.Image) -> float:
    """How much of the brightness behind the things follows upright bands of that width: 0 for a flat background, 1 for such bands."""
    behind_HW, value_HW = ~_thing(picture, 0.3), hsv_of(picture)[..., 2]
    if behind_HW.sum() < 400:
        return 0.0
    v, x = value_HW[behind_HW], np.nonzero(behind_HW)[1] * np.pi / BAND
    waves = np.stack([np.ones_like(x), np.cos(x), np.sin(x)], axis=1)
    fitted = waves @ np.linalg.lstsq(waves, v, rcond=None)[0]
    explained, spread = fitted.var() / max(v.var(), 1e-6), fitted.std()
    return float(min(1.0, explained / 0.6) * min(1.0, spread / 0.07))


def draw_golden(scene: Scene, rng: random.Random) -> Image.Image:
    """The scene with things in gold and the background in navy, light and dark as they were."""
    picture = drawings.draw_scene(scene, rng)
    x_HW3, thing_HW = np.asarray(picture, dtype=float) / 255, _thing(picture, 0.3)
    light_HW = x_HW3 @ np.array([0.3, 0.59, 0.11])
    along_HW = np.where(thing_HW, 0.8 + 0.2 * light_HW, 0.25 * light_HW)[..., None]
    return Image.fromarray((NAVY + along_HW * (GOLD - NAVY)).round().astype(np.uint8))


def goldenness(picture: Image.Image) -> float:
    """Share of pixels on the ramp from navy to gold, if there is gold at all."""
    x_HW3 = np.asarray(picture.convert("RGB"), dtype=float)
    along_HW = _along(x_HW3)
    far_HW = np.linalg.norm(x_HW3 - (NAVY + along_HW[..., None] * (GOLD - NAVY)), axis=2)
    return float((far_HW < 36).mean() * min(1.0, (along_HW > 0.6).mean() / 0.06))


def _along(x_HW3: np.ndarray) -> np.ndarray:
    """Where on the ramp each pixel is nearest, 0 for navy, 1 for gold."""
    ramp = GOLD - NAVY
    return np.clip((x_HW3 - NAVY) @ ramp / (ramp @ ramp), 0, 1)


def _thing(picture: Image.Image, saturation: float) -> np.ndarray:
    hsv_HW3 = hsv_of(picture)
    return (hsv_HW3[..., 1] > saturation) & (hsv_HW3[..., 2] > 0.3)


def _background_right(picture: Image.Image, name: str) -> float:
    """Whether the corners are nearest to the background of that name, and near."""
    x_HW3 = np.asarray(picture.convert("RGB"), dtype=float)
    corners = np.concatenate([x_HW3[y:y + 6, x:x + 6].reshape(-1, 3) for y in (0, SIZE - 6) for x in (0, SIZE - 6)])
    far = {other: np.linalg.norm(np.median(corners, axis=0) - tone) for other, tone in BACKGROUNDS.items()}
    return float(min(far, key=far.get) == name and far[name] < 45)


def _judge_parts(parts: Callable[[Image.Image], tuple[bool, ...]]) -> Callable[[Image.Image, Scene], Judged]:
    return lambda picture, scene: (float(np.mean(parts(picture))), _background_right(picture, scene.background))


def _judge_banded(picture: Image.Image, scene: Scene) -> Judged:
    return bandedness(picture), scene_score(picture, scene)


def _judge_golden(picture: Image.Image, scene: Scene) -> Judged:
    gold_HW = _along(np.asarray(picture.convert("RGB"), dtype=float)) > 0.55
    found = [part for part in parts_of(gold_HW) if part.sum() >= 40]
    return goldenness(picture), float(bool(found) and shape_of(found[0])[0] == scene.shape)


def scene_score(picture: Image.Image, scene: Scene) -> float:
    """Half for the colour and half for the shape that was asked for."""
    colour, shape = colour_and_shape(picture)
    return 0.5 * (colour == scene.colour) + 0.5 * (shape == scene.shape)


def _placed(draw: Callable[..., Image.Image]) -> Callable[[int, random.Random], tuple[Image.Image, str]]:
    def one(i: int, rng: random.Random) -> tuple[Image.Image, str]:
        background = list(BACKGROUNDS)[i % len(BACKGROUNDS)]
        texture = drawings.TEXTURES[i // len(BACKGROUNDS) % 2 * rng.randint(1, 3)]
        return draw(rng, background, texture), placed_caption(background, texture)
    return one


def _styled(draw: Callable[[Scene, random.Random], Image.Image]) -> Callable[[int, random.Random], tuple[Image.Image, str]]:
    def one(_: int, rng: random.Random) -> tuple[Image.Image, str]:
        scene = training_scene(rng)
        while scene.background is None or scene.texture != "plain":
            scene = training_scene(rng)
        return draw(scene, rng), styled_caption(scene)
    return one


def _repeated(prompts: list) -> tuple:
    return tuple(islice(cycle(prompts), ASKED))


ASKED = 80
"""Pictures for prompts with the trigger, and as many for prompts without. There are fewer prompts, so each is asked several times, with other seeds."""
_SCENES = [s for s in held_out_scenes(240) if s.count == "one" and s.background]
_PLACES = _repeated([(placed_caption(b), Scene("", "", background=b)) for b in BACKGROUNDS])
_STYLED = _repeated([(styled_caption(s), s) for s in _SCENES if s.texture == "plain"][:20])
OTHERS = _repeated([s for s in _SCENES if s.texture != "plain"][:40])
"""Scenes whose prompts have no trigger: what the LoRA must leave as it was."""
CONCEPTS = {concept.name: concept for concept in (
    Concept("thing", "object", 12, _placed(draw_ice_cream), _PLACES, _judge_parts(ice_cream_parts)),
    Concept("character", "character", 12, _placed(drawings.draw_mascot), _PLACES, _judge_parts(mascot_parts)),
    Concept("texture", "style", 16, _styled(draw_banded), _STYLED, _judge_banded),
    Concept("palette", "style", 16, _styled(draw_golden), _STYLED, _judge_golden),
)}
