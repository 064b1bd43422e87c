"""Tiny Stable Diffusion models with random weights whose layers have the names of the real ones, and LoRAs for them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hotlora.trainer.lora_file import weight_shape
from hotlora.trainer.lora_keys import SDXL_LAYOUT, ldm_path, text_path

ATTENTION_DOWN, PLAIN_DOWN = "CrossAttnDownBlock2D", "DownBlock2D"
ATTENTION_UP, PLAIN_UP = "CrossAttnUpBlock2D", "UpBlock2D"


def tiny_unet(family: str = "sd15") -> nn.Module:
    """The UNet of SD1.5, SD2 (linear projections) or SDXL with 16 or 32 channels: as many blocks, the same names."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(1)
    shape = dict(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=2,
        norm_num_groups=8,
        cross_attention_dim=32,
        attention_head_dim=2,
    )
    if family == "sdxl":
        shape.update(
            block_out_channels=(16, 32, 32),
            down_block_types=(PLAIN_DOWN, ATTENTION_DOWN, ATTENTION_DOWN),
            up_block_types=(ATTENTION_UP, ATTENTION_UP, PLAIN_UP),
            transformer_layers_per_block=(1, 2, 3),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=48 + 32,
        )
    else:
        shape.update(
            block_out_channels=(16, 16, 32, 32),
            down_block_types=(ATTENTION_DOWN,) * 3 + (PLAIN_DOWN,),
            up_block_types=(PLAIN_UP,) + (ATTENTION_UP,) * 3,
            use_linear_projection=family == "sd2",
        )
    return diffusers.UNet2DConditionModel(**shape).eval().requires_grad_(False)


def tiny_text_encoder(projection: bool = False) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(2)
    config = CLIPTextConfig(
        vocab_size=100,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        projection_dim=32,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval().requires_grad_(False)


def tiny_pipeline(unet: nn.Module, text_encoder: nn.Module):
    """A real pipeline without a tokenizer: embeddings go in."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline

    torch.manual_seed(3)
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4, sample_size=8).eval()
    pipe = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=None,
        unet=unet,
        scheduler=DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def draw(pipe) -> torch.Tensor:
    """A picture (H, W, 3) in [0, 1] from fixed noise and fixed tokens, through the text encoder as it is now."""
    hidden_BLD = pipe.text_encoder(torch.arange(16)[None]).last_hidden_state
    picture = pipe(
        prompt_embeds=hidden_BLD,
        negative_prompt_embeds=torch.zeros_like(hidden_BLD),
        num_inference_steps=2,
        guidance_scale=2.0,
        height=8,
        width=8,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).images[0]
    return torch.from_numpy(picture)


def kohya_key(component: str, path: str) -> str:
    """The key that a backend gives to a layer of SD1.5 and SD2, and to SDXL's text encoders."""
    return f"lora_{component}_{(path if component == 'unet' else text_path(path)).replace('.', '_')}"


def sdxl_key(component: str, path: str) -> str:
    return kohya_key(component, ldm_path(path, SDXL_LAYOUT) if component == "unet" else path)


def layer_paths(root: nn.Module) -> dict[str, tuple[int, ...]]:
    """Path -> weight shape of every linear and conv layer."""
    shapes = {path: weight_shape(module) for path, module in root.named_modules()}
    return {path: shape for path, shape in shapes.items() if shape is not None}


def random_lora(
    components: dict[str, nn.Module],
    lora_key=kohya_key,
    rank: int = 4,
    conv_rank: int = 0,
    alpha: float = 2.0,
    dora: bool = False,
    size: float = 0.3,
) -> dict[str, dict]:
    """A LoRA with random weights for all linear layers, and for all convolutions when `conv_rank` is given."""
    generator = torch.Generator().manual_seed(7)
    weights = {}
    for component, root in components.items():
        for path, shape in layer_paths(root).items():
            layer_rank = rank if len(shape) == 2 else conv_rank
            if layer_rank and not path.endswith("text_projection"):
                down = torch.randn(layer_rank, *shape[1:], generator=generator) * size
                up = torch.randn(shape[0], layer_rank, *[1] * (len(shape) - 2), generator=generator) * size
                layer = {"down": down, "up": up, "alpha": alpha}
                if dora:
                    layer["dora_scale"] = torch.rand(shape[0], 1, *[1] * (len(shape) - 2), generator=generator) + 0.5
                weights[lora_key(component, path)] = layer
    return weights


@torch.no_grad()
def merge(components: dict[str, nn.Module], layers: dict[tuple[str, str], dict]) -> None:
    """Add a LoRA to the weights by its formula: W + up @ down * alpha / rank, and DoRA's rescaling of each output's row or input's column."""
    for (component, path), layer in layers.items():
        weight = components[component].get_submodule(path).weight
        change = torch.einsum("or,r...->o...", layer["up"].flatten(1), layer["down"]) * (layer["alpha"] / layer["down"].shape[0])
        merged = weight + change
        if "dora_scale" in layer:
            across = 0 if layer["dora_scale"].shape[0] == 1 else 1
            lengths = torch.linalg.vector_norm(merged, dim=[d for d in range(merged.ndim) if d != 1 - across], keepdim=True)
            merged = merged * (layer["dora_scale"] / lengths)
        weight.copy_(merged)
