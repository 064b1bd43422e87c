"""Runs that ended in the middle, by a crash or by the cancel button: the page says so when it opens."""
from __future__ import annotations

import re
from contextlib import contextmanager
from typing import Iterator

from aiohttp import web
from server import PromptServer

from .places import run_folder

_going_on: set[str] = set()


@contextmanager
def going_on(name: str) -> Iterator[None]:
    """While the run of that name is being trained it is not unfinished, whatever it has saved."""
    _going_on.add(name)
    try:
        yield
    finally:
        _going_on.discard(name)


def unfinished_runs() -> list[dict]:
    """Name and last saved step of every run that can go on, newest first."""
    runs = []
    for folder in run_folder("x").parent.glob("*/"):
        steps = [int(match[1]) for path in folder.glob("*.state") if (match := re.fullmatch(re.escape(folder.name) + r"-(\d{6,})\.state", path.name))]
        if steps and folder.name not in _going_on:
            runs.append({"name": folder.name, "step": max(steps), "time": folder.stat().st_mtime})
    return sorted(runs, key=lambda run: -run["time"])


@PromptServer.instance.routes.get("/hotlora/unfinished")
async def unfinished(request: web.Request) -> web.Response:
    return web.json_response(unfinished_runs())
