"""Pictures that stay in the gallery's folder and are not trained: a small hidden file there names them, so that every way to train knows; and folders
inside of it that hold something else: results of HotLoRA's, and prior pictures."""
from __future__ import annotations

import json
import logging
import os
from pathlib import Path

from .config import TrainConfig
from .output_files import OutputError, write_atomically
from .paths import path_of

log = logging.getLogger(__name__)
FILE = ".hotlora-left-out.json"
RESULTS = ".hotlora-results"
"""A file with this name says that the pictures of its folder and of what is below are results of HotLoRA's."""


def left_out(root: Path) -> set[str]:
    """Names of the pictures that are left out; none when the file is absent or damaged."""
    try:
        names = json.loads((root / FILE).read_text(encoding="utf-8"))["files"]
        return {name for name in names if isinstance(name, str)}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def write_left_out(root: Path, names: set[str]) -> None:
    """OutputError when it cannot be written."""
    path = root / FILE
    if not names:
        path.unlink(missing_ok=True)
        return
    stored = {"about": "pictures that HotLoRA does not train; delete this file to use all of them", "files": sorted(names)}
    write_atomically(path, json.dumps(stored, ensure_ascii=False, indent=1).encode("utf-8", "replace"))


def folders_apart(config: TrainConfig) -> frozenset[str]:
    """Folders, as real paths, whose pictures a gallery around them does not train: those that a run writes to, and each of its galleries in the other."""
    named = [config.train_data_dir, config.reg_data_dir, config.output_dir, Path(config.output_dir) / "previews", config.lora_dir, config.cache_dir]
    return frozenset(os.path.realpath(path_of(folder)) for folder in named if folder)


def mark_results(folder: Path) -> None:
    """Keep every later gallery around the folder from taking its pictures for the user's own. What cannot be written is no reason to end a run."""
    try:
        if not (folder / RESULTS).exists():
            write_atomically(folder / RESULTS, b"Pictures below this folder were made by HotLoRA and are not trained; without this file they are.\n")
    except OutputError as error:
        log.warning("pictures in %s may be taken for those of a gallery around it: %s", folder, error)
