"""Notices when a process of a run fails, dies or falls silent, and says which one it was.

All of it goes through the store at which the processes met (torch's TCPStore), with a connection of its own and from a thread of its own,
so it works while a process computes, waits for the others or draws. Counters only (`add`), as every version of torch has these.
"""
from __future__ import annotations

import json
import logging
import os
import re
import socket
import threading
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

log = logging.getLogger(__name__)
LOOK = 0.5
"""Seconds between two looks."""
SILENCE = 60.0
"""A process that is not heard of for so many seconds is lost: its machine or the network is gone. A process that is killed closes its
connections, which the others notice at once."""
ANSWER = 3.0
"""Seconds in which the living must answer a roll call."""


@dataclass(frozen=True)
class Failure:
    """`rank` failed, or is `lost`. Process `speaker`, which lives, tells the user and keeps what was learned; `details` is its traceback."""

    rank: int
    message: str
    lost: bool
    speaker: int
    details: str = ""


class RollCall:
    """One process's watch over all. `people`: (host, process id) by rank."""

    def __init__(self, address: str, port: int, run: str, rank: int, world: int) -> None:
        # the store's own time-out is short: a store that does not answer is looked at again, and given up after SILENCE
        tcp = dist.TCPStore(address, port, world, False, timedelta(seconds=SILENCE / 2), wait_for_workers=False)
        self.store, self.rank, self.world = dist.PrefixStore(f"hotlora/{run}", tcp), rank, world
        self.people: list[tuple[str, int]] = []
        self.failure: Failure | None = None
        self._heard = {other: (0, time.monotonic()) for other in range(world)}
        self._ended, self._reached, self._doubted = threading.Event(), time.monotonic(), None
        self._thread = threading.Thread(target=self._watch, name="hotlora-roll-call", daemon=True)

    def start(self, people: list[tuple[str, int]]) -> None:
        self.people = people
        now = self._reached = time.monotonic()
        self._heard = {other: (0, now) for other in range(self.world)}
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(timeout=2 * LOOK)

    def name(self, rank: int) -> str:
        host, process = self.people[rank] if self.people else (socket.gethostname(), 0)
        return f"process {rank} of {self.world} (pid {process} on {host})"

    def fail(self, message: str, details: str = "") -> Failure:
        """Tell all that this process has failed; whoever was first is what everybody knows."""
        return self._settle(Failure(self.rank, f"{self.name(self.rank)} failed: {message}", False, 0, details))

    def who(self, error: BaseException) -> Failure:
        """After something between processes has failed: what is known already, else who does not answer a roll call."""
        if self.failure is None:
            try:
                missing, present = self._call()
            except (RuntimeError, OSError):
                return self._without_store(error)
            if missing:
                names = ", ".join(self.name(rank) for rank in missing)
                self._settle(Failure(missing[0], f"{names} was lost: it was killed, or its machine or network is gone", True, min(present)))
            else:
                self._settle(Failure(self.rank, f"the connection between the processes failed: {brief(error)}", False, 0))
        return self.failure

    def _call(self) -> tuple[list[int], list[int]]:
        """(who does not answer, who does)."""
        self.store.add("roll", 1)
        self.store.add(f"present/{self.rank}", 1)
        end = time.monotonic() + ANSWER
        while True:
            if self._read_failure():
                return [], list(range(self.world))
            missing = [rank for rank in range(self.world) if not self.store.add(f"present/{rank}", 0)]
            if not missing or time.monotonic() > end or all(self._surely_dead(rank) for rank in missing):
                return missing, [rank for rank in range(self.world) if rank not in missing]
            time.sleep(LOOK / 5)

    def _surely_dead(self, rank: int) -> bool:
        """Whether it was a process of this machine, and there is none of its number any more, or one that has ended."""
        host, process = self.people[rank]
        if host != self.people[self.rank][0] or os.name != "posix":
            return False
        try:
            os.kill(process, 0)
            return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
        except ProcessLookupError:
            return True
        except OSError:
            return False

    def _settle(self, failure: Failure) -> Failure:
        try:
            if self.store.add("failed", 1) == 1:
                self.store.set("failure", json.dumps(asdict(failure)))
                self.failure = failure
            else:
                self._read_failure()
        except (RuntimeError, OSError):
            self.failure = self.failure or failure
        return self.failure

    def _read_failure(self) -> bool:
        if self.failure is None and self.store.add("failed", 0):
            self.failure = Failure(**json.loads(self.store.get("failure")))
        return self.failure is not None

    def _without_store(self, error: BaseException | str) -> Failure:
        """The store lives with the first process, or with what launched it; the first of those on each machine that miss it says so."""
        host = self.people[self.rank][0] if self.people else ""
        speaker = next((rank for rank, (other, _) in enumerate(self.people) if rank and other == host), self.rank)
        self.failure = self.failure or Failure(0, f"{self.name(0)}, or what launched it, was lost ({brief(error)})", True, speaker)
        return self.failure

    def look_for_store(self) -> None:
        """Where no packet comes back, a question to the store waits in its thread for longer than anybody should: whoever waits looks at this.
        The thread is given time first, as it may itself have been kept from asking."""
        now = time.monotonic()
        if self.failure or not self._thread.is_alive() or now - self._reached < SILENCE:
            self._doubted = None
        elif self._doubted is None:
            self._doubted = now
        elif now - self._doubted > 3 * ANSWER:
            self._without_store(f"nothing was heard of it for {now - self._reached:.0f} s")

    def _watch(self) -> None:
        answered, self._reached = False, time.monotonic()
        while not self._ended.wait(LOOK):
            try:
                self.store.add(f"beat/{self.rank}", 1)
                if self._read_failure():
                    return
                if not answered and self.store.add("roll", 0):
                    self.store.add(f"present/{self.rank}", 1)
                    answered = True
                self._listen(range(1, self.world) if self.rank == 0 else [0])
                self._reached = time.monotonic()
            except (RuntimeError, OSError) as error:
                if time.monotonic() - self._reached > SILENCE and not self._ended.is_set():
                    self._without_store(error)
                    return

    def _listen(self, others) -> None:
        """The first process listens to all, these to the first: so the store is asked little, however many there are."""
        for other in others:
            beats, now = self.store.add(f"beat/{other}", 0), time.monotonic()
            if beats != self._heard[other][0]:
                self._heard[other] = beats, now
            elif now - self._heard[other][1] > SILENCE:
                speaker = 0 if other else 1
                self._settle(Failure(other, f"{self.name(other)} was lost: nothing was heard of it for {SILENCE:.0f} s", True, speaker))


def brief(error: BaseException | str) -> str:
    """The part of a message of gloo's or the store's that says what happened."""
    text = (str(error).splitlines() or [type(error).__name__])[0]
    return re.sub(r"^\[[^]]*\.(?:cc|cpp|h):\d+\] *", "", text).partition(" This is typically")[0].rstrip(".")
