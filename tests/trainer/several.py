"""Starts the processes of a run that several share, on this machine or, in network namespaces, on two."""
from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch

INSIDE = Path(__file__).with_name("inside_ranks.py")
PATIENCE = 300
"""Seconds; only a test that fails waits so long."""
LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GLOO_SOCKET_IFNAME", "TORCHELASTIC_RUN_ID",
                      "TORCHELASTIC_ERROR_FILE", "HOTLORA_PROGRESS")


def plain_environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key not in LAUNCHER_VARIABLES}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1", "CUDA_VISIBLE_DEVICES": ""}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class Ended:
    """What the processes left: exit status, stdout and stderr, by rank."""

    codes: list[int]
    outputs: list[str]
    errors: list[str]
    seen: list[dict] = field(default_factory=list)

    @property
    def said(self) -> str:
        """Every line of an error that the processes printed."""
        return "\n".join(line for text in self.errors for line in text.splitlines() if line.startswith("error: "))


class Group:
    """`world` processes of inside_ranks.py; the folder holds the order and what they saw."""

    def __init__(self, folder: Path, world: int, settings: dict, **order) -> None:
        self.folder, self.world = folder, world
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("began-*"):
            old.unlink()
        file = folder / "order.json"
        file.write_text(json.dumps({"settings": settings, "out": str(folder), **order}), encoding="utf-8")
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world)} if world > 1 else {}
        self.processes = []
        for rank in range(world):
            environment = {**plain_environment(), **place, **({"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world)} if place else {})}
            self.processes.append(subprocess.Popen([sys.executable, str(INSIDE), str(file)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                                   text=True, encoding="utf-8"))

    def end(self) -> Ended:
        """Wait for all; none is left behind."""
        try:
            told = [process.communicate(timeout=PATIENCE) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        return Ended([process.returncode for process in self.processes], [out for out, _ in told], [error for _, error in told])

    def completed(self) -> list[dict]:
        """What each of them saw, once all have ended well."""
        ended = self.end()
        assert ended.codes == [0] * self.world, ended.errors
        return [torch.load(self.folder / f"seen-{self.world}-{rank}.pt") for rank in range(self.world)]


def run(folder: Path, world: int, settings: dict, **order) -> list[dict]:
    return Group(folder, world, settings, **order).completed()


def relative_error(one: torch.Tensor, other: torch.Tensor) -> float:
    return ((one.double() - other.double()).norm() / other.double().norm()).item()
