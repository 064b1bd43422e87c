"""What a LoRA file says about itself: `ss_*` as sd-scripts writes it (hosts read it), `modelspec.*`, and our own settings."""

from __future__ import annotations

import json
import time
from collections import Counter
from typing import Any, Iterable

from .. import __version__

# family -> (ss_base_model_version, modelspec.architecture)
# A1111 hides a LoRA from an SDXL base unless the first starts with `sdxl_`.
_FAMILIES = {
    "demo": ("hotlora_demo", "hotlora-demo/lora"),
    "sd15": ("sd_v1", "stable-diffusion-v1/lora"),
    "sd2": ("sd_v2", "stable-diffusion-v2-512/lora"),
    "sd2_v": ("sd_v2_768_v", "stable-diffusion-v2-768-v/lora"),
    "sdxl": ("sdxl_base_v1-0", "stable-diffusion-xl-v1-base/lora"),
}
_PREDICTIONS = {"eps": "epsilon", "v": "v", "flow": "flow"}
_PATHS = (
    "train_data_dir",
    "metadata_path",
    "reg_data_dir",
    "base_model",
    "init_lora",
    "output_dir",
    "cache_dir",
    "augmentation",
    "loss_term",
)


def build_metadata(
    config: Any,
    *,
    name: str,
    family: str,
    base_hash: str = "",
    base_name: str = "",
    trigger: str = "",
    tag_counts: dict[str, int] | None = None,
    steps: int = 0,
    epochs: int | None = None,
    pictures: int | None = None,
    resolution: int | None = None,
    prediction: str = "eps",
    started_at: float | None = None,
    finished_at: float | None = None,
    layers: Iterable[dict[str, Any]] | None = None,
) -> dict[str, str]:
    """Metadata of a LoRA file from a TrainConfig and the facts of a run.

    `family` is "demo", "sd15", "sd2", "sdxl" or what the host calls another one; `prediction` "eps", "v" or "flow"; times are seconds since 1970, `resolution` is
    in pixels. `layers` are those of a LoRA that was trained further: it keeps its own ranks and alphas, whatever the settings say.
    Of paths only the last part is kept: files are shared, and a path tells the name of its user.
    """
    settings = config.to_dict()
    version, architecture = _FAMILIES.get("sd2_v" if (family, prediction) == ("sd2", "v") else family, (family, f"{family}/lora"))
    finished_at = time.time() if finished_at is None else finished_at
    resolution = resolution or settings["resolution"]
    sizes = settings if layers is None else _own_sizes(layers)
    rank = sizes["lora_rank"]
    facts = {
        "ss_output_name": name,
        "ss_base_model_version": version,
        "ss_v2": family == "sd2",
        "ss_sd_model_name": base_name,
        "ss_new_sd_model_hash": base_hash,
        "ss_network_module": "networks.lora",
        "ss_network_dim": rank,
        "ss_network_alpha": rank if sizes["lora_alpha"] is None else sizes["lora_alpha"],
        "ss_network_dropout": settings["lora_dropout"],
        "ss_network_args": _network_args(sizes),
        "ss_tag_frequency": {name: tag_counts or {}},
        "ss_num_train_images": pictures,
        "ss_steps": steps,
        "ss_epoch": epochs,
        "ss_training_started_at": started_at,
        "ss_training_finished_at": finished_at,
        "ss_resolution": f"({resolution}, {resolution})" if resolution else None,
        "ss_training_comment": f"trigger: {trigger}" if trigger else None,
        **{f"ss_{key}": settings[setting] for key, setting in _SAME_IN_SD_SCRIPTS.items()},
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": architecture,
        "modelspec.implementation": "diffusers",
        "modelspec.title": name,
        "modelspec.date": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(finished_at)),
        "modelspec.prediction_type": _PREDICTIONS[prediction],
        "modelspec.resolution": f"{resolution}x{resolution}" if resolution else None,
        "modelspec.trigger_phrase": trigger or None,
        "hotlora.version": __version__,
        "hotlora.trigger": trigger or None,
        "hotlora.config": {key: _without_folders(value) if key in _PATHS else value for key, value in settings.items()},
    }
    return {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value)
        for key, value in facts.items()
        if value is not None and value != ""
    }


_SAME_IN_SD_SCRIPTS = {
    "learning_rate": "learning_rate",
    "text_encoder_lr": "text_encoder_lr",
    "lr_scheduler": "lr_scheduler",
    "lr_warmup_steps": "lr_warmup_steps",
    "optimizer": "optimizer",
    "batch_size_per_device": "batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "gradient_checkpointing": "gradient_checkpointing",
    "max_grad_norm": "max_grad_norm",
    "mixed_precision": "mixed_precision",
    "seed": "seed",
    "enable_bucket": "bucketing",
    "min_snr_gamma": "min_snr_gamma",
    "noise_offset": "noise_offset",
    "zero_terminal_snr": "zero_terminal_snr",
    "caption_dropout_rate": "caption_dropout",
    "shuffle_caption": "shuffle_tags",
    "keep_tokens": "keep_tags",
    "prior_loss_weight": "prior_loss_weight",
    "flip_aug": "flip",
}


def _own_sizes(layers: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The settings that make a LoRA what it is, as most of its layers have them; those with kernels count by themselves, as in sd-scripts."""
    layers = list(layers)
    plain, kernels = Counter(), Counter()
    for layer in layers:
        (kernels if layer["down"].shape[2:].numel() > 1 else plain)[layer["down"].shape[0], layer["alpha"]] += 1
    rank, alpha = (plain or kernels).most_common(1)[0][0]
    conv_rank, conv_alpha = kernels.most_common(1)[0][0] if kernels else (0, None)
    return {"lora_rank": rank, "lora_alpha": alpha, "conv_rank": conv_rank, "conv_alpha": conv_alpha, "rslora": False,
            "dora": any(layer.get("dora_scale") is not None for layer in layers)}


def _network_args(settings: dict[str, Any]) -> dict[str, str] | None:
    """What sd-scripts and its readers call network_args: text to text."""
    arguments: dict[str, str] = {}
    if settings["conv_rank"]:
        alpha = settings["conv_rank"] if settings["conv_alpha"] is None else settings["conv_alpha"]
        arguments |= {"conv_dim": str(settings["conv_rank"]), "conv_alpha": str(alpha)}
    if settings["dora"]:
        arguments["dora_wd"] = "True"
    if settings["rslora"]:
        arguments["rs_lora"] = "True"
    return arguments or None


def _without_folders(value: Any) -> Any:
    return value.replace("\\", "/").rstrip("/").split("/")[-1] if isinstance(value, str) else value
