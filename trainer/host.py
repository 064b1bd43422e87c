"""What the jobs and the HTTP API need to know about the program that they run in."""
from __future__ import annotations

from pathlib import Path
from typing import Callable, Protocol, TypeVar

import torch

from .backend import Backend
from .config import TrainConfig

T = TypeVar("T")


class Host(Protocol):
    """One per process. Its members are asked from several threads."""

    name: str
    """"webui", "comfyui" or "standalone"."""
    home: Path
    """Here lie galleries/, jobs/, cache/, thumbnails/, history/ and trash/."""
    gallery_roots: list[Path] | None
    """Folders outside of which no picture is read; None: any folder that the server may read."""

    token_limit: int | None
    """How many tokens of a caption are read, for the check of galleries; None: all of them."""

    def lora_folders(self) -> list[Path]:
        """Where LoRAs are looked for; new ones are written to the first that can be written to."""

    def model_folders(self) -> list[Path]:
        """Where models of other kinds are kept; what is downloaded goes below the first."""

    def base(self) -> dict | None:
        """`name` and `family` of the checkpoint that is loaded; None when there is none."""

    def bases(self) -> list[str]:
        """What `base_model` may be; empty when the host decides by itself."""

    def base_files(self, base_model: str) -> list[Path]:
        """The files that hold the weights of one of `bases`, or of what is loaded; empty where that cannot be told."""

    def family(self, base_model: str) -> str | None:
        """Of one of `bases`, or of what is loaded; told without loading anything, and None where that cannot be done."""

    def device(self) -> torch.device:
        """What computes a training."""

    def can_train(self) -> str:
        """Why nothing can be trained at the moment, as one sentence; empty when it can."""

    def with_backend(self, config: TrainConfig, work: Callable[[Backend], T]) -> T:
        """Call `work` with a backend, in the thread that the host wants for it. Its errors come out here.

        ValueError when there is no base to train on.
        """

    def lora_written(self, name: str, path: Path) -> None:
        """A LoRA is new, or other than before: the next prompt that names it must use it."""

    def lora_removed(self, name: str) -> None:
        """The file that answered to the name is gone."""
