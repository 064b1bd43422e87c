"""Stable Diffusion 1.x, 2.x and XL from one `.safetensors` file in the original layout, with no network."""
from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..lora_keys import layout_of, text_path
from .ldm_names import open_clip_name, unet_name, vae_name
from .parts import MODELS_DIR, Parts, TextEncoder, clip_tokenizer, fill, opened

UNET, VAE = "model.diffusion_model.", "first_stage_model."
log = logging.getLogger(__name__)


class Checkpoint:
    """An open single file: its names, its metadata, and tensors by name."""

    def __init__(self, path: Path, reader: Any) -> None:
        self.path, self.reader = path, reader
        self.names = set(reader.keys())
        self.metadata = reader.metadata() or {}

    def shape(self, name: str) -> list[int]:
        return list(self.reader.get_slice(name).get_shape())

    def tensor(self, name: str, third: int | None = None) -> torch.Tensor | None:
        """A tensor, or one third of it (q, k and v stored as one); None when the file does not have it."""
        if name not in self.names:
            return None
        tensor = self.reader.get_tensor(name)
        if third is not None:
            tensor = tensor.chunk(3)[third]
        return tensor.T if name.endswith("text_projection") else tensor


def load_single_file(path: Path, device: torch.device, dtype: torch.dtype, shapes: dict | None = None) -> Parts:
    """Read a checkpoint; `shapes` replaces the family's file of `diffusers_models/` (for miniatures).

    The autoencoder is kept in float32, because SDXL's overflows in half precision.
    """
    with opened(path) as reader:
        return _load(Checkpoint(path, reader), device, dtype, shapes)


def _load(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, shapes: dict | None) -> Parts:
    from diffusers import AutoencoderKL, UNet2DConditionModel

    family = family_of(checkpoint)
    shapes = shapes or json.loads((MODELS_DIR / f"{family}.json").read_text(encoding="utf-8"))
    with torch.device("meta"):
        unet, vae = UNet2DConditionModel(**shapes["unet"]), AutoencoderKL(**shapes["vae"])
    layout = layout_of(path for path, _ in unet.named_modules())
    fill(unet, lambda key: checkpoint.tensor(UNET + unet_name(key, layout)), device, dtype, checkpoint.path)
    fill(vae, lambda key: checkpoint.tensor(VAE + vae_name(key, vae.config)), device, torch.float32, checkpoint.path)
    encoders = [_text_encoder(checkpoint, shape, device, dtype, family == "sdxl") for shape in shapes["text_encoders"]]
    settings = {**shapes["scheduler"], **_prediction_settings(checkpoint, family, unet, encoders)}
    resolution = shapes["resolution"]
    if family == "sd2" and settings["prediction_type"] == "epsilon":
        resolution = min(resolution, 512)  # "2-base" was trained at 512, its v-prediction sibling at 768
    return Parts(family, checkpoint.path.stem, resolution, unet, vae, encoders, _scheduler(settings), [checkpoint.path])


def family_of(checkpoint: Checkpoint) -> str:
    """`sd15`, `sd2` or `sdxl`, told from names and shapes; raises ValueError, saying what the file is instead."""
    names, path = checkpoint.names, checkpoint.path
    if any(".lora_" in name or "lora_unet" in name for name in names):
        raise ValueError(f"{path} is a LoRA, not a base model; give it as init_lora, and a full checkpoint as base_model")
    first = UNET + "input_blocks.0.0.weight"
    if first not in names:
        raise ValueError(f"{path} holds no Stable Diffusion denoiser in the original layout ({first} is missing); "
                         "without a host only SD 1.x, 2.x and XL checkpoints and diffusers folders can be trained")
    if checkpoint.shape(first)[1] != 4:
        raise ValueError(f"{path} takes {checkpoint.shape(first)[1]} latent channels (an inpainting or editing model); "
                         "train on the text-to-image model that it was made from")
    if any(name.startswith("conditioner.embedders.1.model.") for name in names):
        return "sdxl"
    if any(name.startswith("conditioner.") for name in names):
        raise ValueError(f"{path} is an SDXL refiner; train on the SDXL base model instead")
    if any(name.startswith("cond_stage_model.model.") for name in names):
        return "sd2"
    if any(name.startswith("cond_stage_model.transformer.") for name in names):
        return "sd15"
    raise ValueError(f"{path} holds no text encoder; "
                     "it must be a complete checkpoint with denoiser, autoencoder and text encoders")


def _text_encoder(checkpoint: Checkpoint, shape: dict, device: torch.device, dtype: torch.dtype,
                  penultimate: bool) -> TextEncoder:
    import transformers

    config = transformers.CLIPTextConfig(**shape["config"], pad_token_id=shape["pad_token_id"])
    with torch.device("meta"):
        module = getattr(transformers, shape["class"])(config)
    prefix = shape["prefix"]

    def weight_of(key: str) -> torch.Tensor | None:
        if shape["layout"] == "open_clip":
            name, third = open_clip_name(key)
            return checkpoint.tensor(prefix + name, third)
        # Some merging tools drop "text_model." from the names.
        name = text_path(key)
        found = checkpoint.tensor(prefix + name)
        return checkpoint.tensor(prefix + name[len("text_model."):]) if found is None else found

    fill(module, weight_of, device, dtype, checkpoint.path)
    return TextEncoder(module, clip_tokenizer(), shape["pad_token_id"], penultimate)


def _prediction_settings(checkpoint: Checkpoint, family: str, unet: nn.Module, encoders: list[TextEncoder]) -> dict[str, Any]:
    """What the denoiser predicts: by the file's marks, then its metadata, then (SD2, where files say nothing) by asking it."""
    if "v_pred" in checkpoint.names:
        zero_snr = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if "ztsnr" in checkpoint.names else {}
        return {"prediction_type": "v_prediction", **zero_snr}
    metadata = checkpoint.metadata
    told = (metadata.get("modelspec.prediction_type") or metadata.get("modelspec.predict_key") or "").lower()
    if told:
        return {"prediction_type": "v_prediction" if told.startswith("v") else "epsilon"}
    if family != "sd2":
        return {"prediction_type": "epsilon"}
    with torch.no_grad():
        hidden_BLD, _ = encoders[0]([""])
        kind = "epsilon" if predicts_noise(unet, hidden_BLD) else "v_prediction"
    log.info("%s does not say what it predicts; by its answer to pure noise it is %s", checkpoint.path.name, kind)
    return {"prediction_type": kind}


def predicts_noise(unet: nn.Module, hidden_BLD: torch.Tensor) -> bool:
    """Whether a denoiser predicts epsilon rather than v. At the last timestep the input is nearly all noise: epsilon is then
    the input itself, while v is nearly the negative of the picture, which has little to do with it."""
    weight = next(unet.parameters())
    z_1CHW = torch.randn(1, unet.config["in_channels"], 32, 32, generator=torch.Generator().manual_seed(0)).to(weight)
    out_1CHW = unet(z_1CHW, torch.tensor([999], device=weight.device), encoder_hidden_states=hidden_BLD.to(weight)).sample
    return F.cosine_similarity(out_1CHW.float().flatten(), z_1CHW.float().flatten(), dim=0).item() > 0.5


def _scheduler(settings: dict[str, Any]) -> Any:
    import diffusers

    settings = dict(settings)
    return getattr(diffusers, settings.pop("class"))(**settings)
