"""What a device has, what is free of it, and what this process holds. Bytes; None where the system does not tell."""
from __future__ import annotations

import os
import sys
from pathlib import Path

import torch


NEARLY_FULL = 0.03
"""Share of a device's memory; less than that is left for nobody."""


def with_allocator(device: torch.device) -> bool:
    """Whether torch keeps account of what it has allocated on the device, and of its peak."""
    return device.type in ("cuda", "xpu")


def _index(device: torch.device) -> int:
    """Not all of torch's functions take a device without its number."""
    return getattr(torch, device.type).current_device() if device.index is None else device.index


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was asked to."""
    if with_allocator(device):
        getattr(torch, device.type).synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def memory_of(device: torch.device) -> int | None:
    """All that the device has; for a CPU the machine's memory, or less where a container has a limit."""
    if with_allocator(device):
        return getattr(torch, device.type).get_device_properties(_index(device)).total_memory
    if sys.platform == "win32":
        return _windows_memory()[0]
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
    limit = _number(_CGROUP / "memory.max")
    return total if limit is None else min(total, limit)


def free_of(device: torch.device) -> int | None:
    """What this process could still take, what torch's allocator keeps in reserve included."""
    if with_allocator(device):
        kind = getattr(torch, device.type)
        if not hasattr(kind, "mem_get_info"):
            return None
        index = _index(device)
        unused = kind.memory_reserved(index) - kind.memory_allocated(index)
        free, total = kind.mem_get_info(index)
        fraction = kind.get_per_process_memory_fraction(index) if hasattr(kind, "get_per_process_memory_fraction") else 1.0
        return min(free + unused, int(fraction * total) - kind.memory_allocated(index))
    if device.type == "mps":
        recommended = getattr(torch.mps, "recommended_max_memory", None)
        return recommended() - torch.mps.driver_allocated_memory() if recommended else None
    if sys.platform == "win32":
        return _windows_memory()[1]
    return _linux_free()


def stands_at_its_limit(device: torch.device) -> bool:
    """Whether the device's memory is as good as full: a driver or a system that has more elsewhere begins to use that. False where it is not
    known."""
    total, free = memory_of(device), free_of(device)
    if with_allocator(device):
        kind = getattr(torch, device.type)
        unused = kind.memory_reserved(_index(device)) - kind.memory_allocated(_index(device))
        free = None if free is None else free - unused  # what the allocator has in reserve may be the part that lies elsewhere
    return total is not None and free is not None and free < NEARLY_FULL * total


def held_of(device: torch.device) -> int:
    """What this process holds: tensors on a GPU, everything on a CPU. 0 where the system does not tell."""
    if with_allocator(device):
        return getattr(torch, device.type).memory_allocated(_index(device))
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError, AttributeError):
        return 0


_CGROUP = Path("/sys/fs/cgroup")


def _linux_free() -> int | None:
    try:
        facts = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(facts["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    limit, used = _number(_CGROUP / "memory.max"), _number(_CGROUP / "memory.current")
    return free if limit is None or used is None else max(0, min(free, limit - used + _file_cache()))


def _file_cache() -> int:
    """Bytes of a container's memory that hold what was read from files: counted as used, and given up as soon as somebody wants them."""
    try:
        facts = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
        return int(facts["inactive_file"]) + int(facts["active_file"])
    except (OSError, KeyError, ValueError):
        return 0


def _number(path: Path) -> int | None:
    """Of a control group's file; None for no file, and for "max", which is no limit."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _windows_memory() -> tuple[int | None, int | None]:
    """All, and what is free."""
    import ctypes

    class Status(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ulong), ("load", ctypes.c_ulong), *((name, ctypes.c_ulonglong) for name in (
            "total", "free", "page_total", "page_free", "virtual_total", "virtual_free", "extended_free"))]

    status = Status(length=ctypes.sizeof(Status))
    return (status.total, status.free) if ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)) else (None, None)
