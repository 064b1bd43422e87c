"""The other processes of a run: who failed or was lost is told once, in one sentence, and nobody waits for the dead."""
from __future__ import annotations

import os
import socket
import sys
import threading
from pathlib import Path
from typing import Callable, TypeVar

import torch

from ..distributed import PeerFailed, tell_launcher
from ..roll_call import Failure, RollCall
from .checkpoints import find_checkpoints

T = TypeVar("T")
GRACE = 10.0
"""Seconds that a process has to notice by itself that another one is gone; then it is held in a wait that will not end."""
SIGNS = ("gloo", "nccl", "connection reset", "connection closed", "connection refused", "socket", "broken pipe", "heartbeat")
"""Words in errors of torch.distributed when a process is gone."""


def is_one_of_several() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1


def is_sharded() -> bool:
    """Whether each process has a part of the base only (FSDP), so that all of them must compute together."""
    from accelerate.state import AcceleratorState

    return getattr(AcceleratorState(), "fsdp_plugin", None) is not None


def wait_for_all() -> None:
    """For the other processes, if there are any."""
    if is_one_of_several():
        torch.distributed.barrier()


class Peers:
    """This process among the `world` of a launcher, which transformers' Trainer has joined; alone, it does nothing."""

    def __init__(self, rank: int, world: int, checkpoints: Path) -> None:
        self.rank, self.world, self.checkpoints = rank, world, checkpoints
        self.roll: RollCall | None = None
        self._settled = threading.Event()
        if world > 1 and os.environ.get("MASTER_ADDR") and os.environ.get("MASTER_PORT"):
            run = f"llm-{os.environ.get('TORCHELASTIC_RUN_ID', '')}-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
            self.roll = RollCall(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), run, rank, world)
            people: list = [None] * world
            torch.distributed.all_gather_object(people, (socket.gethostname(), os.getpid()))
            self.roll.start(people)
            threading.Thread(target=self._watch, name="hotlora-peers", daemon=True).start()

    @property
    def is_writer(self) -> bool:
        return self.rank == 0

    def together(self, work: Callable[[], T]) -> T:
        """`work()` in every process; an error in one of them ends all."""
        result, error = None, None
        try:
            result = work()
        except Exception as its_own:
            error = its_own
        said = [None if error is None else str(error)] * self.world
        if self.world > 1:
            torch.distributed.all_gather_object(said, said[0])
        first = next((text for text in said if text is not None), None)
        if first is None:
            return result
        self.stop()
        raise error or PeerFailed(first, quiet=True)

    def explained(self, error: BaseException) -> BaseException:
        """`error`, or for the loss or failure of another process a sentence that names it; others than the speaker stay quiet."""
        self._settled.set()
        if self.roll is None or isinstance(error, KeyboardInterrupt):
            return error
        between = isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in SIGNS)
        failure = self.roll.who(error) if between or self.roll.failure else self.roll.fail(str(error))
        if failure.rank == self.rank and self._tells(failure):
            return error
        return PeerFailed(self._sentence(failure), quiet=not self._tells(failure))

    def stop(self) -> None:
        self._settled.set()
        if self.roll is not None:
            self.roll.stop()

    def _tells(self, failure: Failure) -> bool:
        """One process tells; and one that failed by itself does where the speaker's words are not seen."""
        people = self.roll.people
        return self.rank == failure.speaker or self.rank == failure.rank and people[self.rank][0] != people[failure.speaker][0]

    def _sentence(self, failure: Failure) -> str:
        saved = find_checkpoints(self.checkpoints)
        return f"{failure.message}; " + (f"start again with --resume to go on from step {saved[0][0]}" if saved else "no state to go on from had been saved yet")

    def _watch(self) -> None:
        """A wait inside a GPU's library cannot be broken off, so the process ends here."""
        while not self._settled.wait(0.5):
            self.roll.look_for_store()
            failure = self.roll.failure
            if failure is None or self._settled.wait(GRACE):
                continue
            if self._tells(failure):
                tell_launcher(self._sentence(failure))
                print(f"error: {self._sentence(failure)}", file=sys.stderr, flush=True)
            os._exit(1)
