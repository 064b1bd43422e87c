"""Pictures of every kind come out as upright 8-bit RGB, or are refused with the reason."""
from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, features

from hotlora.trainer.pictures import UnreadablePicture, check_picture, is_mask_by_opacity, read_alpha, read_mask, read_picture

HAS_AVIF = bool(features.check("avif")) if "avif" in features.modules or "avif" in features.features else False


def corners() -> Image.Image:
    """Red top left, green top right, blue bottom left, white bottom right; 48 wide, 32 high."""
    picture = Image.new("RGB", (48, 32), "white")
    picture.paste((255, 0, 0), (0, 0, 24, 16))
    picture.paste((0, 255, 0), (24, 0, 48, 16))
    picture.paste((0, 0, 255), (0, 16, 24, 32))
    return picture


def near(pixel: tuple[int, ...], wanted: tuple[int, ...], tolerance: int = 12) -> bool:
    return all(abs(a - b) <= tolerance for a, b in zip(pixel, wanted))


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def write_png(path: Path, width: int, height: int, depth: int, colour: int, rows: bytes) -> None:
    """A PNG written by hand, of depths that Pillow itself does not write."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b""))


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "jfif", "png", "webp", "bmp", "gif", "avif"])
def test_reads_every_format(tmp_path: Path, suffix: str) -> None:
    if suffix == "avif" and not HAS_AVIF:
        pytest.skip("this Pillow cannot write avif")
    path = tmp_path / f"x.{suffix}"
    options = {"quality": 95} if suffix in ("jpg", "jpeg", "jfif", "webp", "avif") else {}
    corners().save(path, format="JPEG" if suffix == "jfif" else None, **options)
    picture = read_picture(path)
    assert picture.mode == "RGB" and picture.size == (48, 32)
    assert near(picture.getpixel((8, 5)), (255, 0, 0)) and near(picture.getpixel((8, 28)), (0, 0, 255))


@pytest.mark.parametrize("orientation, undo", [
    (1, []), (2, [Image.Transpose.FLIP_LEFT_RIGHT]), (3, [Image.Transpose.ROTATE_180]), (4, [Image.Transpose.FLIP_TOP_BOTTOM]),
    (5, [Image.Transpose.ROTATE_90, Image.Transpose.FLIP_TOP_BOTTOM]), (6, [Image.Transpose.ROTATE_90]),
    (7, [Image.Transpose.ROTATE_270, Image.Transpose.FLIP_TOP_BOTTOM]), (8, [Image.Transpose.ROTATE_270])])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_turns_upright(tmp_path: Path, orientation: int, undo: list, suffix: str) -> None:
    stored = corners()
    for step in undo:
        stored = stored.transpose(step)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if suffix == "jpg" else {"lossless": True} if suffix == "webp" else {}
    stored.save(tmp_path / f"x.{suffix}", exif=exif, **options)
    picture = read_picture(tmp_path / f"x.{suffix}")
    assert picture.size == (48, 32)
    assert np.abs(np.asarray(picture).astype(int) - np.asarray(corners()))[2:12, 2:20].max() < 20
    assert near(picture.getpixel((40, 5)), (0, 255, 0)) and near(picture.getpixel((8, 28)), (0, 0, 255))
    facts = check_picture((tmp_path / f"x.{suffix}").read_bytes())
    assert (facts.width, facts.height) == (48, 32)


def test_alpha_turns_with_the_picture(tmp_path: Path) -> None:
    stored = corners().convert("RGBA")
    stored.paste((0, 0, 0, 0), (0, 0, 48, 16))
    exif = Image.Exif()
    exif[0x0112] = 6
    stored.save(tmp_path / "x.png", exif=exif)
    alpha, picture = read_alpha(tmp_path / "x.png"), read_picture(tmp_path / "x.png")
    assert alpha.mode == "L" and alpha.size == picture.size == (32, 48)
    # turned clockwise, the transparent top half is at the right
    assert alpha.getpixel((30, 20)) == 0 and alpha.getpixel((2, 20)) == 255
    assert picture.getpixel((30, 20)) == (255, 255, 255)


def test_half_transparent_is_mixed_with_white(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (200, 0, 100, 128)).save(tmp_path / "x.png")
    assert near(read_picture(tmp_path / "x.png").getpixel((1, 1)), (227, 127, 177), 1)
    Image.new("LA", (4, 4), (100, 0)).save(tmp_path / "grey.png")
    assert read_picture(tmp_path / "grey.png").getpixel((1, 1)) == (255, 255, 255)


@pytest.mark.parametrize("mode, paint, nothing, wanted, by_opacity", [
    ("RGBA", (255, 255, 255, 255), (0, 0, 0, 0), 255, True), ("RGBA", (255, 255, 255, 255), (255, 255, 255, 0), 255, True),
    ("RGBA", (220, 30, 30, 255), (0, 0, 0, 0), 255, True), ("LA", (255, 255), (255, 0), 255, True), ("RGBA", (0, 0, 0, 255), (0, 0, 0, 0), 0, False),
    ("RGB", (255, 255, 255), (0, 0, 0), 255, False), ("L", 0, 255, 0, False), ("RGBA", (255, 255, 255, 255), (0, 0, 0, 255), 255, False)])
def test_what_a_mask_means(tmp_path: Path, mode: str, paint, nothing, wanted: int, by_opacity: bool) -> None:
    mask = Image.new(mode, (8, 8), nothing)
    mask.paste(paint, (0, 0, 4, 8))
    mask.save(tmp_path / "x_mask.png")
    read = read_mask(tmp_path / "x_mask.png")
    assert (read.mode, read.getpixel((1, 1)), read.getpixel((6, 1))) == ("L", wanted, 255 - wanted)
    assert is_mask_by_opacity((tmp_path / "x_mask.png").read_bytes()) is by_opacity


def test_a_mask_of_several_colours_is_laid_over_white(tmp_path: Path) -> None:
    mask = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    mask.paste((255, 255, 255, 255), (0, 0, 2, 8))
    mask.paste((0, 0, 0, 255), (2, 0, 4, 8))
    mask.save(tmp_path / "x_mask.png")
    assert [read_mask(tmp_path / "x_mask.png").getpixel((x, 1)) for x in (1, 3, 6)] == [255, 0, 255]


def test_palette_with_and_without_transparency(tmp_path: Path) -> None:
    palette = corners().quantize(8)
    palette.save(tmp_path / "opaque.png")
    assert near(read_picture(tmp_path / "opaque.png").getpixel((40, 5)), (0, 255, 0), 2)
    assert read_alpha(tmp_path / "opaque.png") is None
    palette.save(tmp_path / "cut.png", transparency=palette.getpixel((2, 2)))
    assert read_picture(tmp_path / "cut.png").getpixel((2, 2)) == (255, 255, 255)
    assert read_alpha(tmp_path / "cut.png").getpixel((2, 2)) == 0
    assert near(read_picture(tmp_path / "cut.png").getpixel((40, 5)), (0, 255, 0), 2)


def test_transparent_colour_of_rgb(tmp_path: Path) -> None:
    corners().save(tmp_path / "x.png", transparency=(255, 0, 0))
    assert read_picture(tmp_path / "x.png").getpixel((2, 2)) == (255, 255, 255)
    assert read_alpha(tmp_path / "x.png").getpixel((40, 2)) == 255


def test_opaque_alpha_is_no_alpha(tmp_path: Path) -> None:
    corners().convert("RGBA").save(tmp_path / "x.png")
    assert read_alpha(tmp_path / "x.png") is None
    assert not check_picture((tmp_path / "x.png").read_bytes()).has_alpha
    assert read_picture(tmp_path / "x.png").tobytes() == corners().tobytes()


def test_cmyk(tmp_path: Path) -> None:
    corners().convert("CMYK").save(tmp_path / "x.jpg", quality=95)
    picture = read_picture(tmp_path / "x.jpg")
    assert near(picture.getpixel((8, 5)), (255, 0, 0)) and near(picture.getpixel((8, 28)), (0, 0, 255))


def test_cmyk_with_a_damaged_profile(tmp_path: Path) -> None:
    corners().convert("CMYK").save(tmp_path / "x.jpg", quality=95, icc_profile=b"no profile")
    assert near(read_picture(tmp_path / "x.jpg").getpixel((8, 5)), (255, 0, 0))


def test_16_bit_grey_is_scaled(tmp_path: Path) -> None:
    values = [0, 257 * 10, 257 * 128, 65535]
    write_png(tmp_path / "grey.png", 4, 1, 16, 0, b"\0" + struct.pack(">4H", *values))
    assert [read_picture(tmp_path / "grey.png").getpixel((x, 0))[0] for x in range(4)] == [0, 10, 128, 255]


def test_16_bit_colour_is_scaled(tmp_path: Path) -> None:
    write_png(tmp_path / "rgb.png", 2, 1, 16, 2, b"\0" + struct.pack(">6H", 65535, 257 * 100, 0, 0, 257 * 200, 65535))
    picture = read_picture(tmp_path / "rgb.png")
    assert picture.getpixel((0, 0)) == (255, 100, 0) and picture.getpixel((1, 0)) == (0, 200, 255)
    write_png(tmp_path / "rgba.png", 1, 1, 16, 6, b"\0" + struct.pack(">4H", 0, 0, 0, 0))
    assert read_picture(tmp_path / "rgba.png").getpixel((0, 0)) == (255, 255, 255)


def test_one_bit(tmp_path: Path) -> None:
    write_png(tmp_path / "x.png", 8, 1, 1, 0, b"\0\xf0")
    assert [read_picture(tmp_path / "x.png").getpixel((x, 0)) for x in (0, 7)] == [(255, 255, 255), (0, 0, 0)]


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_first_frame_of_an_animation(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "green", "blue")]
    frames[0].save(tmp_path / f"x.{suffix}", save_all=True, append_images=frames[1:])
    assert near(read_picture(tmp_path / f"x.{suffix}").getpixel((8, 8)), (255, 0, 0))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "gif", "avif"])
@pytest.mark.parametrize("share", [0.3, 0.7, 0.95])
@pytest.mark.parametrize("host_forgives", [False, True])
def test_truncated_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, share: float, host_forgives: bool) -> None:
    """Hosts set Pillow's global switch that fills truncated pictures with grey."""
    if suffix == "avif" and not HAS_AVIF:
        pytest.skip("this Pillow cannot write avif")
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", host_forgives)
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 300, 3), np.uint8))
    noise.save(tmp_path / f"x.{suffix}")
    data = (tmp_path / f"x.{suffix}").read_bytes()
    assert check_picture(data).width == 300
    with pytest.raises(UnreadablePicture):
        check_picture(data[:int(len(data) * share)])


def test_the_last_chunk_of_a_png_is_missing(tmp_path: Path) -> None:
    corners().save(tmp_path / "x.png")
    (tmp_path / "x.png").write_bytes((tmp_path / "x.png").read_bytes()[:-12])
    with pytest.raises(UnreadablePicture, match="truncated"):
        read_picture(tmp_path / "x.png")


def test_reasons(tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("hello", encoding="utf-8")
    (tmp_path / "folder.png").mkdir()
    for name, reason in (("empty.png", "empty"), ("text.png", "not a picture"), ("folder.png", "not a file"), ("gone.png", "opened")):
        with pytest.raises(UnreadablePicture, match=reason):
            read_picture(tmp_path / name)
        with pytest.raises(UnreadablePicture, match=reason):
            read_alpha(tmp_path / name)


@pytest.mark.parametrize("kind, head", [
    ("heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"), ("heic", b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic"), ("a video", b"\0\0\0\x18ftypisom\0\0\2\0isommp41"),
    ("jxl", b"\xff\x0a\0\0"), ("psd", b"8BPS\0\1"), ("a web page", b"<!DOCTYPE html><html>")])
def test_what_is_no_picture_in_spite_of_its_name_is_called_what_it_is(tmp_path: Path, kind: str, head: bytes) -> None:
    (tmp_path / "IMG_1.jpg").write_bytes(head + bytes(1000))
    with pytest.raises(UnreadablePicture, match=f"^its content is {kind}, whatever its name says, which is not read; save the picture as png or jpg$"):
        read_picture(tmp_path / "IMG_1.jpg")


def test_a_tiff_under_another_name(tmp_path: Path) -> None:
    corners().save(tmp_path / "x.jpg", format="TIFF")
    with pytest.raises(UnreadablePicture, match="its content is tiff"):
        read_picture(tmp_path / "x.jpg")


def test_more_pixels_than_pillow_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_png(tmp_path / "x.png", 20_000, 10_000, 8, 2, b"\0" * 1000)
    with pytest.raises(UnreadablePicture, match="^it has 200 megapixels, and Pillow refuses more than 179 here; make it smaller$"):
        read_picture(tmp_path / "x.png", max_megapixels=400)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    with pytest.raises(UnreadablePicture, match="^20000x10000 are 200 megapixels, max_megapixels is 180; make it smaller$"):
        read_picture(tmp_path / "x.png")


def test_too_many_pixels(tmp_path: Path) -> None:
    corners().save(tmp_path / "x.png")
    with pytest.raises(UnreadablePicture, match="48x32.*max_megapixels is 0.001"):
        read_picture(tmp_path / "x.png", max_megapixels=0.001)


@pytest.mark.parametrize("side", [11_000, 13_500, 60_000])
def test_decompression_bomb_is_never_decoded(tmp_path: Path, side: int) -> None:
    write_png(tmp_path / "bomb.png", side, side, 8, 2, b"\0" * 1000)
    with pytest.raises(UnreadablePicture, match="pixels|truncated"):
        read_picture(tmp_path / "bomb.png", max_megapixels=100)


def test_damaged_exif_is_no_damaged_picture(tmp_path: Path) -> None:
    corners().save(tmp_path / "x.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12")
    assert read_picture(tmp_path / "x.jpg").size == (48, 32)


def test_wrong_suffix_is_no_matter(tmp_path: Path) -> None:
    corners().save(tmp_path / "x.png", format="WEBP")
    assert read_picture(tmp_path / "x.png").size == (48, 32)


def test_the_file_is_not_kept_open_or_changed(tmp_path: Path) -> None:
    corners().save(tmp_path / "x.bmp")
    before = (tmp_path / "x.bmp").read_bytes()
    picture = read_picture(tmp_path / "x.bmp")
    assert (tmp_path / "x.bmp").read_bytes() == before
    (tmp_path / "x.bmp").unlink()
    assert near(picture.getpixel((8, 5)), (255, 0, 0))


def test_same_bytes_have_the_same_hash(tmp_path: Path) -> None:
    corners().save(tmp_path / "x.png")
    data = (tmp_path / "x.png").read_bytes()
    assert check_picture(data) == check_picture(bytes(data))
    corners().transpose(Image.Transpose.ROTATE_180).save(tmp_path / "y.png")
    assert check_picture((tmp_path / "y.png").read_bytes()).content_hash != check_picture(data).content_hash
