"""The most memory that this process has held, on any system and with nothing installed."""
from __future__ import annotations

import sys
import threading
from contextlib import contextmanager
from typing import Iterator


def peak_bytes(device: str = "cpu") -> int:
    """Peak resident memory of this process in bytes; on a GPU the peak that torch has allocated there."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated()
    if sys.platform == "win32":
        return _windows_peak()
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, the others KiB


@contextmanager
def gpu_watched(every: float = 0.005) -> Iterator[list[int]]:
    """The most bytes of the GPU that were in use meanwhile, by whatever allocator, in the list that is given; looked at `every` so many seconds."""
    import torch

    most, over = [0], threading.Event()

    def look() -> None:
        while not over.wait(every):
            free, total = torch.cuda.mem_get_info()
            most[0] = max(most[0], total - free)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield most
    finally:
        over.set()
        watcher.join()


def _windows_peak() -> int:
    import ctypes
    from ctypes import wintypes

    class Counters(ctypes.Structure):
        _fields_ = [("cb", wintypes.DWORD), ("PageFaultCount", wintypes.DWORD)] + [(name, ctypes.c_size_t) for name in (
            "PeakWorkingSetSize", "WorkingSetSize", "QuotaPeakPagedPoolUsage", "QuotaPagedPoolUsage",
            "QuotaPeakNonPagedPoolUsage", "QuotaNonPagedPoolUsage", "PagefileUsage", "PeakPagefileUsage")]

    counters = Counters(cb=ctypes.sizeof(Counters))
    process = ctypes.windll.kernel32.GetCurrentProcess
    process.restype = wintypes.HANDLE
    read = ctypes.windll.kernel32.K32GetProcessMemoryInfo
    read.argtypes = [wintypes.HANDLE, ctypes.POINTER(Counters), wintypes.DWORD]
    if not read(process(), ctypes.byref(counters), counters.cb):
        raise ctypes.WinError()
    return counters.PeakWorkingSetSize
