"""A file that one process holds and no other."""
from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO


def hold(path: Path) -> BinaryIO | None:
    """The file, held until it is closed; None when another process holds it. The system lets go of it when its process ends, however it ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "a+b")
    try:
        if os.name == "nt":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file
