"""Routes about the host, the settings and the API itself."""
from __future__ import annotations

from ... import __version__
from ..config import SETTINGS, TrainConfig
from ..config_files import load_config, read_values
from ..galleries import SIZES
from ..job_settings import chosen_base, describe_settings, filled_by
from ..kohya_keys import translate
from ..pictures import SUFFIXES
from ..presets import FORMER_NAMES, PRESETS, is_set, table
from .guard import bounds_of, check_named_file
from .openapi import describe
from .routes import API, LARGE, SMALL, Call, Route
from .schema import objects, text

SETTINGS_BODY = {"type": "object", "maxProperties": 200, "description": "Settings of TrainConfig by name.", "additionalProperties": True}
PRESET = {"type": ["string", "null"], "enum": [*PRESETS, *FORMER_NAMES, None],
          "description": "Fills in what the settings leave out, by their purpose and the number of pictures; null takes the defaults."}
FILLED = {"base_model", "preview_steps", "save_steps"}
FILLED |= {row["setting"] for row in table() if row["setting"] in SETTINGS and is_set(row["setting"], row["value"])}
"""What is not the default where nothing is said: a preset, the base or the page sets it. Here the default is a choice as any other."""


def status(call: Call) -> dict:
    host = call.api.host
    bounds = bounds_of(host.gallery_roots, host.home)
    reason = host.can_train()
    return {"host": host.name, "version": __version__, "base": host.base(), "bases": host.bases(), "presets": list(PRESETS), "can_train": not reason,
            "reason": reason, "gallery_roots": None if bounds is None else [str(bound) for bound in bounds],
            "limits": {"upload_bytes": LARGE, "body_bytes": SMALL, "thumbnail": list(SIZES), "kinds": sorted(suffix[1:] for suffix in SUFFIXES)}}


def settings(call: Call) -> dict:
    described = [{**one, "filled": one["name"] in FILLED} for one in describe_settings(call.api.host)]
    return {"settings": described, "presets": table()}


def load_settings(call: Call) -> dict:
    """What a settings file names, as the command line reads it; a missing picture folder is no error, as the page has one of its own."""
    name, content, host = call.data["name"], call.data["text"], call.api.host
    values = read_values(name, content)
    prompts = values.get("sample_prompts")
    if isinstance(prompts, str) and prompts.strip().lower().endswith(".txt"):  # sd-scripts' key, which names a file to be read
        check_named_file("sample_prompts", prompts.strip(), host.gallery_roots, host.home)
    try:
        config, warnings = load_config(name, text=content)
    except ValueError as error:
        if "train_data_dir is missing" not in str(error):
            raise
        config, warnings = load_config(name, ["train_data_dir=."], text=content)
    values.pop("task", None)
    named, _ = translate(values)
    defaults = TrainConfig(train_data_dir=".").to_dict()
    # null is "not said" to a page, but of a setting that is on where nothing is said it is "off"
    told = {key: 0 if value is None and defaults[key] is not None else value for key, value in config.to_dict().items() if key in named}
    kept = {key: value for key, value in told.items() if value is not None and (key in FILLED or value != defaults[key])}
    # a complete file has the default also where the host had no choice, and here it may not be offered
    if kept.get("base_model") == defaults["base_model"] and defaults["base_model"] not in host.bases():
        del kept["base_model"]
    return {"settings": kept, "warnings": warnings}


def save_settings(call: Call) -> dict:
    """Complete: with the base, and with what the preset sets but for the number of steps, which is the plan's to say."""
    values = {key: value for key, value in call.data["settings"].items() if value is not None}
    host = call.api.host
    if host.bases():
        values["base_model"] = chosen_base(host, values.get("base_model"))
    filled = filled_by(values, call.data.get("preset"), values.get("base_model") if host.bases() else None)
    return {"text": TrainConfig.from_dict({**filled, **values}).to_yaml()}


def openapi(call: Call) -> dict:
    return describe(call.api.routes, __version__)


ROUTES = [
    Route("GET", f"{API}/status", status, "The host, its checkpoint, and what is possible."),
    Route("GET", f"{API}/settings", settings, "Every setting: kind, default, bounds, choices, help."),
    Route("POST", f"{API}/settings/load", load_settings, "Settings from the text of a YAML, TOML or JSON file.",
          body=objects({"name": text("The file's name; its suffix says how it is read.", maxLength=300), "text": text(maxLength=1_000_000)})),
    Route("POST", f"{API}/settings/save", save_settings, "Settings as the text of a YAML file, with what a preset fills in.",
          body=objects({"settings": SETTINGS_BODY, "preset": PRESET}, required=["settings"])),
    Route("GET", f"{API}/openapi.json", openapi, "This description."),
]
