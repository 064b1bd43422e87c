"""The jobs of a farm as a table in a terminal; where the output is no terminal, a line for each change."""
from __future__ import annotations

import shutil
from typing import Any, TextIO

from .estimate import duration

COLUMNS = ("name", "status", "step", "loss", "left", "tries", "on")


class Table:
    """Draws itself over its former self."""

    def __init__(self, stream: TextIO) -> None:
        self.stream, self.live = stream, bool(getattr(stream, "isatty", lambda: False)())
        self._lines, self._told = 0, {}

    def show(self, jobs: list[dict[str, Any]]) -> None:
        if self.live:
            self._draw(jobs)
        else:
            self._tell(jobs)

    def _draw(self, jobs: list[dict[str, Any]]) -> None:
        width, height = shutil.get_terminal_size()
        lines = [line[:width - 1] for line in rows(jobs)]
        if len(lines) > height - 2:  # what has left the screen cannot be drawn over
            busy = [job for job in jobs if job["status"] in ("preparing", "running")]
            lines = [line[:width - 1] for line in rows(busy)][:height - 3] + [summary(jobs)[:width - 1]]
        up = f"\x1b[{self._lines}A\x1b[J" if self._lines else ""
        self.stream.write(up + "\n".join(lines) + "\n")
        self.stream.flush()
        self._lines = len(lines)

    def _tell(self, jobs: list[dict[str, Any]]) -> None:
        for job in jobs:
            now = job["status"], job.get("attempts")
            if self._told.get(job["name"]) != now and job["status"] != "queued":
                self._told[job["name"]] = now
                self.stream.write(f"{job['name']}: {job['status']}{_place(job)}{': ' + job['message'] if job.get('message') else ''}\n")
        self.stream.flush()


def _place(job: dict[str, Any]) -> str:
    again = f", try {job['attempts']}" if job.get("attempts", 0) > 1 else ""
    return f" ({job['node']}, {job.get('device', '')}{again})" if job["status"] == "preparing" and job.get("node") else ""


def rows(jobs: list[dict[str, Any]]) -> list[str]:
    """The table's lines, its head first, columns in equal width; under a failed job the reason."""
    cells = [COLUMNS, *(_cells(job) for job in jobs)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(COLUMNS))]
    lines = []
    for row, job in zip(cells, [None, *jobs]):
        lines.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
        if job and job["status"] == "failed" and job.get("message"):
            lines.append(f"  {job['message']}")
    return lines


def _cells(job: dict[str, Any]) -> tuple[str, ...]:
    running = job["status"] == "running"
    step = f"{job['step']}/{job['total_steps']}" if job["total_steps"] else ""
    loss = f"{job['loss']:.4f}" if job.get("loss") is not None else ""
    left = duration(job["seconds_left"]) if running and job.get("seconds_left") is not None else ""
    place = f"{job['node']} ({job['device']})" if job.get("node") else ""
    return job["name"], job["status"], step, loss, left, str(job.get("attempts") or ""), place


def summary(jobs: list[dict[str, Any]]) -> str:
    """How many jobs are in which state, as "3 completed, 1 failed"."""
    counts: dict[str, int] = {}
    for job in jobs:
        counts[job["status"]] = counts.get(job["status"], 0) + 1
    return ", ".join(f"{count} {status}" for status, count in counts.items())
