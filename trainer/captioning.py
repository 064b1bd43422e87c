"""Captions that a page asks for: one gallery at a time, in a thread of its own, told as events, and stopped at any moment with what is done kept."""
from __future__ import annotations

import logging
import threading
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .captions.automatic import CaptionWishes, caption_folder, pictures_without, undo
from .captions.download import offered
from .captions.library import ModelChoice
from .captions.writing import destination
from .gallery_edit import captions_now
from .gallery_files import printable
from .host import Host
from .job_events import EventLog

log = logging.getLogger(__name__)
WORKING = ("loading", "downloading", "writing")
MEGABYTE = 1_000_000


class Busy(RuntimeError):
    """Another gallery is being captioned."""


class _Stopped(Exception):
    """Raised out of a download that was stopped."""


@dataclass
class CaptioningState:
    """`status` is idle, loading, downloading, writing, done, stopped or failed; while downloading `done` and `total` are megabytes, else pictures."""

    status: str = "idle"
    folder: str = ""
    model: str = ""
    done: int = 0
    total: int = 0
    written: int = 0
    left: int = 0
    message: str = ""
    details: str = ""

    @property
    def works(self) -> bool:
        return self.status in WORKING


class Captioning:
    """What is written is told as `gallery` events, how far it is as `captioning` events."""

    def __init__(self, host: Host, events: EventLog) -> None:
        self.host, self.events, self.state = host, events, CaptioningState()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def models(self) -> list[dict[str, Any]]:
        return offered(self.host.model_folders())

    def planned(self, root: Path, again: bool = False) -> dict[str, Any]:
        """How many captions are missing and where they would be written."""
        _, missing, kept = pictures_without(root, again)
        return {"missing": len(missing), "kept": kept, "into": destination(root)}

    def start(self, root: Path, model: str, wishes: CaptionWishes, may_download: bool) -> CaptioningState:
        """ValueError for a model that is not offered, or not on this machine and not to be downloaded; Busy while another gallery is captioned."""
        found = {one["model"]: one for one in self.models()}
        if model not in found:
            raise ValueError(f"model is {model[:200]!r} but must be one of {', '.join(found)}; put another one into a folder below "
                             f"{self.host.model_folders()[0] / 'captioners'}")
        one = found[model]
        if not one["here"] and not may_download:
            raise ValueError(f"{one['name']} ({one['gigabytes']:g} GB) is not on this machine; let it be downloaded, or put its files into {one['folder']}")
        if one["lacks"]:
            raise ValueError(f"{one['name']} needs the package {one['lacks']}, which is not installed; install it, or choose another model")
        choice = ModelChoice(model, tuple(self.host.model_folders()), str(self.host.device()), may_download, announce=self._announced, progress=self._fetched)
        with self._lock:
            if self.state.works:
                raise Busy(f"captions are being written in {self.state.folder}; stop that first, or wait until it is done")
            self._stop.clear()
            self.state = CaptioningState("loading", printable(root), one["name"])
            self._thread = threading.Thread(target=self._work, args=(root, choice, wishes), name="hotlora-captions", daemon=True)
            self._thread.start()
        return self.state

    def stop(self) -> CaptioningState:
        """End after the batch, or in the middle of a download; what is done is kept."""
        self._stop.set()
        return self.state

    def undo(self, root: Path, names: list[str] | None) -> list[str]:
        """Take automatic captions out again; those that were edited since stay."""
        gone = undo(root, names)
        self._written(root, gone)
        return gone

    def public(self) -> dict[str, Any]:
        return {**asdict(self.state), "works": self.state.works}

    def close(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(30)

    def _work(self, root: Path, choice: ModelChoice, wishes: CaptionWishes) -> None:
        self._change()
        try:
            report = caption_folder(root, choice, wishes, self._progress, self._stop.is_set, written=lambda names: self._written(root, names))
            skipped = [f"{name}: {reason}" for name, reason in report.skipped.items()]
            self._change(status="stopped" if report.left and self._stop.is_set() else "done", written=len(report.captions), left=report.left,
                         message=report.text(), details="\n".join(skipped))
        except _Stopped:
            self._change(status="stopped", message="stopped in the middle of the download; the next try goes on there")
        except Exception as error:
            said = str(error).strip().split("\n")[0]
            log.warning("captions of %s: %s", root, said)
            known = isinstance(error, (ValueError, OSError))
            self._change(status="failed", message=said if known else f"{type(error).__name__}: {said}",
                         details="" if known else "".join(traceback.format_exception(error)))

    def _announced(self, text: str) -> None:
        self._change(status="downloading", message=text)

    def _fetched(self, done: int, total: int) -> None:
        if self._stop.is_set():
            raise _Stopped
        if done // MEGABYTE > self.state.done or done == total:
            self._change(status="downloading", done=done // MEGABYTE, total=total // MEGABYTE)

    def _progress(self, done: int, total: int) -> None:
        self._change(status="writing", done=done, total=total, message="")

    def _written(self, root: Path, names: list[str]) -> None:
        if names:
            self.events.add("gallery", folder=printable(root), captions=captions_now(root, names))

    def _change(self, **facts: Any) -> None:
        for name, value in facts.items():
            setattr(self.state, name, value)
        self.events.add("captioning", state=self.public())
