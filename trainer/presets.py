"""Settings that belong together, by name."""
from __future__ import annotations

from typing import Any

from .samples import default_steps

PRESETS = {
    "quick": {"lora_rank": 8, "learning_rate": 2e-4, "steps": 0.5},
    "balanced": {"lora_rank": 16, "learning_rate": 1e-4, "steps": 1.0},
    "thorough": {"lora_rank": 32, "learning_rate": 7e-5, "steps": 2.0},
}
"""`steps` is a factor on the number that the pictures suggest."""


def apply_preset(values: dict[str, Any], preset: str, pictures: int) -> dict[str, Any]:
    """`values` (settings of TrainConfig by name) with what is absent or None filled in from a preset, for that many pictures.

    A length in epochs stays one in epochs. ValueError for an unknown preset.
    """
    if preset not in PRESETS:
        raise ValueError(f"preset is {preset!r} but must be one of {', '.join(PRESETS)}")
    chosen = PRESETS[preset]
    filled = {key: values[key] if values.get(key) is not None else chosen[key] for key in ("lora_rank", "learning_rate")}
    if values.get("steps") is None and values.get("epochs") is None:
        group = (values.get("batch_size") or 1) * (values.get("gradient_accumulation_steps") or 1)
        filled["steps"] = max(1, round(default_steps(pictures, group) * chosen["steps"]))
    return {**values, **filled}
