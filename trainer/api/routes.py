"""The table of routes: what each takes is written once, for checking and for the OpenAPI document."""
from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Callable

from . import schema
from .guard import check_size, check_type
from .messages import ApiError, Request, Response

if TYPE_CHECKING:
    from .app import Api

API = "/hotlora/api"
SMALL, LARGE = 8_000_000, 250_000_000
"""Bytes of a request: settings or captions; a picture."""


@dataclass
class Call:
    """A request that passed the guard, with its parts checked against the route's description."""

    api: Api
    request: Request
    path: dict[str, str]
    query: dict[str, Any]
    data: Any


@dataclass
class Route:
    """`query` and `body` are schemas; `body` None takes none and `bytes` takes a file. `errors` are statuses that only this route has."""

    method: str
    path: str
    handler: Callable[[Call], Response | dict[str, Any]]
    summary: str
    query: dict[str, dict[str, Any]] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    body: Any = None
    answer: str = "application/json"
    status: int = 200
    errors: tuple[int, ...] = ()
    limit: int = SMALL

    def __post_init__(self) -> None:
        names = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/]+)", re.escape(self.path))
        self.pattern = re.compile(names.replace("(?P<rest>[^/]+)", "(?P<rest>.+)"))

    def call(self, api: Api, request: Request, path: dict[str, str]) -> Call:
        """Check what came; ApiError or ValueError says what is wrong with it."""
        for name, value in path.items():
            schema.check(value, schema.text(), name)
        query = {}
        for name, value in request.query.items():
            if name in self.query:
                query[name] = schema.from_text(value, self.query[name], name)
        for name in self.required:
            if name not in query:
                raise ApiError(400, f"the address lacks {name}; add ?{name}=...")
        data = None
        check_size(len(request.body), self.limit if self.body is not None else 1000)
        if request.method == "POST":
            check_type(request, self.body is not bytes)
        if self.body is bytes:
            data = request.body
        elif self.body is not None:
            data = read_json(request.body)
            schema.check(data, self.body)
        return Call(api, request, path, query, data)


def read_json(body: bytes) -> Any:
    if not body.strip():
        return {}
    try:
        return json.loads(body.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON ({str(error)[:100]})") from None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")
