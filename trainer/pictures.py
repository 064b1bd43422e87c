"""Picture files as Pillow pictures: turned upright, in 8 bit sRGB, or refused with a reason that a user understands."""
from __future__ import annotations

import hashlib
import io
import re
import stat
import threading
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from .colours import from_printing_colours, is_converted, to_srgb

SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".avif", ".jfif"))
BIG_MEGAPIXELS = 40.0
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "GIF", "AVIF")
ORIENTATION = 0x0112
TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
         5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90}
FOREIGN = ((b"II*\0", "tiff"), (b"MM\0*", "tiff"), (b"\xff\x0a", "jxl"), (b"\0\0\0\x0cJXL ", "jxl"), (b"\0\0\0\x0cjP  ", "jp2"), (b"8BPS", "psd"), (b"%PDF", "pdf"),
           (b"<svg", "svg"), (b"<?xml", "svg"), (b"<!DOCTYPE html", "a web page"), (b"<html", "a web page"), (b"<!doctype html", "a web page"))
"""How files begin that are no picture which can be read here, and what they are."""
WITH_ALPHA = ("RGBA", "LA", "PA")
ONE_COLOUR = 8
"""Levels of 255 by which what is painted in one colour may vary, or be away from black."""


class UnreadablePicture(ValueError):
    """A picture that cannot be used; the message is the reason, without the file's name."""


# several big pictures at once would not fit into a small machine's memory
_one_big_picture = threading.Lock()


@dataclass(frozen=True)
class PictureFacts:
    """What one full decoding tells: size in pixels after rotation, whether anything is transparent, hash of the file, and whether `read_picture`
    converts its colours to sRGB."""

    width: int
    height: int
    has_alpha: bool
    content_hash: str
    is_converted: bool = False


class _Stream(io.BytesIO):
    """Bytes whose end is an error once decoding has begun.

    Pillow's own check for truncated files hangs on a global switch that hosts turn off (`LOAD_TRUNCATED_IMAGES`).
    """

    decoding = False

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        if self.decoding and not data and size != 0:
            raise UnreadablePicture("the file is truncated")
        return data


def read_picture(path: str | Path, max_megapixels: float = 180.0) -> Image.Image:
    """The picture in mode RGB with the colours of sRGB, upright by its EXIF rotation; the first frame, 16 bit scaled to 8, transparency over white.

    Raises UnreadablePicture with the reason: not a picture, truncated, empty, or more than `max_megapixels` million pixels.
    """
    return _guarded(lambda: to_rgb(_upright(_decode(read_bytes(path, max_megapixels), max_megapixels))))


def read_alpha(path: str | Path, max_megapixels: float = 180.0) -> Image.Image | None:
    """The opacity in mode L (0 is transparent), upright as `read_picture`; None for a picture without transparency.

    Raises UnreadablePicture as `read_picture` does.
    """
    return _guarded(lambda: _alpha(_upright(_decode(read_bytes(path, max_megapixels), max_megapixels))))


def read_mask(path: str | Path, max_megapixels: float = 180.0) -> Image.Image:
    """A mask in mode L, upright; white is trained. Painted in one colour on nothing, its opacity is the mask, but what is painted black is left out as
    anywhere else. Raises UnreadablePicture as `read_picture` does.
    """
    return _guarded(lambda: _mask(_upright(_decode(read_bytes(path, max_megapixels), max_megapixels)))[0])


def is_mask_by_opacity(data: bytes, max_megapixels: float = 180.0) -> bool:
    """Whether `read_mask` takes the opacity for the mask. Raises UnreadablePicture as `read_picture` does."""
    return _guarded(lambda: _has_alpha(Image.open(io.BytesIO(data))) and _mask(_decode(data, max_megapixels))[1])


def check_picture(data: bytes, max_megapixels: float = 180.0) -> PictureFacts:
    """Decode a picture file's bytes completely and say what is in it. Raises UnreadablePicture as `read_picture` does."""
    def facts() -> PictureFacts:
        picture = _decode(data, max_megapixels)
        width, height = picture.size if _orientation(picture) < 5 else picture.size[::-1]
        return PictureFacts(width, height, _alpha(picture) is not None, hashlib.blake2b(data, digest_size=16).hexdigest(), is_converted(picture))
    return _guarded(facts)


def read_bytes(path: str | Path, max_megapixels: float = 180.0) -> bytes:
    """The bytes of a picture file. Raises UnreadablePicture when it is no regular file, is empty, or cannot be opened."""
    path = Path(path)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise UnreadablePicture("it is not a file")
        # no format needs more than 8 bytes per pixel
        if status.st_size > max_megapixels * 8e6 + 64e6:
            raise UnreadablePicture(f"the file has {status.st_size / 1e6:.0f} MB, too much for max_megapixels {max_megapixels:g}")
        data = path.read_bytes()
    except OSError as error:
        raise UnreadablePicture(f"it cannot be opened ({error.strerror or error})") from error
    if not data:
        raise UnreadablePicture("the file is empty")
    return data


def _guarded(action):
    """Run `action` on bytes of any origin. Pillow's readers raise nearly every type of exception on damaged files."""
    try:
        return action()
    except UnreadablePicture:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadablePicture(_too_many_pixels(str(error))) from error
    except MemoryError as error:
        raise UnreadablePicture("it does not fit into memory") from error
    except Exception as error:
        raise UnreadablePicture(f"it is damaged ({type(error).__name__}: {error})") from error


def _too_many_pixels(said: str) -> str:
    """Pillow's own limit, which hosts may change, in the words of this module."""
    numbers = [int(number) / 1e6 for number in re.findall(r"[0-9]{4,}", said)]
    return (f"it has {numbers[0]:.0f} megapixels, and Pillow refuses more than {numbers[1]:.0f} here; make it smaller" if len(numbers) == 2
            else f"it has too many pixels for Pillow; make it smaller ({said})")


def _foreign_kind(data: bytes) -> str:
    """What a file is by its content, of what people have under the name of a picture; empty when that is not known."""
    if data[4:8] == b"ftyp":
        # the kind itself, and after four bytes those that it goes with
        brands = {data[8:12], *(data[at:at + 4] for at in range(16, min(int.from_bytes(data[:4], "big"), 128), 4))}
        return "avif" if brands & {b"avif", b"avis"} else "heic" if brands & {b"heic", b"heix", b"hevc", b"heim", b"mif1", b"msf1"} else "a video"
    return next((kind for start, kind in FOREIGN if data.startswith(start)), "")


def _decode(data: bytes, max_megapixels: float) -> Image.Image:
    Image.init()
    stream = _Stream(data)
    try:
        picture = Image.open(stream, formats=[name for name in FORMATS if name in Image.OPEN])
    except Image.UnidentifiedImageError as error:
        kind = _foreign_kind(data)
        if kind == "avif":
            reason = "it is not a picture, or damaged" if "AVIF" in Image.OPEN else "this Pillow cannot read avif; save it as png or jpg"
        else:
            reason = f"its content is {kind}, whatever its name says, which is not read; save the picture as png or jpg" if kind else "it is not a picture, or damaged"
        raise UnreadablePicture(reason) from error
    megapixels = picture.width * picture.height / 1e6
    if megapixels > max_megapixels:
        raise UnreadablePicture(f"{picture.width}x{picture.height} are {megapixels:.0f} megapixels, max_megapixels is {max_megapixels:g}; "
                                "make it smaller")
    # Pillow accepts a PNG whose last chunks are missing
    if picture.format == "PNG" and b"IEND" not in data:
        raise UnreadablePicture("the file is truncated")
    stream.decoding = True
    with _one_big_picture if megapixels > BIG_MEGAPIXELS else nullcontext():
        picture.load()
    stream.decoding = False
    return picture


def _orientation(picture: Image.Image) -> int:
    try:
        value = picture.getexif().get(ORIENTATION, 1)
    except Exception:  # a picture whose EXIF block alone is damaged is still a picture
        return 1
    return value if isinstance(value, int) and value in TURNS else 1


def _upright(picture: Image.Image) -> Image.Image:
    orientation = _orientation(picture)
    if orientation == 1:
        return picture
    turned = picture.transpose(TURNS[orientation])
    if "transparency" in picture.info:
        turned.info["transparency"] = picture.info["transparency"]
    return turned


def _has_alpha(picture: Image.Image) -> bool:
    return picture.mode in WITH_ALPHA or ("transparency" in picture.info and picture.mode in ("1", "L", "P", "RGB"))


def _alpha(picture: Image.Image) -> Image.Image | None:
    if not _has_alpha(picture):
        return None
    alpha = picture.convert("RGBA").getchannel("A")
    return alpha if alpha.getextrema()[0] < 255 else None


def _mask(picture: Image.Image) -> tuple[Image.Image, bool]:
    """The mask that a picture means, and whether that is its opacity."""
    # its values are no colours
    picture.info.pop("icc_profile", None)
    alpha = _alpha(picture)
    if alpha is not None:
        painted_HW = np.asarray(alpha) > 127
        painted_N3 = np.asarray(picture.convert("RGBA").convert("RGB"))[painted_HW]
        if not len(painted_N3) or np.ptp(painted_N3, axis=0).max() <= ONE_COLOUR < painted_N3.max():
            return alpha, True
    return to_rgb(picture).convert("L"), False


def to_rgb(picture: Image.Image) -> Image.Image:
    """A picture as Pillow decodes it, in mode RGB: colours by its profile in sRGB, 16 bit scaled to 8, transparency over white."""
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        return _from_16_bit(picture)
    if picture.mode == "CMYK":
        return from_printing_colours(picture)
    rgb = to_srgb(picture.convert("RGBA").convert("RGB") if _has_alpha(picture) else picture.convert("RGB"), picture)
    if (alpha := _alpha(picture)) is None:
        return rgb
    white = Image.new("RGB", picture.size, (255, 255, 255))
    white.paste(rgb, mask=alpha)
    return white


def _from_16_bit(picture: Image.Image) -> Image.Image:
    # Pillow's own convert() clips at 255 instead of scaling
    values_HW = np.asarray(picture).astype(np.float32)
    values_HW = np.clip(np.round(values_HW / 257), 0, 255).astype(np.uint8)
    return Image.fromarray(values_HW).convert("RGB")
