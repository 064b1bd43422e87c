"""Records from files: conversations, prompts with their completion, instructions, or plain text. What cannot be used is named with its place."""
from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Iterator

from ..captions.decoding import decode_text
from ..settings import shown

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".txt", ".md")
ROLES = ("system", "user", "assistant", "tool")
OTHER_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "developer": "system"}
"""How ShareGPT and others call them."""
FORMS = "messages, prompt and completion, instruction and output, or text"
MAX_FIELD = 100_000_000


@dataclass(frozen=True)
class Record:
    """One thing to learn. `kind` is messages, prompt, instruction or text; `place` says where it lies.

    Of `messages` (dicts with role and content) those of the assistant are the answers, from the one at `learned_from` on.
    """

    place: str
    kind: str
    messages: tuple[dict[str, str], ...] = ()
    text: str = ""
    learned_from: int = 0


@dataclass
class Records:
    """What was read from a file or folder, and one sentence for each record that cannot be used."""

    source: Path
    records: list[Record] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def report(self, skipped: int) -> str:
        kinds = {record.kind: sum(other.kind == record.kind for other in self.records) for record in self.records}
        forms = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        return f"{len(self.records)} records in {self.source} ({forms})" + (f"; {skipped} skipped" if skipped else "")


def read_records(source: str | Path, setting: str = "train_data_dir") -> Records:
    """All records of a file or of the files in a folder, in the order of their names; `setting` is what errors call `source`.

    ValueError when there is none that can be used.
    """
    found = Records(Path(source))
    for path in find_files(found.source, setting):
        name = str(path.relative_to(found.source)) if path != found.source else path.name
        for place, content in _contents(path, name):
            try:
                if isinstance(content, ValueError):
                    raise content
                found.records.append(_record(content, place))
            except ValueError as error:
                found.problems.append(f"{place}: {error}")
    if not found.records and found.problems:
        raise ValueError(f"{setting} is {source}, where {len(found.problems)} of {len(found.problems)} records cannot be used; the first: {found.problems[0]}")
    if not found.records:
        raise ValueError(f"{setting} is {source}, which has no record; write records with {FORMS}")
    return found


def find_files(source: Path, setting: str) -> list[Path]:
    """`source` itself, or the files in it that may hold records. ValueError when there is none."""
    if source.is_dir():
        files = sorted(path for path in source.rglob("*") if path.is_file() and path.suffix.lower() in SUFFIXES
                       and not any(part.startswith(".") for part in path.relative_to(source).parts))
        if not files:
            raise ValueError(f"{setting} is {source}, which has no file that ends in {', '.join(SUFFIXES)}; put your records there")
        return files
    if not source.exists():
        raise ValueError(f"{setting} is {source}, which does not exist; give a file of records or a folder with such files")
    if source.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{setting} is {source}, but records are read from files that end in {', '.join(SUFFIXES)}")
    return [source]


def _contents(path: Path, name: str) -> Iterator[tuple[str, Any]]:
    """(place, content) of each record; a ValueError in place of one that cannot be read."""
    try:
        data = path.read_bytes()
    except OSError as error:
        yield name, ValueError(f"the file cannot be read ({error.strerror}); check its permissions")
        return
    suffix = path.suffix.lower()
    try:
        if suffix == ".jsonl":
            yield from _json_lines(data, name)
        elif suffix == ".json":
            yield from _json_list(decode_text(data), name)
        elif suffix in (".csv", ".tsv"):
            yield from _rows(decode_text(data), name, suffix)
        else:
            yield name, {"text": decode_text(data)}
    except ValueError as error:
        yield name, error


def _json_lines(data: bytes, name: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(_lines(data), 1):
        if isinstance(line, str) and not line.strip():
            continue
        yield f"{name}, line {number}", line if isinstance(line, ValueError) else _parsed(line)


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        return ValueError(f"this is not JSON ({error.msg}, column {error.colno}); write one record in {{ }} per line")
    except RecursionError:
        return ValueError("its brackets are nested too deeply; write one record in { } per line")


def _lines(data: bytes) -> list[str | ValueError]:
    """The lines of a file; where most of it is UTF-8, a line that is not is an error of its own and not of the file."""
    data = data.removeprefix(b"\xef\xbb\xbf")
    pieces = data.split(b"\n")
    lines: list[str | ValueError] = []
    for piece in pieces:
        try:
            lines.append(piece.decode("utf-8"))
        except UnicodeDecodeError as error:
            lines.append(ValueError(f"byte {error.start + 1} of the line is not UTF-8; save the file as UTF-8"))
    beyond_ascii = sum(not piece.isascii() for piece in pieces)
    if b"\0" in data or 2 * sum(isinstance(line, ValueError) for line in lines) > beyond_ascii:
        return list(decode_text(data).split("\n"))
    return lines


def _json_list(text: str, name: str) -> Iterator[tuple[str, Any]]:
    """The entries of one list; a file with one record per line is read as well."""
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
        if len(lines) > 1 and all(line.lstrip().startswith("{") and line.rstrip().endswith("}") for _, line in lines):
            yield from ((f"{name}, line {number}", _parsed(line)) for number, line in lines)
            return
        raise ValueError(f"line {error.lineno}, column {error.colno}: {error.msg}, so this is not valid JSON; correct it") from None
    except RecursionError:
        raise ValueError("its brackets are nested too deeply; write a list of records, [{...}, {...}]") from None
    for number, entry in enumerate(content if isinstance(content, list) else [content], 1):
        yield f"{name}, record {number}", entry


def _rows(text: str, name: str, suffix: str) -> Iterator[tuple[str, Any]]:
    """The rows below the line with the column names; cells that are empty count as not given."""
    csv.field_size_limit(MAX_FIELD)
    text = text.lstrip("\ufeff")
    header = text.lstrip("\r\n").split("\n", 1)[0]
    delimiter = "\t" if suffix == ".tsv" else max(",;\t", key=header.count)
    columns: list[str] = []
    for place, cells in _cells(text, name, delimiter):
        if isinstance(cells, ValueError):
            yield place, cells
        elif not columns:
            columns = [cell.strip().lower() for cell in cells]
        elif len(cells) > len(columns):
            yield place, ValueError(f"the row has {len(cells)} cells and the header {len(columns)}; put texts with {delimiter!r} in quotes")
        else:
            row: dict[str, Any] = {column: cell for column, cell in zip(columns, cells) if cell.strip()}
            if "messages" in row:
                row["messages"] = _parsed(row["messages"])
            yield place, row["messages"] if isinstance(row.get("messages"), ValueError) else row


def _cells(text: str, name: str, delimiter: str) -> Iterator[tuple[str, list[str] | ValueError]]:
    """The cells of each row that has any; after a row that is none, reading goes on with the line below the one where it began."""
    lines, first = list(io.StringIO(text, newline="")), 0
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        begins = first + reader.line_num
        place = f"{name}, line {begins + 1}"
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield place, ValueError(f"this is not a row of a CSV file ({error}); put texts with quotes or line ends in quotes, and write a quote "
                                    'inside as ""')
            if first + reader.line_num > begins + 1:
                first = begins + 1
                reader = csv.reader(lines[first:], delimiter=delimiter, strict=True)
            continue
        if cells:
            yield place, cells


def _record(content: Any, place: str) -> Record:
    """The record in one of the known forms; ValueError says what is missing."""
    if not isinstance(content, dict):
        raise ValueError(f"it holds {shown(content)} but must be a record with {FORMS}")
    content = {key: value for key, value in content.items() if value is not None}
    for name in ("messages", "conversations"):
        if name in content:
            return Record(place, "messages", _conversation(_messages(content[name], name)))
    if isinstance(content.get("prompt"), list):
        prompt, answer = _messages(content["prompt"], "prompt"), _messages(content.get("completion"), "completion")
        return Record(place, "messages", _conversation(prompt + answer), learned_from=len(prompt))
    if "prompt" in content or "completion" in content:
        return _pair(place, "prompt", _text(content, "prompt"), _text(content, "completion"))
    if "instruction" in content:
        given = _text(content, "input", needed=False)
        question = _text(content, "instruction") + (f"\n\n{given}" if given.strip() else "")
        return _pair(place, "instruction", question, _text(content, "output"))
    if "text" in content:
        return Record(place, "text", text=_text(content, "text"))
    raise ValueError(f"it has {', '.join(map(str, content))[:80] or 'nothing'} but must have {FORMS}")


def _pair(place: str, kind: str, question: str, answer: str) -> Record:
    return Record(place, kind, ({"role": "user", "content": question}, {"role": "assistant", "content": answer}))


def _text(content: dict, name: str, needed: bool = True) -> str:
    value = content.get(name, "")
    if not isinstance(value, str):
        raise ValueError(f"{name} is {shown(value)} but must be text; put it in quotes")
    if needed and not value.strip():
        raise ValueError(f"{name} is {'empty' if name in content else 'missing'}; write it or remove the record")
    if re.search("[\ud800-\udfff]", value):
        raise ValueError(f"{name} has half of a character (a lone surrogate); correct the text")
    return value


def _messages(value: Any, name: str) -> tuple[dict[str, str], ...]:
    if not isinstance(value, list) or not value:
        raise ValueError(f'{name} is {shown(value)} but must be a list such as [{{"role": "user", "content": "..."}}, ...]')
    return tuple(_message(message, number) for number, message in enumerate(value, 1))


def _message(message: Any, number: int) -> dict[str, str]:
    if not isinstance(message, dict):
        raise ValueError(f"message {number} is {shown(message)} but must have role and content")
    role = message.get("role", message.get("from"))
    role = OTHER_ROLES.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        raise ValueError(f"message {number} has the role {shown(role)} but must have one of {', '.join(ROLES)}")
    content = message.get("content", message.get("value"))
    if isinstance(content, list) and all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
        content = "".join(part["text"] for part in content)
    try:
        return {"role": role, "content": _text({"content": content} if content is not None else {}, "content")}
    except ValueError as error:
        raise ValueError(f"message {number}: {error}") from None


def _conversation(messages: tuple[dict[str, str], ...]) -> tuple[dict[str, str], ...]:
    if not any(message["role"] == "assistant" for message in messages):
        raise ValueError("no message is of the assistant, so there is no answer to learn; add one")
    if messages[0]["role"] == "assistant":
        raise ValueError("the first message is the assistant's; a conversation begins with the user's (or system)")
    return messages
