"""LoRA files by name, applied with ComfyUI's own loader."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.sd
import comfy.utils

from .places import lora_folders
from ..trainer.live import LoraTag, Registry

_kept: dict[Path, tuple[tuple[int, int], dict]] = {}
KEPT = 4


def registry() -> Registry:
    return Registry(lora_folders())


def read(path: Path) -> dict:
    """The tensors of a LoRA file; the few newest stay in memory until their file changes, also under the same name."""
    state = path.stat()
    version = (state.st_mtime_ns, state.st_size)
    if path not in _kept or _kept[path][0] != version:
        _kept[path] = version, comfy.utils.load_torch_file(str(path), safe_load=True)
        while len(_kept) > KEPT:
            del _kept[next(iter(_kept))]
    return _kept[path][1]


def versions(paths: list[Path], tags: list[LoraTag]) -> list[tuple]:
    """What changes with the content of these files and of those that the tags name. ValueError for a name that is not there."""
    found = registry()
    states = [(path, path.stat()) for path in [*paths, *(found.path(tag.name) for tag in tags)]]
    return [(str(path), state.st_mtime_ns, state.st_size) for path, state in states]


def apply_tags(model: Any, clip: Any, tags: list[LoraTag]) -> tuple[Any, Any]:
    """The model and the text encoder with every LoRA on them. ValueError for a name that is not there, before anything is read."""
    found = registry()
    paths = [found.path(tag.name) for tag in tags]
    for tag, path in zip(tags, paths):
        model, clip = comfy.sd.load_lora_for_models(model, clip, read(path), tag.unet, tag.te)
    return model, clip
