"""A job and where it lies on disk: `jobs/<id>/job.json`, its events and losses, and `run/` with states and previews."""
from __future__ import annotations

import dataclasses
import logging
import re
import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .job_events import append_line, plain_json, read_json
from .output_files import write_atomically
from .state import find_states

log = logging.getLogger(__name__)
STATUSES = ("queued", "preparing", "running", "paused", "completed", "stopped", "failed", "interrupted", "cancelled")
ACTIVE = ("preparing", "running", "paused")
RESUMABLE = ("stopped", "failed", "interrupted")


@dataclass
class Job:
    """One training that somebody asked for. `settings` are as they were given; `config` is what they came to when it first began; `run` is what its
    files tell of their run, whatever they are called by now."""

    id: str
    name: str
    settings: dict[str, Any]
    preset: str | None
    status: str = "queued"
    step: int = 0
    total_steps: int = 0
    loss: float | None = None
    seconds_left: float | None = None
    seconds_per_picture: float | None = None
    message: str = ""
    details: str = ""
    warnings: list[str] = field(default_factory=list)
    created: float = 0.0
    started: float | None = None
    ended: float | None = None
    trigger: str = ""
    base: str = ""
    pictures: int = 0
    lora: str | None = None
    run: str = ""
    saved: list[dict[str, Any]] = field(default_factory=list)
    previews: list[dict[str, Any]] = field(default_factory=list)
    measured: list[dict[str, Any]] = field(default_factory=list)
    memory: dict[str, Any] | None = None
    config: dict[str, Any] | None = None
    position: int = 0

    @property
    def tag(self) -> str:
        """What goes into a prompt."""
        return f"<lora:{self.name}:1>"

    def public(self, whole: bool = True) -> dict[str, Any]:
        """As the API tells it; without the long parts when not `whole`."""
        values = {**dataclasses.asdict(self), "tag": self.tag, "commands": commands_of(self)}
        values.pop("config")
        if not whole:
            for name in ("settings", "previews", "details"):
                values.pop(name)
        return values


def commands_of(job: Job) -> list[str]:
    """What can be done with a job in its state."""
    always = ["again"]
    if job.status == "queued":
        return ["move", "cancel", "resume", *always]
    if job.status == "preparing":
        return ["stop", *always]
    if job.status in ("running", "paused"):
        return ["stop", "resume" if job.status == "paused" else "pause", "save", "sample", *always]
    return [*(["resume"] if job.status in RESUMABLE else []), "remove", *always]


class JobStore:
    """Reads and writes jobs below a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def new_id(self) -> str:
        return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"

    def run_folder(self, job: Job) -> Path:
        return self.folder / job.id / "run"

    def save(self, job: Job) -> None:
        data = plain_json(dataclasses.asdict(job), indent=1)
        write_atomically(self.folder / job.id / "job.json", data.encode("utf-8", "replace"))

    def load_all(self) -> list[Job]:
        """Every job, oldest first; one whose file is damaged is named in a warning and left where it is."""
        jobs = []
        for path in sorted(self.folder.glob("*/job.json")):
            job = self.load(path)
            if job is not None:
                jobs.append(job)
        return sorted(jobs, key=lambda job: (job.created, job.id))

    def load(self, path: Path) -> Job | None:
        known = {definition.name for definition in dataclasses.fields(Job)}
        try:
            values = read_json(path.read_bytes())
            job = Job(**{key: value for key, value in values.items() if key in known})
            assert job.id == path.parent.name and job.status in STATUSES
            return job
        except (OSError, ValueError, TypeError, AttributeError, AssertionError) as error:
            log.warning("%s is damaged (%s) and is passed over", path, error)
            return None

    def saved_step(self, job: Job) -> int:
        """The step of the newest state; 0 without one."""
        states = find_states(self.run_folder(job), job.name)
        return int(re.search(r"-(\d+)\.state$", states[0].name)[1]) if states else 0


class LossFile:
    """Losses of a job, a line per step; those of a step that was done again after a resume replace the former."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "losses.txt"

    def add(self, step: int, loss: float) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        append_line(self.path, f"{step} {loss:.6g}")

    def read(self, points: int) -> list[list[float]]:
        """`[step, loss]` in order, at most `points` of them: the last step and the mean loss of equal groups of steps."""
        losses: dict[int, float] = {}
        try:
            lines = self.path.read_text(encoding="ascii", errors="replace").split("\n")[:-1]
        except OSError:
            return []
        for line in lines:
            if match := re.fullmatch(r"(\d+) (\S+)", line):
                try:
                    losses[int(match[1])] = float(match[2])
                except ValueError:
                    continue
        pairs = sorted(losses.items())
        group = max(1, -(-len(pairs) // points))
        groups = [pairs[i:i + group] for i in range(0, len(pairs), group)]
        return [[some[-1][0], sum(loss for _, loss in some) / len(some)] for some in groups]
