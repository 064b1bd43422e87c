"""The judge is calibrated on drawn pictures before it may judge generated ones."""
import random
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFilter

from hotlora.trainer.demo import drawings
from hotlora.trainer.demo.judge import colour_and_shape, concept_score, prompt_accuracy


def scenes(count, seed):
    rng = random.Random(seed)
    return [(scene := drawings.random_scene(rng), drawings.draw_scene(scene, rng)) for _ in range(count)]


def test_colour_and_shape_are_read_off_drawn_pictures():
    drawn = scenes(300, 1)
    colour, shape = prompt_accuracy([p for _, p in drawn], [(s.colour, s.shape) for s, _ in drawn])
    assert colour >= 0.98 and shape >= 0.97


def test_a_slightly_blurred_picture_is_still_read():
    drawn = scenes(150, 2)
    blurred = [p.filter(ImageFilter.GaussianBlur(0.8)) for _, p in drawn]
    colour, shape = prompt_accuracy(blurred, [(s.colour, s.shape) for s, _ in drawn])
    assert colour >= 0.95 and shape >= 0.85


def test_wrong_prompts_are_wrong():
    drawn = scenes(100, 3)
    other = lambda names, name: names[(list(names).index(name) + 3) % len(names)]
    wanted = [(other(list(drawings.COLOURS), s.colour), other(drawings.SHAPES, s.shape)) for s, _ in drawn]
    assert max(prompt_accuracy([p for _, p in drawn], wanted)) <= 0.05


def test_an_empty_picture_shows_nothing():
    assert colour_and_shape(Image.new("RGB", (64, 64), (240, 240, 238))) == (None, None)


def test_the_concept_score_knows_the_mascot():
    rng = random.Random(4)
    drawn = [drawings.draw_mascot(rng, texture=rng.choice(drawings.TEXTURES)) for _ in range(200)]
    assert concept_score(drawn) >= 0.95
    assert concept_score([p.filter(ImageFilter.GaussianBlur(0.7)) for p in drawn]) >= 0.9


@pytest.mark.parametrize("kind", ["scenes", "purple rings", "anything", "mascots without horns", "mascots without eye"])
def test_the_concept_score_knows_what_is_not_the_mascot(kind):
    rng = random.Random(5)
    if kind == "scenes":
        pictures = [p for _, p in scenes(200, 6)]
    elif kind == "purple rings":
        pictures = [drawings.draw_scene(replace(drawings.random_scene(rng), colour="purple", shape="ring"), rng) for _ in range(100)]
    elif kind == "anything":
        pictures = [drawings.draw_anything(rng) for _ in range(200)]
    else:
        pictures = []
        for _ in range(100):
            pixels = np.array(drawings.draw_mascot(rng, "gray"))
            if kind == "mascots without horns":
                pixels[pixels[..., 2] < 120] = np.where(pixels[pixels[..., 2] < 120][:, :1] > 120, 150, pixels[pixels[..., 2] < 120])
            else:
                pixels[26:48, 24:42] = drawings.object_colour("purple", value=0.85)
            picture = Image.fromarray(pixels)
            pictures.append(picture)
    assert concept_score(pictures) <= 0.1
