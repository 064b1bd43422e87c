"""Prepared pictures and captions on disk, keyed by content: what has not changed is never encoded twice.

One safetensors file per entry. Its key holds everything that its content depends on, so nothing can be stale; its checksum
tells when it is damaged, and then it is made again.
"""
from __future__ import annotations

import hashlib
import inspect
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterable, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save

from .buckets import cover_size, crop_box
from .gallery import Example
from .lora_file import read_safetensors
from .output_files import write_atomically
from .pictures import UnreadablePicture, is_mask_by_opacity, read_alpha, read_bytes, read_picture
from .pictures import read_mask as read_mask_file
from .pixels import to_tensor
from .randomness import python_random

VERSION = 1
BATCH = 4
Tensors = dict[str, torch.Tensor]
Result = TypeVar("Result")


@dataclass
class CacheReport:
    """How many entries were encoded (the repaired ones among them), found ready, and found damaged."""

    encoded: int = 0
    reused: int = 0
    repaired: int = 0


class LatentCache:
    """Latents of pictures: `crops` cuts of each, and their mirror images with `flip`.

    `encode` maps pixels `(B, 3, H, W)` in [-1, 1] to latents `(B, C, h, w)`; `encoder_id` changes when its result would.
    """

    def __init__(self, folder: str | Path, encoder_id: str, encode: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.folder, self.encoder_id, self.encode = Path(folder), encoder_id, encode
        self._paths: dict[tuple[Path, bool], Path] = {}

    def prepare(self, examples: list[Example], bucket_of: Callable[[Example], tuple[int, int]], crops: int = 1, flip: bool = False,
                seed: int = 0, masks: bool = False, augmentation: Callable[[Image.Image, random.Random], Image.Image] | None = None,
                progress: Callable[[int, int], None] | None = None) -> CacheReport:
        """Encode what is missing or damaged. Raises what reading a picture or writing an entry raises; what is done is kept."""
        report = CacheReport()
        for done, example in enumerate(examples):
            bucket = bucket_of(example)
            key = _key("latents", self.encoder_id, example.seen_hash, mask_hash(example, masks), list(bucket), crops, flip, seed, masks,
                       _code_hash(augmentation))
            path = self._paths[example.path, example.is_prior] = self.folder / f"{key}.safetensors"
            found = read_entry(path)
            if found is None:
                report.repaired += path.exists()
                variants = [self._cut(example, bucket, crop, crops, seed, masks, augmentation) for crop in range(crops)]
                write_entry(path, self._encode(variants, flip, masks))
                report.encoded += 1
            else:
                report.reused += 1
            if progress:
                progress(done + 1, len(examples))
        return report

    def load(self, example: Example) -> Tensors:
        """`z_VCHW` and `size_V6` (original height, width, crop top, left, bucket height, width) of the V variants, float32, and
        `mask_V1HW` at the latents' size where there are masks."""
        entry = read_entry(self._paths[example.path, example.is_prior])
        if entry is None:
            raise ValueError(f"the prepared picture of {example.path} has been damaged or removed during the run; start again with --resume "
                             "and it is made anew")
        return entry

    def _cut(self, example: Example, bucket: tuple[int, int], crop: int, crops: int, seed: int, masks: bool, augmentation):
        picture = _still_there(read_picture, example.path)
        mask = read_mask(example, picture.size) if masks else None
        # the content names the picture, so that renaming it does not cut it anew
        rng = python_random(seed, f"crop {example.content_hash}", crop, 0)
        if augmentation is not None:
            picture = augmentation(picture, rng)
            if not isinstance(picture, Image.Image):
                raise ValueError(f"the augmentation returned a {type(picture).__name__} for {example.path.name}; it must return a PIL picture")
            picture = picture.convert("RGB")
        covered = cover_size(*picture.size, bucket)
        box = crop_box(*covered, bucket, rng if crops > 1 else None)
        x_3HW = to_tensor(picture.resize(covered, Image.LANCZOS).crop(box))
        m_1HW = None if mask is None else torch.from_numpy(_array(mask.resize(covered, Image.BILINEAR).crop(box)))[None]
        size = [example.height, example.width, box[1], box[0], bucket[1], bucket[0]]
        return x_3HW, m_1HW, torch.tensor(size, dtype=torch.float32)

    def _encode(self, variants: list, flip: bool, masks: bool) -> Tensors:
        if flip:
            variants = variants + [(x.flip(-1), None if m is None else m.flip(-1), size) for x, m, size in variants]
        x_V3HW = torch.stack([x for x, _, _ in variants])
        z_VCHW = torch.cat([self.encode(x_V3HW[i:i + BATCH]).float().cpu() for i in range(0, len(variants), BATCH)])
        if not torch.isfinite(z_VCHW).all():
            raise ValueError("the autoencoder made numbers that are not finite of a picture; use a base with a sound VAE, or one in fp32")
        entry = {"z_VCHW": z_VCHW.contiguous(), "size_V6": torch.stack([size for _, _, size in variants])}
        if masks:
            ones = torch.ones(1, *x_V3HW.shape[2:])
            m_V1HW = torch.stack([ones if m is None else m for _, m, _ in variants])
            entry["mask_V1HW"] = F.interpolate(m_V1HW, size=z_VCHW.shape[-2:], mode="area").contiguous()
        return entry


class TextCache:
    """Text embeddings by caption; `encode` maps captions to tensors, batch first."""

    def __init__(self, folder: str | Path, encoder_id: str, encode: Callable[[list[str]], Tensors]) -> None:
        self.folder, self.encoder_id, self.encode = Path(folder), encoder_id, encode

    def prepare(self, captions: Iterable[str], progress: Callable[[int, int], None] | None = None) -> CacheReport:
        report, captions = CacheReport(), list(dict.fromkeys(captions))
        for done, caption in enumerate(captions):
            path = self._path(caption)
            if read_entry(path) is None:
                report.repaired += path.exists()
                write_entry(path, {key: value[0].detach().cpu().contiguous().clone() for key, value in self.encode([caption]).items()})
                report.encoded += 1
            else:
                report.reused += 1
            if progress:
                progress(done + 1, len(captions))
        return report

    def load(self, caption: str) -> Tensors:
        """The embedding of one caption, without a batch dimension; encoded now when it is not there."""
        found = read_entry(self._path(caption))
        if found is None:
            self.prepare([caption])
            found = read_entry(self._path(caption))
            assert found is not None, "an entry that was just written cannot be read"
        return found

    def _path(self, caption: str) -> Path:
        return self.folder / f"{_key('text', self.encoder_id, caption)}.safetensors"


def read_mask(example: Example, size: tuple[int, int]) -> Image.Image | None:
    """The mask of a picture at `size`: its `*_mask.png`, else its alpha channel, else None. White is trained."""
    mask = _still_there(read_mask_file, example.mask_path) if example.mask_path else _still_there(read_alpha, example.path)
    return mask if mask is None or mask.size == size else mask.resize(size, Image.BILINEAR)


def write_entry(path: Path, tensors: Tensors) -> None:
    """Write tensors with their checksum, in one step."""
    write_atomically(path, save(tensors, {"checksum": _checksum(tensors)}))


def read_entry(path: Path) -> Tensors | None:
    """The tensors of an entry; None when it is missing or damaged. Not mapped into memory: the file may be replaced meanwhile."""
    try:
        tensors, metadata = read_safetensors(path)
    except ValueError:
        return None
    return tensors if metadata.get("checksum") == _checksum(tensors) else None


def _checksum(tensors: Tensors) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for key in sorted(tensors):
        digest.update(f"{key} {tensors[key].dtype} {tuple(tensors[key].shape)}".encode())
        digest.update(tensors[key].contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _key(*parts) -> str:
    return hashlib.blake2b(json.dumps([VERSION, *parts], ensure_ascii=False).encode("utf-8", "surrogatepass"), digest_size=20).hexdigest()


def mask_hash(example: Example, masks: bool) -> str:
    """Of its file's bytes, and of how they are read where that was another way in earlier versions; empty where it has none or none is wanted."""
    if not masks or example.mask_path is None:
        return ""
    data = _still_there(read_bytes, example.mask_path)
    by_opacity = _still_there(lambda _: is_mask_by_opacity(data), example.mask_path)
    return hashlib.blake2b(data, digest_size=16).hexdigest() + (" opacity" if by_opacity else "")


def _still_there(read: Callable[[Path], Result], path: Path) -> Result:
    """What `read` makes of a file that the gallery had. ValueError, which names it, when it has been removed or spoilt since."""
    try:
        return read(path)
    except UnreadablePicture as error:
        raise ValueError(f"{path.name} cannot be used: {error}; put it back or start the training again") from None


def _code_hash(function: Callable | None) -> str:
    """Changes when the file of a user's function does; without a file it is the function's name alone."""
    if function is None:
        return ""
    try:
        source = Path(inspect.getsourcefile(function) or "").read_bytes()
    except (TypeError, OSError):
        source = b""
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return hashlib.blake2b(name.encode() + source, digest_size=16).hexdigest()


def _array(mask: Image.Image) -> np.ndarray:
    return np.array(mask, dtype=np.float32) / 255
