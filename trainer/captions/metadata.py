"""Captions of a whole gallery in one table: `metadata.csv` or `metadata.jsonl`."""
from __future__ import annotations

import csv
import io
import json
from pathlib import Path

from .decoding import decode_text
from .sidecar import tidy

NAME_COLUMNS = ("file_name", "image", "file")
CAPTION_COLUMNS = ("text", "caption", "prompt")
SUFFIXES = (".csv", ".tsv", ".jsonl")


def read_metadata(path: str | Path) -> dict[str, str]:
    """File name as written -> caption, in the order of the file; of several rows for one name the first counts.

    Raises ValueError with the line when the file cannot be opened or understood.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"The metadata file {path} must end in .csv or .jsonl.")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"The metadata file {path} cannot be opened ({error.strerror or error}).") from error
    return parse_metadata(path, data)


def parse_metadata(path: Path, data: bytes) -> dict[str, str]:
    """As `read_metadata`, of what the file at `path` holds or is going to hold."""
    try:
        text = decode_text(data)
    except ValueError as error:
        raise ValueError(f"The metadata file {path} cannot be read: {error}") from error
    rows = _read_jsonl(text, path.name) if path.suffix.lower() == ".jsonl" else _read_csv(text, path.name)
    captions: dict[str, str] = {}
    for name, caption in rows:
        if name:
            captions.setdefault(name, tidy(caption))
    return captions


def _read_jsonl(text: str, file_name: str) -> list[tuple[str, str]]:
    rows = []
    # not splitlines(): JSON strings may hold the other line separators of Unicode
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{file_name}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: this is not JSON ({error}); every line must be one object.") from error
        if not isinstance(row, dict):
            raise ValueError(f'{where}: every line must be an object such as {{"file_name": "a.png", "text": "a cat"}}.')
        name_column, caption_column = columns_of(list(row), where)
        rows.append((_text(row[name_column], where, name_column), _text(row[caption_column], where, caption_column)))
    return rows


def _text(value: object, where: str, column: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{where}: {column} must be text, not {json.dumps(value)[:60]}.")
    return value.strip()


def columns_of(names: list[str], where: str) -> tuple[str, str]:
    """The first known column for the file's name and the first for the caption, whatever their case."""
    known = {}
    for name in names:
        known.setdefault(name.strip().lower(), name)
    found = []
    for allowed in (NAME_COLUMNS, CAPTION_COLUMNS):
        column = next((known[name] for name in allowed if name in known), None)
        if column is None:
            raise ValueError(f"{where}: none of {', '.join(allowed)} is among the columns ({', '.join(names)[:200]}); rename one.")
        found.append(column)
    return found[0], found[1]


def _read_csv(text: str, file_name: str) -> list[tuple[str, str]]:
    lines = _csv_lines(text, file_name)
    if not lines:
        return []
    header_number, header = lines[0]
    name_column, caption_column = columns_of(header, f"{file_name}, line {header_number}")
    name_index, caption_index = header.index(name_column), header.index(caption_column)
    rows = []
    for number, cells in lines[1:]:
        if len(cells) > len(header):
            cells = _rejoin(cells, len(header), caption_index, f"{file_name}, line {number}")
        cells = cells + [""] * (len(header) - len(cells))
        rows.append((cells[name_index].strip(), cells[caption_index].strip()))
    return rows


def _rejoin(cells: list[str], width: int, caption_index: int, where: str) -> list[str]:
    """Put a caption with commas but no quotes together again."""
    if any(cell.strip() for cell in cells[width:]) and caption_index != width - 1:
        raise ValueError(f"{where}: {len(cells)} values for {width} columns; put the caption in double quotes.")
    return cells[:width - 1] + [",".join(cells[width - 1:]).rstrip(", ")] if caption_index == width - 1 else cells[:width]


def _csv_lines(text: str, file_name: str) -> list[tuple[int, list[str]]]:
    first = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = max(",;\t", key=first.count)
    try:
        return _parse_csv(text, delimiter, strict=True)
    except csv.Error as error:
        if "end of data" in str(error):
            raise ValueError(f"{file_name}: a double quote is opened and never closed; close it, or double it inside a text.") from error
    try:
        return _parse_csv(text, delimiter, strict=False)
    except csv.Error as error:
        raise ValueError(f"{file_name}: this is not a table of comma-separated values ({error}).") from error


def _parse_csv(text: str, delimiter: str, strict: bool) -> list[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=strict)
    return [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
