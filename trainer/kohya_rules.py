"""What becomes of a setting of kohya sd-scripts or SD-Trainer: the rules that the table in `kohya_keys.py` is made of.

A rule is called with (draft, key, value). It puts a setting into the draft, or notes that the key is needless (HotLoRA does it
anyway) or not supported, with what to use instead.
"""
from __future__ import annotations

import ast
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

from .config import SETTINGS
from .settings import shown

NOT_GIVEN = (None, "", [])
"""Values that forms write for a field that was left empty."""
TEXT_ENCODER_LAYERS = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
"""All linear layers that sd-scripts trains in a CLIP text encoder."""
OPTIMIZER_NAMES = {"adam": "torch.optim.Adam", "adamw8bit": "adamw8bit", "pagedadamw": "bitsandbytes.optim.PagedAdamW",
                   "pagedadamw8bit": "bitsandbytes.optim.PagedAdamW8bit", "pagedadamw32bit": "bitsandbytes.optim.PagedAdamW32bit",
                   "lion8bit": "bitsandbytes.optim.Lion8bit", "pagedlion8bit": "bitsandbytes.optim.PagedLion8bit",
                   "sgdnesterov": "torch.optim.SGD", "sgdnesterov8bit": "bitsandbytes.optim.SGD8bit", "dadaptation": "dadaptation.experimental.DAdaptAdamPreprint",
                   "dadaptadampreprint": "dadaptation.experimental.DAdaptAdamPreprint", "dadaptadam": "dadaptation.DAdaptAdam",
                   "dadaptadagrad": "dadaptation.DAdaptAdaGrad", "dadaptadan": "dadaptation.DAdaptAdan",
                   "dadaptlion": "dadaptation.DAdaptLion", "dadaptsgd": "dadaptation.DAdaptSGD"}
NESTEROV = ("sgdnesterov", "sgdnesterov8bit")
"""SGD with a momentum that is not in its name here: 0.9 when none is given, as sd-scripts has it."""
OTHER_DEFAULTS = {"lora_rank": ("network_dim", "", "4"), "lora_alpha": ("network_alpha", "the rank", "1"), "learning_rate": ("learning_rate", "", "0.000002"),
                  "lr_scheduler": ("lr_scheduler", "", "constant"), "min_snr_gamma": ("min_snr_gamma", "", "0 (off)"),
                  "caption_dropout": ("caption_dropout_rate", "", "0")}
"""By setting: sd-scripts' key for it, our default where that is no value, and sd-scripts' default."""


class Draft:
    """Settings on their way from a file to a `TrainConfig`, and what there is to say about them."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values
        self.settings: dict[str, Any] = {}
        self.written_as: dict[str, str] = {}
        self.unsupported: list[str] = []
        self.needless: list[str] = []
        self.notes: list[str] = []

    def put(self, name: str, value: Any, key: str) -> None:
        """Set `name`, which the file calls `key`; ValueError when the file has set it to something else before."""
        value = SETTINGS[name].convert(value, called=key)
        if name in self.settings and self.settings[name] != value:
            raise ValueError(f"{self.written_as[name]} and {key} set the same thing to {shown(self.settings[name])} and "
                             f"{shown(value)}; remove one of them")
        self.settings[name], self.written_as[name] = value, key

    def warnings(self) -> list[str]:
        """What the user should know, one sentence each."""
        texts = []
        if self.unsupported:
            texts.append("these settings are not supported and have no effect: " + "; ".join(self.unsupported))
        if self.needless:
            texts.append("these settings are not needed, HotLoRA decides by itself: " + "; ".join(self.needless))
        return texts + self.notes


Rule = Callable[[Draft, str, Any], None]


def to(name: str, convert: Callable[[Any], Any] = lambda value: value) -> Rule:
    """The setting `name` has the same meaning, after `convert`."""
    return lambda draft, key, value: draft.put(name, convert(value), key)


def needless(note: str) -> Rule:
    return lambda draft, key, value: draft.needless.append(f"{key} ({note})")


def instead(advice: str, *neutral: Any) -> Rule:
    """Not supported; values that switch nothing on (false, 0 and `neutral`, in any capitals) are passed over."""
    def rule(draft: Draft, key: str, value: Any) -> None:
        if (value.strip().lower() if isinstance(value, str) else value) not in (False, 0, "0", "false", *neutral):
            draft.unsupported.append(f"{key} ({advice})")
    return rule


def truth(key: str, value: Any) -> bool:
    """`value` as true or false; ValueError when it is neither."""
    return replace(SETTINGS["flip"], name=key).convert(value)


def text_encoder_lr(draft: Draft, key: str, value: Any) -> None:
    """sd-scripts also takes one rate per encoder, and 0 for "not trained"."""
    rates = value if isinstance(value, list) and value else [value]
    if any(rate != rates[0] for rate in rates):
        draft.unsupported.append(f"{key} with several rates (all text encoders get the first, {shown(rates[0])})")
    if _as_float(rates[0]) != 0:
        draft.put("text_encoder_lr", rates[0], key)


def resolution(draft: Draft, key: str, value: Any) -> None:
    """"512", "512,768", "512x768" or [512, 768]: the side of the square of that area."""
    parts = value if isinstance(value, list) else re.split(r"\s*[,xX*]\s*", value.strip()) if isinstance(value, str) else [value]
    if len(parts) != 2:
        return draft.put("resolution", value, key)
    width, height = (SETTINGS["resolution"].convert(part, called=key) for part in parts)
    if width is None or height is None:
        raise SETTINGS["resolution"].wrong(value, key)
    if width != height:
        draft.notes.append(f"{key} {width} x {height} is taken as an area; each picture is trained in its own shape")
    draft.put("resolution", round(math.sqrt(width * height)), key)


def warmup(draft: Draft, key: str, value: Any) -> None:
    """A number below 1 is a share of the run in sd-scripts."""
    share = _as_float(value)
    if not 0 < share < 1:
        return draft.put("lr_warmup_steps", value, key)
    steps = draft.values.get("max_train_steps", draft.values.get("steps"))
    if steps in NOT_GIVEN or draft.values.get("max_train_epochs") not in NOT_GIVEN:
        draft.unsupported.append(f"{key} as a share of the run (give a number of steps)")
    else:
        draft.put("lr_warmup_steps", round(share * SETTINGS["steps"].convert(steps)), key)


def _as_float(value: Any) -> float:
    """A number or a text of one as a float, anything else as NaN (which compares unequal to every number)."""
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def pairs(key: str, value: Any) -> dict[str, Any]:
    """["conv_dim=4", "algo=lora"], the same as one text, or a mapping, as a mapping of Python values."""
    if isinstance(value, dict):
        return value
    items = value.split() if isinstance(value, str) else value
    if not isinstance(items, list) or not all(isinstance(item, str) and "=" in item for item in items):
        raise ValueError(f'{key} is {shown(value)} but must be a list such as ["name=value"] or a mapping such as '
                         "{name: value}; change it")
    return {name.strip(): _literal(text.strip()) for name, text in (item.split("=", 1) for item in items)}


def _literal(text: str) -> Any:
    try:
        value = ast.literal_eval(text) if len(text) < 200 else text
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    return list(value) if isinstance(value, tuple) else value


def optimizer_args(draft: Draft, key: str, value: Any) -> None:
    arguments = dict(pairs(key, value))
    if not isinstance(value, dict) and "weight_decay" in arguments:
        draft.put("weight_decay", arguments.pop("weight_decay"), f"weight_decay in {key}")
    draft.put("optimizer_args", arguments, key)


def optimizer_name(value: Any) -> Any:
    return OPTIMIZER_NAMES.get(value.strip().lower(), value) if isinstance(value, str) else value


def network_module(draft: Draft, key: str, value: Any) -> None:
    if value not in ("networks.lora", "lycoris.kohya"):
        draft.unsupported.append(f"{key} {shown(value)} (HotLoRA trains LoRA, LoCon and DoRA)")


def sample_prompts(draft: Draft, key: str, value: Any) -> None:
    """A .txt file, one text with a prompt per line, or a list; the options after -- that previews have are taken over."""
    if isinstance(value, str) and value.strip().lower().endswith((".json", ".toml")):
        draft.unsupported.append(f"{key} in a {Path(value).suffix} file (write the prompts into preview_prompts)")
        return
    if isinstance(value, str) and value.strip().lower().endswith(".txt"):
        value = _prompt_file(key, value.strip())
    lines = value.splitlines() if isinstance(value, str) else value
    if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
        raise SETTINGS["preview_prompts"].wrong(value, key)
    prompts, options = [], {}
    for line in lines:
        prompt, *rest = re.split(r"\s+--(?=[A-Za-z]+(?:\s|$))", line.strip())
        if prompt and not prompt.startswith("#"):
            prompts.append(prompt)
            for part in rest:
                option, _, value = part.strip().partition(" ")
                options.setdefault(option.lower(), []).append(value.strip())
    draft.put("preview_prompts", prompts, key)
    for option, setting in (("d", "preview_seed"), ("l", "preview_guidance")):
        given = options.pop(option, [])
        if given:
            draft.put(setting, given[0], f"--{option} in {key}")
        if len(set(given)) > 1:
            draft.unsupported.append(f"--{option} with several values in {key} (all previews get the first, {given[0]})")
    if options:
        draft.unsupported.append(", ".join(f"--{name}" for name in sorted(options)) + f" in {key} (previews take their size and "
                                 "steps from the base model and have no negative prompt)")


def _prompt_file(key: str, name: str) -> str:
    try:
        return Path(name).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise ValueError(f"{key} is {shown(name)}, which cannot be read as a UTF-8 text file ({error}); correct the path, or "
                         "write the prompts into preview_prompts") from None


def caption_extension(draft: Draft, key: str, value: Any) -> None:
    if str(value).lstrip(".").lower() in ("txt", "caption"):
        draft.needless.append(f"{key} (.txt and .caption are both read)")
    else:
        draft.unsupported.append(f"{key} {shown(value)} (rename the files to .txt or .caption, or use metadata_path)")


def save_as(draft: Draft, key: str, value: Any) -> None:
    if value != "safetensors":
        draft.unsupported.append(f"{key} {shown(value)} (LoRA files are always .safetensors)")


def eight_bit(draft: Draft, key: str, value: Any) -> None:
    if truth(key, value):
        draft.put("optimizer", "adamw8bit", key)


def no_upscale(draft: Draft, key: str, value: Any) -> None:
    draft.put("upscale", not truth(key, value), key)


def dtype(value: Any) -> Any:
    return "fp32" if value in ("float", "float32", "no") else value


def scheduler(value: Any) -> Any:
    return "constant" if value == "constant_with_warmup" else value


def alpha(value: Any) -> Any:
    """sd-scripts takes 0 as "the same as the rank"."""
    return None if value in (0, "0") and not isinstance(value, bool) else value


def settle_length(draft: Draft) -> None:
    """max_train_epochs goes before max_train_steps, as in sd-scripts."""
    if draft.settings.get("epochs") and draft.written_as.get("steps") == "max_train_steps":
        draft.notes.append(f"max_train_steps has no effect, because {draft.written_as['epochs']} is given too")
        del draft.settings["steps"]


def settle_optimizer(draft: Draft) -> None:
    """SGDNesterov says in its name what torch's SGD is told by its arguments."""
    name = draft.values.get("optimizer_type")
    if isinstance(name, str) and name.strip().lower() in NESTEROV:
        draft.settings["optimizer_args"] = {"momentum": 0.9, **draft.settings.get("optimizer_args", {}), "nesterov": True}


def v_parameterization(draft: Draft, key: str, value: Any) -> None:
    """sd-scripts believes the setting, and we the base: that is no matter for a base that says it."""
    if truth(key, value):
        draft.notes.append(f"{key} is read from the base model: one that does not say that it is a v-prediction model is trained as one that predicts the noise "
                           "(eps); --dry-run shows which it is")


def settle_learning_rates(draft: Draft) -> None:
    """unet_lr goes before learning_rate; the text encoder is trained when it has a learning rate of its own."""
    values, settings = draft.values, draft.settings
    if values.get("unet_lr") not in NOT_GIVEN:
        general = settings.get("learning_rate")
        settings["learning_rate"] = SETTINGS["learning_rate"].convert(values["unet_lr"], called="unet_lr")
        if general not in (None, settings["learning_rate"]):
            draft.notes.append("learning_rate has no effect, because unet_lr is given too")
    if "text_encoder_target_modules" in settings:
        return
    if truth("network_train_unet_only", values.get("network_train_unet_only") or False):
        settings.pop("text_encoder_lr", None)
    elif settings.get("text_encoder_lr"):
        settings["text_encoder_target_modules"] = list(TEXT_ENCODER_LAYERS)


def note_other_defaults(draft: Draft) -> None:
    """Where leaving out a key means something else in sd-scripts, in ways that change the result much."""
    values, settings = draft.values, draft.settings
    if "network_dim" not in values and "network_module" not in values:
        return
    without_effect = {*(("lora_rank", "lora_alpha") if settings.get("init_lora") else ()), *(("min_snr_gamma",) if settings.get("debiased") else ())}
    for name, (key, here, there) in OTHER_DEFAULTS.items():
        if name not in settings and name not in without_effect:
            draft.notes.append(f"{key} is not given: HotLoRA's default is {here or SETTINGS[name].default_text()}, sd-scripts' is {there}")
    if values.get("text_encoder_lr") in NOT_GIVEN and "text_encoder_target_modules" not in settings \
            and not truth("network_train_unet_only", values.get("network_train_unet_only") or False):
        draft.notes.append("text_encoder_lr is not given: HotLoRA does not train the text encoder, sd-scripts would")
