"""The host that is no other program: the embedded base or a checkpoint from the disk, through diffusers."""
from __future__ import annotations

import gc
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Iterator, TypeVar

import torch

from ..backend import Backend
from ..captions.tokens import LIMIT
from ..config import TrainConfig
from ..needs import family_of_file
from ..paths import path_of
from .base_files import base_files
from .standalone import StandaloneBackend, load_base, pick_device

T = TypeVar("T")


class Tickets:
    """A lock that goes round in the order in which it was asked for, and tells whether somebody waits."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._given = self._served = 0

    @property
    def waiting(self) -> bool:
        return self._given - self._served > 1

    @contextmanager
    def held(self) -> Iterator[None]:
        with self._changed:
            mine = self._given
            self._given += 1
            self._changed.wait_for(lambda: self._served == mine)
        try:
            yield
        finally:
            with self._changed:
                self._served += 1
                self._changed.notify_all()


class SharedBackend:
    """A base that a training and whoever draws meanwhile take in turns; everything else is the inner backend's."""

    def __init__(self, inner: StandaloneBackend) -> None:
        self._inner, self._tickets = inner, Tickets()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    @contextmanager
    def borrow(self) -> Iterator[None]:
        with self._tickets.held(), self._inner.borrow():
            yield

    def wanted(self) -> bool:
        return self._tickets.waiting


class StandaloneHost:
    """Keeps the base that was used last, as loading takes longer than a short run. See `trainer.host.Host`."""

    name = "standalone"
    token_limit = LIMIT

    def __init__(self, home: Path, bases: list[str], device: str = "auto", gallery_roots: list[Path] | None = None,
                 models: list[Path] | None = None) -> None:
        self.home, self._device, self.gallery_roots = home.resolve(), device, gallery_roots
        self._models = [folder.resolve() for folder in models or [Path("models")]]
        self._paths = {_name(path): path for path in bases}
        self._loaded: tuple[str, SharedBackend] | None = None
        self._users, self._loading = 0, threading.Lock()

    def lora_folders(self) -> list[Path]:
        return [self.home / "loras"]

    def model_folders(self) -> list[Path]:
        return self._models

    def base(self) -> dict | None:
        loaded = self._loaded
        return {"name": loaded[0], "family": loaded[1].family} if loaded else None

    def bases(self) -> list[str]:
        return list(self._paths)

    def base_files(self, base_model: str) -> list[Path]:
        return base_files(self._paths[base_model]) if base_model in self._paths else []

    def family(self, base_model: str) -> str | None:
        loaded = self._loaded
        if loaded and loaded[0] == base_model:
            return loaded[1].family
        return "demo" if base_model == "demo" else family_of_file(self._paths.get(base_model))

    def device(self) -> torch.device:
        return pick_device(self._device)

    def can_train(self) -> str:
        return ""

    def with_backend(self, config: TrainConfig, work: Callable[[Backend], T]) -> T:
        if config.base_model not in self._paths:
            raise ValueError(f"base_model is {config.base_model!r} but must be one of {', '.join(self._paths)}")
        with self._loading:
            backend = self._backend(config.base_model)
            self._users += 1
        try:
            return work(backend)
        finally:
            with self._loading:
                self._users -= 1

    def _backend(self, name: str) -> SharedBackend:
        """The base of that name, in place of the one that was loaded. ValueError while another is in use."""
        if self._loaded is None or self._loaded[0] != name:
            if self._users:
                raise ValueError(f"the base {self._loaded[0]} is in use, and two do not fit into the memory; use it, or wait until it is free")
            self._loaded = None
            gc.collect()
            self._loaded = name, SharedBackend(load_base(self._paths[name], self._device))
        return self._loaded[1]

    def lora_written(self, name: str, path: Path) -> None:
        """Nothing keeps a LoRA in memory here: whoever draws reads the file."""

    def lora_removed(self, name: str) -> None:
        """As for `lora_written`."""


def find_bases(given: list[str]) -> list[str]:
    """What `--base` names: demo, files and diffusers folders, and for any other folder the checkpoints in it. ValueError for what is not there."""
    found: list[str] = []
    for text in given or ["demo"]:
        path = path_of(text)
        if text == "demo" or path.is_file() or (path / "model_index.json").is_file():
            found.append(text if text == "demo" else str(path))
        elif path.is_dir():
            inside = sorted(str(file) for file in path.rglob("*.safetensors"))
            if not inside:
                raise ValueError(f"--base {text} is a folder without a .safetensors file; give demo, a checkpoint, or a folder that has some")
            found += inside
        else:
            raise ValueError(f"--base {text} does not exist; give demo, a .safetensors file, a diffusers folder, or a folder with checkpoints")
    return list(dict.fromkeys(found))


def _name(base: str) -> str:
    return base if base == "demo" else Path(base).name


def serve(bases: list[str], listen: str, port: int, output_dir: Path, device: str, roots: list[Path], models: list[Path] | None = None) -> None:
    """Run the server until Ctrl-C or SIGTERM; a training that runs is then stopped with its work saved."""
    import signal
    import threading

    from ..api import Api, Policy
    from ..api.guard import loopback_names
    from ..jobs import JobQueue
    from .http_server import Server

    # others on the network see only what they were given
    bounded = roots or ([] if loopback_names(listen) is None else None)
    host = StandaloneHost(output_dir, find_bases(bases), device, bounded, models)
    jobs = JobQueue(host)
    try:
        server = Server(Api(host, jobs, Policy(hosts=loopback_names(listen))), listen, port)
        print(f"HotLoRA is at {server.url}", flush=True)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: threading.Thread(target=server.shutdown, daemon=True).start())
        server.serve_forever(poll_interval=0.2)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        print("closing; what runs is saved first, unless you end it again", flush=True)
    finally:
        jobs.close()
