"""Pictures with a colour profile are read in the colours that people see, wherever they are read; those in sRGB stay as they are to the bit."""
from __future__ import annotations

import io
import struct
import sys
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
from PIL import Image, ImageCms, features

from hotlora.trainer import colours
from hotlora.trainer.cache import LatentCache
from hotlora.trainer.galleries import thumbnail
from hotlora.trainer.gallery import read_gallery
from hotlora.trainer.gallery_checks.looks import BIG, look_at
from hotlora.trainer.pictures import check_picture, read_alpha, read_picture

# red, green and blue as X, Y, Z under D50, in columns
SRGB = ((0.43607, 0.38515, 0.14307), (0.22249, 0.71687, 0.06061), (0.01392, 0.09708, 0.71410))
DISPLAY_P3 = ((0.51512, 0.29198, 0.15710), (0.24120, 0.69225, 0.06657), (-0.00105, 0.04189, 0.78407))
ADOBE_RGB = ((0.60974, 0.20528, 0.14919), (0.31111, 0.62567, 0.06322), (0.01947, 0.06087, 0.74457))
PROPHOTO = ((0.79767, 0.13519, 0.03134), (0.28804, 0.71188, 0.00009), (0.0, 0.0, 0.82491))
RED_COAT = (200, 60, 50)
needs_littlecms = pytest.mark.skipif(not features.check("littlecms2"), reason="this Pillow cannot convert colours")


def linear(value_N: np.ndarray) -> np.ndarray:
    return np.where(value_N <= 0.04045, value_N / 12.92, ((value_N + 0.055) / 1.055) ** 2.4)


def fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def profile(matrix: tuple, gamma: float | None, space: bytes = b"RGB ", points: int = 1024) -> bytes:
    """An ICC profile of version 2 by its primaries and its gamma; None is the curve of sRGB, as a table of so many points."""
    curve = np.round(linear(np.linspace(0, 1, points)) * 65535).astype(">u2") if gamma is None else np.array([round(gamma * 256)], ">u2")
    tone = b"curv\0\0\0\0" + struct.pack(">I", len(curve)) + curve.tobytes()
    white, parts = b"XYZ \0\0\0\0" + fixed(0.9642) + fixed(1) + fixed(0.8249), {}
    parts[b"desc"] = b"desc\0\0\0\0" + struct.pack(">I", 2) + b"x\0" + bytes(78)
    parts[b"cprt"], parts[b"wtpt"] = b"text\0\0\0\0x\0", white
    if space == b"GRAY":
        parts[b"kTRC"] = tone
    for i, name in enumerate((b"r", b"g", b"b") if space == b"RGB " else ()):
        parts[name + b"XYZ"], parts[name + b"TRC"] = b"XYZ \0\0\0\0" + b"".join(fixed(row[i]) for row in matrix), tone
    table, body, at = b"", b"", 132 + 12 * len(parts)
    for name, data in parts.items():
        table += name + struct.pack(">II", at + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">I", at + len(body)) + bytes(4) + b"\x02\x20\0\0mntr" + space + b"XYZ " + bytes(12) + b"acsp" + bytes(28) + white[8:]
    return head.ljust(128, b"\0") + struct.pack(">I", len(parts)) + table + body


def in_srgb(colour: tuple[int, int, int], matrix: tuple, gamma: float | None) -> np.ndarray:
    """What the profile's colour is in sRGB, from the definitions alone."""
    value_3 = np.array(colour) / 255
    light_3 = np.linalg.solve(np.array(SRGB), np.array(matrix) @ (linear(value_3) if gamma is None else value_3 ** gamma)).clip(0, 1)
    return 255 * np.where(light_3 <= 0.0031308, light_3 * 12.92, 1.055 * light_3 ** (1 / 2.4) - 0.055)


def noise(width: int = 40, height: int = 24) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


@needs_littlecms
@pytest.mark.parametrize("matrix, gamma", [(DISPLAY_P3, None), (ADOBE_RGB, 2.2), (PROPHOTO, 1.8)])
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_colours_are_those_that_people_see(tmp_path: Path, matrix: tuple, gamma: float | None, suffix: str) -> None:
    options = {"quality": 100} if suffix == "jpg" else {"lossless": True} if suffix == "webp" else {}
    Image.new("RGB", (16, 16), RED_COAT).save(tmp_path / f"x.{suffix}", icc_profile=profile(matrix, gamma), **options)
    wanted = in_srgb(RED_COAT, matrix, gamma)
    assert np.abs(wanted - RED_COAT).max() > 10, "the profile makes a difference"
    picture = read_picture(tmp_path / f"x.{suffix}")
    assert np.abs(np.array(picture.getpixel((8, 8))) - wanted).max() <= 2 and "icc_profile" not in picture.info
    assert check_picture((tmp_path / f"x.{suffix}").read_bytes()).is_converted


@needs_littlecms
def test_a_palette_and_a_transparent_picture_are_converted_too(tmp_path: Path) -> None:
    wanted = in_srgb(RED_COAT, DISPLAY_P3, None)
    Image.new("RGB", (8, 8), RED_COAT).quantize(4).save(tmp_path / "palette.png", icc_profile=profile(DISPLAY_P3, None))
    half = Image.new("RGBA", (8, 8), (*RED_COAT, 255))
    half.paste((*RED_COAT, 128), (4, 0, 8, 8))
    half.paste((*RED_COAT, 0), (6, 0, 8, 8))
    half.save(tmp_path / "cut.png", icc_profile=profile(DISPLAY_P3, None))
    cut = read_picture(tmp_path / "cut.png")
    for pixel in (read_picture(tmp_path / "palette.png").getpixel((1, 1)), cut.getpixel((1, 1))):
        assert np.abs(np.array(pixel) - wanted).max() <= 2
    assert np.abs(np.array(cut.getpixel((4, 1))) - (wanted + 255) / 2).max() <= 3 and cut.getpixel((7, 1)) == (255, 255, 255)
    assert [read_alpha(tmp_path / "cut.png").getpixel((x, 1)) for x in (1, 4, 7)] == [255, 128, 0]


@pytest.mark.parametrize("points", [1024, 32])
def test_srgb_stays_as_it_is(tmp_path: Path, points: int) -> None:
    for number, data in enumerate((profile(SRGB, None, points=points), ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())):
        noise().save(tmp_path / f"{number}.png", icc_profile=data)
        assert read_picture(tmp_path / f"{number}.png").tobytes() == noise().tobytes()
        assert not check_picture((tmp_path / f"{number}.png").read_bytes()).is_converted


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "I;16", "CMYK"])
def test_a_profile_that_cannot_be_used_fails_no_picture(tmp_path: Path, mode: str) -> None:
    whole = profile(DISPLAY_P3, None)
    grey = profile((), 1.0, b"GRAY")
    suffix = "jpg" if mode == "CMYK" else "png"
    picture = Image.fromarray(np.full((24, 40), 30000, np.uint16)) if mode == "I;16" else noise().convert(mode)
    picture.save(tmp_path / f"plain.{suffix}")
    wanted = read_picture(tmp_path / f"plain.{suffix}").tobytes()
    for data in (b"no profile", whole[:200], whole[:128] + bytes(len(whole) - 128), grey, *([whole] if mode in ("L", "LA", "1", "I;16") else [])):
        picture.save(tmp_path / f"x.{suffix}", icc_profile=data)
        assert read_picture(tmp_path / f"x.{suffix}").tobytes() == wanted
        assert not check_picture((tmp_path / f"x.{suffix}").read_bytes()).is_converted


@needs_littlecms
def test_thumbnails_and_the_check_see_the_same_colours(tmp_path: Path) -> None:
    """A big JPEG is decoded at a fraction of its size for both."""
    wanted = in_srgb(RED_COAT, DISPLAY_P3, None)
    for name, side in (("big", int(BIG ** 0.5) + 16), ("small", 64)):
        Image.new("RGB", (side, side), RED_COAT).save(tmp_path / f"{name}.jpg", quality=95, icc_profile=profile(DISPLAY_P3, None))
        shown = Image.open(io.BytesIO(thumbnail(tmp_path / "home", tmp_path / f"{name}.jpg", 64)))
        assert np.abs(np.array(shown.getpixel((32, 32))) - wanted).max() <= 4 and "icc_profile" not in shown.info
        assert np.abs(look_at(tmp_path / f"{name}.jpg").colours_CC3[8, 8] - wanted).max() <= 4


@needs_littlecms
def test_what_was_prepared_without_the_profile_is_made_anew_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, options in (("plain", {}), ("srgb", {"icc_profile": profile(SRGB, None)}), ("phone", {"icc_profile": profile(DISPLAY_P3, None)})):
        noise(64, 64).rotate(len(name)).save(folder / f"{name}.png", **options)
    with monkeypatch.context() as without:
        without.setattr(colours, "_transform", lambda data, mode: None)
        before, report = _prepared(tmp_path, folder)
        assert report.encoded == 3
    after, report = _prepared(tmp_path, folder)
    assert (report.encoded, report.reused) == (1, 2)
    assert [torch.equal(a, b) for a, b in zip(before, after)] == [False, True, True]


def _prepared(home: Path, folder: Path):
    cache = LatentCache(home / "cache", "vae", lambda x_B3HW: x_B3HW)
    examples = read_gallery(folder, trigger="sks").examples
    report = cache.prepare(examples, lambda example: (64, 64))
    return [cache.load(example)["z_VCHW"] for example in examples], report


def test_a_pillow_without_littlecms_says_so_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    for name, matrix in (("a", DISPLAY_P3), ("b", PROPHOTO)):
        noise().save(tmp_path / f"{name}.png", icc_profile=profile(matrix, None))
    colours._transform.cache_clear()
    colours._say_missing.cache_clear()
    with monkeypatch.context() as without:
        without.delattr(PIL, "ImageCms")
        without.setitem(sys.modules, "PIL.ImageCms", None)
        assert all(read_picture(tmp_path / f"{name}.png").tobytes() == noise().tobytes() for name in "ab")
    colours._transform.cache_clear()
    assert caplog.text.count("without littlecms") == 1
