"""What a page may set of a run, and what the server decides; and what would happen, said before anything is loaded."""
from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from .captions.at_start import planned_captions
from .captions.download import inside_folders
from .config import SETTINGS, OPTIMIZERS, TrainConfig, without_effect
from .estimate import duration
from .gallery_files import existing_folder, folder_repeats, list_files, relative_name, said_apart
from .host import Host
from .left_out import folders_apart, left_out
from .loras import namesakes
from .names import safe_name
from .needs import needs_of
from .output_files import writable_of
from .preflight import preflight
from .presets import apply_preset, is_set, preset_of
from .samples import default_steps
from .settings import unknown_key

DECIDED = ("output_dir", "lora_dir", "cache_dir", "device")
"""Where things are written and what computes them is the server's choice; in a settings file that is loaded they are passed over."""
CODE = ("augmentation", "loss_term")
STATE_MINUTES = 1.0


def checked_settings(host: Host, settings: dict[str, Any]) -> tuple[TrainConfig, list[str]]:
    """The settings of a page as a config without a preset, and sentences about what is passed over. ValueError for the first that is wrong."""
    warnings, values = [], {}
    for key, value in settings.items():
        if key not in SETTINGS:
            raise unknown_key(key, SETTINGS)
        if key in DECIDED or (key == "base_model" and not host.bases()):
            if value not in (None, "", SETTINGS[key].default):
                warnings.append(f"{key} is decided by the server and is passed over")
            continue
        if key in CODE and value not in (None, ""):
            raise ValueError(f"{key} runs a program and can be set on the command line only; remove it here")
        if value is not None:
            values[key] = value
    values.setdefault("state_minutes", STATE_MINUTES)
    values.setdefault("tensorboard", False)
    config = TrainConfig.from_dict(values)
    if config.optimizer not in OPTIMIZERS:
        raise ValueError(f"optimizer is {config.optimizer!r}; one that is a package.Class runs a program and can be set on the command line "
                         f"only; use one of {', '.join(OPTIMIZERS)}")
    if host.bases():
        config = replace(config, base_model=chosen_base(host, settings.get("base_model")))
    if config.save_format == "peft":
        warnings.append("save_format is peft, and no tag finds a file of that form: the kohya form is written too, as with both")
        config = with_tag(config)
    if config.caption_model and host.gallery_roots is not None:
        inside_folders(config.caption_model, host.model_folders())
    existing_folder(config.train_data_dir)
    return config, warnings + without_effect(config)


def with_tag(config: TrainConfig) -> TrainConfig:
    """The config with a file that a tag finds, whatever other form is wanted: hosts read no other."""
    return replace(config, save_format="both") if config.save_format == "peft" else config


def chosen_base(host: Host, wanted: str | None) -> str:
    """A base that the host offers; the loaded one, or else the first, when none is named."""
    offered = host.bases()
    if wanted in (None, ""):
        loaded = host.base()
        return loaded["name"] if loaded and loaded["name"] in offered else offered[0]
    if wanted not in offered:
        raise ValueError(f"base_model is {str(wanted)[:200]!r} but must be one of {', '.join(offered[:20])}")
    return wanted


def name_of(config: TrainConfig) -> str:
    return config.name or safe_name(Path(config.train_data_dir).resolve().name)


def base_of(host: Host, config: TrainConfig) -> str | None:
    """What is trained on, where the host offers a choice; else the setting means nothing."""
    return config.base_model if host.bases() else None


def with_preset(config: TrainConfig, given: dict[str, Any], preset: str | None, pictures: int, base: str | None) -> TrainConfig:
    """The config with what the preset says where the page said nothing."""
    if preset is None:
        return config
    values = {key: getattr(config, key) for key, value in given.items() if key in SETTINGS and value is not None}
    filled = apply_preset(values, preset, pictures, base)
    return replace(config, **{key: value for key, value in filled.items() if key not in values})


def filled_by(given: dict[str, Any], preset: str | None, base: str | None) -> dict[str, Any]:
    """What the preset has set where the page said nothing, by name."""
    chosen = {} if preset is None else preset_of(preset, base, given.get("purpose"))
    return {name: value for name, value in chosen.items() if given.get(name) is None and name in SETTINGS and name != "steps" and is_set(name, value)}


def placed(config: TrainConfig, host: Host, run_folder: Path, lora_folder: Path | None = None) -> TrainConfig:
    """The config with the folders that the server decides on; `lora_folder` spares the search for one that can be written to."""
    return replace(with_tag(config), output_dir=str(run_folder), lora_dir=str(lora_folder or writable_of(host.lora_folders())),
                   cache_dir=str(host.home / "cache"))


def plan(host: Host, settings: dict[str, Any], preset: str | None, seconds_per_picture: float | None) -> dict[str, Any]:
    """What a start would do; `seconds` are those of the steps, without previews. Reads names and captions only; no picture is opened and no model is loaded."""
    config, warnings = checked_settings(host, settings)
    root = existing_folder(config.train_data_dir)
    unwanted = left_out(root).union(config.leave_out)
    # what can be written to is found by writing, at which a host reads its LoRA folders anew, and a plan is asked for at each change of the form
    files = list_files(root, config.masks, folders_apart(placed(config, host, host.home / "jobs", host.lora_folders()[0])))
    pictures = [path for path in files.pictures if relative_name(path, root) not in unwanted]
    warnings += filter(None, [said_apart(files, root)])
    captions = planned_captions(config, tuple(host.model_folders()))
    seen = sum(config.repeats * folder_repeats(path, root)[0] for path in pictures)
    base = base_of(host, config)
    config = with_preset(config, settings, preset, len(pictures), base)
    preflight(config, host.device())
    group = config.batch_size * config.gradient_accumulation_steps
    steps = config.steps or (config.epochs * math.ceil(seen / group) if config.epochs else default_steps(len(pictures), group))
    needs = needs_of(config, host.family(config.base_model), host.device())
    each = seconds_per_picture if seconds_per_picture is not None else needs and needs.seconds_per_picture
    seconds = None if each is None else steps * group * each
    drawing = needs and needs.seconds_per_preview * (each / needs.seconds_per_picture)
    parts = [_count(len(pictures), "picture"), _count(steps, "step")]
    parts += [f"about {duration(seconds)}"] if seconds is not None else []
    parts += [f"about {gigabytes(needs.bytes)}" + (f" of {gigabytes(needs.total)}" if needs.total else "") + " GB"] if needs else []
    if needs and needs.total and needs.bytes > needs.total:
        warnings.append(f"about {gigabytes(needs.bytes)} GB are needed and {gigabytes(needs.total)} are there: steps will be done in ways that need less and take longer")
    warnings += namesakes(host.lora_folders(), name_of(config))
    reason = host.can_train()
    if not pictures:
        warnings.insert(0, f"all pictures of {root} are left out; put some back" if unwanted else f"{root} has no pictures; add some first")
    return {"pictures": len(pictures), "steps": steps, "seconds": seconds, "seconds_per_preview": drawing, "measured": seconds_per_picture is not None,
            "memory": needs.bytes if needs else None, "memory_total": needs.total if needs else None, "sentence": ", ".join(parts), "name": name_of(config),
            "tag": f"<lora:{name_of(config)}:1>", "lora_rank": config.lora_rank, "learning_rate": config.learning_rate, "filled": filled_by(settings, preset, base),
            "warnings": warnings,
            "captions": captions and {"count": len(captions.names), "model": captions.model_name, "into": captions.into, "sentence": captions.sentence()},
            "can_train": not reason and bool(pictures), "reason": reason}


def gigabytes(size: float) -> str:
    """In GB with one digit after the point; of more than 20 none."""
    return f"{size / 1e9:.0f}" if size >= 20e9 else f"{size / 1e9:.1f}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def describe_settings(host: Host) -> list[dict[str, Any]]:
    """Every setting for a form: kind, default, bounds, choices, unit, help sentence."""
    described = []
    for name, setting in SETTINGS.items():
        default = None if setting.required else setting.default
        decided = name in (*DECIDED, *CODE) or (name == "base_model" and not host.bases())
        choices = host.bases() if name == "base_model" else list(OPTIMIZERS) if name == "optimizer" else list(setting.choices)
        described.append({
            "name": name, "kind": setting.kind, "optional": setting.optional, "required": setting.required, "default": default,
            "minimum": setting.minimum, "maximum": setting.maximum, "above": setting.above, "below": setting.below,
            "multiple": setting.multiple, "choices": choices, "unit": setting.unit, "form": setting.form, "words": setting.words,
            "allowed": setting.allowed(), "help": setting.help, "decided": decided})
    return described
