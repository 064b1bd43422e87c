"""Captions written back to where they came from: a row of the metadata, or the text file beside the picture."""
from __future__ import annotations

import csv
import io
import json
from pathlib import Path

from .decoding import decode_text
from .matching import CaptionTable
from .metadata import columns_of, parse_metadata

MARK = b"\xef\xbb\xbf"


class Located(str):
    """A caption that knows its metadata file and the name that its row has there."""

    file: Path
    row: str


class LocatedCaptions(CaptionTable):
    """A caption table that says where a caption stands."""

    def read(self, path: Path) -> dict[str, str]:
        found = {}
        for name, caption in super().read(path).items():
            found[name] = Located(caption)
            found[name].file, found[name].row = path, name
        return found


def edited_metadata(path: Path, data: bytes, captions: dict[str, str]) -> bytes:
    """The bytes of a metadata file with the captions of some rows (by the name as written there) replaced.

    Other rows stay as they are, byte for byte; a file in another encoding becomes UTF-8. ValueError, when it cannot be done without
    changing anything else.
    """
    text = decode_text(data)
    kept = _decodes(data)
    new = (_edited_jsonl if path.suffix.lower() == ".jsonl" else _edited_csv)(text, path.name, captions)
    # what was not UTF-8 gets a mark, by which spreadsheet programs know it
    marked = data.startswith(MARK) or (not kept and path.suffix.lower() != ".jsonl")
    result = (MARK if marked else b"") + new.encode("utf-8")
    before, after = parse_metadata(path, data), parse_metadata(path, result)
    if after != {**before, **captions}:
        raise ValueError(f"{path.name} is written in a way that cannot be edited safely; nothing was changed; edit it by hand, or put each "
                         "caption in double quotes")
    return result


def _decodes(data: bytes) -> bool:
    try:
        data.decode("utf-8")
        return True
    except UnicodeDecodeError:
        return False


def _edited_csv(text: str, file_name: str, captions: dict[str, str]) -> str:
    lines = list(io.StringIO(text, newline=""))
    first = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = max(",;\t", key=first.count)
    end = next((line[len(line.rstrip("\r\n")):] for line in lines if line.endswith(("\r", "\n"))), "\n")
    reader = csv.reader(lines, delimiter=delimiter)
    written, done, columns, begin = [], set(), None, 0
    for cells in reader:
        span = lines[begin:reader.line_num]
        begin = reader.line_num
        if columns is None and any(cell.strip() for cell in cells):
            names = columns_of(cells, file_name)
            columns = len(cells), cells.index(names[0]), cells.index(names[1])
        elif columns is not None and any(cell.strip() for cell in cells):
            width, name_index, caption_index = columns
            name = cells[name_index].strip() if len(cells) > name_index else ""
            if name in captions and name not in done:
                done.add(name)
                # a caption with commas and without quotes was read as several cells
                cells = (cells + [""] * width)[:width]
                cells[caption_index] = captions[name]
                span = [_csv_line(cells, delimiter, span, end)]
        written += span
    return "".join(written)


def _csv_line(cells: list[str], delimiter: str, span: list[str], end: str) -> str:
    line = io.StringIO(newline="")
    csv.writer(line, delimiter=delimiter, lineterminator="").writerow(cells)
    return line.getvalue() + (end if span[-1].endswith(("\r", "\n")) else "")


def _edited_jsonl(text: str, file_name: str, captions: dict[str, str]) -> str:
    written, done = [], set()
    for line in text.split("\n"):
        if line.strip():
            row = json.loads(line)
            name_column, caption_column = columns_of(list(row), file_name)
            name = row[name_column].strip() if isinstance(row[name_column], str) else ""
            if name in captions and name not in done:
                done.add(name)
                row[caption_column] = captions[name]
                line = json.dumps(row, ensure_ascii=False) + ("\r" if line.endswith("\r") else "")
        written.append(line)
    return "\n".join(written)


def edited_sidecar(data: bytes | None, caption: str) -> bytes:
    """A caption file's new bytes: UTF-8, with the byte order mark and the line end at the end that it had."""
    if data is None:
        return caption.encode("utf-8")
    end = b"\r\n" if data.endswith(b"\r\n") else b"\n" if data.endswith(b"\n") else b""
    return (MARK if data.startswith(MARK) else b"") + caption.encode("utf-8") + (end if caption else b"")

