"""Pictures to try a LoRA with: the same seed without it and with it, over weights and saved steps, drawn by the host's own sampler."""
from __future__ import annotations

import json
import logging
import shutil
import threading
import time
import traceback
import uuid
from collections import deque
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .backend import Backend, BaseChanged, SampleRequest
from .config import TrainConfig
from .generate import loras_applied
from .host import Host
from .job_events import EventLog
from .job_run import sentence
from .job_settings import chosen_base
from .live import LoraTag, Registry, parse_prompt
from .memory import FREE_SOME, explained
from .output_files import write_atomically
from .pixels import write_png
from .turns import Turn

log = logging.getLogger(__name__)
KEPT = 20
"""Drawings whose pictures stay on disk."""
MOST = 64
"""Pictures of one drawing."""


@dataclass
class Drawing:
    """A grid of pictures: a row for each LoRA name, a column for each weight. Weight 0 is the base alone, and is drawn once."""

    id: str
    prompt: str
    negative: str
    seed: int
    steps: int
    guidance: float | None
    width: int | None
    height: int | None
    names: list[str]
    weights: list[float]
    base: str = ""
    status: str = "queued"
    message: str = ""
    details: str = ""
    created: float = 0.0
    pictures: list[dict[str, Any]] = field(default_factory=list)

    @property
    def cells(self) -> list[tuple[str, float]]:
        """(name, weight) of every picture, the bare base first and under no name."""
        bare = [("", 0.0)] if 0 in self.weights or not self.names else []
        return bare + [(name, weight) for name in self.names for weight in self.weights if weight]

    def public(self) -> dict[str, Any]:
        return {**asdict(self), "total": len(self.cells)}


class DrawingQueue:
    """Drawings of one host, one after the other in a thread of their own. A training that runs lets each picture in between two steps.

    What is drawn is told as `drawing` events, and lies in `home/drawings/<id>/` until `KEPT` newer ones are there.
    """

    def __init__(self, host: Host, events: EventLog) -> None:
        self.host, self.events, self.folder = host, events, host.home / "drawings"
        self.lock = threading.RLock()
        self._wake = threading.Condition(self.lock)
        self._waiting: deque[Drawing] = deque()
        self._drawings = {drawing.id: drawing for drawing in self._load()}
        self._thread: threading.Thread | None = None
        self._closed = False

    def submit(self, request: dict[str, Any], base_model: str | None = None) -> Drawing:
        """Queue a drawing. ValueError for a tag or a name that means nothing, and for more pictures than `MOST`."""
        reason = self.host.can_train()
        if reason:
            raise ValueError(reason)
        registry = self._registry()
        for name in (*request["names"], *(tag.name for tag in parse_prompt(request["prompt"])[1])):
            registry.path(name)
        base = chosen_base(self.host, base_model) if self.host.bases() else ""
        drawing = Drawing(uuid.uuid4().hex[:12], base=base, created=time.time(), **request)
        if len(drawing.cells) > MOST:
            raise ValueError(f"{len(drawing.names)} rows and {len(drawing.weights)} weights are {len(drawing.cells)} pictures, at most {MOST} are "
                             "drawn at once; take fewer weights or fewer saved steps")
        with self.lock:
            if self._closed:
                raise ValueError("the server is being closed; draw it again when it is back")
            self._drawings[drawing.id] = drawing
            self._waiting.append(drawing)
            self._tell(drawing)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._work, name="hotlora-drawings", daemon=True)
                self._thread.start()
            self._wake.notify_all()
        return drawing

    def all(self) -> list[Drawing]:
        """Newest first."""
        with self.lock:
            return sorted(self._drawings.values(), key=lambda drawing: -drawing.created)

    def get(self, drawing_id: str) -> Drawing | None:
        with self.lock:
            return self._drawings.get(drawing_id)

    def cancel(self, drawing: Drawing) -> None:
        """End it, in the middle of a picture too; those that are finished stay."""
        with self.lock:
            if drawing.status in ("queued", "drawing"):
                drawing.status = "cancelled"
                with suppress(ValueError):
                    self._waiting.remove(drawing)
                self._tell(drawing)

    def close(self) -> None:
        """Cancel all of them, and have the thread end with the step that it is at. No more are taken."""
        with self.lock:
            self._closed = True
            for drawing in self._drawings.values():
                self.cancel(drawing)
            self._wake.notify_all()

    def join(self, seconds: float) -> None:
        """Wait until the thread has ended, but not for longer than this: nothing that it does must be kept."""
        if self._thread is not None:
            self._thread.join(seconds)

    def picture(self, drawing: Drawing, file: str) -> Path | None:
        known = any(picture["file"] == file for picture in drawing.pictures)
        return self.folder / drawing.id / file if known else None

    def _registry(self) -> Registry:
        return Registry(self.host.lora_folders())

    def _work(self) -> None:
        while True:
            with self.lock:
                while not self._waiting and not self._closed:
                    self._wake.wait()
                if self._closed:
                    return
                drawing = self._waiting.popleft()
                drawing.status = "drawing"
                self._tell(drawing)
            try:
                config = TrainConfig(train_data_dir="drawing", **({"base_model": drawing.base} if drawing.base else {}))
                with explained(lambda: f"; draw smaller pictures, or{FREE_SOME[1:]}"):
                    self.host.with_backend(config, lambda backend: self._draw(drawing, backend))
                self._end(drawing, "done")
            except BaseChanged as error:
                self._end(drawing, "cancelled", str(error))
            except Exception as error:
                log.warning("a drawing failed: %s", sentence(error))
                self._end(drawing, "failed", sentence(error), "".join(traceback.format_exception(error)))

    def _draw(self, drawing: Drawing, backend: Backend) -> None:
        text, tags = parse_prompt(drawing.prompt)
        registry = self._registry()
        request = SampleRequest((text,), drawing.negative, drawing.seed, drawing.steps, drawing.guidance, drawing.width, drawing.height,
                                cancelled=lambda: drawing.status != "drawing")
        with Turn(backend, backend.borrow) as turn:
            for number, (name, weight) in enumerate(drawing.cells):
                if request.cancelled():
                    return
                with loras_applied(backend, [*tags, *([LoraTag(name, weight, weight)] if name else [])], registry):
                    pictures = backend.sample(request)
                if not pictures:
                    self.cancel(drawing)
                    return
                file = f"{number:03d}.png"
                write_png(self.folder / drawing.id / file, pictures[0])
                with self.lock:
                    drawing.pictures.append({"file": file, "name": name, "weight": weight})
                    self._tell(drawing)
                turn.give_way()

    def _end(self, drawing: Drawing, status: str, message: str = "", details: str = "") -> None:
        with self.lock:
            if drawing.status == "drawing":
                drawing.status, drawing.message, drawing.details = status, message, details
            with suppress(OSError):
                write_atomically(self.folder / drawing.id / "drawing.json", json.dumps(asdict(drawing), ensure_ascii=False).encode("utf-8", "replace"))
            for old in self.all()[KEPT:]:
                if old.status not in ("queued", "drawing"):
                    del self._drawings[old.id]
                    shutil.rmtree(self.folder / old.id, ignore_errors=True)
            self._tell(drawing)

    def _tell(self, drawing: Drawing) -> None:
        with suppress(OSError):  # what is not told does not end the drawings
            self.events.add("drawing", state=drawing.public())

    def _load(self) -> list[Drawing]:
        """Those that had ended when the server did; of others only some pictures are left, and they go."""
        found = []
        for folder in self.folder.glob("*/"):
            try:
                found.append(Drawing(**json.loads((folder / "drawing.json").read_text(encoding="utf-8"))))
            except (OSError, ValueError, TypeError):
                shutil.rmtree(folder, ignore_errors=True)
        return found
