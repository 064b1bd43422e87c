"""HotLoRA Settings: everything that HotLoRA Train does not ask for, generated from TrainConfig."""
from __future__ import annotations

from comfy_api.latest import io

SETTINGS_TYPE = io.Custom("HOTLORA_SETTINGS")
ELSEWHERE = frozenset({
    "train_data_dir", "repeats", "base_model", "name", "trigger", "steps", "epochs", "lora_rank", "learning_rate", "resolution", "seed",
    "output_dir", "lora_dir", "cache_dir", "save_format", "device", "mixed_precision", "tensorboard", "text_encoder_target_modules", "text_encoder_lr"})
"""Settings that other widgets hold or that ComfyUI decides."""


class HotLoRASettings(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HotLoRASettings", display_name="HotLoRA Settings", category="HotLoRA",
            description="More settings for HotLoRA Train. What is left as it is changes nothing.",
            inputs=[_widget(definition) for definition in _offered()],
            outputs=[SETTINGS_TYPE.Output("settings", display_name="settings", tooltip="For HotLoRA Train.")])

    @classmethod
    def fingerprint_inputs(cls, **values):
        """A file or folder that a setting names makes the node run again when its content changes."""
        from .finished import named_files

        return named_files(values)

    @classmethod
    def execute(cls, **values) -> io.NodeOutput:
        changed = {}
        for definition in _offered():
            if definition.name not in values:
                continue
            value = values[definition.name]
            if definition.kind in ("list[str]", "dict") and isinstance(value, str):
                value = _read(definition, value)
            value = definition.convert(value)
            if value != definition.default:
                changed[definition.name] = value
        return io.NodeOutput(changed)


def _read(definition, text: str):
    """A list or mapping as a settings file has it. Of prompts and file names, which may have any sign in them, what is no list is the only one."""
    import yaml

    if not text.strip():
        return definition.default
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    is_whole = definition.kind == "list[str]" and not definition.words and not isinstance(value, (list, str))
    return text if is_whole else definition.default if value is None else value


def _offered() -> list:
    from ..trainer.config import SETTINGS

    return [definition for definition in SETTINGS.values() if definition.name not in ELSEWHERE]


def _widget(definition):
    common = {"id": definition.name, "tooltip": definition.tooltip(), "optional": True}
    low, high = definition.minimum if definition.above is None else definition.above, definition.maximum
    if definition.choices and not definition.form:
        return io.Combo.Input(options=list(definition.choices), default=definition.default, **common)
    if definition.kind == "bool":
        return io.Boolean.Input(default=definition.default, **common)
    if definition.optional or definition.kind in ("str", "list[str]", "dict"):
        default = definition.default if isinstance(definition.default, str) else "" if not definition.default else f"{definition.default:g}"
        return io.String.Input(default=default, **common)
    if definition.kind == "int":
        return io.Int.Input(default=definition.default, min=low, max=min(high, 2**53), step=definition.multiple, **common)
    return io.Float.Input(default=definition.default, min=low, max=high, step=0.001, round=False, **common)
