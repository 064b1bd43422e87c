"""Stable Diffusion in diffusers form: a folder with `model_index.json` and one sub-folder per part."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from ..lora_keys import text_path
from .parts import Parts, TextEncoder, fill, opened


def load_folder(folder: Path, device: torch.device, dtype: torch.dtype) -> Parts:
    """Read a folder with no network. The autoencoder is kept in float32, because SDXL's overflows in half precision."""
    import diffusers

    index = _read_json(folder / "model_index.json")
    is_xl = "text_encoder_2" in index and index["text_encoder_2"][0] is not None
    if "unet" not in index or "text_encoder" not in index or index["text_encoder"][0] is None:
        raise ValueError(f"{folder} is a {index.get('_class_name', 'pipeline of an unknown kind')}; "
                         "without a host only Stable Diffusion 1.x, 2.x and XL can be trained")
    unet = _load(diffusers.UNet2DConditionModel, folder, "unet", device, dtype)
    vae = _load(diffusers.AutoencoderKL, folder, "vae", device, torch.float32)
    if unet.config["in_channels"] != vae.config["latent_channels"]:
        raise ValueError(f"{folder} takes {unet.config['in_channels']} latent channels (an inpainting or editing model); "
                         "train on the text-to-image model that it was made from")
    names = ("text_encoder", "text_encoder_2") if is_xl else ("text_encoder",)
    encoders = [_text_encoder(folder, index, name, device, dtype, penultimate=is_xl) for name in names]
    scheduler = getattr(diffusers, index["scheduler"][1]).from_pretrained(folder, subfolder="scheduler", local_files_only=True)
    if not hasattr(scheduler, "alphas_cumprod"):
        raise ValueError(f"{folder} has a {type(scheduler).__name__}; "
                         "without a host only the schedules of SD 1.x, 2.x and XL can be trained")
    factor = 2 ** (len(vae.config["block_out_channels"]) - 1)
    sample_size = unet.config["sample_size"] or 64
    side = sample_size if isinstance(sample_size, int) else min(sample_size)
    family = _family(is_xl, unet.config["cross_attention_dim"])
    return Parts(family, folder.resolve().name, side * factor, unet, vae, encoders, scheduler, files_of(folder, names))


def files_of(folder: Path, text_encoders: tuple[str, ...] | None = None) -> list[Path]:
    """All files with weights, in the order in which the base's hash is taken of them. ValueError for a folder that is no pipeline."""
    if text_encoders is None:
        index = _read_json(folder / "model_index.json")
        text_encoders = tuple(name for name in ("text_encoder", "text_encoder_2") if (index.get(name) or [None])[0] is not None)
    return [file for name in ("unet", "vae", *text_encoders) for file in weight_files(folder / name)]


def _family(is_xl: bool, context: int) -> str:
    """A context of another width than the published ones belongs to a miniature, such as the embedded base."""
    return "sdxl" if is_xl else {768: "sd15", 1024: "sd2"}.get(context, "demo")


def _text_encoder(folder: Path, index: dict, name: str, device: torch.device, dtype: torch.dtype,
                  penultimate: bool) -> TextEncoder:
    """Read by hand: transformers shows a bar of its own, and some of its releases know other names of the same weights."""
    import transformers

    part = folder / name
    kind = getattr(transformers, index[name][1])
    weights = {}
    for file in weight_files(part):
        with opened(file) as reader:
            weights.update((text_path(key), reader.get_tensor(key)) for key in reader.keys() if not key.endswith("position_ids"))
    with torch.device("meta"):
        module = kind(transformers.CLIPTextConfig.from_dict(_read_json(part / "config.json")))
    fill(module, lambda key: weights.get(text_path(key)), device, dtype, part)
    tokenizer_folder = folder / name.replace("text_encoder", "tokenizer")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(tokenizer_folder, local_files_only=True)
    return TextEncoder(module, tokenizer, tokenizer.pad_token_id, penultimate)


def _load(kind: Any, folder: Path, name: str, device: torch.device, dtype: torch.dtype) -> torch.nn.Module:
    part = folder / name
    half_only = all(".fp16." in file.name for file in weight_files(part))
    try:
        module = kind.from_pretrained(part, local_files_only=True, use_safetensors=True, torch_dtype=dtype,
                                      variant="fp16" if half_only else None)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{part} cannot be loaded ({_first_line(error)}); download or copy it again") from error
    return module.to(device).requires_grad_(False).eval()


def weight_files(part: Path) -> list[Path]:
    """The weights of one part of a pipeline: the full ones, or where only those are there the half-precision variant's."""
    files = sorted(part.glob("*.safetensors"))
    if not files:
        found = "only pickles (.bin), which can run code when opened" if any(part.glob("*.bin")) else "no weights"
        raise ValueError(f"{part} holds {found}; save the pipeline again with safe_serialization=True")
    return [file for file in files if ".fp16." not in file.name] or files


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read ({error}); download or copy the model again") from error
