"""One look at each picture: decoded small, measured, and kept on disk by content, so that the second check takes seconds."""
from __future__ import annotations

import io
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Callable

import numpy as np
from PIL import Image, ImageStat

from . import measures
from ..output_files import OutputError, write_atomically
from ..pictures import UnreadablePicture, read_bytes, read_picture, to_rgb

log = logging.getLogger(__name__)
VERSION = 4
WORK_AREA = 512 * 512
"""Pixels at which blur, noise and bars are measured: what is finer than this is rarely trained."""
CROP = 1024
"""Side of the part in the middle that is looked at in full resolution."""
HISTORY = 640
"""Side of the part of it in which an earlier compression is looked for."""
BIG = 4_000_000
"""JPEG files with more pixels are decoded at a fraction of their size, which is several times as fast."""
THUMB, COLOURS = 96, 16
THREADS = 2


@dataclass
class Look:
    """What was measured; sizes in pixels of the picture, `work_scale` is the measured size in relation to it."""

    work_scale: float
    sharpest_edge: float
    edge_across: float
    smoothest: float
    smeared: float
    steepest: float
    steeper_across: float
    noise: float
    noise_whiteness: float
    contrast: float
    jpeg_quality: int
    kept_frequencies: float
    shifted_frequencies: float
    history_certainty: float
    history_quality: int
    enlarged: float
    enlarged_certainty: float
    detail: float
    flatness: float
    repeated: float
    bar_top: float
    bar_bottom: float
    bar_left: float
    bar_right: float
    missing_part: float
    grey_TT: np.ndarray
    colours_CC3: np.ndarray
    hash_8: np.ndarray


NUMBERS = [field.name for field in fields(Look) if field.name not in ("grey_TT", "colours_CC3", "hash_8")]
WHOLE = ("jpeg_quality", "history_quality")


def look_at(path: Path, max_megapixels: float = 180.0) -> Look:
    """Decode and measure one picture. Raises UnreadablePicture as `read_picture` does."""
    picture, tables, was_reduced, full_width = _open(path, max_megapixels)
    scale = min(1.0, (WORK_AREA / (picture.width * picture.height)) ** 0.5)
    work = picture if scale == 1.0 else picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))),
                                                       Image.LANCZOS, reducing_gap=2.0)
    grey_HW = np.asarray(work.convert("L"), dtype=np.float32)
    rgb_HW3 = np.asarray(work)
    native_HW3 = rgb_HW3 if was_reduced else _middle(picture)
    native_HW = grey_HW if was_reduced else np.asarray(Image.fromarray(native_HW3).convert("L"), dtype=np.float32)
    kept, shifted = (1.0, 1.0) if was_reduced else measures.block_damage(native_HW)
    certainty, quality = (0.0, 100) if was_reduced else measures.jpeg_history(native_HW3[:HISTORY, :HISTORY], native_HW[:HISTORY, :HISTORY])
    enlarged = (1.0, 0.0) if was_reduced else measures.enlarged_by(native_HW, has_grid=tables is not None or shifted > 1.15 * kept)
    sharpest, across = measures.edge_width(grey_HW)
    smooth, steep = measures.smeared(grey_HW), measures.steepest(grey_HW)
    noise, whiteness = measures.noise(grey_HW)
    bar = measures.bars(rgb_HW3)
    thumb = np.asarray(work.convert("L").resize((THUMB, THUMB), Image.BOX if min(work.size) >= THUMB else Image.BILINEAR))
    return Look(
        work_scale=work.width / full_width, sharpest_edge=sharpest, edge_across=across, smoothest=smooth[0], smeared=smooth[1],
        steepest=steep[0], steeper_across=steep[1], noise=noise, noise_whiteness=whiteness,
        contrast=max(ImageStat.Stat(work).stddev), jpeg_quality=measures.jpeg_quality(tables), kept_frequencies=kept,
        shifted_frequencies=shifted, history_certainty=certainty, history_quality=quality, enlarged=enlarged[0], enlarged_certainty=enlarged[1],
        detail=1.0 if was_reduced else measures.fine_detail(native_HW), flatness=measures.flatness(native_HW),
        repeated=1.0 if was_reduced else measures.repeated_pixels(native_HW), bar_top=bar["top"], bar_bottom=bar["bottom"],
        bar_left=bar["left"], bar_right=bar["right"], missing_part=measures.missing_part(rgb_HW3) if tables is not None else 0.0, grey_TT=thumb,
        colours_CC3=np.asarray(work.resize((COLOURS, COLOURS), Image.BOX)),
        hash_8=measures.perceptual_hash(thumb.reshape(32, THUMB // 32, 32, THUMB // 32).mean((1, 3)).astype(np.float32)))


def _open(path: Path, max_megapixels: float) -> tuple[Image.Image, dict | None, bool, int]:
    """The picture upright in RGB, a JPEG's tables, whether it was decoded at a fraction of its size, and its full width."""
    data = read_bytes(path, max_megapixels)
    tables = None
    if data[:2] == b"\xff\xd8":
        try:
            head = Image.open(io.BytesIO(data))
            tables, size, turn = head.quantization, head.size, head.getexif().get(0x0112, 1)
            if size[0] * size[1] > BIG and head.mode in ("RGB", "L") and size[0] * size[1] <= max_megapixels * 1e6:
                shrink = (WORK_AREA * 1.2 / (size[0] * size[1])) ** 0.5
                head.draft("RGB", (int(size[0] * shrink), int(size[1] * shrink)))
                picture = to_rgb(head)
                turned = turn in (5, 6, 7, 8)
                if turn in TURNS:
                    picture = picture.transpose(TURNS[turn])
                return picture, tables, True, size[1] if turned else size[0]
        except (OSError, ValueError, SyntaxError, AttributeError):
            tables = None  # the careful decoding below says what is wrong with it
    picture = read_picture(path, max_megapixels)
    return picture, tables, False, picture.width


TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
         6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90}


def _middle(picture: Image.Image) -> np.ndarray:
    left, top = max(0, (picture.width - CROP) // 2), max(0, (picture.height - CROP) // 2)
    part = picture.crop((left, top, min(picture.width, left + CROP), min(picture.height, top + CROP)))
    return np.asarray(part)


class LookCache:
    """Looks by content hash, in one file; what cannot be read is measured again."""

    def __init__(self, path: Path | None) -> None:
        self.path, self.looks, self.added = path, {}, 0
        if path is None:
            return
        try:
            with np.load(path, allow_pickle=False) as stored:
                if int(stored["version"]) != VERSION:
                    return
                numbers = stored["numbers"]
                grey, colours, hashes = stored["grey"], stored["colours"], stored["hashes"]
                for i, key in enumerate(stored["keys"].tolist()):
                    values = {name: int(value) if name in WHOLE else float(value) for name, value in zip(NUMBERS, numbers[i])}
                    self.looks[key] = Look(**values, grey_TT=grey[i], colours_CC3=colours[i], hash_8=hashes[i])
        except Exception:  # absent, damaged, or of another version
            self.looks = {}

    def save(self) -> None:
        if self.path is None or not self.added:
            return
        data, keys = io.BytesIO(), list(self.looks)
        looks = [self.looks[key] for key in keys]
        np.savez(data, version=VERSION, keys=np.array(keys), numbers=np.array([[getattr(look, name) for name in NUMBERS] for look in looks]),
                 grey=np.stack([look.grey_TT for look in looks]), colours=np.stack([look.colours_CC3 for look in looks]),
                 hashes=np.stack([look.hash_8 for look in looks]))
        try:
            write_atomically(self.path, data.getvalue())
        except OutputError as error:
            log.warning("what was measured of the pictures was not kept: %s", error)


def look_at_all(files: list[tuple[Path, str]], cache: LookCache, max_megapixels: float = 180.0,
                progress: Callable[[int, int], None] | None = None) -> list[Look | None]:
    """A look at each (path, `seen_hash`), None for a picture that has become unreadable or cannot be measured. Raises what `progress` raises."""
    def one(item: tuple[Path, str]) -> Look | None:
        path, key = item
        if key in cache.looks:
            return cache.looks[key]
        try:
            return look_at(path, max_megapixels)
        except UnreadablePicture:
            return None
        except Exception:
            # one odd picture must not cost the check of all the others
            log.warning("%s could not be measured, and is checked by its captions and size only", path, exc_info=True)
            return None

    pool = ThreadPoolExecutor(max_workers=THREADS)
    found = []
    try:
        for (path, key), look in zip(files, pool.map(one, files)):
            if look is not None and key not in cache.looks:
                cache.looks[key] = look
                cache.added += 1
            found.append(look)
            if progress:
                progress(len(found), len(files))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        cache.save()
    return found
