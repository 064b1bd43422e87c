"""Colours by the ICC profile that cameras and phones put into a picture, converted to sRGB: what models know and what screens show."""
from __future__ import annotations

import io
import logging
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

log = logging.getLogger(__name__)
SAME = 2
"""Levels of 255 by which a profile's colours may differ from those of sRGB and still be called sRGB: its versions differ by 1, other profiles by 9 and more."""


def is_converted(decoded: Image.Image) -> bool:
    """Whether a picture has a profile of RGB colours other than sRGB that can be converted."""
    return _transform_of(decoded, "RGB") is not None


def to_srgb(rgb: Image.Image, decoded: Image.Image) -> Image.Image:
    """`rgb`, changed in place where its colours are others; `decoded` is the picture that it was made of, which holds the profile."""
    transform = _transform_of(decoded, "RGB")
    return rgb if transform is None else _applied(transform, rgb, in_place=True)


def from_printing_colours(cmyk: Image.Image) -> Image.Image:
    """CMYK as RGB by the profile inside the file, as what an ink looks like is not known without it; by simple arithmetic where there is none."""
    transform = _transform_of(cmyk, "CMYK")
    return cmyk.convert("RGB") if transform is None else _applied(transform, cmyk)


def _transform_of(decoded: Image.Image, mode: str) -> Any:
    kinds = ("CMYK",) if mode == "CMYK" else ("RGB", "RGBA", "RGBX", "P", "PA")
    profile = decoded.info.get("icc_profile")
    return _transform(profile, mode) if decoded.mode in kinds and isinstance(profile, bytes) and profile else None


@lru_cache(maxsize=32)
def _transform(profile: bytes, mode: str) -> Any:
    """From the profile's colours to sRGB; None for one that is sRGB itself, is damaged, or is for another kind of picture: browsers then show the
    values as they are."""
    try:
        from PIL import ImageCms

        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
        return None if mode == "RGB" and _changes_nothing(transform) else transform
    except ImportError:
        _say_missing()
    except (ImageCms.PyCMSError, OSError, ValueError):
        pass
    return None


@lru_cache(maxsize=1)
def _say_missing() -> None:
    log.warning("pictures with a colour profile, such as photos of phones, are read with colours that are paler than they look, as this Pillow was built "
                "without littlecms; save them as sRGB, or install a Pillow that has it")


def _changes_nothing(transform: Any) -> bool:
    levels = np.linspace(0, 255, 18).round().astype(np.uint8)
    cube_N3 = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(-1, 3)
    greys_N3 = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, 1)
    before_1N3 = np.concatenate([cube_N3, greys_N3])[None]
    after_1N3 = np.asarray(_applied(transform, Image.fromarray(before_1N3))).astype(int)
    return np.abs(after_1N3 - before_1N3).max() <= SAME


def _applied(transform: Any, picture: Image.Image, in_place: bool = False) -> Image.Image:
    from PIL import ImageCms

    done = ImageCms.applyTransform(picture, transform, inPlace=in_place) or picture
    # Pillow would write it into a file
    done.info.pop("icc_profile", None)
    return done
