"""ComfyUI as a host of jobs: a job trains while one of its prompts is executed, and lets other prompts in between."""
from __future__ import annotations

import threading
import time
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Iterator, TypeVar

import comfy.model_management as mm
import execution
import folder_paths
import torch
from comfy.cli_args import args
from server import PromptServer

from .comfy import ComfyBackend
from ..api import Api, Policy
from ..api.guard import loopback_names
from ..backend import Backend, BaseChanged
from ..config import TrainConfig
from ..jobs import JobQueue
from ..needs import family_of_file

T = TypeVar("T")
LOOK = 0.05
"""Seconds between two looks at ComfyUI's queue and cancel button."""
ROOTS = "hotlora_galleries"
"""What further gallery folders are called in extra_model_paths.yaml."""
_leases: dict[str, Lease] = {}
_api: Api | None = None
_making = threading.Lock()


class Lease:
    """The executor of ComfyUI, held by a prompt of ours: between `take` and `give_back` nothing else runs there.

    `serve` is what the node of that prompt does. `model`, `clip` and `vae` are what it was given.
    """

    def __init__(self, checkpoint: str) -> None:
        self.checkpoint, self.parts, self.cancelled = checkpoint, None, False
        self._id = self._prompt = ""
        self._granted, self._returned = threading.Event(), threading.Event()

    @property
    def held(self) -> bool:
        return self._granted.is_set() and not self._returned.is_set()

    def take(self) -> None:
        """Queue a prompt and wait until it is executed. BaseChanged when it is cancelled; ValueError when the checkpoint cannot be loaded."""
        if self.held:
            return
        self._id, self._prompt = uuid.uuid4().hex, str(uuid.uuid4())
        self._granted, self._returned = threading.Event(), threading.Event()
        _leases[self._id] = self
        graph: dict[str, Any] = {"2": {"class_type": "HotLoRAJob", "inputs": {"lease": self._id}}}
        if self.parts is None:
            graph["1"] = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": self.checkpoint}}
            graph["2"]["inputs"] |= {"model": ["1", 0], "clip": ["1", 1], "vae": ["1", 2]}
        _enqueue(self._prompt, graph)
        while not self._granted.wait(LOOK):
            self._raise_if_gone()

    def _raise_if_gone(self) -> None:
        queue = PromptServer.instance.prompt_queue
        running, queued = queue.get_current_queue_volatile()
        if any(item[1] == self._prompt for item in (*running, *queued)) or self._granted.is_set():
            return
        _leases.pop(self._id, None)
        self.cancelled = True
        for kind, message in (queue.get_history(self._prompt).get(self._prompt, {}).get("status") or {}).get("messages", []):
            if kind == "execution_error":
                raise ValueError(f"ComfyUI could not load {self.checkpoint}: {str(message.get('exception_message', '')).strip()}")
        raise BaseChanged("it was taken out of ComfyUI's queue")

    def give_back(self) -> None:
        """Let the prompt end, and with it our turn."""
        self._returned.set()

    def serve(self, model: Any, clip: Any, vae: Any) -> None:
        """Lend the executor's time until it is given back. Raises ComfyUI's own exception when the user pressed cancel."""
        if self.parts is None:
            self.parts = model, clip, vae
        self._granted.set()
        while not self._returned.wait(LOOK):
            self.cancelled |= mm.processing_interrupted()
        if self.cancelled:
            raise mm.InterruptProcessingException()


def serve(lease: str, model: Any, clip: Any, vae: Any) -> None:
    """What the node does. ValueError for a graph that somebody else made."""
    if lease not in _leases:
        raise ValueError("HotLoRA Job belongs to a training that was started on HotLoRA's page, which is over; it cannot be used in a graph")
    _leases.pop(lease).serve(model, clip, vae)


def _enqueue(prompt: str, graph: dict[str, Any]) -> None:
    server = PromptServer.instance
    number, server.number = server.number, server.number + 1
    item = [number, prompt, graph, {"create_time": int(time.time() * 1000)}, ["2"]]
    if hasattr(execution, "SENSITIVE_EXTRA_DATA_KEYS"):  # newer versions keep logins apart
        item.append({})
    server.prompt_queue.put(tuple(item))


class LeasedBackend:
    """A ComfyBackend that is only borrowed while one of our prompts is executed; everything else is the inner backend's."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        lease.take()
        self._inner = ComfyBackend(*lease.parts, name=Path(lease.checkpoint).stem)
        # both read all weights, which has to happen in our turn
        assert self._inner.base_hash and self._inner.encoder_id

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    @contextmanager
    def borrow(self) -> Iterator[None]:
        self._lease.take()
        try:
            with self._inner.borrow():
                yield
        finally:
            self._lease.give_back()

    def wanted(self) -> bool:
        return bool(PromptServer.instance.prompt_queue.get_current_queue_volatile()[1])

    def interrupted(self) -> bool:
        """Only a press of the button in our own turn counts."""
        self._lease.cancelled |= self._lease.held and self._inner.interrupted()
        return self._lease.cancelled


class ComfyHost:
    """See `trainer.host.Host`."""

    name = "comfyui"
    token_limit = None  # longer captions are encoded in pieces

    def __init__(self) -> None:
        self.home = Path(folder_paths.get_user_directory()) / "hotlora"
        configured = [Path(folder) for folder in folder_paths.folder_names_and_paths.get(ROOTS, ([], set()))[0]]
        is_open = any(loopback_names(address) is None for address in args.listen.split(","))
        self.gallery_roots = [Path(folder_paths.get_input_directory()), *configured] if is_open or configured else None
        self._base: dict | None = None

    def lora_folders(self) -> list[Path]:
        return [Path(folder) for folder in folder_paths.get_folder_paths("loras")]

    def model_folders(self) -> list[Path]:
        return [Path(folder_paths.models_dir)]

    def base(self) -> dict | None:
        return self._base

    def bases(self) -> list[str]:
        return folder_paths.get_filename_list("checkpoints")

    def base_files(self, base_model: str) -> list[Path]:
        path = folder_paths.get_full_path("checkpoints", base_model)
        return [Path(path)] if path else []

    def family(self, base_model: str) -> str | None:
        if self._base and self._base["name"] == base_model:
            return self._base["family"]
        return family_of_file(folder_paths.get_full_path("checkpoints", base_model))

    def device(self) -> torch.device:
        return torch.device(mm.get_torch_device())

    def can_train(self) -> str:
        return "" if self.bases() else "ComfyUI has no checkpoint; put one into models/checkpoints, then load this page again"

    def with_backend(self, config: TrainConfig, work: Callable[[Backend], T]) -> T:
        lease = Lease(config.base_model)
        try:
            backend = LeasedBackend(lease)
            self._base = {"name": config.base_model, "family": backend.family}
            return work(backend)
        finally:
            lease.give_back()

    def lora_written(self, name: str, path: Path) -> None:
        """ComfyUI looks at the folder's time before it names its files, and HotLoRA Prompt at the file's."""

    def lora_removed(self, name: str) -> None:
        """As for `lora_written`."""


def api() -> Api:
    """The one Api of this ComfyUI, made when it is first asked for."""
    global _api
    with _making:
        if _api is None:
            host = ComfyHost()
            addresses = args.listen.split(",")
            hosts = loopback_names(addresses[0]) if len(addresses) == 1 else None
            _api = Api(host, JobQueue(host), Policy(hosts=hosts))
        return _api
