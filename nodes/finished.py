"""Runs that are complete, by node. ComfyUI itself keeps a node from running twice on the same inputs, but it runs each time where it cannot know beforehand
what another node will give, such as the folder. Such a run is not done again either."""
from __future__ import annotations

import os
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import torch

from .gallery import gallery_state
from ..trainer.paths import path_of


@dataclass
class Trained:
    """What a run has written, and what is shown of it; pictures are `(B, H, W, 3)` in [0, 1]."""

    lora: Path
    loss_plot: torch.Tensor
    previews: torch.Tensor
    message: str


@dataclass
class _Kept:
    """The host's objects are known by identity and not kept alive."""

    given: list[weakref.ref]
    made_from: list
    version: tuple[int, int] | None
    trained: Trained


@dataclass
class _Written:
    """A LoRA as it was seen last, and how often it was found to be another one than a node had written."""

    path: Path
    version: tuple[int, int] | None
    changes: int = 0


_kept: dict[str, _Kept] = {}
_written: dict[str, _Written] = {}


def trained_once(node_id: str, given: list[Any], made_from: list, train: Callable[[], Trained]) -> Trained:
    """What this node has trained already on the same objects of the graph and `made_from`, if the LoRA is still as it was written; else `train()`, which
    is kept as long as the first of the objects is there, one for each node."""
    found = _kept.get(node_id)
    if (found and all(other is not None and one() is other for one, other in zip(found.given, given, strict=True)) and found.made_from == made_from
            and _version(found.trained.lora) == found.version):
        return found.trained
    trained = train()
    refs = [weakref.ref(given[0], lambda _: _kept.pop(node_id, None)), *map(weakref.ref, given[1:])]
    version = _version(trained.lora)
    _kept[node_id] = _Kept(refs, made_from, version, trained)
    changes = _written[trained.lora.stem].changes if trained.lora.stem in _written else 0
    _written[trained.lora.stem] = _Written(trained.lora, version, changes)
    return trained


def changes_of(name: str | None) -> int:
    """How often the LoRA of that name has been changed or removed by others since a node wrote it: ComfyUI would not run the node for that by itself."""
    written = _written.get(name or "")
    if written is None:
        return 0
    version = _version(written.path)
    if version != written.version:
        written.version, written.changes = version, written.changes + 1
    return written.changes


def made_from(values: dict[str, Any], preset: str) -> list:
    """Changes with everything that a run depends on but the graph's model, text encoder and VAE: widgets, pictures, captions, and files that a setting names."""
    return [sorted((name, repr(value)) for name, value in values.items()), preset, gallery_state(Path(values["train_data_dir"])), named_files(values)]


def named_files(values: dict[str, Any]) -> list:
    """Changes with the content of the files and folders that settings name. What is not there is for the run itself to say."""
    prior, files = values.get("reg_data_dir"), [values.get(name) for name in ("init_lora", "metadata_path")]
    return [gallery_state(path_of(prior)) if prior and os.path.isdir(path_of(prior)) else None, *(_version(path_of(file)) if file else None for file in files)]


def _version(path: Path) -> tuple[int, int] | None:
    try:
        state = path.stat()
    except (OSError, ValueError):
        return None
    return state.st_mtime_ns, state.st_size
