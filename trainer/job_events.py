"""What happens to jobs, as a numbered list on disk that a page follows and, after a lost connection, takes up again."""
from __future__ import annotations

import heapq
import json
import logging
import math
import re
import threading
import time
from collections import Counter, deque
from contextlib import suppress
from pathlib import Path
from typing import Any, Iterator

log = logging.getLogger(__name__)
IN_MEMORY = 5000
REPLAYED_STEPS = 500
"""Of more step events of one job than this, a replay has so many, evenly spread."""
HEARTBEAT = 15.0
FILE = "events.jsonl"
BEGIN = re.compile(rb'\{"id": (\d+), "kind": "(\w+)"')
"""How each line of a file begins: what is not asked for need not be parsed."""
TAIL = 1 << 14
Event = dict[str, Any]


class EventLog:
    """Events with increasing ids, each appended to the file of its job before anybody hears of it. Safe to use from several threads.
    Where nothing can be written, as on a full disk, an event is told all the same, and is gone when the server ends.

    Kinds: job, step, saved, preview, measured, log, loras, gallery, captioning, drawing. What a file holds of a line that a kill has cut off is passed over.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.changed = threading.Condition(threading.RLock())
        self.closed = self._unwritten = False
        self._recent: deque[Event] = deque(maxlen=IN_MEMORY)
        self.last = max((_last_id(path) for path in self._files()), default=0)
        self._before_recent = self.last

    def add(self, kind: str, job: str | None = None, **facts: Any) -> Event:
        with self.changed:
            event = {"id": self.last + 1, "kind": kind, "time": round(time.time(), 3), "job": job, **facts}
            problem = self._write(event)
            self.last += 1
            if len(self._recent) == IN_MEMORY:
                self._before_recent = self._recent[0]["id"]
            self._recent.append(event)
            self.changed.notify_all()
            known, self._unwritten = self._unwritten, problem is not None
        if problem and not known:  # said once, and without the lock, as a run tells of warnings by events
            log.warning("what happens cannot be written down (%s); free some space, or what is told until then is not in the log after a restart", problem)
        return event

    def _write(self, event: Event) -> OSError | None:
        """Append it to the file of its job; returns what is in the way."""
        path = self.folder / event["job"] / FILE if event["job"] else self.folder / FILE
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            append_line(path, plain_json(event))
        except OSError as error:
            return error
        return None

    def since(self, after: int) -> list[Event]:
        """Events with a higher id than `after`, in order; step events of a long gap are thinned, no other is left out."""
        with self.changed:
            until, found = self._before_recent, [event for event in self._recent if event["id"] > after]
        if after < until:  # without the lock, for which every step of a training waits; what is asked for is in the files by now
            found = [*heapq.merge(*(_read(path, after, until) for path in self._files()), key=lambda event: event["id"]), *found]
        return thinned(found)

    def of_job(self, job: str, kind: str, most: int) -> list[Event]:
        """The newest events of one kind of one job, from its file alone."""
        with self.changed:
            recent = [event for event in self._recent if event["job"] == job and event["kind"] == kind]
        lines = deque((line for _, found, line in _lines(self.folder / job / FILE) if found == kind), most)
        found = {event["id"]: event for event in (*filter(None, map(_parse, lines)), *recent)}
        return [found[number] for number in sorted(found)][-most:]

    def stream(self, after: int | None) -> EventStream:
        """Events after an id, then those to come; None means only those to come."""
        return EventStream(self, self.last if after is None else min(after, self.last))

    def close(self) -> None:
        """End all streams."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()

    def _files(self) -> list[Path]:
        return [path for path in (self.folder / FILE, *self.folder.glob(f"*/{FILE}")) if path.is_file()]


class EventStream:
    """Server-sent events as bytes. `close`, from any thread, ends it at once."""

    def __init__(self, events: EventLog, after: int) -> None:
        self.events, self.after, self.closed, self._begun = events, after, False, False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if not self._begun:
            self._begun = True
            return b"retry: 1000\n\n: hello\n\n"
        with self.events.changed:
            if not self._over() and self.events.last <= self.after:
                self.events.changed.wait(HEARTBEAT)
            if self._over():
                raise StopIteration
            last = self.events.last
        new = self.events.since(self.after) if last > self.after else []
        self.after = max(last, new[-1]["id"] if new else 0)
        return b"".join(map(as_bytes, new)) or b": still here\n\n"

    def close(self) -> None:
        with self.events.changed:
            self.closed = True
            self.events.changed.notify_all()

    def _over(self) -> bool:
        return self.closed or self.events.closed


def as_bytes(event: Event) -> bytes:
    return f"id: {event['id']}\nevent: {event['kind']}\ndata: {plain_json(event)}\n\n".encode("utf-8", "replace")


def plain_json(value: Any, **options: Any) -> str:
    """JSON that every reader takes: what is no number, as measurements of weights that diverge, is null."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, **options)
    except ValueError:
        return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, **options)


def read_json(text: str | bytes) -> Any:
    """As `plain_json` would have written it; earlier versions wrote NaN and Infinity."""
    return json.loads(text, parse_constant=lambda name: None)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def thinned(events: list[Event], keep: int = REPLAYED_STEPS) -> list[Event]:
    """At most about `keep` step events of each job, its last among them; the first after a gap says `thinned`."""
    steps = Counter(event["job"] for event in events if event["kind"] == "step")
    every = {job: -(-count // keep) for job, count in steps.items()}
    if all(number == 1 for number in every.values()):
        return events
    seen: Counter = Counter()
    kept = []
    for event in events:
        job = event["job"]
        if event["kind"] == "step" and every[job] > 1:
            seen[job] += 1
            if seen[job] % every[job] and seen[job] != steps[job]:
                continue
            event = {**event, "thinned": True}
        kept.append(event)
    return kept


def append_line(path: Path, line: str) -> None:
    """Add a line; what a kill has cut off before becomes a line of its own."""
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write((line + "\n").encode("utf-8", "replace"))


def _lines(path: Path) -> Iterator[tuple[int, str, bytes]]:
    """Id, kind and content of each line."""
    with suppress(OSError), path.open("rb") as file:
        for line in file:
            if begin := BEGIN.match(line):
                yield int(begin[1]), begin[2].decode(), line


def _read(path: Path, after: int, until: int) -> list[Event]:
    """Events from the one id to the other; of the many steps of a long run only those are parsed that a replay has."""
    if _last_id(path) <= after:
        return []
    steps = sum(kind == "step" and after < number <= until for number, kind, _ in _lines(path))
    every, seen, events = max(1, -(-steps // REPLAYED_STEPS)), 0, []
    for number, kind, line in _lines(path):
        if not after < number <= until:
            continue
        seen += kind == "step"
        if kind == "step" and seen % every and seen != steps:
            continue
        if event := _parse(line):
            events.append({**event, "thinned": True} if kind == "step" and every > 1 else event)
    return events


def _last_id(path: Path) -> int:
    """From the end of the file, which may be long; 0 when there is none."""
    with suppress(OSError), path.open("rb") as file:
        size, length = file.seek(0, 2), TAIL
        while True:
            start = file.seek(max(0, size - length))
            lines = file.read(size - start).split(b"\n")
            for event in map(_parse, reversed(lines[1:] if start else lines)):
                if event:
                    return event["id"]
            if not start:
                return 0
            length *= 8
    return 0


def _parse(line: bytes) -> Event | None:
    try:
        event = read_json(line)
        return event if isinstance(event, dict) and isinstance(event["id"], int) else None
    except (ValueError, KeyError):
        return None
