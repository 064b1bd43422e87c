"""Gallery checks that a page asks for: each runs once in the background, and is asked for until it is there."""
from __future__ import annotations

import hashlib
import logging
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .captions.download import find_local
from .captions.library import load_clip
from .captions.tokens import LIMIT
from .gallery import read_gallery
from .gallery_check import Report, check_gallery
from .gallery_files import folder_key, list_files
from .host import Host
from .known_pictures import KnownPictures
from .left_out import FILE as LEFT_OUT
from .pictures import PictureFacts, read_picture

log = logging.getLogger(__name__)
KEPT = 20


@dataclass(frozen=True)
class CheckSettings:
    """With what the gallery would be trained; `compare` also compares captions with pictures, where a CLIP model is on this machine. `token_limit`: how
    many tokens of a caption are read, None for all of them."""

    resolution: int = 512
    purpose: str = "any"
    trigger: str = ""
    compare: bool = False
    token_limit: int | None = LIMIT


@dataclass
class Check:
    """One check of a folder in one state. Each picture is looked at twice: `done` of `total` looks have been taken."""

    version: str
    done: int = 0
    total: int = 0
    report: Report | None = None
    error: Exception | None = None

    @property
    def works(self) -> bool:
        return self.report is None and self.error is None


class CountedPictures(KnownPictures):
    """Counts the files that were decoded."""

    def __init__(self, path: Path | None, check: Check) -> None:
        super().__init__(path)
        self.check = check

    def facts(self, path: Path, max_megapixels: float) -> PictureFacts:
        self.check.done += 1
        return super().facts(path, max_megapixels)


class Checks:
    """The newest checks of a host. What was measured is kept below `home/cache/checks`, by gallery."""

    def __init__(self, host: Host) -> None:
        self.host, self.folder = host, host.home / "cache" / "checks"
        self._checks: dict[tuple[str, CheckSettings], Check] = {}
        self._lock = threading.Lock()
        self._one = threading.Lock()

    def ask(self, root: Path, settings: CheckSettings) -> Check:
        """The check of the folder as it is now, begun if there is none; raises what it failed with."""
        version, key = version_of(root), (os.path.realpath(root), settings)
        with self._lock:
            check = self._checks.get(key)
            if check is None or (check.version != version and not check.works):
                check = Check(version, total=2 * len(list_files(root).pictures))
                self._checks[key] = check
                for old in list(self._checks)[:-KEPT]:
                    del self._checks[old]
                threading.Thread(target=self._work, args=(check, root, settings), name="hotlora-check", daemon=True).start()
        if check.error is not None:
            with self._lock:
                self._checks.pop(key, None)
            raise check.error
        return check

    def clip(self) -> Path | None:
        """A CLIP model for comparisons that is on this machine."""
        return find_local("clip", self.host.model_folders())

    def _work(self, check: Check, root: Path, settings: CheckSettings) -> None:
        # two at a time would only take the processors from each other
        with self._one:
            try:
                looks, facts = cache_files(self.folder, root)
                check.report = check_folder(root, settings, looks, CountedPictures(facts, check), self.clip() if settings.compare else None,
                                            str(self.host.device()), lambda done, total: setattr(check, "done", total + done))
            except Exception as error:
                if not isinstance(error, (ValueError, OSError)):
                    log.exception("the check of %s failed", root)
                check.error = error


def check_folder(root: Path, settings: CheckSettings, looks: Path | None, known: KnownPictures, clip: Path | None = None, device: str = "auto",
                 progress=None) -> Report:
    """Read and check a folder. ValueError when it has no picture, or when the CLIP model cannot be used."""
    gallery = read_gallery(root, trigger=settings.trigger, known=known)
    known.save()
    compare, encoder = None, None
    if clip is not None:
        from .captions.clip import similarity

        encoder = load_clip(clip, device)
        compare = similarity(encoder, lambda name: read_picture(root / name))
    try:
        return check_gallery(gallery, resolution=settings.resolution, purpose=settings.purpose, trigger=settings.trigger, token_limit=settings.token_limit,
                             cache=looks, similarity=compare, progress=progress)
    finally:
        if encoder is not None:
            encoder.close()


def cache_files(folder: Path, root: Path) -> tuple[Path, Path]:
    """Where the looks at a gallery's pictures and the facts about its files are kept."""
    key = folder_key(root)
    return folder / f"{key}.npz", folder / f"{key}.json"


def version_of(root: Path) -> str:
    """Changes with any picture, caption or left-out picture. Files are not opened."""
    files = list_files(root)
    digest = hashlib.blake2b(digest_size=12)
    for path in [*files.pictures, *files.metadata, *files.sidecars.values(), root / LEFT_OUT]:
        try:
            state = path.stat()
            digest.update(f"{path}|{state.st_mtime_ns}|{state.st_size}\n".encode("utf-8", "backslashreplace"))
        except OSError:
            continue
    return digest.hexdigest()


def user_cache() -> Path:
    """Where the command line keeps what it measured."""
    home = os.environ.get("XDG_CACHE_HOME") or (os.environ.get("LOCALAPPDATA") if os.name == "nt" else None)
    return (Path(home) if home else Path.home() / ".cache") / "hotlora" / "checks"


def public(check: Check, can_compare: bool) -> dict[str, Any]:
    """As a page shows it; `done` and `total` are pictures."""
    return {"works": check.works, "done": min(check.done, check.total) // 2, "total": check.total // 2, "can_compare": can_compare,
            "report": None if check.report is None else check.report.to_dict()}
