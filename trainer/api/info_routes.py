"""Routes about the host, the settings and the API itself."""
from __future__ import annotations

from ... import __version__
from ..config import TrainConfig
from ..config_files import load_config, read_values
from ..galleries import SIZES
from ..job_settings import describe_settings
from ..pictures import SUFFIXES
from ..presets import PRESETS, table
from .guard import bounds_of, check_named_file
from .openapi import describe
from .routes import API, LARGE, SMALL, Call, Route
from .schema import objects, text

SETTINGS_BODY = {"type": "object", "maxProperties": 200, "description": "Settings of TrainConfig by name.", "additionalProperties": True}


def status(call: Call) -> dict:
    host = call.api.host
    bounds = bounds_of(host.gallery_roots, host.home)
    reason = host.can_train()
    return {"host": host.name, "version": __version__, "base": host.base(), "bases": host.bases(), "presets": list(PRESETS), "can_train": not reason,
            "reason": reason, "gallery_roots": None if bounds is None else [str(bound) for bound in bounds],
            "limits": {"upload_bytes": LARGE, "body_bytes": SMALL, "thumbnail": list(SIZES), "kinds": sorted(suffix[1:] for suffix in SUFFIXES)}}


def settings(call: Call) -> dict:
    return {"settings": describe_settings(call.api.host), "presets": table()}


def load_settings(call: Call) -> dict:
    """A settings file, as the command line reads it; a missing picture folder is no error, as the page has one of its own."""
    name, content, host = call.data["name"], call.data["text"], call.api.host
    prompts = read_values(name, content).get("sample_prompts")
    if isinstance(prompts, str) and prompts.strip().lower().endswith(".txt"):  # sd-scripts' key, which names a file to be read
        check_named_file("sample_prompts", prompts.strip(), host.gallery_roots, host.home)
    try:
        config, warnings = load_config(name, text=content)
    except ValueError as error:
        if "train_data_dir is missing" not in str(error):
            raise
        config, warnings = load_config(name, ["train_data_dir=."], text=content)
    defaults = TrainConfig(train_data_dir=".").to_dict()
    return {"settings": {key: value for key, value in config.to_dict().items() if value != defaults[key]}, "warnings": warnings}


def save_settings(call: Call) -> dict:
    values = {key: value for key, value in call.data["settings"].items() if value is not None}
    return {"text": TrainConfig.from_dict(values).to_yaml()}


def openapi(call: Call) -> dict:
    return describe(call.api.routes, __version__)


ROUTES = [
    Route("GET", f"{API}/status", status, "The host, its checkpoint, and what is possible."),
    Route("GET", f"{API}/settings", settings, "Every setting: kind, default, bounds, choices, help."),
    Route("POST", f"{API}/settings/load", load_settings, "Settings from the text of a YAML, TOML or JSON file.",
          body=objects({"name": text("The file's name; its suffix says how it is read.", maxLength=300), "text": text(maxLength=1_000_000)})),
    Route("POST", f"{API}/settings/save", save_settings, "Settings as the text of a YAML file.", body=objects({"settings": SETTINGS_BODY})),
    Route("GET", f"{API}/openapi.json", openapi, "This description."),
]
