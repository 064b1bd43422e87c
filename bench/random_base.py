"""A base in the shape of Stable Diffusion 1.5, 2 or XL with random weights, made in memory: what a run needs is that of a real one."""
from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import __init__  # noqa: E402, F401  registers the project as the package `hotlora`

GALLERY = ROOT / "trainer" / "demo" / "gallery"


def random_base(family: str, device, dtype, tiny: bool = False):
    """A backend of "sd15", "sd2" or "sdxl"; of "demo" the embedded base. The autoencoder stays in float32, as when it is read from a file.

    `tiny`: the same kinds of parts with a few million weights, for 64x64 pixels.
    """
    import diffusers
    import torch
    import transformers

    from hotlora.trainer.hosts.parts import MODELS_DIR, Parts, TextEncoder, clip_tokenizer
    from hotlora.trainer.hosts.standalone import StandaloneBackend, load_base

    if family == "demo":
        return load_base("demo", str(device), dtype)
    shapes = json.loads((MODELS_DIR / f"{family}.json").read_text(encoding="utf-8"))
    if tiny:
        shrink(shapes, family)
    torch.manual_seed(0)
    encoders = []
    with torch.device(device):
        unet = diffusers.UNet2DConditionModel(**shapes["unet"]).to(dtype)
        vae = diffusers.AutoencoderKL(**shapes["vae"])
        for shape in shapes["text_encoders"]:
            module = getattr(transformers, shape["class"])(transformers.CLIPTextConfig(**shape["config"], pad_token_id=shape["pad_token_id"])).to(dtype)
            encoders.append(TextEncoder(module.requires_grad_(False).eval(), clip_tokenizer(), shape["pad_token_id"], family == "sdxl"))
    settings = {**shapes["scheduler"], "prediction_type": "epsilon"}
    scheduler = getattr(diffusers, settings.pop("class"))(**settings)
    parts = Parts(family, f"random-{family}", shapes["resolution"], unet.requires_grad_(False).eval(), vae.requires_grad_(False).eval(), encoders, scheduler)
    return StandaloneBackend(parts, device, dtype)


def shrink(shapes: dict, family: str) -> None:
    levels = len(shapes["unet"]["block_out_channels"])
    widths = (32, 48)[:len(shapes["text_encoders"])]
    shapes["resolution"] = 64
    shapes["unet"].update(sample_size=8, block_out_channels=[32, 32, 64, 64][:levels], cross_attention_dim=sum(widths), norm_num_groups=8,
                          attention_head_dim=2 if family == "sd15" else [2, 2, 4, 4][:levels])
    if family == "sdxl":
        shapes["unet"].update(transformer_layers_per_block=[1, 1, 2], addition_time_embed_dim=8, projection_class_embeddings_input_dim=widths[-1] + 6 * 8)
    shapes["vae"].update(sample_size=64, block_out_channels=[16, 16, 32, 32], norm_num_groups=8, layers_per_block=1)
    for encoder, width in zip(shapes["text_encoders"], widths):
        encoder["config"].update(hidden_size=width, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, projection_dim=width)
