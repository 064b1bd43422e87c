"""Galleries as a page shows and edits them: pictures with captions and where those come from. Reading only; `gallery_edit.py` writes."""
from __future__ import annotations

import io
import json
import logging
import os
import threading
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from .buckets import choose_bucket, cover_size, crop_box
from .captions.editing import Located, LocatedCaptions
from .captions.marks import Marks
from .captions.sidecar import read_sidecar
from .gallery import _in_threads
from .gallery_files import GalleryFiles, existing_folder, folder_repeats, list_files, printable, relative_name, said_apart
from .left_out import left_out
from .output_files import OutputError, write_atomically
from .pictures import PictureFacts, UnreadablePicture, check_picture, read_bytes, read_picture, to_rgb

log = logging.getLogger(__name__)
RECENT = 20
SIZES = (64, 1024)
MAX_MEGAPIXELS = 180.0
_checked: dict[tuple[str, int, int], PictureFacts | str] = {}
_sizes: dict[tuple[str, int, int], tuple[int, int]] = {}
_one_thumbnail = threading.BoundedSemaphore(4)


@dataclass
class Place:
    """Where a picture's caption stands: a row of a metadata file, a text file, or nowhere yet (both None).

    `unreadable` is a text file that says something, and nobody knows what: a picture with one is not without a caption.
    """

    caption: str
    row: Located | None = None
    sidecar: Path | None = None
    unreadable: Path | None = None

    @property
    def is_free(self) -> bool:
        """Whether a machine may write a caption."""
        return not self.caption and self.unreadable is None

    def name(self, root: Path) -> str:
        path = self.sidecar or (self.row.file if self.row is not None and self.caption else None)
        return relative_name(path, root) if path is not None else ""


def captions_of(root: Path, files: GalleryFiles) -> tuple[dict[Path, Place], LocatedCaptions, list[str]]:
    """Each picture's own caption, without a trigger; the table, and warnings about what could not be read. ValueError for bad metadata."""
    table, places, warnings = LocatedCaptions(root, files.pictures, files.metadata), {}, []
    for path in files.pictures:
        found = table.caption_of(path)
        row = found if isinstance(found, Located) else None
        place = Place(str(found), row)
        if not found:
            for sidecar in files.sidecars_of(path):
                try:
                    caption = read_sidecar(sidecar)
                except ValueError as error:
                    warnings.append(printable(error))
                    place.unreadable = sidecar
                    continue
                if caption:
                    place = Place(caption, row, sidecar)
                    break
        places[path] = place
    return places, table, warnings


def describe_gallery(folder: str, quick: bool = False, resolution: int | None = None) -> dict[str, Any]:
    """A gallery for a page; an empty one is no error.

    `quick` reads sizes from the heads of the files only; else every picture is decoded once, and again when its file changes.
    With `resolution` each picture has its bucket and the part of it, in pixels of the picture, that is trained.
    """
    root = existing_folder(folder)
    files = list_files(root)
    places, table, warnings = captions_of(root, files)
    looked = _in_threads(_size if quick else _facts, files.pictures)
    skipped = [{"file": relative_name(item.path, root), "reason": item.reason} for item in files.skipped]
    pictures, hashes = [], Counter(found.content_hash for found in looked if isinstance(found, PictureFacts))
    marks, unwanted = Marks(root), left_out(root)
    for path, found in zip(files.pictures, looked):
        if isinstance(found, str):
            skipped.append({"file": relative_name(path, root), "reason": found})
            continue
        told = _describe(path, root, files, found, places[path], hashes, resolution)
        pictures.append({**told, **marks.told(told["file"], told["caption"]), "left_out": told["file"] in unwanted})
    bare = sum("no caption" in picture["warnings"] for picture in pictures)
    warnings += filter(None, [said_apart(files, root)])
    if table.unused:
        warnings.append(printable(f"{len(table.unused)} metadata rows have no picture: {', '.join(sorted(table.unused.values())[:5])}"))
    if table.ambiguous:
        warnings.append(printable(f"several pictures or metadata rows are called {', '.join(sorted(table.ambiguous)[:5])}; "
                                  "write the sub-folder into the metadata"))
    report = f"{len(pictures)} pictures, {len(pictures) - bare} with a caption, {len(skipped)} skipped"
    return {"folder": printable(root), "name": printable(root.resolve().name), "pictures": pictures, "skipped": skipped, "warnings": warnings,
            "report": report, "quick": quick}


def _describe(path: Path, root: Path, files: GalleryFiles, found: PictureFacts | tuple[int, int], place: Place, hashes: Counter,
              resolution: int | None) -> dict[str, Any]:
    width, height = (found.width, found.height) if isinstance(found, PictureFacts) else found
    repeats, folder_name = folder_repeats(path, root)
    told: dict[str, Any] = {
        "file": relative_name(path, root), "width": width, "height": height, "caption": place.caption, "caption_from": place.name(root),
        "folder_caption": folder_name, "repeats": repeats, "modified": path.stat().st_mtime_ns // 1_000_000,
        "mask": files.mask_of(path) is not None, "warnings": []}
    # a folder called 10_sks dog is the caption of what is in it, in the form of kohya's sd-scripts
    if not place.caption and not folder_name:
        told["warnings"].append("no caption")
    if isinstance(found, PictureFacts) and hashes[found.content_hash] > 1:
        told["warnings"].append(f"the same picture is here {hashes[found.content_hash]} times")
    if resolution:
        bucket = choose_bucket(width, height, resolution)
        cover = cover_size(width, height, bucket)
        left, top, right, bottom = crop_box(*cover, bucket, None)
        scale = width / cover[0], height / cover[1]
        told["bucket"], told["crop"] = bucket, [round(left * scale[0]), round(top * scale[1]), round(right * scale[0]), round(bottom * scale[1])]
        if width * height < 0.5 * resolution * resolution:
            told["warnings"].append(f"small for a resolution of {resolution}")
    return told


def _version(path: Path) -> tuple[str, int, int]:
    state = path.stat()
    return str(path), state.st_mtime_ns, state.st_size


def _facts(path: Path) -> PictureFacts | str:
    """What a full decoding tells, or why the picture cannot be used."""
    try:
        key = _version(path)
        if key not in _checked:
            try:
                _checked[key] = check_picture(read_bytes(path, MAX_MEGAPIXELS), MAX_MEGAPIXELS)
            except UnreadablePicture as error:
                _checked[key] = printable(error)
        return _checked[key]
    except OSError as error:
        return f"it cannot be opened ({error.strerror or error})"


def _size(path: Path) -> tuple[int, int] | PictureFacts | str:
    """Width and height after rotation, from the head of the file."""
    try:
        key = _version(path)
        if key in _checked or key in _sizes:
            return _checked[key] if key in _checked else _sizes[key]
        with Image.open(path) as picture:
            width, height = picture.size if picture.getexif().get(0x0112, 1) < 5 else picture.size[::-1]
        _sizes[key] = width, height
        return width, height
    except Exception:  # the full decoding says what is wrong, in words
        return _facts(path)


def picture_file(root: Path, file: str) -> Path:
    """The path of a picture of a gallery by its name in it. ValueError when there is none."""
    path = inside(root, file)
    if not path.is_file():
        raise FileNotFoundError(f"there is no {file[:200]} in {root}; load the gallery again")
    return path


def inside(root: Path, file: str) -> Path:
    """A path below `root` by its name with `/`; ValueError for a name that leads anywhere else."""
    parts = file.split("/")
    wrong = not file or "\0" in file or any(part in ("", ".", "..") for part in parts)
    if os.name == "nt":
        wrong = wrong or any(char in file for char in '\\:*?"<>|')
    if wrong:
        raise ValueError(f"file is {printable(file)[:200]!r} but must be a name inside the gallery, such as photo.png or faces/photo.png")
    return root.joinpath(*parts)


def thumbnail(home: Path, path: Path, size: int) -> bytes:
    """A JPEG that fits a square of `size` pixels, kept on disk for as long as the picture is the same."""
    import hashlib

    name, modified, length = _version(path)
    key = hashlib.blake2b(f"sRGB|{os.path.realpath(name)}|{modified}|{length}|{size}".encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    kept = home / "thumbnails" / key[:2] / f"{key}.jpg"
    try:
        return kept.read_bytes()
    except OSError:
        pass
    with _one_thumbnail:
        data = _shrunk(path, size)
    try:
        write_atomically(kept, data)
    except OutputError as error:
        log.warning("a thumbnail was not kept: %s", error)
    return data


def _shrunk(path: Path, size: int) -> bytes:
    picture = _draft(path, size) or read_picture(path, MAX_MEGAPIXELS)
    picture.thumbnail((size, size), Image.LANCZOS)
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=85)
    return data.getvalue()


def _draft(path: Path, size: int) -> Image.Image | None:
    """A JPEG decoded at a fraction of its size, which is several times as fast; None for what needs more care."""
    try:
        picture = Image.open(path)
        if picture.format != "JPEG" or picture.mode not in ("RGB", "L") or picture.width * picture.height > MAX_MEGAPIXELS * 1e6:
            return None
        turned = picture.getexif().get(0x0112, 1) != 1
        picture.draft("RGB", (2 * size, 2 * size))
        return None if turned else to_rgb(picture)
    except Exception:  # what is wrong is said by the full decoding
        return None


class Galleries:
    """The galleries that a page offers: those made in `home/galleries`, and folders that were used lately."""

    def __init__(self, home: Path) -> None:
        self.folder, self._recent_file, self._lock = home / "galleries", home / "recent.json", threading.Lock()

    def list(self) -> list[dict[str, Any]]:
        own = sorted((path for path in self.folder.glob("*") if path.is_dir()), key=lambda path: -path.stat().st_mtime)
        seen, found = set(), []
        for path in [*map(Path, self.recent()), *own]:
            real = os.path.realpath(path)
            if real not in seen and path.is_dir():
                seen.add(real)
                pictures = list_files(path).pictures
                first = relative_name(pictures[0], path) if pictures else None
                found.append({"folder": printable(path), "name": printable(path.name), "pictures": len(pictures), "first": first,
                              "own": path.parent == self.folder})
        return found

    def make(self, name: str) -> Path:
        """An empty gallery. ValueError when there is one of that name."""
        path = self.folder / name
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            raise FileExistsError(f"there is a gallery {name} already; open it, or choose another name") from None
        self.used(path)
        return path

    def recent(self) -> list[str]:
        try:
            folders = json.loads(self._recent_file.read_bytes())
            return [folder for folder in folders if isinstance(folder, str)] if isinstance(folders, list) else []
        except (OSError, ValueError):
            return []

    def used(self, folder: Path) -> None:
        """Put a folder first among those that were used lately."""
        with self._lock:
            before = self.recent()
            folders = [str(folder), *(other for other in before if other != str(folder))][:RECENT]
            if folders != before:
                write_atomically(self._recent_file, json.dumps(folders, ensure_ascii=False).encode("utf-8", "replace"))
