"""What is in a LoRA file, for people: `python train.py inspect file.safetensors`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .lora_file import load_lora, read_safetensors
from .lora_tensors import LoraWeights

_COMPONENTS = {"unet": "UNet", "te": "text encoder", "te1": "text encoder 1", "te2": "text encoder 2"}
_SETTINGS = (  # label, name in our own settings, name in sd-scripts' metadata
    ("steps", None, "ss_steps"),
    ("epochs", None, "ss_epoch"),
    ("pictures", None, "ss_num_train_images"),
    ("resolution", None, "ss_resolution"),
    ("learning rate", "learning_rate", "ss_learning_rate"),
    ("text encoder learning rate", "text_encoder_lr", "ss_text_encoder_lr"),
    ("optimizer", "optimizer", "ss_optimizer"),
    ("schedule", "lr_scheduler", "ss_lr_scheduler"),
    ("warm-up steps", "lr_warmup_steps", "ss_lr_warmup_steps"),
    ("batch size", "batch_size", "ss_batch_size_per_device"),
    ("gradient accumulation", "gradient_accumulation_steps", "ss_gradient_accumulation_steps"),
    ("precision", "mixed_precision", "ss_mixed_precision"),
    ("min-SNR gamma", "min_snr_gamma", "ss_min_snr_gamma"),
    ("noise offset", "noise_offset", "ss_noise_offset"),
    ("seed", "seed", "ss_seed"),
)


def inspect_file(path: str | Path, as_json: bool = False) -> str:
    """A readable report on a LoRA file, or the same facts as one JSON object. ValueError when the file cannot be used."""
    facts = inspect_data(path)
    if as_json:
        return json.dumps(facts, ensure_ascii=False, indent=2)
    lines = [
        ("file", facts["file"]),
        ("size", f"{facts['bytes'] / 1e6:.2f} MB, {', '.join(facts['types'])}"),
        ("format", facts["format"]),
        ("method", facts["method"]),
    ]
    for name, part in facts["components"].items():
        convs = f", {part['conv_layers']} of them convolutions" if part["conv_layers"] else ""
        ranks = f"rank {_span(part['ranks'])}, alpha {_span(part['alphas'])}"
        lines.append((_COMPONENTS.get(name, name), f"{part['layers']} layers{convs}, {ranks}"))
    base = ", ".join(str(facts["base"][key]) for key in ("name", "version") if facts["base"][key])
    lines.append(("base", base or "not stated"))
    if facts["base"]["hash"]:
        lines.append(("base hash", facts["base"]["hash"]))
    lines.append(("trigger", facts["trigger"] or "not stated"))
    if facts["tags"]:
        lines.append(("frequent tags", ", ".join(f"{tag} ({count})" for tag, count in list(facts["tags"].items())[:10])))
    lines += list(facts["settings"].items()) or [("training settings", "not stated")]
    width = max(len(label) for label, _ in lines)
    return "\n".join(f"{label:<{width}}  {_plain(value)}" for label, value in lines)


def inspect_data(path: str | Path) -> dict[str, Any]:
    """The facts behind `inspect_file`: format, numbers per component, base, trigger, tags, settings, and the whole metadata."""
    path = Path(path)
    weights, metadata = load_lora(path)
    tensors, _ = read_safetensors(path)
    own = _json(metadata, "hotlora.config")
    return {
        "file": path.name,
        "bytes": path.stat().st_size,
        "types": sorted({str(tensor.dtype)[6:] for key, tensor in tensors.items() if not key.endswith(".alpha")}),
        "format": _format(tensors),
        "method": "DoRA" if any("dora_scale" in layer for layer in weights.values()) else "LoRA",
        "components": _components(weights),
        "base": {
            "name": metadata.get("ss_sd_model_name", ""),
            "version": metadata.get("ss_base_model_version") or metadata.get("modelspec.architecture", ""),
            "hash": metadata.get("ss_new_sd_model_hash") or metadata.get("ss_sd_model_hash", ""),
        },
        "trigger": metadata.get("hotlora.trigger") or metadata.get("modelspec.trigger_phrase", ""),
        "tags": _tags(metadata),
        "settings": {
            label: value
            for label, ours, theirs in _SETTINGS
            if (value := own.get(ours, metadata.get(theirs))) not in (None, "None", "")
        },
        "metadata": metadata,
    }


def _components(weights: LoraWeights) -> dict[str, dict[str, Any]]:
    parts: dict[str, dict[str, Any]] = {}
    for prefix, layer in weights.items():
        component = prefix.split("_")[1]
        part = parts.setdefault(component, {"layers": 0, "conv_layers": 0, "ranks": set(), "alphas": set()})
        part["layers"] += 1
        part["conv_layers"] += layer["down"].ndim == 4 and layer["down"].shape[2:].numel() > 1
        part["ranks"].add(layer["down"].shape[0])
        part["alphas"].add(round(layer["alpha"], 4))
    return {
        name: {**part, "ranks": sorted(part["ranks"]), "alphas": sorted(part["alphas"])} for name, part in sorted(parts.items())
    }


def _format(tensors: dict[str, Any]) -> str:
    if any(key.startswith("lora_") for key in tensors):
        return "kohya"
    in_diffusers = (".lora_A.", ".lora.", "_lora.", ".lora_linear_layer.")
    return "diffusers / PEFT" if any(part in key for key in tensors for part in in_diffusers) else "ComfyUI"


def _tags(metadata: dict[str, str]) -> dict[str, int]:
    """Tags of all folders together, the most frequent first."""
    counts: dict[str, int] = {}
    for folder in _json(metadata, "ss_tag_frequency").values():
        for tag, count in folder.items() if isinstance(folder, dict) else ():
            if isinstance(count, int):
                counts[tag.strip()] = counts.get(tag.strip(), 0) + count
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _json(metadata: dict[str, str], key: str) -> dict[str, Any]:
    """A JSON object of the metadata; other programs write what they like, and what is no object says nothing."""
    try:
        value = json.loads(metadata.get(key, "{}"))
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _span(values: list[float]) -> str:
    return f"{values[0]:g}" if len(values) == 1 else f"{values[0]:g} to {values[-1]:g}"


def _plain(value: Any) -> str:
    """One line, without control characters: metadata is somebody else's text on the user's terminal."""
    return "".join(character if character.isprintable() else " " for character in str(value))
