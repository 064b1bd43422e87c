"""Where stable-diffusion-webui and Forge keep things, and who may read what."""
from __future__ import annotations

from pathlib import Path

import torch
from modules import devices, shared
from modules.paths_internal import data_path, models_path


class WebuiFolders:
    """The part of `trainer.host.Host` that is the same in both hosts."""

    name = "webui"
    token_limit = None  # longer captions are encoded in pieces

    def __init__(self) -> None:
        self.home = Path(data_path).resolve() / "hotlora"

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
