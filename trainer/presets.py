"""Settings that belong together, by name."""
from __future__ import annotations

from typing import Any

from .samples import default_steps

PRESETS: dict[str, dict[str, Any]] = {
    "quick": {"lora_rank": 8, "learning_rate": 2e-4, "steps": 0.5},
    "balanced": {"lora_rank": 16, "learning_rate": 1e-4, "steps": 1.0},
    "thorough": {"lora_rank": 32, "learning_rate": 7e-5, "steps": 2.0},
}
"""`steps` is a factor on the number that the pictures suggest."""

# The embedded base is some 200 times smaller than Stable Diffusion and learns nothing that can be seen from what suits that one.
_DEMO = {"lora_rank": 32, "learning_rate": 2e-3, "lr_scheduler": "cosine", "min_snr_gamma": 0.0, "batch_size": 4}
OF_BASE: dict[str, dict[str, dict[str, Any]]] = {
    "demo": {"quick": {**_DEMO, "steps": 2.0}, "balanced": {**_DEMO, "steps": 5.0}, "thorough": {**_DEMO, "steps": 10.0}},
}
"""Presets of a base that needs its own."""


def preset_of(preset: str, base_model: str | None) -> dict[str, Any]:
    """ValueError for an unknown preset."""
    if preset not in PRESETS:
        raise ValueError(f"preset is {preset!r} but must be one of {', '.join(PRESETS)}")
    return OF_BASE.get(base_model or "", PRESETS)[preset]


def apply_preset(values: dict[str, Any], preset: str, pictures: int, base_model: str | None = None) -> dict[str, Any]:
    """`values` (settings of TrainConfig by name) with what is absent or None filled in from a preset, for that many pictures.

    A length in epochs stays one in epochs. ValueError for an unknown preset.
    """
    chosen = preset_of(preset, base_model)
    filled = {key: values[key] if values.get(key) is not None else value for key, value in chosen.items() if key != "steps"}
    if values.get("steps") is None and values.get("epochs") is None:
        group = (values.get("batch_size") or filled.get("batch_size") or 1) * (values.get("gradient_accumulation_steps") or 1)
        filled["steps"] = max(1, round(default_steps(pictures, group) * chosen["steps"]))
    return {**values, **filled}
