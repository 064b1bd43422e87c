"""Records from files: conversations, prompts with their completion, instructions, or plain text. What cannot be used is named with its place."""
from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Iterator

from ..captions.decoding import decode_text
from ..settings import shown
from .tool_calls import read_calls, read_tools

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".txt", ".md")
ROLES = ("system", "user", "assistant", "tool")
OTHER_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "developer": "system"}
"""How ShareGPT and others call them."""
FORMS = "messages, prompt and completion, instruction and output, or text"
FORM_KEYS = {"messages": ("messages", "system", "tools"), "conversations": ("conversations", "system", "tools"), "prompt": ("prompt", "completion", "system", "history"),
             "completion": ("prompt", "completion", "system", "history"), "instruction": ("instruction", "input", "output", "system", "history"),
             "text": ("text",)}
"""The first of these keys that a record has tells its form, and the form which keys are read."""
ABOUT = frozenset(("id", "idx", "index", "uuid", "conversation_id", "source", "dataset", "metadata", "meta", "category", "language", "lang", "url", "license"))
"""Keys that tell where a record is from, and nothing that could be learned."""
LISTS = ("messages", "conversations", "history")
"""Columns of a table whose cells are JSON."""
Message = dict[str, Any]
MAX_FIELD = 100_000_000
MOST_SHOWN = 10


@dataclass(frozen=True)
class Record:
    """One thing to learn. `kind` is messages, prompt, instruction or text; `place` says where it lies.

    Of `messages` (dicts with role and content) those of the assistant are the answers, from the one at `learned_from` on but for those
    with a weight of 0. An answer may have tool_calls, and `tools` are those that the conversation names (JSON schemas).
    """

    place: str
    kind: str
    messages: tuple[Message, ...] = ()
    text: str = ""
    learned_from: int = 0
    tools: tuple[dict[str, Any], ...] = ()

    def is_learned(self, number: int) -> bool:
        """Whether the message of that number is an answer to learn."""
        message = self.messages[number]
        return message["role"] == "assistant" and number >= self.learned_from and message.get("weight") != 0


@dataclass
class Records:
    """What was read from a file or folder, one sentence for each record that cannot be used, and in how many others each key is not read."""

    source: Path
    records: list[Record] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    unread: Counter[str] = field(default_factory=Counter)

    def warnings(self, setting: str) -> list[str]:
        """At most one sentence, for all keys that are not read."""
        if not self.unread:
            return []
        keys = ", ".join(f"{shown(key)} (in {count} records)" for key, count in self.unread.most_common(MOST_SHOWN))
        more = f" and {len(self.unread) - MOST_SHOWN} others" if len(self.unread) > MOST_SHOWN else ""
        return [f"records of {setting} have keys that are not read and not learned: {keys}{more}; read are {FORMS}, with system and history"]

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
                found.unread.update(_unread(content))
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
            row |= {name: _parsed(row[name]) for name in LISTS if name in row and name in FORM_KEYS.get(_form(row), ())}
            yield place, next((row[name] for name in LISTS if isinstance(row.get(name), ValueError)), row)


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
    form = _form(content)
    if form in ("messages", "conversations"):
        messages = _with_system(content, _messages(content[form], form))
        return _conversation(Record(place, "messages", messages, tools=read_tools(content.get("tools"))))
    if isinstance(content.get("prompt"), list) and form == "prompt":
        prompt = _with_system(content, _messages(content["prompt"], "prompt"))
        return _conversation(Record(place, "messages", prompt + _messages(content.get("completion"), "completion"), learned_from=len(prompt)))
    if form in ("prompt", "completion"):
        return _turns(place, "prompt", content, _text(content, "prompt"), _text(content, "completion"))
    if form == "instruction":
        given = _text(content, "input", needed=False)
        question = _text(content, "instruction") + (f"\n\n{given}" if given.strip() else "")
        return _turns(place, "instruction", content, question, _text(content, "output"))
    if form == "text":
        return Record(place, "text", text=_text(content, "text"))
    raise ValueError(f"it has {', '.join(map(str, content))[:80] or 'nothing'} but must have {FORMS}")


def _form(content: dict) -> str | None:
    return next((form for form in FORM_KEYS if content.get(form) is not None), None)


def _unread(content: dict) -> set[str]:
    """The keys of a record that hold something and are not read."""
    form = _form(content)
    read = set(FORM_KEYS[form]) - ({"history"} if isinstance(content.get("prompt"), list) else set())
    return {str(key) for key, value in content.items() if key not in read and key not in ABOUT and value not in (None, "", [], {})}


def _turns(place: str, kind: str, content: dict, question: str, answer: str) -> Record:
    """A question and its answer, after the turns of `history` and the text of `system`. With those it is a conversation, which needs headings."""
    messages = _with_system(content, (*_history(content), *_turn(question, answer)))
    return Record(place, "messages" if kind == "prompt" and len(messages) > 2 else kind, messages)


def _turn(question: str, answer: str) -> tuple[Message, ...]:
    return {"role": "user", "content": question}, {"role": "assistant", "content": answer}


def _history(content: dict) -> tuple[Message, ...]:
    """The earlier questions and answers; these answers are learned as well, as those of `messages` are."""
    pairs = content.get("history") or []
    if not isinstance(pairs, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise ValueError(f'history is {shown(pairs)} but must be a list of pairs such as [["question", "answer"], ...]')
    messages: list[Message] = []
    for number, (question, answer) in enumerate(pairs, 1):
        texts = {f"question {number} of history": question, f"answer {number} of history": answer}
        messages += _turn(*(_text(texts, name) for name in texts))
    return tuple(messages)


def _with_system(content: dict, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """`messages` after the text of `system`. ValueError when they begin with another one."""
    system = _text(content, "system", needed=False)
    if not system.strip():
        return messages
    if not messages or messages[0]["role"] != "system":
        return ({"role": "system", "content": system}, *messages)
    if messages[0]["content"].strip() != system.strip():
        raise ValueError("its key system and its first message are two different system texts; keep one of them")
    return messages


def _text(content: dict, name: str, needed: bool = True) -> str:
    value = content.get(name, "")
    if not isinstance(value, str):
        raise ValueError(f"{name} is {shown(value)} but must be text; put it in quotes")
    if needed and not value.strip():
        raise ValueError(f"{name} is {'empty' if name in content else 'missing'}; write it or remove the record")
    if re.search("[\ud800-\udfff]", value):
        raise ValueError(f"{name} has half of a character (a lone surrogate); correct the text")
    return value


def _messages(value: Any, name: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError(f'{name} is {shown(value)} but must be a list such as [{{"role": "user", "content": "..."}}, ...]')
    messages = (_message(message, number) for number, message in enumerate(value, 1))
    return tuple(message for message in messages if message["role"] != "system" or message["content"].strip())


def _message(message: Any, number: int) -> Message:
    """Role and content, and of the rest what is learned from or shown: a weight of 0, tool_calls, and what a tool's answer belongs to."""
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
        more = read_calls(message) if role == "assistant" else {}
        if role == "assistant" and message.get("weight") is not None:
            more |= _weight(message["weight"])
        if role == "tool":
            more = {key: message[key] for key in ("tool_call_id", "name") if isinstance(message.get(key), str)}
        needed = role != "system" and "tool_calls" not in more
        return {"role": role, "content": _text({"content": content} if content is not None else {}, "content", needed), **more}
    except ValueError as error:
        raise ValueError(f"message {number}: {error}") from None


def _weight(weight: Any) -> dict[str, int]:
    if isinstance(weight, bool) or weight not in (0, 1):
        raise ValueError(f"weight is {shown(weight)} but must be 1 (learned) or 0 (shown and not learned)")
    return {} if weight else {"weight": 0}


def _conversation(record: Record) -> Record:
    messages = record.messages
    if not any(message["role"] == "assistant" for message in messages):
        raise ValueError("no message is of the assistant, so there is no answer to learn; add one")
    if not any(record.is_learned(number) for number in range(len(messages))):
        raise ValueError("all answers have weight 0, so there is nothing to learn; remove the record, or set the weight of one to 1")
    if messages[0]["role"] == "assistant":
        raise ValueError("the first message is the assistant's; a conversation begins with the user's (or system)")
    return record
