"""What a session needs to go on, on disk: `name-000100.state` beside `name-000100.safetensors`."""
from __future__ import annotations

import io
import itertools
import logging
import re
from pathlib import Path
from typing import Any

import torch

from .output_files import write_atomically

VERSION = 1
KEPT = 2
"""States are three times as large as the LoRA in float32, so only the newest ones stay."""
log = logging.getLogger(__name__)


def step_stem(name: str, step: int) -> str:
    return f"{name}-{step:06d}"


def save_state(folder: Path, name: str, step: int, state: dict[str, Any]) -> Path:
    """Write a state as `<name>-<step>.state`, then remove all but the newest. OutputError when it cannot be written."""
    data = io.BytesIO()
    torch.save({"version": VERSION, "step": step, **state}, data)
    path = folder / f"{step_stem(name, step)}.state"
    write_atomically(path, data.getvalue())
    for old in find_states(folder, name)[KEPT:]:
        old.unlink(missing_ok=True)
    return path


def find_states(folder: Path, name: str) -> list[Path]:
    """The saved states of `name`, newest step first."""
    pattern = re.compile(re.escape(name) + r"-(\d{6,})\.state")
    found = [(int(match[1]), path) for path in folder.glob("*.state") if (match := pattern.fullmatch(path.name))]
    return [path for _, path in sorted(found, reverse=True)]


def load_newest_state(folder: Path, name: str) -> dict[str, Any]:
    """The newest state that can be read; a damaged one is named in a warning and passed over. ValueError when there is none."""
    for path in find_states(folder, name):
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            if state["version"] == VERSION:
                return state
            log.warning("%s was written by another version of HotLoRA and is passed over", path)
        except Exception as error:  # torch reports a damaged file by a different exception in each version
            log.warning("%s is damaged (%s) and is passed over", path, str(error).splitlines()[0] if str(error) else type(error).__name__)
    raise ValueError(f"there is nothing to resume: {folder} has no readable {name}-000000.state (any number); "
                     "check output_dir and name, or start without --resume")


def put_states_aside(folder: Path, name: str) -> Path:
    """Move the states of `name` to the first free of the folders `earlier-1`, `earlier-2`, ... in there, and return that."""
    place = next(place for number in itertools.count(1) if not (place := folder / f"earlier-{number}").exists())
    place.mkdir()
    for path in find_states(folder, name):
        path.rename(place / path.name)
    return place


def remove_states(folder: Path, name: str) -> None:
    for path in find_states(folder, name):
        path.unlink(missing_ok=True)
