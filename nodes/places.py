"""Where things lie in ComfyUI: the user's pictures, what runs write, and the LoRA files."""
from __future__ import annotations

import os
from pathlib import Path

import folder_paths

from ..trainer.paths import path_of


def gallery_folder(text: str) -> Path:
    """A folder as the user gives it: any path, or one below ComfyUI's input folder. ValueError when there is none."""
    text = text.strip().strip('"')
    if not text:
        raise ValueError("folder is empty; give the folder with your pictures, a full path or one under ComfyUI's input folder")
    path = path_of(text)
    places = [path] if path.is_absolute() else [Path(folder_paths.get_input_directory()) / path, Path.cwd() / path]
    for place in places:
        if os.path.isdir(place):  # unlike Path's own, False for a name that is too long or may not be looked at
            return place.resolve()
    raise ValueError(f"there is no folder {' or '.join(map(str, places))}; give a full path, or a folder under ComfyUI's input folder")


def run_folder(name: str) -> Path:
    """Where a run keeps its states, previews and logs."""
    return Path(folder_paths.get_output_directory()) / "hotlora" / name


def lora_folders() -> list[Path]:
    """Every folder in which ComfyUI looks for LoRAs; new ones are written to the first that can be written to."""
    return [Path(folder) for folder in folder_paths.get_folder_paths("loras")]


def cache_folder() -> Path:
    """Prepared pictures and captions, shared by all runs: they are found by content."""
    return Path(folder_paths.get_output_directory()) / "hotlora" / "cache"
