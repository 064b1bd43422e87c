"""Settings that belong together: how much time a run may take (quick, balanced, best) times what is learned (a person, a style, ...).

Each value stands beside its reason. "Measured" in a reason is the table in bench/QUALITY.md, from `python bench/quality.py`.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .caption_choices import PURPOSES
from .config import SETTINGS
from .samples import default_steps

PRESETS = ("quick", "balanced", "best")
FORMER_NAMES = {"thorough": "best"}
"""Names that presets once had; forms, runs and graphs that say them still work."""


@dataclass(frozen=True)
class Value:
    """One value of a preset, and why it is that."""

    value: Any
    why: str


OF_PRESET: dict[str, dict[str, Value]] = {
    "quick": {
        "steps": Value(0.5, "half the steps show whether the pictures are right"),
        "lora_rank": Value(8, "half of balanced: what half the steps can fill, in a file of half the size"),
        "learning_rate": Value(2e-4, "twice balanced on half the way, so that rate times steps stays the same"),
    },
    "balanced": {
        "steps": Value(1.0, "the passes of the purpose as they are"),
        "lora_rank": Value(16, "holds a subject of some dozen pictures in attention and MLP"),
        "learning_rate": Value(1e-4, "the usual rate of AdamW for LoRA on Stable Diffusion at batch 1 (diffusers, sd-scripts)"),
    },
    "best": {
        "steps": Value(2.0, "room for what is fine or seldom shown; with validation the best step is kept"),
        "lora_rank": Value(32, "twice balanced, for the same"),
        "learning_rate": Value(7e-5, "balanced / sqrt(2) on twice the way, so that the end is less noisy"),
    },
}
"""`steps` is a factor on the number that purpose and pictures give."""

_SHARED: dict[str, Value] = {
    "unet_target_modules": Value(None, "attention and MLP; in spacepxl's study of SD fine-tuning convolutions add nothing in the end"),
    "text_encoder_target_modules": Value(None, "not trained: no gain in that study, and the prompt score falls (measured)"),
    "preservation_weight": Value(0.0, "off, as it more than doubles a step's time; see the option's help for when to use it"),
    "timestep_sampling": Value("auto", "uniform for eps and v, logit-normal for flow (2403.03206)"),
}
OF_PURPOSE: dict[str, dict[str, Value]] = {
    "any": {"passes": Value(80, "between what objects and persons need"), **_SHARED},
    "object": {"passes": Value(80, "shape and colours of one thing, seen from few sides"), **_SHARED},
    "person": {"passes": Value(100, "a face is the subject in which people see the smallest error"), **_SHARED},
    "character": {"passes": Value(90, "several parts that have to come together, but drawn, so simpler than a face"), **_SHARED},
    "style": {"passes": Value(50, "every picture shows all of a style, and galleries are larger; more passes teach what the pictures show instead"), **_SHARED,
              "lora_rank": Value(2.0, "a style changes everything that is drawn, not one thing"),
              "caption_dropout": Value(0.1, "a style should come through without every word of the captions")},
}
"""`passes`: how often the balanced preset shows each picture (see `default_steps`); `lora_rank` is a factor on the preset's."""
assert set(OF_PURPOSE) == set(PURPOSES)

# The embedded base is some 200 times smaller than Stable Diffusion and learns nothing that can be seen from what suits that one.
_DEMO: dict[str, Value] = {
    "lora_rank": Value(32, "a third of its layers' width, as the small base has little to reuse"),
    "conv_rank": Value(16, "half of a small base's weights are convolutions: the same scores in about half the steps (measured)"),
    "learning_rate": Value(4e-3, "40 times what suits Stable Diffusion, for the first steps alone"),
    "lr_scheduler": Value("inverse_sqrt", "most is learned early, and a run that is set too long does no harm (measured)"),
    "lr_warmup_steps": Value(5, "what the optimizer needs to know the size of the gradients"),
    "ema_decay": Value(0.95, "the average of some 20 steps, so that no single one decides"),
    "weight_decay": Value(1.0, "keeps what prompts without the trigger draw: up to 9 points of the sum after 500 steps (measured)"),
    "min_snr_gamma": Value(0.0, "off: the base draws its outlines at noise levels that min-SNR leaves out"),
    "batch_size": Value(4, "costs little more than 1 on a base this small"),
}
OF_BASE: dict[str, dict[str, dict[str, Value]]] = {
    "demo": {
        "quick": {**_DEMO, "steps": Value(0.5, "enough to see the subject")},
        "balanced": {**_DEMO, "steps": Value(1.5, "where the concept score levels off (measured)")},
        "best": {**_DEMO, "steps": Value(3.0, "twice balanced, as for other bases")},
    },
}
"""Presets of a base that needs its own; they hold for every purpose."""


def preset_name(preset: str) -> str:
    """The name that counts today. ValueError for an unknown preset."""
    name = FORMER_NAMES.get(preset, preset)
    if name not in PRESETS:
        raise ValueError(f"preset is {str(preset)[:80]!r} but must be one of {', '.join(PRESETS)}")
    return name


def preset_of(preset: str, base_model: str | None = None, purpose: str | None = None) -> dict[str, Any]:
    """What a preset sets, by name, with `steps` (a factor) and `passes` (times that each picture is shown). ValueError for an unknown one."""
    name, values = preset_name(preset), OF_PURPOSE[purpose or "any"]
    if base_model in OF_BASE:
        return {"passes": OF_PURPOSE["any"]["passes"].value, **{key: one.value for key, one in OF_BASE[base_model][name].items()}}
    chosen = {key: one.value for key, one in (values | OF_PRESET[name]).items()}
    if "lora_rank" in values:
        chosen["lora_rank"] = round(chosen["lora_rank"] * values["lora_rank"].value)
    return chosen


def apply_preset(values: dict[str, Any], preset: str, pictures: int, base_model: str | None = None) -> dict[str, Any]:
    """`values` (settings of TrainConfig by name) with what is absent or None filled in from a preset for their `purpose` and that many pictures.

    A length in epochs stays one in epochs. What the preset leaves at its default is not filled in. ValueError for an unknown preset.
    """
    chosen = preset_of(preset, base_model, values.get("purpose"))
    filled = {key: value for key, value in chosen.items() if key in SETTINGS and key != "steps" and values.get(key) is None and is_set(key, value)}
    if values.get("steps") is None and values.get("epochs") is None:
        group = (values.get("batch_size") or filled.get("batch_size") or 1) * (values.get("gradient_accumulation_steps") or 1)
        filled["steps"] = max(1, round(default_steps(pictures, group, chosen["passes"]) * chosen["steps"]))
    return {**values, **filled}


def is_set(name: str, value: Any) -> bool:
    """Rank and rate are always told; of the rest what is not the default."""
    return name in ("lora_rank", "learning_rate") or value != SETTINGS[name].default


def table() -> list[dict[str, Any]]:
    """Every value of every preset with its reason, for the API and the documents."""
    rows = [{"preset": preset, "purpose": None, "base": None, "setting": key, "value": one.value, "why": one.why}
            for preset, values in OF_PRESET.items() for key, one in values.items()]
    rows += [{"preset": None, "purpose": purpose, "base": None, "setting": key, "value": one.value, "why": one.why}
             for purpose, values in OF_PURPOSE.items() for key, one in values.items()]
    return rows + [{"preset": preset, "purpose": None, "base": base, "setting": key, "value": one.value, "why": one.why}
                   for base, presets in OF_BASE.items() for preset, values in presets.items() for key, one in values.items()]
