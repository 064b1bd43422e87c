"""Forge as the jobs and the API see it."""
from __future__ import annotations

from pathlib import Path
from typing import Any

from modules import sd_models

from .forge import ForgeBackend, forge_family
from .forge_objects import forget_network, lora_extension
from .loaded_host import LoadedHost
from .webui_queue import queue
from ..needs import family_of_file


class ForgeHost(LoadedHost):
    """See `trainer.host.Host`. Runs train on the checkpoint that is chosen when they begin; Forge loads it when it is first needed."""

    def __init__(self) -> None:
        super().__init__(forge_family, _loaded_backend, lora_extension, forget_network)

    def base(self) -> dict | None:
        if _is_loaded():
            return super().base()
        info = _chosen()
        return None if info is None else {"name": info.name_for_extra, "family": family_of_file(info.filename) or "unknown"}

    def base_files(self, base_model: str) -> list[Path]:
        info = _chosen()
        return [] if info is None or not Path(info.filename).is_file() else [Path(info.filename)]

    def family(self, base_model: str) -> str | None:
        found = super().family(base_model)
        return None if found == "unknown" else found

    def can_train(self) -> str:
        if _chosen() is None:
            return "Forge has no checkpoint; put one into models/Stable-diffusion, then load this page again"
        return super().can_train() if _is_loaded() else ""


def _chosen() -> Any | None:
    """The checkpoint at the top left, loaded or not."""
    return sd_models.model_data.forge_loading_parameters.get("checkpoint_info")


def _is_loaded() -> bool:
    data = sd_models.model_data
    return data.forge_hash == str(data.forge_loading_parameters) and getattr(data.sd_model, "forge_objects_original", None) is not None


def _loaded_backend(prediction: str) -> ForgeBackend:
    """Of the chosen checkpoint, loaded as Forge does before it draws."""
    with queue.held():
        if _chosen() is not None and not _is_loaded():
            try:
                sd_models.forge_model_reload()
            except Exception as error:
                raise ValueError(f"Forge could not load {_chosen().name_for_extra}: {error}") from error
        return ForgeBackend(prediction)
