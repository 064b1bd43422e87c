"""Stable Diffusion models with random weights: diffusers folders and single files in the original layout, tiny or full-size.

Weights are normal with a standard deviation of 1/sqrt(fan-in), norms 1, biases 0, and the denoiser's last layer is scaled
down so that sampling stays finite. The single files are laid out after the original code's construction of its modules, block
by block, and not by turning diffusers' names round: they are what the reading of such files is tested with.
"""
from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import torch
from safetensors.torch import save_file

SHAPES_DIR = Path(__file__).parent.parent / "trainer" / "hosts" / "diffusers_models"
UNET, VAE = "model.diffusion_model.", "first_stage_model."
Weights = dict


def full_shapes(family: str) -> dict:
    """The published shapes of `sd15`, `sd2` or `sdxl`."""
    return json.loads((SHAPES_DIR / f"{family}.json").read_text(encoding="utf-8"))


def tiny_shapes(family: str) -> dict:
    """The same kinds of parts, a few million parameters in all, most of them the vocabulary's; 32x32 pixels."""
    shapes = copy.deepcopy(full_shapes(family))
    levels = len(shapes["unet"]["block_out_channels"])
    context = 32 if family != "sdxl" else 32 + 48
    shapes["resolution"] = 32
    shapes["unet"].update(
        sample_size=16, block_out_channels=[32, 32, 64, 64][:levels], cross_attention_dim=context, norm_num_groups=8,
        attention_head_dim=2 if family == "sd15" else [2, 2, 4, 4][:levels])
    if family == "sdxl":
        shapes["unet"].update(transformer_layers_per_block=[1, 1, 2], addition_time_embed_dim=8,
                              projection_class_embeddings_input_dim=48 + 6 * 8)
    shapes["vae"].update(
        sample_size=32, block_out_channels=[16, 32], norm_num_groups=8, layers_per_block=1,
        down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2)
    for encoder, width in zip(shapes["text_encoders"], (32, 48)):
        encoder["config"].update(
            hidden_size=width, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, projection_dim=width)
    return shapes


def write_checkpoint(path: Path, shapes: dict, dtype: torch.dtype = torch.float32, seed: int = 0, metadata: dict | None = None,
                     extra: Weights | None = None) -> Weights:
    """Write a single file in the original layout and return what it holds."""
    weights = {**checkpoint_weights(shapes, seed), **(extra or {})}
    weights = {name: tensor.to(dtype).contiguous() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, str(path), metadata=metadata)
    return weights


def checkpoint_weights(shapes: dict, seed: int = 0) -> Weights:
    builder = _Builder(seed)
    _unet(builder, shapes["unet"])
    _vae(builder, shapes["vae"])
    for encoder in shapes["text_encoders"]:
        (_clip if encoder["layout"] == "clip" else _open_clip)(builder, encoder["prefix"], encoder["config"])
    return builder.weights


def vega_weights() -> Weights:
    """An SDXL of Segmind-Vega's shape, the smallest that ComfyUI and Forge know: fewer transformer blocks, and none in the middle."""
    shapes = full_shapes("sdxl")
    shapes["unet"]["transformer_layers_per_block"] = [1, 1, 2]
    middle = tuple(f"{UNET}middle_block.{part}." for part in (1, 2))
    return {name: x for name, x in checkpoint_weights(shapes).items() if not name.startswith(middle)}


def write_folder(path: Path, shapes: dict, seed: int = 0, **scheduler_settings) -> Path:
    """Write a diffusers folder with random weights of these shapes."""
    pipeline(shapes, seed, **scheduler_settings).save_pretrained(str(path), safe_serialization=True)
    return path


def pipeline(shapes: dict, seed: int = 0, **scheduler_settings):
    """A diffusers pipeline with random weights and the tokenizer of CLIP."""
    import diffusers
    import transformers

    from hotlora.trainer.hosts.parts import clip_tokenizer

    torch.manual_seed(seed)
    encoders = [getattr(transformers, e["class"])(transformers.CLIPTextConfig(**e["config"], pad_token_id=e["pad_token_id"]))
                for e in shapes["text_encoders"]]
    settings = {**shapes["scheduler"], **scheduler_settings}
    scheduler = getattr(diffusers, settings.pop("class"))(**settings)
    parts = dict(unet=diffusers.UNet2DConditionModel(**shapes["unet"]), vae=diffusers.AutoencoderKL(**shapes["vae"]),
                 text_encoder=encoders[0], tokenizer=clip_tokenizer(), scheduler=scheduler)
    if len(encoders) == 2:
        return diffusers.StableDiffusionXLPipeline(**parts, text_encoder_2=encoders[1], tokenizer_2=clip_tokenizer())
    return diffusers.StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)


def backend_of_file(path: Path, family: str):
    """The backend over a single file of `tiny_shapes(family)`."""
    from hotlora.trainer.hosts.single_file import load_single_file
    from hotlora.trainer.hosts.standalone import StandaloneBackend

    cpu = torch.device("cpu")
    return StandaloneBackend(load_single_file(path, cpu, torch.float32, tiny_shapes(family)), cpu, torch.float32)


def predict(backend, prompt: str = "a photo of a cat, highly detailed!") -> torch.Tensor:
    """What the denoiser of a tiny model makes of one fixed noise."""
    z_BCHW = torch.randn(1, backend.latent_channels, 16, 16, generator=torch.Generator().manual_seed(5))
    return backend.predict(z_BCHW, torch.tensor([400]), backend.encode_text([prompt]), torch.tensor([[32.0, 32, 0, 0, 32, 32]]))

LAST_BIAS = 0.05
"""Of a text encoder's last norm. stable-diffusion-webui divides by the mean of its output, which is 0 in no trained encoder."""


class _Builder:
    """Collects named random weights."""

    def __init__(self, seed: int) -> None:
        self.weights: Weights = {}
        self.generator = torch.Generator().manual_seed(seed)

    def layer(self, name: str, *shape: int, bias: bool = True, scale: float = 1.0) -> None:
        self.parameter(f"{name}.weight", *shape, scale=scale)
        if bias:
            self.weights[f"{name}.bias"] = torch.zeros(shape[0])

    def norm(self, name: str, width: int, bias: float = 0.0) -> None:
        self.weights[f"{name}.weight"] = torch.ones(width)
        self.weights[f"{name}.bias"] = torch.full((width,), bias)

    def parameter(self, name: str, *shape: int, scale: float = 1.0) -> None:
        fan_in = math.prod(shape[1:])
        self.weights[name] = torch.randn(shape, generator=self.generator) * (scale / math.sqrt(fan_in))


def _unet(b: _Builder, shape: dict) -> None:
    widths, layers = shape["block_out_channels"], shape["layers_per_block"]
    time, first = 4 * widths[0], widths[0]
    attends = ["CrossAttn" in kind for kind in shape["down_block_types"]]
    depths = shape.get("transformer_layers_per_block", 1)
    depths = [depths] * len(widths) if isinstance(depths, int) else depths
    b.layer(UNET + "time_embed.0", time, first)
    b.layer(UNET + "time_embed.2", time, time)
    if "addition_embed_type" in shape:
        b.layer(UNET + "label_emb.0.0", time, shape["projection_class_embeddings_input_dim"])
        b.layer(UNET + "label_emb.0.2", time, time)

    def block(name: str, inner: int, outer: int, level: int, attention: bool) -> None:
        _res_block(b, f"{UNET}{name}.0", inner, outer, time)
        if attention:
            linear = shape.get("use_linear_projection", False)
            _transformer(b, f"{UNET}{name}.1", outer, shape["cross_attention_dim"], depths[level], linear)

    b.layer(UNET + "input_blocks.0.0", first, shape["in_channels"], 3, 3)
    width, skips, number = first, [first], 1
    for level, wanted in enumerate(widths):
        for _ in range(layers):
            block(f"input_blocks.{number}", width, wanted, level, attends[level])
            width, number = wanted, number + 1
            skips.append(width)
        if level < len(widths) - 1:
            b.layer(f"{UNET}input_blocks.{number}.0.op", width, width, 3, 3)
            number += 1
            skips.append(width)
    block("middle_block", width, width, len(widths) - 1, True)
    _res_block(b, UNET + "middle_block.2", width, width, time)
    number = 0
    for level in reversed(range(len(widths))):
        for layer in range(layers + 1):
            block(f"output_blocks.{number}", width + skips.pop(), widths[level], level, attends[level])
            width = widths[level]
            if level > 0 and layer == layers:
                b.layer(f"{UNET}output_blocks.{number}.{2 if attends[level] else 1}.conv", width, width, 3, 3)
            number += 1
    b.norm(UNET + "out.0", width)
    b.layer(UNET + "out.2", shape["out_channels"], width, 3, 3, scale=0.3)


def _res_block(b: _Builder, name: str, inner: int, outer: int, time: int) -> None:
    b.norm(f"{name}.in_layers.0", inner)
    b.layer(f"{name}.in_layers.2", outer, inner, 3, 3)
    b.layer(f"{name}.emb_layers.1", outer, time)
    b.norm(f"{name}.out_layers.0", outer)
    b.layer(f"{name}.out_layers.3", outer, outer, 3, 3)
    if inner != outer:
        b.layer(f"{name}.skip_connection", outer, inner, 1, 1)


def _transformer(b: _Builder, name: str, width: int, context: int, depth: int, linear: bool) -> None:
    ends = () if linear else (1, 1)
    b.norm(f"{name}.norm", width)
    b.layer(f"{name}.proj_in", width, width, *ends)
    for i in range(depth):
        block = f"{name}.transformer_blocks.{i}"
        for attention, source in (("attn1", width), ("attn2", context)):
            b.layer(f"{block}.{attention}.to_q", width, width, bias=False)
            b.layer(f"{block}.{attention}.to_k", width, source, bias=False)
            b.layer(f"{block}.{attention}.to_v", width, source, bias=False)
            b.layer(f"{block}.{attention}.to_out.0", width, width)
        b.layer(f"{block}.ff.net.0.proj", 8 * width, width)
        b.layer(f"{block}.ff.net.2", width, 4 * width)
        for k in (1, 2, 3):
            b.norm(f"{block}.norm{k}", width)
    b.layer(f"{name}.proj_out", width, width, *ends)


def _vae(b: _Builder, shape: dict) -> None:
    widths, layers, latent = shape["block_out_channels"], shape["layers_per_block"], shape["latent_channels"]
    b.layer(VAE + "encoder.conv_in", widths[0], shape["in_channels"], 3, 3)
    width = widths[0]
    for level, wanted in enumerate(widths):
        for layer in range(layers):
            _vae_block(b, f"{VAE}encoder.down.{level}.block.{layer}", width, wanted)
            width = wanted
        if level < len(widths) - 1:
            b.layer(f"{VAE}encoder.down.{level}.downsample.conv", width, width, 3, 3)
    _vae_middle(b, VAE + "encoder", width)
    b.norm(VAE + "encoder.norm_out", width)
    b.layer(VAE + "encoder.conv_out", 2 * latent, width, 3, 3)
    b.layer(VAE + "decoder.conv_in", width, latent, 3, 3)
    _vae_middle(b, VAE + "decoder", width)
    for level in reversed(range(len(widths))):
        for layer in range(layers + 1):
            _vae_block(b, f"{VAE}decoder.up.{level}.block.{layer}", width, widths[level])
            width = widths[level]
        if level > 0:
            b.layer(f"{VAE}decoder.up.{level}.upsample.conv", width, width, 3, 3)
    b.norm(VAE + "decoder.norm_out", width)
    b.layer(VAE + "decoder.conv_out", shape["out_channels"], width, 3, 3)
    b.layer(VAE + "quant_conv", 2 * latent, 2 * latent, 1, 1)
    b.layer(VAE + "post_quant_conv", latent, latent, 1, 1)


def _vae_block(b: _Builder, name: str, inner: int, outer: int) -> None:
    b.norm(f"{name}.norm1", inner)
    b.layer(f"{name}.conv1", outer, inner, 3, 3)
    b.norm(f"{name}.norm2", outer)
    b.layer(f"{name}.conv2", outer, outer, 3, 3)
    if inner != outer:
        b.layer(f"{name}.nin_shortcut", outer, inner, 1, 1)


def _vae_middle(b: _Builder, part: str, width: int) -> None:
    _vae_block(b, f"{part}.mid.block_1", width, width)
    b.norm(f"{part}.mid.attn_1.norm", width)
    for name in ("q", "k", "v", "proj_out"):
        b.layer(f"{part}.mid.attn_1.{name}", width, width, 1, 1)
    _vae_block(b, f"{part}.mid.block_2", width, width)


def _clip(b: _Builder, prefix: str, config: dict) -> None:
    width, model = config["hidden_size"], prefix + "text_model."
    b.weights[model + "embeddings.position_ids"] = torch.arange(config["max_position_embeddings"])[None]
    b.parameter(model + "embeddings.token_embedding.weight", config["vocab_size"], width)
    b.parameter(model + "embeddings.position_embedding.weight", config["max_position_embeddings"], width)
    for i in range(config["num_hidden_layers"]):
        layer = f"{model}encoder.layers.{i}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            b.layer(f"{layer}.self_attn.{name}", width, width)
        b.layer(f"{layer}.mlp.fc1", config["intermediate_size"], width)
        b.layer(f"{layer}.mlp.fc2", width, config["intermediate_size"])
        b.norm(f"{layer}.layer_norm1", width)
        b.norm(f"{layer}.layer_norm2", width)
    b.norm(model + "final_layer_norm", width, LAST_BIAS)


def _open_clip(b: _Builder, prefix: str, config: dict) -> None:
    width = config["hidden_size"]
    b.parameter(prefix + "token_embedding.weight", config["vocab_size"], width)
    b.parameter(prefix + "positional_embedding", config["max_position_embeddings"], width)
    b.parameter(prefix + "text_projection", width, config["projection_dim"])
    b.weights[prefix + "logit_scale"] = torch.tensor(4.6)
    # SD2 uses the last but one layer with the final norm, so one layer more is stored than used; SDXL stores all.
    for i in range(config["num_hidden_layers"] + (prefix == "cond_stage_model.model.")):
        layer = f"{prefix}transformer.resblocks.{i}"
        b.parameter(f"{layer}.attn.in_proj_weight", 3 * width, width)
        b.weights[f"{layer}.attn.in_proj_bias"] = torch.randn(3 * width, generator=b.generator) * 0.1
        b.layer(f"{layer}.attn.out_proj", width, width)
        b.layer(f"{layer}.mlp.c_fc", config["intermediate_size"], width)
        b.layer(f"{layer}.mlp.c_proj", width, config["intermediate_size"])
        b.norm(f"{layer}.ln_1", width)
        b.norm(f"{layer}.ln_2", width)
    b.norm(prefix + "ln_final", width, LAST_BIAS)
