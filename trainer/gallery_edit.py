"""Changes to a gallery that a page asks for: uploads, captions, removing and restoring. Nothing is ever overwritten or deleted for good."""
from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
import threading
import time
import unicodedata
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Container

from .captions.decoding import decode_text
from .captions.editing import edited_metadata, edited_sidecar
from .captions.marks import Marks
from .captions.matching import composed
from .captions.metadata import parse_metadata
from .captions.sidecar import LARGEST, read_sidecar, tidy
from .captions.sidecar import SUFFIXES as SIDECAR_SUFFIXES
from .galleries import MAX_MEGAPIXELS, Place, captions_of, inside
from .gallery_files import MASK, METADATA_FILES, GalleryFiles, folder_key, list_files, relative_name
from .left_out import left_out, write_left_out
from .output_files import write_atomically
from .pictures import SUFFIXES, UnreadablePicture, check_picture

RESERVED = re.compile(r"(?i)^(con|prn|aux|nul|com[1-9]|lpt[1-9])(\..*)?$")
LONGEST = 150
END = re.compile(r"( \([0-9]{1,6}\))?(_mask|\.[A-Za-z0-9]{1,5})?$")
"""What a name may have behind that of its picture; the rest is cut as the picture's name is."""
_one_edit = threading.RLock()
"""Edits of two tabs come one after the other; files of one gallery are read, changed and written as a whole."""


class Occupied(ValueError):
    """Something else is there already; the message says what can be done."""


def safe_file(file: str) -> str:
    """A name for an uploaded file that is safe on every system, with the sub-folders that it had. ValueError when nothing is left of it."""
    parts = [_safe_part(part) for part in unicodedata.normalize("NFC", file).replace("\\", "/").split("/") if part not in ("", ".")]
    if ".." in file.replace("\\", "/").split("/") or not parts or not all(parts) or len(parts) > 8:
        raise ValueError(f"file is {file[:200]!r} but must be a name inside the gallery, such as photo.png or faces/photo.png")
    return "/".join(parts)


def _safe_part(part: str) -> str:
    part = "".join("_" if char in '<>:"|?*' or unicodedata.category(char) in ("Cc", "Cs", "Cf") else char for char in part)
    part = part.strip(" ").lstrip(".").rstrip(". ")
    stem, suffix = os.path.splitext(part)
    end = END.search(stem)[0]
    encoded = stem.removesuffix(end).encode("utf-8")
    if len(encoded) > LONGEST:
        # two long names, such as prompts, may differ at their ends only
        whole = hashlib.blake2b(encoded, digest_size=4).hexdigest()
        stem = f"{encoded[:LONGEST - 15].decode('utf-8', 'ignore')}-{whole}{end}"
    return f"_{stem}{suffix}" if RESERVED.match(part) else stem + suffix


def upload(root: Path, file: str, data: bytes, apart: bool = False) -> str:
    """Put a picture, a caption file or a metadata file into a gallery; returns the name that it got.

    What is there already with the same content is left as it is. A picture never takes the place of another: it becomes
    "name (2).png"; with `apart` also beside a "name.jpg", whose caption "name.txt" would be its own too. ValueError for what is not readable as what its
    name says, Occupied for another text or mask of the same name.
    """
    file = safe_file(file)
    suffix = Path(file).suffix.lower()
    is_text = suffix in SIDECAR_SUFFIXES or Path(file).name.lower() in METADATA_FILES
    if suffix in SUFFIXES:
        try:
            check_picture(data, MAX_MEGAPIXELS)
        except UnreadablePicture as error:
            raise ValueError(f"{Path(file).name} cannot be used: {error}") from None
    elif Path(file).name.lower() in METADATA_FILES:
        parse_metadata(Path(file), data)
    elif is_text:
        if len(data) > LARGEST:
            raise ValueError(f"{Path(file).name} is larger than a megabyte, which is no caption")
        decode_text(data)
    else:
        kinds = ", ".join(sorted(kind[1:] for kind in SUFFIXES))
        raise ValueError(f"{Path(file).name} is neither a picture ({kinds}) nor a caption file (.txt, .caption, metadata.csv, metadata.jsonl)")
    with _one_edit:
        return _place(root, file, data, is_text, apart)


def _place(root: Path, file: str, data: bytes, is_text: bool, apart: bool) -> str:
    path = inside(root, file)
    number, mask = 1, MASK if path.stem.endswith(MASK) and path.suffix.lower() == ".png" else ""
    stem = path.stem.removesuffix(mask)
    apart = apart and not is_text and not mask
    while path.exists() or apart and _is_stem_taken(path):
        if path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data:
            return relative_name(path, root)
        if is_text:
            raise Occupied(f"{file} is in the gallery already with another text; edit the captions there, or remove that file first")
        if mask and _is_stem_taken(path.with_name(f"{stem}.png")):
            # under a number it would be a picture of its own
            raise Occupied(f"{file} is in the gallery already as another mask; remove its picture first, which takes the mask along, and add both again")
        number += 1
        path = path.with_name(f"{stem} ({number}){mask}{path.suffix}")
    write_atomically(path, data)
    return relative_name(path, root)


def _is_stem_taken(path: Path) -> bool:
    return path.parent.is_dir() and any(other.suffix.lower() in SUFFIXES and composed(other.stem) == composed(path.stem) for other in path.parent.iterdir())


def write_captions(home: Path, root: Path, captions: dict[str, str]) -> dict[str, Any]:
    """Write captions to where they come from; the former ones go to the history first. Returns what was written: file -> where.

    ValueError, before anything is written, for a picture that is not there and for metadata that cannot be edited safely.
    """
    with _one_edit:
        files = list_files(root)
        known = {relative_name(path, root): path for path in files.pictures}
        places, _, _ = captions_of(root, files)
        for file in captions:
            if file not in known:
                raise ValueError(f"there is no picture {file[:200]} in {root}; load the gallery again")
        wanted = {known[file]: tidy(text) for file, text in captions.items()}
        changed = {path: text for path, text in wanted.items() if places[path].caption != text}
        rows: dict[Path, dict[str, str]] = {}
        texts: dict[Path, str] = {}
        for path, text in changed.items():
            _plan_edit(path, text, places, files, rows, texts, changed)
        contents = {path: edited_metadata(path, path.read_bytes(), edits) for path, edits in rows.items()}
        contents |= {path: edited_sidecar(path.read_bytes() if path.exists() else None, text) for path, text in texts.items()}
        history = History(home, root)
        history.add({relative_name(path, root): {"before": places[path].caption, "after": text} for path, text in changed.items()})
        told = {places[path].caption for path in changed}
        for path in contents:
            if path in rows:
                history.keep(path)
            elif path.exists() and not _says_only(path, told):
                history.keep(path, every=True)
        for path, data in contents.items():
            write_atomically(path, data)
        return captions_now(root, list(captions))


def captions_now(root: Path, names: list[str]) -> dict[str, Any]:
    """What a page shows of the captions of some pictures: file -> caption, where it stands, and whether a machine wrote it, with which trigger."""
    wanted, files, marks = set(names), list_files(root), Marks(root)
    places, _, _ = captions_of(root, files)
    return {name: {"caption": place.caption, "caption_from": place.name(root), **marks.told(name, place.caption)}
            for path, place in places.items() if (name := relative_name(path, root)) in wanted}


def _says_only(path: Path, told: set[str]) -> bool:
    """Whether a text file says nothing but one of the captions in `told`; not so one that cannot be read."""
    try:
        return read_sidecar(path) in ("", *told)
    except ValueError:
        return False


def _plan_edit(path: Path, text: str, places: dict[Path, Place], files: GalleryFiles, rows: dict[Path, dict[str, str]], texts: dict[Path, str],
               changed: Container[Path]) -> None:
    """Which row or text file a new caption goes to. One that is emptied must not let another, hidden so far, come up.

    A text file that several pictures of one stem have in common is given up: each of them gets its own first, those in `changed` by an edit of their own.
    """
    place, common = places[path], files.common_sidecars(path)
    if place.row is not None and (str(place.row) or place.sidecar is None):
        rows.setdefault(place.row.file, {})[place.row.row] = text
    if place.sidecar in common or not text:
        for other in files.others_of_stem(path):
            if other not in changed and places[other].sidecar in common:
                texts[files.own_sidecar(other)] = places[other].caption
    if not text:
        for sidecar in files.sidecars_of(path):
            texts[sidecar] = ""
    elif place.sidecar in common:
        texts[files.own_sidecar(path)] = text
        texts[place.sidecar] = ""
    elif place.sidecar is not None:
        texts[place.sidecar] = text
    elif place.row is None:
        texts[files.own_sidecar(path)] = text


class History:
    """Former captions of a gallery, under `home`, so that no text is ever lost."""

    def __init__(self, home: Path, root: Path) -> None:
        self.root, self.folder = root, home / "history" / folder_key(root)

    def add(self, changes: dict[str, dict[str, str]]) -> None:
        if not changes:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        common = {"time": round(time.time(), 3), "folder": str(self.root)}
        lines = [json.dumps({**common, "file": file, **texts}, ensure_ascii=False) for file, texts in changes.items()]
        with (self.folder / "captions.jsonl").open("ab") as stream:
            stream.write(("\n".join(lines) + "\n").encode("utf-8", "replace"))
            stream.flush()
            os.fsync(stream.fileno())

    def keep(self, path: Path, every: bool = False) -> None:
        """Keep a file as it was before it is edited for the first time, and once a day; `every` content of one whose text the history does not hold."""
        data = path.read_bytes()
        content = f"-{hashlib.blake2b(data, digest_size=8).hexdigest()}" if every else ""
        # the names of pictures, and so those of their texts, may be as long as a name can be
        name = f"{time.strftime('%Y%m%d')}-{folder_key(path)[:8]}{content}-{path.name[-50:]}"
        if not (self.folder / name).exists():
            write_atomically(self.folder / name, data)

    def of(self, file: str, limit: int = 100) -> list[dict[str, Any]]:
        """Edits of one picture's caption, newest first."""
        try:
            lines = (self.folder / "captions.jsonl").read_text(encoding="utf-8").split("\n")
        except OSError:
            return []
        found = []
        for line in reversed(lines):
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if entry.get("file") == file:
                found.append({name: entry[name] for name in ("time", "before", "after")})
        return found[:limit]


def remove(home: Path, root: Path, names: list[str]) -> list[str]:
    """Move pictures with their caption files and masks to the trash. ValueError, before anything is moved, for one that is not there."""
    with _one_edit:
        files = list_files(root)
        known = {relative_name(path, root): path for path in files.pictures} | {relative_name(item.path, root): item.path for item in files.skipped}
        for name in names:
            if name not in known or not known[name].is_file():
                raise ValueError(f"there is no picture {name[:200]} in {root}; load the gallery again")
        place = _next_place(home, root)
        leaving = {known[name] for name in names}
        for name in dict.fromkeys(names):
            path = known[name]
            others_stay = not leaving.issuperset(files.others_of_stem(path))
            stays = [*files.common_sidecars(path), files.mask_of(path)] if others_stay else []
            for part in [path, *(part for part in files.companions_of(path) if part not in stays)]:
                # what is common to two pictures has left with the first of them
                if os.path.lexists(part):
                    move_file(part, place / relative_name(part, root))
        return list(dict.fromkeys(names))


def restore(home: Path, root: Path, names: list[str]) -> list[str]:
    """Bring removed pictures back, each as it was removed last. ValueError for one that was not removed, Occupied when its place is taken."""
    with _one_edit:
        places = sorted((home / "trash" / "pictures" / folder_key(root)).glob("*"), reverse=True)
        moves: list[tuple[Path, Path]] = []
        listed = lru_cache(partial(list_files, masks=True))
        for name in dict.fromkeys(names):
            target = inside(root, name)
            place = next((place for place in places if (place / name).is_file() or (place / name).is_symlink()), None)
            if place is None:
                raise ValueError(f"{name[:200]} is not among the removed pictures of {root}")
            if target.exists():
                raise Occupied(f"{name[:200]} is in the gallery again; rename or remove that one first")
            moves.append((place / name, target))
            for part in listed(place).companions_of(place / name):
                if not (target.parent / part.name).exists():
                    moves.append((part, target.parent / part.name))
        for source, target in moves:
            if os.path.lexists(source):
                move_file(source, target)
        return list(dict.fromkeys(names))


def leave_out(root: Path, names: list[str]) -> list[str]:
    """Leave pictures out of what is trained; they stay where they are. Returns those that were used before.

    ValueError for one that is not there, OutputError when it cannot be noted.
    """
    with _one_edit:
        files = list_files(root)
        known = {relative_name(path, root) for path in files.pictures}
        for name in names:
            if name not in known:
                raise ValueError(f"there is no picture {name[:200]} in {root}; load the gallery again")
        before = left_out(root)
        new = [name for name in dict.fromkeys(names) if name not in before]
        if new:
            write_left_out(root, before.union(new))
        return new


def put_back(root: Path, names: list[str]) -> list[str]:
    """Use pictures again; returns those that were left out."""
    with _one_edit:
        before = left_out(root)
        back = [name for name in dict.fromkeys(names) if name in before]
        if back:
            write_left_out(root, before.difference(back))
        return back


def _next_place(home: Path, root: Path) -> Path:
    folder = home / "trash" / "pictures" / folder_key(root)
    numbers = [int(path.name) for path in folder.glob("*") if path.name.isdigit()]
    return folder / f"{max(numbers, default=0) + 1:06d}"


def move_file(source: Path, target: Path) -> None:
    """Move a file, also to another disk, so that it is complete in one of the places at any moment."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        handle, temporary = tempfile.mkstemp(dir=target.parent)
        os.close(handle)
        try:
            shutil.copy2(source, temporary)
            os.replace(temporary, target)
        except BaseException:
            os.unlink(temporary)
            raise
        source.unlink()
