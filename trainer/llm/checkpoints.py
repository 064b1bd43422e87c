"""Where a run can go on from: the checkpoints of transformers' Trainer, of which only complete ones count."""
from __future__ import annotations

import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

from ..output_files import put_aside, write_atomically

log = logging.getLogger(__name__)
COMPLETE = "complete.json"
"""Written last, and only when all else is on the disk."""
RUN = "run.json"
STEP = re.compile(r"checkpoint-(\d+)")


def checkpoints_folder(output_dir: str | Path, name: str) -> Path:
    return Path(output_dir) / f"{name}-checkpoints"


def mark_complete(checkpoint: Path) -> None:
    """Flush a checkpoint to the disk, then say that it is complete."""
    for file in checkpoint.rglob("*"):
        if file.is_file() and os.name == "posix":
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
    write_atomically(checkpoint / COMPLETE, json.dumps({"version": 1}).encode())


def find_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of the complete ones, newest first."""
    found = [(int(match[1]), path) for path in folder.glob("checkpoint-*") if (match := STEP.fullmatch(path.name)) and (path / COMPLETE).is_file()]
    return sorted(found, reverse=True)


def remove_incomplete(folder: Path) -> None:
    """What a kill left half-written."""
    for path in folder.glob("checkpoint-*"):
        if path.is_dir() and not (path / COMPLETE).is_file():
            shutil.rmtree(path, ignore_errors=True)


def begin_anew(folder: Path) -> Path | None:
    """Put the checkpoints of an earlier run aside as `-v1`, `-v2`, ...; None when there are none worth keeping."""
    if not folder.exists():
        return None
    if not find_checkpoints(folder):
        shutil.rmtree(folder)
        return None
    return put_aside(folder)


def write_run(folder: Path, facts: dict[str, Any]) -> None:
    """What a resumed run is compared with: settings, and fingerprints of base and data."""
    write_atomically(folder / RUN, json.dumps(facts, indent=2, ensure_ascii=False).encode())


def read_run(folder: Path, name: str) -> dict[str, Any]:
    """What `write_run` wrote; ValueError when there is nothing to resume."""
    try:
        facts = json.loads((folder / RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        facts = None
    if facts is None or not find_checkpoints(folder):
        raise ValueError(f"there is nothing to resume: {folder.parent} has no saved state of {name} (in {folder.name}); check output_dir and name, "
                         "or start without --resume")
    return facts
