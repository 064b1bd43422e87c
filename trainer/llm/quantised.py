"""Bases whose weights lie on the disk in few bits (bitsandbytes, GPTQ, AWQ, FP8, ...): whether they can be trained here, and how large they are."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from .base_folder import read_json
from .config import LanguageConfig

WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def quantised_by(folder: Path) -> dict[str, Any] | None:
    """How the weights were quantised, as config.json has it; None where they have a usual number format."""
    config = read_json(folder / "config.json")
    text = config.get("text_config")
    found = config.get("quantization_config") or (text.get("quantization_config") if isinstance(text, dict) else None)
    return found if isinstance(found, dict) else None


def method_of(quantised: dict[str, Any]) -> str:
    """Its name, such as gptq or bitsandbytes."""
    return str(quantised.get("quant_method") or ("bitsandbytes" if quantised.get("load_in_4bit") or quantised.get("load_in_8bit") else "unknown"))


def check_quantised(folder: Path, device: torch.device, load_in: str | None, config: LanguageConfig | None = None) -> bool:
    """Whether the base keeps few bits in memory. ValueError, before anything is loaded, where it cannot be loaded here, or not used as `config` says."""
    from transformers.quantizers import AutoHfQuantizer

    quantised = quantised_by(folder)
    if quantised is None:
        return False
    what = f"the weights of the base {folder} are quantised already ({method_of(quantised)})"
    if load_in:
        raise ValueError(f"load_in is {load_in}, but {what}; remove load_in")
    if config and config.merge:
        raise ValueError(f"merge is true, but {what}, and a LoRA cannot be worked into such weights; set merge: false, or train on the model that they were made from")
    try:
        quantizer = AutoHfQuantizer.from_config(quantised, pre_quantized=True)
        quantizer.validate_environment(device_map={"": device})
        can_train = quantizer.is_trainable
    except Exception as error:  # each kind is checked by packages of its own
        said = " ".join(str(error).split())[:300]
        raise ValueError(f"{what}, and that cannot be used here: {said}. Install what is missing, or take the model that they were made from") from None
    if config and not can_train:
        raise ValueError(f"{what}, and transformers cannot train on those; take the model that they were made from, and load_in: 4bit if it does not fit")
    return not getattr(quantizer.quantization_config, "dequantize", False)


def stored_bytes(folder: Path) -> int:
    """Of the weights on the disk; files beside those that transformers reads do not count."""
    for name in WEIGHTS:
        index = folder / f"{name}.index.json"
        if index.is_file():
            return sum((folder / file).stat().st_size for file in set((read_json(index).get("weight_map") or {}).values()) if (folder / file).is_file())
        if (folder / name).is_file():
            return (folder / name).stat().st_size
    return 0
