"""What a full decoding told of a picture file, kept on disk for as long as the file is the same, so that it is not decoded again."""
from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict
from pathlib import Path

from .output_files import OutputError, write_atomically
from .pictures import PictureFacts, check_picture, read_bytes

log = logging.getLogger(__name__)
VERSION = 2


class KnownPictures:
    """Facts by path, time of the last change and size; None for `path` keeps nothing. Files that are gone are forgotten when it is saved."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._old: dict[str, list] = {}
        self._seen: dict[str, list] = {}
        try:
            stored = json.loads(path.read_text(encoding="utf-8")) if path else {}
            if stored.get("version") == VERSION:
                self._old = stored["files"]
        except (OSError, ValueError, KeyError, AttributeError):
            self._old = {}  # absent or damaged: everything is decoded again

    def facts(self, path: Path, max_megapixels: float) -> PictureFacts:
        """Raises UnreadablePicture as `check_picture` does; such files are few, and looked at again each time."""
        key = os.path.realpath(path).encode("utf-8", "backslashreplace").decode("utf-8")
        try:
            state = os.stat(path)
            version = [state.st_mtime_ns, state.st_size, max_megapixels]
        except OSError:
            return check_picture(read_bytes(path, max_megapixels), max_megapixels)
        entry = self._seen.get(key) or self._old.get(key)
        if not (isinstance(entry, list) and len(entry) == 4 and entry[:3] == version):
            entry = [*version, asdict(check_picture(read_bytes(path, max_megapixels), max_megapixels))]
        self._seen[key] = entry
        return PictureFacts(**entry[3])

    def save(self) -> None:
        if self.path is None or self._seen == self._old:
            return
        try:
            write_atomically(self.path, json.dumps({"version": VERSION, "files": self._seen}).encode("utf-8", "backslashreplace"))
            self._old = dict(self._seen)
        except OutputError as error:
            log.warning("what was found out about the pictures was not kept: %s", error)
