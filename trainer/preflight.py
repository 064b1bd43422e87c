"""What can be known to end a run before its first step, said wherever one is asked for: before captions are written, pictures encoded, or a base loaded."""
from __future__ import annotations

import torch

from .adapter import Adapter
from .config import TrainConfig
from .extension_points import ARGUMENTS, load_function
from .gallery_files import existing_folder, existing_metadata
from .lora_file import check_lora
from .lora_layer import LoRALayer
from .optimizers import check_optimizer
from .precision import pick_precision


def preflight(config: TrainConfig, device: torch.device | None = None) -> None:
    """ValueError, in the words of the run itself, for settings with which it would not begin. Loads no base and opens no picture.

    Without a `device`, that of the run is not known, and what depends on it is not looked at.
    """
    check_paths(config)
    if device is not None and config.mixed_precision != "auto":
        pick_precision(config.mixed_precision, device)
    check_optimizer(config, _small_groups(config))
    for name in ARGUMENTS:
        if getattr(config, name):
            load_function(getattr(config, name), name)


def check_paths(config: TrainConfig) -> None:
    """ValueError for a folder or file of the settings that is not there, or not what it should be; the base is left to those who load it."""
    root = existing_folder(config.train_data_dir)
    if config.metadata_path:
        existing_metadata(config.metadata_path, root)
    if config.reg_data_dir:
        existing_folder(config.reg_data_dir, "The folder of prior pictures (reg_data_dir)")
    if config.init_lora:
        check_lora(config.init_lora)


def _small_groups(config: TrainConfig) -> list[dict]:
    """The groups of the run's parameters, on one small layer for each of its components."""
    components = ("unet", "te") if config.text_encoder_target_modules else ("unet",)
    layers = {(component, "layer"): LoRALayer(torch.zeros(2, 2), torch.zeros(2, 2), 1.0) for component in components}
    return Adapter(layers).parameter_groups(config.learning_rate, config.text_encoder_lr, config.lora_plus_ratio)
