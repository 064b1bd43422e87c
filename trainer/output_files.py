"""Write a file so that a reader never sees half of it, and so that a failure keeps what was there."""

from __future__ import annotations

import errno
import itertools
import os
import secrets
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Iterator


FULL = ("no space left on device", "disk quota exceeded", "not enough space on the disk")
"""In errors that are no OSError of that number: those of safetensors and tokenizers, and the one that shutil makes of several."""
NOT_WRITTEN = ("inline_container", "iostream error")
"""In errors of torch.save, which does not tell the reason."""
FULL_CODES = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
AS_GOOD_AS_FULL = 1_000_000
"""Bytes."""


class OutputError(OSError):
    """A file could not be written. The message is one sentence for the user; `errno` is the system's."""


def write_atomically(path: str | Path, data: bytes, keep_old: bool = False) -> Path | None:
    """Write `data` to a temporary file beside `path`, flush it to the disk, then put it in place in one step.

    Missing folders are made. With `keep_old` a file that is already there is first kept as `name-v1`, `name-v2`, ... and that
    path is returned. Raises OutputError when the disk is full, the folder cannot be written to, or anything else goes wrong;
    what was at `path` is then unchanged and nothing is left behind.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem[:40]}-{secrets.token_hex(6)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            kept = _keep(path) if keep_old and path.exists() else None
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        _flush_folder(path.parent)
    except OSError as error:
        raise _output_error(path, len(data), error) from error
    return kept


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write to in parts, beside `path`, whose name it gets when all has been written; after an error nothing is left of it.

    What was at `path` is replaced. OutputError as for `write_atomically`.
    """
    temporary = path.with_name(f".{path.stem[:40]}-{secrets.token_hex(6)}.tmp")
    written = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "xb") as file:
                yield file
                written = file.tell()
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        _flush_folder(path.parent)
    except OSError as error:
        raise _output_error(path, written, error) from error


def _keep(path: Path) -> Path:
    """Give the file at `path` a second name, the first free `name-vN`; there is no moment at which `path` is missing."""
    number = 1
    while True:
        kept = path.with_name(f"{path.stem}-v{number}{path.suffix}")
        try:
            os.link(path, kept)
            return kept
        except FileExistsError:
            number += 1
        except OSError:  # file systems without hard links (FAT, some network drives): a copy that is complete or absent
            if not kept.exists():
                write_atomically(kept, path.read_bytes())
                shutil.copystat(path, kept)
                return kept
            number += 1


def put_folder(temporary: Path, path: Path) -> Path | None:
    """Give the finished folder `temporary`, which lies beside `path`, that name; everything in it is on the disk by then.

    A folder that is already there is kept as `name-v1`, `name-v2`, ..., and that path is returned. OutputError when it cannot be
    done; what was at `path` is then there unchanged.
    """
    kept = None
    try:
        for file in temporary.rglob("*"):
            if file.is_file():
                with open(file, "rb+") as opened:
                    os.fsync(opened.fileno())
        if path.exists():
            kept = put_aside(path)
        try:
            os.rename(temporary, path)
        except OSError:
            if kept is not None:
                os.rename(kept, path)
            raise
        _flush_folder(path.parent)
    except OSError as error:
        raise _output_error(path, sum(file.stat().st_size for file in temporary.rglob("*") if file.is_file()), error) from error
    return kept


def put_aside(folder: Path) -> Path:
    """Give the folder the first free of the names `name-v1`, `name-v2`, ...; returns that path."""
    kept = next(kept for number in itertools.count(1) if not (kept := folder.with_name(f"{folder.name}-v{number}")).exists())
    os.rename(folder, kept)
    return kept


def _flush_folder(folder: Path) -> None:
    """Make the new name survive a power cut; Windows has no such call and does not need one."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # some network and FUSE file systems cannot flush a folder
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def unwritable(folder: Path, make: bool = False) -> str:
    """Why no file can be written into a folder, or where it is missing into what is to hold it; empty when one can. With `make` it is made."""
    try:
        if make:
            folder.mkdir(parents=True, exist_ok=True)
        place = next(one for one in (folder, *folder.parents) if one.exists())
        probe = place / f".{secrets.token_hex(12)}.tmp"
        probe.write_bytes(b"")
        os.unlink(probe)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def writable_of(folders: list[Path]) -> Path:
    """The first folder that can be written to; the first of all where none can, which whoever writes there is told."""
    return next((folder for folder in folders if not unwritable(folder)), folders[0])


def disk_full(path: Path, error: BaseException, size: int | None = None) -> OutputError | None:
    """The sentence for a full disk on which something of `size` bytes below `path` was written, by whatever library; None for any other error."""
    if isinstance(error, OutputError):
        return error
    said = str(error).lower()
    unsaid = isinstance(error, RuntimeError) and any(sign in said for sign in NOT_WRITTEN)
    if not (getattr(error, "errno", None) in FULL_CODES or any(sign in said for sign in FULL) or unsaid and _free_bytes(path) < AS_GOOD_AS_FULL):
        return None
    return _output_error(path, size, OSError(errno.ENOSPC, said))


def _output_error(path: Path, size: int | None, cause: OSError) -> OutputError:
    """`size`: bytes that were to be written, None where that is not known."""
    if isinstance(cause, OutputError):
        return cause
    code = cause.errno
    if code in FULL_CODES:
        needed = "" if size is None else f"{size / 1e6:.1f} MB are needed, "
        reason = f"the disk is full ({needed}{_free_bytes(path) / 1e6:.1f} MB are free); free some space or set another output_dir"
    elif code == errno.EFBIG:
        limit = "over the largest file that the system allows"
        reason = f"its {(size or 0) / 1e6:.1f} MB are {limit}; raise that limit or set another output_dir"
    elif code in (errno.EACCES, errno.EPERM, errno.EROFS):
        reason = "the folder is read-only for this user; change its permissions or set another output_dir"
    else:
        reason = f"{cause.strerror or cause}; set another output_dir"
    error = OutputError(f"{path} could not be written: {reason} (nothing that was there has been changed)")
    error.errno = code
    return error


def _free_bytes(path: Path) -> int:
    """Of the disk on which `path` is or would be."""
    path = path.absolute()
    return next((shutil.disk_usage(folder).free for folder in (path, *path.parents) if folder.is_dir()), 0)
