"""A file that one process holds and no other."""
from __future__ import annotations

import errno
import os
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Iterator

HELD = (errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK, errno.EDEADLK)


def hold(path: Path) -> BinaryIO | None:
    """The file, held until it is closed; None when another process holds it. The system lets go of it when its process ends, however it ends.

    A file system that knows no locks (some network drives) keeps nobody out.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = open(path, "a+b")
        try:
            _lock(file)
        except OSError as error:
            if error.errno in HELD:
                file.close()
                return None
        if os.name == "nt" or _is_there(path, file):
            return file
        file.close()  # whoever held it has removed it since it was opened, and the next one makes another


def _lock(file: BinaryIO) -> None:
    if os.name == "nt":
        import msvcrt

        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_there(path: Path, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def alone(path: Path, otherwise: str) -> Iterator[None]:
    """Inside, the file is held, and afterwards it is gone. ValueError with the sentence `otherwise` when another process holds it."""
    file = hold(path)
    if file is None:
        raise ValueError(otherwise)
    try:
        yield
    finally:
        if os.name != "nt":  # while it is still held: afterwards it may be somebody else's
            path.unlink(missing_ok=True)
        file.close()
        if os.name == "nt":  # which removes no open file, and so not somebody else's either
            with suppress(OSError):
                path.unlink()
