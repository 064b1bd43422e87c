"""Puts new captions into a gallery: rows of metadata.csv or text files, and takes them out again."""
from __future__ import annotations

import csv
import io
import json
from pathlib import Path

from .decoding import decode_text
from .editing import edited_metadata, edited_sidecar
from .marks import Marks
from .metadata import columns_of, parse_metadata
from .sidecar import tidy
from ..galleries import Place, captions_of
from ..gallery_edit import _one_edit as one_edit
from ..gallery_edit import _plan_edit as plan_edit
from ..gallery_files import METADATA_FILES, GalleryFiles, list_files, relative_name
from ..output_files import write_atomically


def write_new(root: Path, captions: dict[Path, str], model: str, purpose: str, form: str = "auto", replace: bool = False,
              trigger: str = "") -> dict[Path, str]:
    """Write captions for pictures that have none (with `replace` also over those that a machine wrote); returns what was written. `trigger` is what was put
    first in them.

    Looks again just before, so that a caption that a person wrote in the meantime stays. The marks go first: a kill in between must not
    make a machine's caption a person's.
    """
    with one_edit:
        files = list_files(root)
        places, _, _ = captions_of(root, files)
        marks = Marks(root)
        wanted = {path: text for path, text in captions.items() if text and path in places
                  and (places[path].is_free or replace and marks.is_automatic(relative_name(path, root), places[path].caption))}
        if not wanted:
            return {}
        edits = _planned(root, wanted, places, files, form)
        marks.note({relative_name(path, root): text for path, text in wanted.items()}, model, purpose, tidy(trigger))
        marks.made += [name for path in edits if not path.exists() and (name := relative_name(path, root)) not in marks.made]
        marks.save()
        for path, data in edits.items():
            write_atomically(path, data)
        return wanted


def undo(root: Path, names: list[str] | None = None) -> list[str]:
    """Take automatic captions out again, all or those of some pictures; one that was edited since stays. Returns the pictures' names."""
    with one_edit:
        files = list_files(root)
        places, _, _ = captions_of(root, files)
        marks = Marks(root)
        automatic = {name: path for path in files.pictures if (name := relative_name(path, root)) in marks.captions
                     and marks.is_automatic(name, places[path].caption) and (names is None or name in names)}
        rows: dict[Path, dict[str, str]] = {}
        texts: dict[Path, bytes] = {}
        for path in automatic.values():
            place = places[path]
            if place.sidecar is not None:
                texts[place.sidecar] = edited_sidecar(place.sidecar.read_bytes(), "")
            elif place.row is not None:
                rows.setdefault(place.row.file, {})[place.row.row] = ""
        for file, edits in rows.items():
            texts[file] = edited_metadata(file, file.read_bytes(), edits)
        for file, data in texts.items():
            _put_back(file, data, relative_name(file, root) in marks.made)
        for name in automatic:
            del marks.captions[name]
        marks.made = [name for name in marks.made if (root / name).exists()]
        marks.save()
        return sorted(automatic)


def destination(root: Path, form: str = "auto") -> str:
    """Where new captions would go, for people: the metadata file, or text files."""
    files = list_files(root)
    return ".txt files" if _as_sidecars(files, form) else relative_name(_table(root, files), root)


def _put_back(file: Path, data: bytes, is_ours: bool) -> None:
    """A file that we made goes when nothing is left in it."""
    is_table = file.name.lower() in METADATA_FILES
    empty = not any(parse_metadata(file, data).values()) if is_table else not decode_text(data).strip()
    if is_ours and empty:
        file.unlink()
    else:
        write_atomically(file, data)


def _planned(root: Path, wanted: dict[Path, str], places: dict[Path, Place], files: GalleryFiles, form: str) -> dict[Path, bytes]:
    """New contents of the caption files."""
    as_sidecars, table = _as_sidecars(files, form), _table(root, files)
    rows: dict[Path, dict[str, str]] = {}
    added: dict[str, str] = {}
    texts: dict[Path, str] = {}
    for path, text in wanted.items():
        place = places[path]
        if place.caption:
            plan_edit(path, text, places, files, rows, texts, wanted)
        elif place.row is not None and not as_sidecars:
            rows.setdefault(place.row.file, {})[place.row.row] = text
        elif as_sidecars or not _fits_a_row(relative_name(path, root)):
            texts[_sidecar_of(path, files)] = text
        else:
            added[relative_name(path, root)] = text
    edits = {path: edited_sidecar(path.read_bytes() if path.exists() else None, text) for path, text in texts.items()}
    for file, changes in rows.items():
        edits[file] = edited_metadata(file, file.read_bytes(), changes)
    if added:
        before = edits.get(table) or (table.read_bytes() if table.exists() else None)
        edits[table] = with_rows(table, before, added)
    return edits


def _as_sidecars(files: GalleryFiles, form: str) -> bool:
    """A gallery that has text files goes on with them."""
    return form == "sidecars" or form == "auto" and not files.metadata and bool(files.sidecars)


def _fits_a_row(name: str) -> bool:
    """Whether a picture's name comes back from a table as it is: the spaces around it are taken off there, and a line ends at a line break."""
    return name == name.strip() and not {"\n", "\r"}.intersection(name)


def _table(root: Path, files: GalleryFiles) -> Path:
    return next((path for path in files.metadata if path.parent == root), root / METADATA_FILES[0])


def _sidecar_of(path: Path, files: GalleryFiles) -> Path:
    """An empty text file that is there and is no other picture's too, or a new one."""
    common = files.common_sidecars(path)
    return next((sidecar for sidecar in files.sidecars_of(path) if sidecar not in common), files.own_sidecar(path))


def with_rows(path: Path, data: bytes | None, rows: dict[str, str]) -> bytes:
    """A metadata file's bytes with more rows; what is there stays byte for byte. ValueError when they could not be read back."""
    if path.suffix.lower() == ".jsonl":
        result = _more_lines(path, data or b"", rows)
    else:
        result = _more_cells(path, data, rows)
    before = parse_metadata(path, data) if data else {}
    if parse_metadata(path, result) != {**before, **rows}:
        raise ValueError(f"{path.name} is written in a way that cannot be added to safely; nothing was changed; choose --into sidecars")
    return result


def _more_cells(path: Path, data: bytes | None, rows: dict[str, str]) -> bytes:
    text = decode_text(data) if data else ""
    first = next((line for line in text.splitlines() if line.strip()), "")
    lines = io.StringIO(newline="")
    if not first:
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(("file_name", "text"))
        writer.writerows(rows.items())
        return lines.getvalue().encode("utf-8")
    delimiter = max(",;\t", key=first.count)
    header = next(csv.reader([first], delimiter=delimiter))
    name_column, caption_column = columns_of(header, path.name)
    end = "\r\n" if "\r\n" in text else "\n"
    writer = csv.writer(lines, delimiter=delimiter, lineterminator=end)
    for name, caption in rows.items():
        cells = [""] * len(header)
        cells[header.index(name_column)], cells[header.index(caption_column)] = name, caption
        writer.writerow(cells)
    mark = b"\xef\xbb\xbf" if data.startswith(b"\xef\xbb\xbf") else b""
    return mark + (text + ("" if text.endswith(("\n", "\r")) else end) + lines.getvalue()).encode("utf-8")


def _more_lines(path: Path, data: bytes, rows: dict[str, str]) -> bytes:
    text = decode_text(data) if data else ""
    first = next((line for line in text.split("\n") if line.strip()), "")
    name_column, caption_column = columns_of(list(json.loads(first)), path.name) if first else ("file_name", "text")
    lines = [json.dumps({name_column: name, caption_column: caption}, ensure_ascii=False) for name, caption in rows.items()]
    return (text + ("" if not text or text.endswith("\n") else "\n") + "\n".join(lines) + "\n").encode("utf-8")
