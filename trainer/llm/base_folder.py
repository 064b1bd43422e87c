"""What a folder with a language model says about itself, read without loading it."""
from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ..paths import path_of

CAUSAL = re.compile(r"(ForCausalLM|LMHeadModel)$")
"""How transformers ends the names of its causal language models; GPT-2's is the older form."""
CACHED_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def is_language_base(path: str | Path) -> bool:
    """Whether `path` is a transformers folder of a causal language model, or an adapter for one."""
    folder = path_of(path)
    try:
        if (folder / "adapter_config.json").is_file():
            return read_json(folder / "adapter_config.json").get("task_type") == "CAUSAL_LM"
        return any(CAUSAL.search(name) for name in architectures(folder))
    except (OSError, ValueError):
        return False


def architectures(folder: Path) -> list[str]:
    """The classes that the folder's config.json names; [] when there is none. ValueError when it cannot be read."""
    config = folder / "config.json"
    if not config.is_file():
        return []
    names = read_json(config).get("architectures")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def find_base(base_model: str) -> Path:
    """The folder of a base; ValueError says what is wrong with it. A name such as owner/model is looked for in the local cache only."""
    folder = path_of(base_model)
    if not folder.exists() and CACHED_NAME.fullmatch(base_model):
        folder = _in_cache(base_model) or folder
    if not folder.exists():
        raise ValueError(f"base_model is {base_model}, which does not exist; give the folder of a transformers model (with config.json, the "
                         "tokenizer and .safetensors files). Nothing is downloaded")
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise ValueError(f"base_model is {base_model}, which is an adapter and not a whole model; set base_model to "
                         f"{adapter_base(folder) or 'the model that it was trained on'} and init_lora to this folder")
    if not folder.is_dir() or not (folder / "config.json").is_file():
        raise ValueError(f"base_model is {base_model}, which has no config.json; give the folder of a transformers model")
    names = architectures(folder)
    if not any(CAUSAL.search(name) for name in names):
        raise ValueError(f"base_model is {base_model}, whose config.json names {', '.join(names) or 'no architecture'}; a language model's "
                         "ends in ForCausalLM. For pictures, remove task: llm")
    return folder


def adapter_base(folder: Path) -> str | None:
    """The base that an adapter folder names."""
    try:
        name = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
    except (OSError, ValueError):
        return None
    return name if isinstance(name, str) else None


def find_adapter_base(folder: Path) -> str:
    """Where the base lies that an adapter folder names. A relative path counts from where it was trained, else from here or from the adapter.

    ValueError when it names none, or one that is not there.
    """
    named = adapter_base(folder)
    if named is None:
        raise ValueError(f"the LoRA {folder} does not say which base it was trained on; give that model's folder as --base")
    places = [Path(named), folder / named]
    try:
        places.insert(0, Path(read_json(folder / "hotlora.json")["base_model"]))
    except (ValueError, KeyError, TypeError):  # it was trained with another program
        pass
    found = [Path(named)] if Path(named).is_absolute() else [place for place in places if (place / "config.json").is_file()]
    try:
        find_base(str(found[0]) if found else named)
    except ValueError as error:
        reason = error if found and found[0].exists() else "which is not here"
        raise ValueError(f"the LoRA {folder} was trained on {named}, {reason}; give that model's folder as --base") from None
    return str(found[0]) if found else named


def _in_cache(name: str) -> Path | None:
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name, local_files_only=True))
    except Exception:  # not there, or no such name: what is said is the same
        return None


def read_json(path: Path) -> dict[str, Any]:
    """The settings in one of a model's files; ValueError when it holds none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); copy the model's folder again") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no settings; copy the model's folder again")
    return values
