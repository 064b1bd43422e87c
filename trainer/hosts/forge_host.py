"""Forge as the jobs and the API see it."""
from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, TypeVar

from modules import sd_models, shared

from . import webui_loras
from .forge import ForgeBackend, forge_family
from .forge_objects import forget_network, lora_extension
from .webui_folders import WebuiFolders
from .webui_queue import queue
from ..backend import Backend
from ..config import TrainConfig
from ..needs import family_of_file

T = TypeVar("T")


class ForgeHost(WebuiFolders):
    """See `trainer.host.Host`. Runs train on the checkpoint that is chosen when they begin; Forge loads it when it is first needed."""

    def base(self) -> dict | None:
        info = _chosen()
        return None if info is None else {"name": info.name_for_extra, "family": self._family() or "unknown"}

    def base_files(self, base_model: str) -> list[Path]:
        info = _chosen()
        return [] if info is None or not Path(info.filename).is_file() else [Path(info.filename)]

    def family(self, base_model: str) -> str | None:
        return self._family()

    def _family(self) -> str | None:
        if not _is_loaded():
            info = _chosen()
            return None if info is None else family_of_file(info.filename)
        try:
            return forge_family(sd_models.model_data.sd_model)
        except ValueError:
            return None

    def can_train(self) -> str:
        if _chosen() is None:
            return "Forge has no checkpoint; put one into models/Stable-diffusion, then load this page again"
        if not _is_loaded():
            return ""
        try:
            forge_family(sd_models.model_data.sd_model)
        except ValueError as error:
            return str(error)
        return ""

    def with_backend(self, config: TrainConfig, work: Callable[[Backend], T]) -> T:
        with queue.held():
            _load()
        return work(ForgeBackend(getattr(shared.opts, "hotlora_prediction", "auto")))

    def lora_written(self, name: str, path: Path) -> None:
        webui_loras.add(lora_extension(), forget_network, name, path)

    def lora_removed(self, name: str) -> None:
        webui_loras.remove(lora_extension(), forget_network, name)


def _chosen() -> Any | None:
    """The checkpoint at the top left, loaded or not."""
    return sd_models.model_data.forge_loading_parameters.get("checkpoint_info")


def _is_loaded() -> bool:
    data = sd_models.model_data
    return data.forge_hash == str(data.forge_loading_parameters) and getattr(data.sd_model, "forge_objects_original", None) is not None


def _load() -> None:
    """What Forge does before it draws."""
    if _chosen() is None or _is_loaded():
        return
    try:
        sd_models.forge_model_reload()
    except Exception as error:
        raise ValueError(f"Forge could not load {_chosen().name_for_extra}: {error}") from error
