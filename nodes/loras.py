"""LoRA files by name, applied with ComfyUI's own loader."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.sd
import comfy.utils

from .places import lora_folders
from ..trainer.live import LoraTag, Registry, parse_prompt

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


def versions(*texts: str | None, steps_of: str | None = "") -> list[tuple]:
    """What changes with the content of the files that the texts' tags name, and of the saved steps of a LoRA. Where another node will give one of
    these (None), any file may be meant. ValueError for a name that is not there."""
    found = registry()
    if None in (*texts, steps_of):
        paths = found.files()
    else:
        steps = found.saved_steps(name_of(steps_of)).values() if steps_of else ()
        paths = [*steps, *(found.path(tag.name) for text in texts for tag in parse_prompt(text)[1])]
    states = [(path, path.stat()) for path in paths]
    return [(str(path), state.st_mtime_ns, state.st_size) for path, state in states]


def name_of(text: str) -> str:
    """The name in what a user gives for one: as in a tag, or the tag itself. ValueError for what is neither."""
    tags = parse_prompt(text)[1] if "<" in text else []
    return (tags or parse_prompt(f"<lora:{text}>")[1])[0].name


def apply_tags(model: Any, clip: Any, tags: list[LoraTag]) -> tuple[Any, Any]:
    """The model and the text encoder with every LoRA on them. ValueError for a name or a text encoder that is not there, before anything is read."""
    if clip is None:
        raise ValueError("the CLIP is missing; connect the CLIP of the checkpoint, or a CLIP loader")
    found = registry()
    paths = [found.path(tag.name) for tag in tags]
    for tag, path in zip(tags, paths):
        model, clip = comfy.sd.load_lora_for_models(model, clip, read(path), tag.unet, tag.te)
    return model, clip
