"""How far a run is, in a small JSON file, for whoever looks on from another process: `python train.py farm` and the page."""
from __future__ import annotations

import json
import logging
import os
import time
from pathlib import Path
from typing import Any

from .output_files import OutputError, write_atomically
from .session import Listener, Outcome, Session, StepReport

log = logging.getLogger(__name__)
VARIABLE = "HOTLORA_PROGRESS"
"""The environment variable that names the file; without it nothing is written."""
EVERY = 0.5
"""Seconds between two writings of steps."""


def read_progress(path: Path) -> dict[str, Any]:
    """What was last written; empty when there is no such file, or one that something else has damaged."""
    try:
        facts = json.loads(path.read_bytes())
        return facts if isinstance(facts, dict) else {}
    except (OSError, ValueError):
        return {}


def write_progress(path: Path, **facts: Any) -> None:
    """Change some of the facts; the others stay. That it cannot be written is no reason to end a run."""
    facts = {**read_progress(path), **facts, "updated": time.time()}
    try:
        write_atomically(path, json.dumps(facts, ensure_ascii=False).encode("utf-8", "replace"))
    except OutputError as error:
        log.warning("warning: how far the run is was not written down: %s", error)


class ProgressFile(Listener):
    """Listens to a session; any other loop may tell it its steps by `begin`, `step` and `end`."""

    def __init__(self, path: Path) -> None:
        self.path, self._written, self._began = path, 0.0, (0, time.monotonic())

    @classmethod
    def from_environment(cls) -> ProgressFile | None:
        """The one that whoever started this process wants."""
        path = os.environ.get(VARIABLE)
        return cls(Path(path)) if path else None

    def begin(self, step: int, total_steps: int) -> None:
        self._began = step, time.monotonic()
        write_progress(self.path, status="running", step=step, total_steps=total_steps, message="")

    def step(self, step: int, total_steps: int, loss: float | None) -> None:
        now = time.monotonic()
        if now - self._written < EVERY and step < total_steps:
            return
        self._written = now
        done = step - self._began[0]
        left = (total_steps - step) * (now - self._began[1]) / done if done > 0 else None
        write_progress(self.path, step=step, total_steps=total_steps, loss=loss, seconds_left=left)

    def end(self, status: str, step: int, message: str, lora: Path | None) -> None:
        write_progress(self.path, status=status, step=step, message=message, lora=str(lora) if lora else None, seconds_left=None)

    def started(self, session: Session) -> None:
        self.begin(session.step, session.total_steps)

    def stepped(self, session: Session, report: StepReport) -> None:
        self.step(report.step, report.total_steps, report.loss)

    def ended(self, session: Session, outcome: Outcome) -> None:
        self.end(outcome.status, outcome.step, outcome.message, outcome.lora)
