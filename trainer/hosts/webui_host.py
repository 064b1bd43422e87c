"""stable-diffusion-webui as the jobs and the API see it."""
from __future__ import annotations

from pathlib import Path
from typing import Callable, TypeVar

from modules import sd_models, shared

from . import webui_loras
from .webui import WebuiBackend, family_of
from .webui_folders import WebuiFolders
from .webui_folders import WebuiFolders
from .webui_state import forget_network, lora_extension
from ..backend import Backend
from ..config import TrainConfig

T = TypeVar("T")


class WebuiHost(WebuiFolders):
    """See `trainer.host.Host`. Runs train on whatever checkpoint is loaded when they begin."""

    def base(self) -> dict | None:
        model = sd_models.model_data.sd_model
        if model is None:
            return None
        try:
            family = family_of(model)
        except ValueError:
            family = "unknown"
        return {"name": model.sd_checkpoint_info.name_for_extra, "family": family}

    def base_files(self, base_model: str) -> list[Path]:
        model = sd_models.model_data.sd_model
        return [] if model is None or not Path(model.sd_checkpoint_info.filename).is_file() else [Path(model.sd_checkpoint_info.filename)]

    def family(self, base_model: str) -> str | None:
        return (self.base() or {}).get("family")

    def can_train(self) -> str:
        model = sd_models.model_data.sd_model
        if model is None and not sd_models.model_data.was_loaded_at_least_once and sd_models.checkpoints_list:
            return ""  # it is being loaded, or is as soon as it is needed
        try:
            family_of(model)
        except ValueError as error:
            return str(error)
        return ""

    def with_backend(self, config: TrainConfig, work: Callable[[Backend], T]) -> T:
        return work(WebuiBackend(getattr(shared.opts, "hotlora_prediction", "auto")))

    def lora_written(self, name: str, path: Path) -> None:
        webui_loras.add(lora_extension(), forget_network, name, path)

    def lora_removed(self, name: str) -> None:
        webui_loras.remove(lora_extension(), forget_network, name)
