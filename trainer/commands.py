"""What other threads may ask of a running session; it looks between two steps."""
from __future__ import annotations

import threading

POLL = 0.1
"""Seconds between two looks at what a paused run is asked to do."""


class Commands:
    """Flags that any thread, and a signal handler, may set."""

    def __init__(self) -> None:
        self.stop, self.pause, self.save, self.preview = (threading.Event() for _ in range(4))

    @property
    def waiting(self) -> bool:
        """Whether a paused run has something to do."""
        return self.stop.is_set() or self.save.is_set() or self.preview.is_set() or not self.pause.is_set()

    @staticmethod
    def take(flag: threading.Event) -> bool:
        """Whether the flag was set; it is not any more."""
        was_set = flag.is_set()
        flag.clear()
        return was_set
