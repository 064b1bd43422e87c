"""What lies in a gallery's folder, sorted by what it is, before anything is opened."""
from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Container

from .captions.matching import composed
from .captions.sidecar import SUFFIXES as SIDECAR_SUFFIXES
from .captions.sidecar import tidy
from .left_out import RESULTS
from .paths import path_of
from .pictures import SUFFIXES

METADATA_FILES = ("metadata.csv", "metadata.jsonl")
# pictures that people do have, of formats that are not read: named in the report instead of passed over in silence
FOREIGN_SUFFIXES = frozenset((".heic", ".heif", ".tif", ".tiff", ".jxl", ".jp2", ".tga", ".psd", ".svg", ".dng", ".cr2", ".nef"))
MOST_REPEATS = 1000
MASK = "_mask"
"""What a mask has behind the stem of its picture."""


@dataclass(frozen=True)
class Skipped:
    """A picture that is not used, and why."""

    path: Path
    reason: str


@dataclass
class GalleryFiles:
    """Files by their kind; masks by (folder, picture's stem), sidecars by (folder, picture's stem, suffix); `apart` are the pictures of folders that hold
    results of HotLoRA's or another gallery, by that folder."""

    pictures: list[Path] = field(default_factory=list)
    masks: dict[tuple[Path, str], Path] = field(default_factory=dict)
    sidecars: dict[tuple[Path, str, str], Path] = field(default_factory=dict)
    metadata: list[Path] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    apart: dict[Path, list[Path]] = field(default_factory=dict)

    @cached_property
    def _of_stem(self) -> dict[tuple[Path, str], list[Path]]:
        found: dict[tuple[Path, str], list[Path]] = {}
        for path in self.pictures:
            found.setdefault((path.parent, composed(path.stem)), []).append(path)
        return found

    def others_of_stem(self, path: Path) -> list[Path]:
        """Pictures that `photo.txt` belongs to as well as to `photo.jpg`."""
        return [other for other in self._of_stem.get((path.parent, composed(path.stem)), []) if other != path]

    def own_sidecar(self, path: Path) -> Path:
        """Where a new caption goes: `photo.txt`; `photo.jpg.txt` where two pictures share their stem."""
        return path.with_name(path.name + ".txt") if self.others_of_stem(path) else path.with_suffix(".txt")

    def mask_of(self, path: Path) -> Path | None:
        """The `photo_mask.png` of `photo.jpg`."""
        return self.masks.get((path.parent, composed(path.stem)))

    def companions_of(self, path: Path) -> list[Path]:
        """Caption files and the mask that are there for a picture."""
        return [*self.sidecars_of(path), *filter(None, [self.mask_of(path)])]

    def orphaned_masks(self) -> list[Path]:
        """Masks beside which there is no picture of their name, not even one of a format that is not read."""
        stems = {(path.parent, composed(path.stem)) for path in (*self.pictures, *(item.path for item in self.skipped))}
        return [path for key, path in self.masks.items() if key not in stems]

    def sidecars_of(self, path: Path) -> list[Path]:
        """The caption files of a picture, best first: `photo.txt`, `photo.jpg.txt`, then the same as `.caption`."""
        keys = [(path.parent, composed(stem), suffix) for suffix in SIDECAR_SUFFIXES for stem in (path.stem, path.name)]
        return [self.sidecars[key] for key in keys if key in self.sidecars]

    def common_sidecars(self, path: Path) -> list[Path]:
        """Those caption files of a picture that are also another picture's, of the same stem."""
        own = composed(path.name)
        return [sidecar for sidecar in self.sidecars_of(path) if composed(sidecar.stem) != own] if self.others_of_stem(path) else []


def existing_folder(folder: str | Path, what: str = "The gallery") -> Path:
    """The gallery's path, or that of another folder of pictures (`what`). Raises ValueError when it is not given, not there, or not a folder."""
    if not str(folder).strip():
        raise ValueError("No gallery is given; set train_data_dir to the folder with your pictures.")
    root = path_of(folder)
    if root.is_file():
        raise ValueError(f"{what} {printable(folder)} is a file; give the folder that holds the pictures.")
    if not root.is_dir():
        raise ValueError(f"{what} {printable(folder)} does not exist; give a folder with pictures.")
    return root


def existing_metadata(metadata_path: str | Path, root: Path) -> Path:
    """The metadata file, from the current folder or from the gallery. Raises ValueError when it is in neither."""
    path = path_of(metadata_path)
    for candidate in (path, root / path):
        if candidate.is_file():
            return candidate
    raise ValueError(f"The metadata file {printable(metadata_path)} does not exist; give a .csv or .jsonl file, or leave metadata_path out.")


def list_files(root: Path, masks: bool = False, apart: Container[str] = ()) -> GalleryFiles:
    """All files below `root`, pictures sorted by path. Links are followed, but each real folder is entered once. Folders of results, and those whose real
    paths are in `apart`, are no part of the gallery.

    A `catwoman_mask.png` without a picture `catwoman` beside it is a picture itself, but where `masks` are wanted: there it may be one whose picture is
    missing.
    """
    files = GalleryFiles()
    entered: set[str] = set()
    waiting = [(root, files)]
    while waiting:
        folder, into = waiting.pop()
        real = os.path.realpath(folder)
        if real in entered:
            continue
        entered.add(real)
        try:
            names = sorted(os.listdir(folder), reverse=True)
        except OSError as error:
            into.skipped.append(Skipped(folder, f"the folder cannot be opened ({error.strerror or error})"))
            continue
        if into is files and folder != root and (real in apart or RESULTS in names):
            into = GalleryFiles()
            files.apart[folder] = into.pictures
        for name in names:
            # hidden files, and the thumbnails that macOS and network drives leave behind
            if name.startswith(".") or name in ("@eaDir", "__MACOSX"):
                continue
            path = folder / name
            if os.path.isdir(path):
                waiting.append((path, into))
            else:
                _add_file(path, into)
    if not masks:
        alone = set(files.orphaned_masks())
        files.pictures += alone
        files.masks = {key: path for key, path in files.masks.items() if path not in alone}
    for paths in (files.pictures, files.metadata):
        paths.sort(key=lambda path: path_order(path, root))
    return files


def _add_file(path: Path, files: GalleryFiles) -> None:
    stem, suffix = composed(path.stem), path.suffix.lower()
    if suffix == ".png" and stem.lower().endswith(MASK):
        files.masks[path.parent, stem[:-len(MASK)]] = path
    elif suffix in SUFFIXES:
        files.pictures.append(path)
    elif suffix in FOREIGN_SUFFIXES:
        files.skipped.append(Skipped(path, f"{suffix} is not read; save it as png or jpg"))
    elif path.name.lower() in METADATA_FILES:
        files.metadata.append(path)
    elif suffix in SIDECAR_SUFFIXES:
        files.sidecars[path.parent, stem, suffix] = path


def said_apart(files: GalleryFiles, root: Path) -> str:
    """A sentence about pictures that are no part of the gallery; empty when there are none."""
    folders = sorted(relative_name(folder, root) for folder, pictures in files.apart.items() if pictures)
    number = sum(map(len, files.apart.values()))
    what = f"{number} picture in {', '.join(folders)} is" if number == 1 else f"{number} pictures in {', '.join(folders)} are"
    return f"{what} left out: results of HotLoRA and prior pictures (reg_data_dir) are not trained as your own" if folders else ""


def folder_repeats(path: Path, root: Path) -> tuple[int, str]:
    """Repeats and concept from the nearest sub-folder that is named as `10_sks dog`, the form of kohya's sd-scripts.

    (1, "") without one; a number above 1000 is rather a year or a camera's count and is no repeats.
    """
    for name in reversed(path.relative_to(root).parts[:-1]):
        match = re.fullmatch(r"([0-9]{1,4})_(.*)", name, re.DOTALL)
        if match and int(match[1]) <= MOST_REPEATS:
            return int(match[1]), tidy(match[2])
    return 1, ""


def path_order(path: Path, root: Path) -> tuple[str, str]:
    """Sorting key: the path from the root, the same on every system."""
    return composed(path.relative_to(root).as_posix()), path.as_posix()


def relative_name(path: Path, root: Path) -> str:
    """The path from the root as people read it."""
    return printable(path.relative_to(root).as_posix())


def printable(text: object) -> str:
    """The text without half characters: names that are not valid Unicode would make every log file and terminal raise."""
    return str(text).encode("utf-8", "backslashreplace").decode("utf-8")


def folder_key(folder: Path) -> str:
    """A short name for what is kept elsewhere about a folder: the same for every way to write its path."""
    return hashlib.blake2b(os.path.realpath(folder).encode("utf-8", "surrogateescape"), digest_size=12).hexdigest()
