"""A file that one process holds and no other."""
from __future__ import annotations

import errno
import os
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Iterator

HELD = (errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK, errno.EDEADLK)


def hold(path: Path) -> BinaryIO | None:
    """The file, held until it is closed; None when another process holds it. The system lets go of it when its process ends, however it ends.

    A file system that knows no locks (some network drives) keeps nobody out.
    """
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
    except OSError as error:
        if error.errno in HELD:
            file.close()
            return None
    return file


@contextmanager
def alone(path: Path, otherwise: str) -> Iterator[None]:
    """Inside, the file is held, and afterwards it is gone. ValueError with the sentence `otherwise` when another process holds it."""
    file = hold(path)
    if file is None:
        raise ValueError(otherwise)
    try:
        yield
    finally:
        file.close()
        path.unlink(missing_ok=True)
