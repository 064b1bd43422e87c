"""Settings files of language-model runs: told from those of pictures, and read with the keys of other trainers too."""
from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Iterable

from ..config_files import from_home, overridden, parse_override, read_values
from ..settings import YES_NO, unknown_key
from .base_folder import is_language_base
from .config import LanguageConfig, without_effect

Change = Callable[[Any], tuple[str, Any]]


def _true(value: Any) -> bool:
    return YES_NO.get(str(value).strip().lower(), bool(value))


def _as(name: str) -> Change:
    return lambda value: (name, value)


def _if_true(name: str, setting: str) -> Change:
    """A switch of its own there is one value of a setting here; switched off, or left to the trainer with auto, it says nothing."""
    return lambda value: (name, setting) if str(value).strip().lower() != "auto" and _true(value) else ("", None)


ALIASES: dict[str, Change] = {
    **{alias: _as("base_model") for alias in ("model_name_or_path", "pretrained_model_name_or_path", "model", "base")},
    **{alias: _as("train_data_dir") for alias in ("train_file", "train_data", "data_path", "dataset_path", "dataset")},
    **{alias: _as("eval_data_dir") for alias in ("eval_file", "validation_file", "eval_data")},
    **{alias: _as("max_length") for alias in ("max_seq_length", "max_seq_len", "sequence_len", "cutoff_len", "model_max_length")},
    **{alias: _as("lora_rank") for alias in ("lora_r", "r", "rank", "network_dim")},
    **{alias: _as("target_modules") for alias in ("lora_target_modules", "lora_target")},
    **{alias: _as("epochs") for alias in ("num_train_epochs", "num_epochs", "max_train_epochs")},
    **{alias: _as("steps") for alias in ("max_steps", "max_train_steps")},
    **{alias: _as("batch_size") for alias in ("per_device_train_batch_size", "micro_batch_size", "train_batch_size")},
    "network_alpha": _as("lora_alpha"), "lr": _as("learning_rate"), "lr_scheduler_type": _as("lr_scheduler"), "warmup_steps": _as("lr_warmup_steps"),
    "logging_steps": _as("log_every"), "output_name": _as("name"), "use_dora": _as("dora"), "use_rslora": _as("rslora"),
    "sample_packing": _as("packing"), "load_in_4bit": _if_true("load_in", "4bit"), "load_in_8bit": _if_true("load_in", "8bit"),
    "bf16": _if_true("mixed_precision", "bf16"), "fp16": _if_true("mixed_precision", "fp16"),
    "train_on_inputs": lambda value: ("answer_only", not _true(value)), "train_on_prompt": lambda value: ("answer_only", not _true(value)),
    "early_stopping_patience": _as("patience"),
}
"""Keys of TRL, axolotl, LLaMA-Factory and the lora-scripts family, and what becomes of them."""


def is_language_run(values: dict[str, Any], overrides: Iterable[str] = ()) -> bool:
    """Whether a settings file is one for a language model: `task` says so, or the base model does."""
    values = {**values, **dict(parse_override(override) for override in overrides)}
    if values.get("task") is not None:
        return str(values["task"]).strip().lower() == "llm"
    bases = [values[key] for key in ("base_model", "model_name_or_path", "pretrained_model_name_or_path") if values.get(key)]
    return bool(bases) and isinstance(bases[0], str) and is_language_base(bases[0])


def load_language_config(path: str | Path, overrides: Iterable[str] = (), text: str | None = None) -> tuple[LanguageConfig, list[str]]:
    """The checked settings of a file, and one sentence for each thing that the user should know; see `..config_files.load_config`."""
    try:
        settings, warnings = translate(read_values(path, text))
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from None
    changed, more = translate(dict(parse_override(override) for override in overrides))
    try:
        config = LanguageConfig.from_dict(from_home(LanguageConfig, overridden(settings, changed)))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return config, warnings + more + without_effect(config)


def translate(values: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Settings under our own names, and one sentence for each that had another; ValueError for an unknown one or two for one."""
    definitions = LanguageConfig.definitions()
    settings: dict[str, Any] = {}
    keys: dict[str, str] = {}
    warnings = []
    for key, value in values.items():
        if key not in definitions and key not in ALIASES:
            raise unknown_key(key, definitions, ALIASES)
        name, value = (key, value) if key in definitions else ALIASES[key](value)
        if not name:
            continue
        if name in settings:
            raise ValueError(f"{keys[name]} and {key} both set {name}; remove one of the two")
        settings[name], keys[name] = value, key
        if key not in definitions:
            warnings.append(f"{key} is read as {name}")
    return settings, warnings
