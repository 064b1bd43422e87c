"""Captions for the pictures of a gallery that have none: in batches, interruptible, and never over what a person wrote."""
from __future__ import annotations

import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Container, Iterator

import numpy as np
import torch

from .library import ModelChoice, load_model
from .marks import Marks
from .models import CaptionModel, Said
from .templates import compose
from .vocabulary import Section
from .writing import undo, write_new
from ..caption_choices import FORMS, PURPOSES
from ..galleries import captions_of
from ..gallery_files import existing_folder, list_files, relative_name
from ..left_out import left_out
from ..pictures import UnreadablePicture, read_picture

log = logging.getLogger(__name__)
__all__ = ["CaptionReport", "CaptionWishes", "caption_folder", "pictures_without", "undo"]
WRITE_SECONDS = 2.0
AHEAD = 3
"""Batches that are decoded while the model works."""
THREADS = 2


@dataclass(frozen=True)
class CaptionWishes:
    """How captions are made and where they go. `again` also replaces those that a machine wrote before."""

    purpose: str = "any"
    trigger: str = ""
    subject: str = ""
    batch_size: int = 8
    into: str = "auto"
    again: bool = False
    most_tags: int = 20
    only: tuple[str, ...] | None = None
    max_megapixels: float = 180.0

    def __post_init__(self) -> None:
        if self.purpose not in PURPOSES:
            raise ValueError(f"purpose is {str(self.purpose)[:80]!r} but must be one of {', '.join(PURPOSES)}; change it, or remove it")
        if self.into not in FORMS:
            raise ValueError(f"into is {str(self.into)[:80]!r} but must be one of {', '.join(FORMS)}; change it, or remove it")
        if not 1 <= self.batch_size <= 256:
            raise ValueError(f"batch_size is {self.batch_size} but must be from 1 to 256; 8 suits most machines")


@dataclass
class CaptionReport:
    """`captions` by the picture's name; `kept` had one already; `skipped` cannot be read. Seconds: in all, and inside the model."""

    captions: dict[str, str] = field(default_factory=dict)
    kept: int = 0
    left: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    model: str = ""
    seconds: float = 0.0
    model_seconds: float = 0.0

    def text(self) -> str:
        """One sentence for people."""
        said = f"{len(self.captions)} captions written by {self.model}" if self.model else "no caption written" if self.skipped else "no caption is missing"
        said += f", {self.kept} kept" if self.kept else ""
        said += f", {self.left} still missing" if self.left else ""
        said += f", {len(self.skipped)} pictures skipped ({'; '.join(f'{name}: {reason}' for name, reason in list(self.skipped.items())[:3])})" if self.skipped else ""
        return said + (f" ({self.seconds:.1f} s)" if self.model else "")

    def to_dict(self) -> dict[str, Any]:
        return {"captions": self.captions, "written": len(self.captions), "kept": self.kept, "left": self.left, "skipped": self.skipped, "model": self.model,
                "seconds": round(self.seconds, 2), "sentence": self.text()}


def pictures_without(folder: str | Path, again: bool = False, only: tuple[str, ...] | None = None,
                     apart: Container[str] = ()) -> tuple[Path, list[Path], int]:
    """The gallery's root, its pictures that are to be captioned, and how many others have a caption. What is left out, or in folders `apart`, needs none."""
    root = existing_folder(folder)
    files = list_files(root, apart=apart)
    places, _, _ = captions_of(root, files)
    marks = Marks(root) if again else None
    if only is not None and (unknown := [name for name in only if name not in {relative_name(path, root) for path in files.pictures}]):
        raise ValueError(f"there is no picture {unknown[0][:200]} in {root}; load the gallery again")
    wanted = set(only) if only is not None else {relative_name(path, root) for path in files.pictures}.difference(left_out(root))
    chosen = [path for path in files.pictures if relative_name(path, root) in wanted
              and (places[path].is_free or marks is not None and marks.is_automatic(relative_name(path, root), places[path].caption))]
    return root, chosen, sum(bool(place.caption) for place in places.values()) - sum(bool(places[path].caption) for path in chosen)


def caption_folder(folder: str | Path, model: CaptionModel | ModelChoice, wishes: CaptionWishes = CaptionWishes(),
                   progress: Callable[[int, int], None] | None = None, cancelled: Callable[[], bool] = lambda: False,
                   sections: list[Section] | None = None, written: Callable[[list[str]], None] | None = None) -> CaptionReport:
    """Caption what is missing. A model that is given as a choice is loaded only if there is something to do that can be read, and is let go afterwards.
    `written` hears the names of pictures whose captions are on the disk now.

    Stops after the batch when `cancelled` says so. Whatever ends it (also an exception of `progress`), what is done is written, and the
    next call does only the rest. ValueError for a folder or model that cannot be used.
    """
    began = time.monotonic()
    root, pictures, kept = pictures_without(folder, wishes.again, wishes.only)
    report = CaptionReport(kept=kept, left=len(pictures))
    if not pictures or isinstance(model, ModelChoice) and not _is_one_readable(pictures, wishes, report, root):
        return report
    loaded = load_model(model) if isinstance(model, ModelChoice) else model
    report.model = loaded.name
    sections = sections if sections is not None else getattr(loaded, "sections", None)
    pending: dict[Path, str] = {}
    written_at = time.monotonic()

    def write() -> None:
        told = write_new(root, pending, loaded.name, wishes.purpose, wishes.into, wishes.again, wishes.trigger)
        new = {relative_name(path, root): text for path, text in told.items()}
        report.captions.update(new)
        pending.clear()
        if new and written:
            written(list(new))

    try:
        done = 0
        for batch in _batches(pictures, loaded, wishes, report, root):
            clock = time.monotonic()
            said = _describe(loaded, np.stack([values for _, values in batch])) if batch else []
            report.model_seconds += time.monotonic() - clock
            for (path, _), one in zip(batch, said):
                pending[path] = compose(one, wishes.purpose, wishes.trigger, wishes.subject, sections, wishes.most_tags)
            done += len(batch)
            if time.monotonic() - written_at > WRITE_SECONDS:
                write()
                written_at = time.monotonic()
            if progress:
                progress(done + len(report.skipped), len(pictures))
            if cancelled():
                break
    finally:
        try:
            write()
        finally:
            if isinstance(model, ModelChoice):
                loaded.close()
    report.left = len(pictures) - len(report.captions) - len(report.skipped)
    report.seconds = time.monotonic() - began
    return report


def _is_one_readable(pictures: list[Path], wishes: CaptionWishes, report: CaptionReport, root: Path) -> bool:
    """A picture that cannot be read never gets a caption: without this a model would be loaded for it again at every start."""
    for path in pictures:
        try:
            read_picture(path, wishes.max_megapixels)
            return True
        except UnreadablePicture as error:
            report.skipped[relative_name(path, root)] = str(error)
    report.left = 0
    return False


def _batches(pictures: list[Path], model: CaptionModel, wishes: CaptionWishes, report: CaptionReport, root: Path
             ) -> Iterator[list[tuple[Path, np.ndarray]]]:
    """Prepared pictures, decoded some batches ahead of the model."""
    def prepare(path: Path) -> np.ndarray:
        return model.prepare(read_picture(path, wishes.max_megapixels))

    pool = ThreadPoolExecutor(max_workers=THREADS)
    waiting: list[tuple[Path, Future]] = []
    left = iter(pictures)
    try:
        while True:
            while len(waiting) < AHEAD * wishes.batch_size and (path := next(left, None)) is not None:
                waiting.append((path, pool.submit(prepare, path)))
            if not waiting:
                return
            batch = []
            while waiting and len(batch) < wishes.batch_size:
                path, future = waiting.pop(0)
                try:
                    batch.append((path, future.result()))
                except UnreadablePicture as error:
                    report.skipped[relative_name(path, root)] = str(error)
            yield batch
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _describe(model: CaptionModel, batch: np.ndarray) -> list[Said]:
    """What the model says; of half a batch at a time, and half of that, where the memory is too small."""
    try:
        return model.describe(batch)
    except (RuntimeError, MemoryError) as error:
        if len(batch) == 1 or not (isinstance(error, MemoryError) or "memory" in str(error).lower()):
            raise
    log.info("%s does not fit into the memory with %d pictures at a time; going on with %d", model.name, len(batch), len(batch) // 2)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    half = len(batch) // 2
    return _describe(model, batch[:half]) + _describe(model, batch[half:])
