"""A host of stable-diffusion-webui's kind that trains on whatever checkpoint is loaded, as the jobs and the API see it."""
from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, TypeVar

import torch
from modules import devices, sd_models, shared
from modules.paths_internal import data_path, models_path

from . import webui_loras
from ..backend import Backend
from ..config import TrainConfig

T = TypeVar("T")


class LoadedHost:
    """See `trainer.host.Host`. `family_of` tells the family of a loaded model and raises ValueError for one that cannot be trained; `make_backend`
    takes the kind of prediction; `lora_extension` and `forget_network` are what `webui_loras` needs."""

    name = "webui"
    token_limit = None  # longer captions are encoded in pieces

    def __init__(self, family_of: Callable[[Any], str], make_backend: Callable[[str], Backend], lora_extension: Callable[[], Any],
                 forget_network: Callable[[str], None]) -> None:
        self.home = Path(data_path).resolve() / "hotlora"
        self._family_of, self._make_backend, self._lora_extension, self._forget_network = family_of, make_backend, lora_extension, forget_network

    @property
    def gallery_roots(self) -> list[Path] | None:
        """Any folder for who sits at this machine; those of the settings where others on the network reach the webui."""
        if not shared.cmd_opts.webui_is_non_local:
            return None
        return [Path(line.strip()) for line in getattr(shared.opts, "hotlora_gallery_roots", "").splitlines() if line.strip()]

    def lora_folders(self) -> list[Path]:
        folders = [shared.cmd_opts.lora_dir, getattr(shared.cmd_opts, "lyco_dir_backcompat", None)]
        return [Path(folder) for folder in dict.fromkeys(folders) if folder]

    def model_folders(self) -> list[Path]:
        return [Path(models_path)]

    def bases(self) -> list[str]:
        return []

    def device(self) -> torch.device:
        return torch.device(devices.device)

    def base(self) -> dict | None:
        model = sd_models.model_data.sd_model
        if model is None:
            return None
        try:
            family = self._family_of(model)
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
            self._family_of(model)
        except ValueError as error:
            return str(error)
        return ""

    def with_backend(self, config: TrainConfig, work: Callable[[Backend], T]) -> T:
        return work(self._make_backend(getattr(shared.opts, "hotlora_prediction", "auto")))

    def lora_written(self, name: str, path: Path) -> None:
        webui_loras.add(self._lora_extension(), self._forget_network, name, path)

    def lora_removed(self, name: str) -> None:
        webui_loras.remove(self._lora_extension(), self._forget_network, name)
