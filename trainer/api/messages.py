"""Requests and responses."""
from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Iterator

from ..job_events import plain_json


@dataclass(frozen=True)
class Request:
    """`path` and `query` are decoded, `headers` have lower-case names; of parameters that are given twice the last counts."""

    method: str
    path: str
    query: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    client: str = ""


@dataclass
class Response:
    """`body` is the content, a file that holds it, or parts that come one after the other (and may be closed)."""

    status: int
    headers: dict[str, str]
    body: bytes | Path | Iterator[bytes]


class ApiError(Exception):
    """A request that is turned down: the status, one sentence, and what may be folded."""

    def __init__(self, status: int, message: str, details: str = "", headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        message = " ".join(message.split())
        self.status, self.message, self.details, self.headers = status, message, details, headers or {}

    def response(self) -> Response:
        answer = as_json({"error": self.message, **({"details": self.details} if self.details else {})}, self.status)
        answer.headers.update(self.headers)
        return answer


def as_json(value: Any, status: int = 200, last_event: int | None = None) -> Response:
    """`last_event` is the newest event that the value knows of for certain: whoever has heard of a later one has newer news."""
    body = plain_json(value, default=str).encode("utf-8", "backslashreplace")
    known = {} if last_event is None else {"hotlora-last-event": str(last_event)}
    return Response(status, {"content-type": "application/json; charset=utf-8", "cache-control": "no-store", **known}, body)
