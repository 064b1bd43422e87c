"""The lock that stable-diffusion-webui and Forge hold while they draw, shared fairly with a training."""
from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import Iterator

from modules import call_queue

SLICE_SECONDS, SLICE_STEPS = 5.0, 2
"""Where the host's lock does not tell who waits for it, it is given up this often."""
HANDOVER_SECONDS = 1.0


class HostQueue:
    """The lock that the host holds while it draws: first come, first served. The thread that holds it may take it again."""

    def __init__(self) -> None:
        self._owner: int | None = None
        self._asked, self._since = 0, 0.0

    @contextmanager
    def held(self) -> Iterator[None]:
        if self._owner == threading.get_ident():
            yield
            return
        call_queue.queue_lock.acquire()
        self._owner, self._asked, self._since = threading.get_ident(), 0, time.monotonic()
        try:
            yield
        finally:
            waiting = self._waiting()
            self._owner = None
            call_queue.queue_lock.release()
            self._hand_over(waiting)

    def wanted(self) -> bool:
        """Whether somebody waits. Now and then also when that cannot be known."""
        self._asked += 1
        waiting = self._waiting()
        if waiting is None:
            return self._asked >= SLICE_STEPS or time.monotonic() - self._since > SLICE_SECONDS
        # whoever was called up, but found the lock taken again by another, is in no list
        return waiting > 0 or time.monotonic() - self._since > SLICE_SECONDS

    def _waiting(self) -> int | None:
        pending = getattr(call_queue.queue_lock, "_pending_threads", None)
        return None if pending is None else len(pending)

    def _hand_over(self, waiting: int | None) -> None:
        """Wait until the one whose turn it is has taken the lock: `acquire` would overtake it while it wakes up."""
        lock = getattr(call_queue.queue_lock, "_lock", call_queue.queue_lock)
        if not hasattr(lock, "locked"):
            time.sleep(0.02)
            return
        until = time.monotonic() + (HANDOVER_SECONDS if waiting else 0.02 if waiting is None else 0.002)
        while time.monotonic() < until and not lock.locked():
            time.sleep(0.001)


queue = HostQueue()
