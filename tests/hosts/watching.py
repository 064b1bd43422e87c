"""What a running process needs and touches, by Linux's own accounts."""
from __future__ import annotations

import ctypes
import os
import resource
import struct
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

IN_ACCESS, IN_OPEN, NON_BLOCKING = 0x1, 0x20, 0o4000


def memory(pid: int, what: str) -> int:
    """Bytes: "VmRSS" is what a process holds now, "VmHWM" the most since `forget_peak`."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(what + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(what)


def forget_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


@contextmanager
def memory_limit(pid: int, more: int) -> Iterator[None]:
    """A process gets at most `more` bytes beyond those that it has mapped now: what does not fit fails in its allocator."""
    before = resource.prlimit(pid, resource.RLIMIT_AS)
    resource.prlimit(pid, resource.RLIMIT_AS, (memory(pid, "VmSize") + more, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_AS, before)


class FileAccess:
    """Counts how often a file is opened or read while the context is open, by whichever process."""

    def __init__(self, path: Path) -> None:
        self.path, self.count = path, 0

    def __enter__(self) -> FileAccess:
        libc = ctypes.CDLL(None, use_errno=True)
        self.descriptor = libc.inotify_init1(NON_BLOCKING)
        assert libc.inotify_add_watch(self.descriptor, os.fsencode(self.path), IN_ACCESS | IN_OPEN) >= 0, os.strerror(ctypes.get_errno())
        return self

    def __exit__(self, *error) -> None:
        try:
            while data := os.read(self.descriptor, 1 << 16):
                at = 0
                while at < len(data):
                    self.count += 1
                    at += 16 + struct.unpack_from("I", data, at + 12)[0]
        except BlockingIOError:
            pass
        os.close(self.descriptor)
