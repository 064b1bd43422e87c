"""Runs that are complete, by node. ComfyUI itself keeps a node from running twice on the same inputs, but it runs each time where it cannot know beforehand
what another node will give, such as the folder. Such a run is not done again either."""
from __future__ import annotations

import os
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .gallery import gallery_state
from ..trainer.paths import path_of


@dataclass
class Finished:
    """What a run was made from, the LoRA that it wrote, and what was shown. The host's objects are known by identity and not kept alive."""

    given: list[weakref.ref]
    made_from: list
    lora: Path
    version: tuple[int, int]
    loss_plot: torch.Tensor
    previews: torch.Tensor
    message: str


_finished: dict[str, Finished] = {}


def finished(node_id: str, given: list[Any], values: dict[str, Any], preset: str) -> Finished | None:
    """The run that this node has completed on the same objects of the graph, widgets, pictures and files, if the LoRA is still as it was written."""
    found = _finished.get(node_id)
    if found is None or any(one() is not other for one, other in zip(found.given, given, strict=True)):
        return None
    return found if found.made_from == made_from(values, preset) and _version(found.lora) == found.version else None


def keep(node_id: str, given: list[Any], values: dict[str, Any], preset: str, lora: Path, loss_plot: torch.Tensor, previews: torch.Tensor, message: str) -> None:
    """One run for each node, as long as its model is there. The pictures are looked at again, as the run may have written captions."""
    refs = [weakref.ref(given[0], lambda _: _finished.pop(node_id, None)), *map(weakref.ref, given[1:])]
    _finished[node_id] = Finished(refs, made_from(values, preset), lora, _version(lora), loss_plot, previews, message)


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
