"""Train the embedded base from scratch: a text-to-image latent diffusion model in miniature.

Parts and order are those of Stable Diffusion: an autoencoder; a CLIP text encoder, first trained against the pictures
(contrastive, Radford et al. 2021, 2103.00020); then a UNet with cross-attention, in v-prediction (2202.00512) with zero
terminal SNR (2305.08891), while the text encoder goes on learning. Every stage saves, and goes on from what it finds.
Run it as `python train.py train-base`; about 40 minutes on 2 CPU cores.
"""
from __future__ import annotations

import argparse
import copy
import json
import logging
import math
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from . import drawings
from .scenes import training_scene
from ..pixels import to_tensor

log = logging.getLogger(__name__)
MAX_TOKENS = 32
LATENT_CHANNELS = 12
BASE_DIR = Path(__file__).parent / "base"


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """A CLIP byte-pair vocabulary in which each word of the captions is one token and any other text is letters."""
    words = sorted({*drawings.COLOURS, *drawings.SHAPES, *map(drawings.plural, drawings.SHAPES), *drawings.COUNTS,
                    *drawings.BACKGROUNDS, *drawings.TEXTURES, "a", "photo", "picture", "of", "on", "background"})
    merges = _merges_of(words)
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(c + "</w>" for c in letters), *(a + b for a, b in merges), "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(f"{a} {b}" for a, b in merges)]) + "\n", encoding="utf-8")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=1))
    (folder / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "CLIPTokenizer", "model_max_length": MAX_TOKENS, "do_lower_case": True, **special}, indent=1))
    return CLIPTokenizer.from_pretrained(folder)


def _merges_of(words: list[str]) -> list[tuple[str, str]]:
    """Byte-pair merges (Sennrich et al. 2016), most frequent pair first, until every word is one token."""
    pieces = [[*word[:-1], word[-1] + "</w>"] for word in words]
    merges = []
    while True:
        pairs: dict[tuple[str, str], int] = {}
        for word in pieces:
            for pair in zip(word, word[1:]):
                pairs[pair] = pairs.get(pair, 0) + 1
        if not pairs:
            return merges
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        for word in pieces:
            i = 0
            while i < len(word) - 1:
                if (word[i], word[i + 1]) == best:
                    word[i:i + 2] = [word[i] + word[i + 1]]
                i += 1


def new_vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, block_out_channels=(16, 32, 64, 80),
        layers_per_block=1, latent_channels=LATENT_CHANNELS, norm_num_groups=4, sample_size=drawings.SIZE)


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256, projection_dim=128, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=MAX_TOKENS, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id))


def new_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=drawings.SIZE // 8, in_channels=LATENT_CHANNELS, out_channels=LATENT_CHANNELS, down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2, block_out_channels=(80, 112), layers_per_block=1, cross_attention_dim=128,
        attention_head_dim=4, norm_num_groups=16)


def new_scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing")


def train_vae(work: Path, steps: int, batch: int = 16) -> AutoencoderKL:
    vae = new_vae().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, weight_decay=1e-4, betas=(0.9, 0.99))
    start = _load(work / "vae", vae, optimizer)
    for step in range(start, steps):
        rng = random.Random(f"vae {step}")
        pictures = [drawings.draw_anything(rng) if rng.random() < 0.5 else drawings.draw_scene(training_scene(rng), rng) for _ in range(batch)]
        x_B3HW = torch.stack([to_tensor(p) for p in pictures]).to(memory_format=torch.channels_last)
        torch.manual_seed(step)
        posterior = vae.encode(x_B3HW).latent_dist
        y_B3HW = vae.decode(posterior.sample()).sample
        loss = F.mse_loss(y_B3HW, x_B3HW) + 1e-5 * posterior.kl().mean() / 64
        # Absolute errors make edges crisp, but from the start they settle on gray: half of all hues are on either side of it.
        if step > 0.55 * steps:
            loss = loss + 0.3 * (F.l1_loss(y_B3HW, x_B3HW) + F.l1_loss(_edges(y_B3HW), _edges(x_B3HW)))
        _step(optimizer, loss, 2e-3 * _warm_then_decay(step, steps, decay=0.5))
        if step % 50 == 0 or step == steps - 1:
            log.info("vae %d loss %.4f mse %.5f", step, loss.item(), F.mse_loss(y_B3HW, x_B3HW).item())
        if step % 250 == 249 or step == steps - 1:
            _save(work / "vae", vae, optimizer, step + 1)
    return vae.eval().requires_grad_(False)


def _edges(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([(x[..., 1:, :] - x[..., :-1, :]).flatten(2), (x[..., 1:] - x[..., :-1]).flatten(2)], dim=2)


@torch.no_grad()
def encode_pool(vae: AutoencoderKL, work: Path, count: int) -> tuple[torch.Tensor, list[drawings.Scene]]:
    """`count` training scenes with their latents, scaled to unit variance; the scale goes into the autoencoder's config."""
    rng = random.Random("pool")
    drawn = [(scene := training_scene(rng), drawings.draw_scene(scene, rng)) for _ in range(count)]
    file = work / f"pool-{count}.safetensors"
    if not file.exists():
        z = [vae.encode(torch.stack([to_tensor(p) for _, p in drawn[i:i + 64]]).to(memory_format=torch.channels_last)).latent_dist.mean.contiguous()
             for i in range(0, count, 64)]
        save_file({"z": torch.cat(z)}, file)
    z = load_file(file)["z"]
    vae.register_to_config(scaling_factor=round(1 / z.std().item(), 5))
    log.info("pool: %d pictures, scaling factor %.4f", count, vae.config.scaling_factor)
    return z * vae.config.scaling_factor, [scene for scene, _ in drawn]


def train_text_encoder(work: Path, tokenizer, pool, steps: int, batch: int = 192) -> CLIPTextModel:
    """Contrastive training of the text encoder against a small convolutional encoder of the latents, which is thrown away."""
    z, scenes = pool
    text = new_text_encoder(tokenizer)
    picture = torch.nn.Sequential(
        torch.nn.Conv2d(LATENT_CHANNELS, 64, 3, padding=1), torch.nn.GELU(), torch.nn.Conv2d(64, 96, 3, 2, padding=1), torch.nn.GELU(),
        torch.nn.Conv2d(96, 128, 3, padding=1), torch.nn.GELU(), torch.nn.Flatten(), torch.nn.Linear(128 * 16, 128))
    scale = torch.nn.Parameter(torch.tensor(2.5))
    both = torch.nn.ModuleDict({"text": text, "picture": picture})
    both.register_parameter("scale", scale)
    optimizer = torch.optim.AdamW(both.parameters(), lr=1e-3, weight_decay=0.01)
    start = _load(work / "clip", both, optimizer)
    for step in range(start, steps):
        rng = random.Random(f"clip {step}")
        index = [rng.randrange(len(scenes)) for _ in range(batch)]
        hidden = text(tokenize(tokenizer, [drawings.random_caption(scenes[i], rng) for i in index])).pooler_output
        similarity = F.normalize(hidden, dim=-1) @ F.normalize(picture(z[index]), dim=-1).T * scale.exp().clamp(max=50)
        # The same scene may stand in a batch twice: its captions then belong to both pictures.
        same = torch.tensor([[float(scenes[i] == scenes[j]) for j in index] for i in index])
        target = same / same.sum(1, keepdim=True)
        loss = (F.cross_entropy(similarity, target) + F.cross_entropy(similarity.T, target)) / 2
        _step(optimizer, loss, 1e-3 * _warm_then_decay(step, steps, decay=0.5))
        if step % 100 == 0 or step == steps - 1:
            log.info("clip %d loss %.4f", step, loss.item())
    if start < steps:
        _save(work / "clip", both, optimizer, steps)
    return text


def tokenize(tokenizer, captions: list[str]) -> torch.Tensor:
    return tokenizer(captions, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt").input_ids


def train_unet(work: Path, tokenizer, text: CLIPTextModel, pool, steps: int, batch: int = 64) -> torch.nn.ModuleDict:
    """Train the UNet and the text encoder together; returns their exponential moving average."""
    z, scenes = pool
    both = torch.nn.ModuleDict({"unet": new_unet().to(memory_format=torch.channels_last), "text": text})
    optimizer = torch.optim.AdamW([{"params": both["unet"].parameters(), "scale": 1.0}, {"params": text.parameters(), "scale": 0.3}],
                                  lr=1e-3, weight_decay=0.01, betas=(0.9, 0.98))
    average = copy.deepcopy(both).requires_grad_(False)
    start = _load(work / "unet", both, optimizer)
    if start:
        average.load_state_dict(load_file(work / "unet" / "average.safetensors"))
    scheduler = new_scheduler()
    began = time.monotonic()
    running = 0.0
    for step in range(start, steps):
        rng = random.Random(f"unet {step}")
        index = [rng.randrange(len(scenes)) for _ in range(batch)]
        captions = ["" if rng.random() < 0.1 else drawings.random_caption(scenes[i], rng) for i in index]
        torch.manual_seed(step)
        noise = torch.randn(batch, *z.shape[1:])
        t = torch.randint(0, 1000, (batch,))
        z_t = scheduler.add_noise(z[index], noise, t)
        out = both["unet"](z_t.contiguous(memory_format=torch.channels_last), t, text(tokenize(tokenizer, captions)).last_hidden_state).sample
        loss = F.mse_loss(out, scheduler.get_velocity(z[index], noise, t))
        _step(optimizer, loss, 1e-3 * _warm_then_decay(step, steps, decay=0.25))
        keep = min(0.9995, (1 + step) / (20 + step))
        with torch.no_grad():
            for a, p in zip(average.parameters(), both.parameters()):
                a.lerp_(p, 1 - keep)
        running = 0.98 * running + 0.02 * loss.item() if step > start else loss.item()
        if step % 100 == 0 or step == steps - 1:
            log.info("unet %d loss %.4f (%.2f s/step)", step, running, (time.monotonic() - began) / (step - start + 1))
        if step % 500 == 499 or step == steps - 1:
            _save(work / "unet", both, optimizer, step + 1)
            save_file(_contiguous(average), work / "unet" / "average.safetensors")
    return average.eval()


def _warm_then_decay(step: int, steps: int, decay: float, warm: int = 100) -> float:
    """Warm-up, constant, then linearly to a hundredth over the last `decay` of the steps."""
    left = (steps - step) / max(1, steps * decay)
    return min(1.0, (step + 1) / warm) * min(1.0, max(0.01, left))


def _step(optimizer, loss: torch.Tensor, lr: float) -> None:
    assert math.isfinite(loss.item()), "the loss is not a number"
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("scale", 1.0)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], 1.0)
    optimizer.step()


def _contiguous(module) -> dict[str, torch.Tensor]:
    return {k: v.detach().contiguous().clone() for k, v in module.state_dict().items()}


def _save(folder: Path, module, optimizer, step: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / "state.part"
    torch.save({"model": module.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, part)
    part.replace(folder / "state.pt")


def _load(folder: Path, module, optimizer) -> int:
    if not (folder / "state.pt").exists():
        return 0
    state = torch.load(folder / "state.pt", weights_only=True)
    module.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    log.info("%s: going on from step %d", folder.name, state["step"])
    return state["step"]


def save_base(folder: Path, vae, tokenizer, average) -> None:
    """Write the base in diffusers form, in half precision."""
    for name, part in (("vae", vae), ("unet", average["unet"]), ("text_encoder", average["text"])):
        copy.deepcopy(part).half().save_pretrained(folder / name, safe_serialization=True)
    new_scheduler().save_pretrained(folder / "scheduler")
    build_tokenizer(folder / "tokenizer")
    index = {"_class_name": "StableDiffusionPipeline", "vae": ["diffusers", "AutoencoderKL"], "unet": ["diffusers", "UNet2DConditionModel"],
             "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
             "scheduler": ["diffusers", "DDIMScheduler"], "safety_checker": [None, None], "feature_extractor": [None, None],
             "requires_safety_checker": False}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python train.py train-base", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for what the stages save on the way")
    parser.add_argument("--out", type=Path, default=BASE_DIR, help="where the finished base goes (default: into the project)")
    parser.add_argument("--vae-steps", type=int, default=3250)
    parser.add_argument("--text-steps", type=int, default=450)
    parser.add_argument("--unet-steps", type=int, default=4500)
    parser.add_argument("--pool", type=int, default=24000, help="how many pictures are drawn for the text encoder and the UNet")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    options.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    tokenizer = build_tokenizer(options.work / "tokenizer")
    vae = train_vae(options.work, options.vae_steps)
    pool = encode_pool(vae, options.work, options.pool)
    text = train_text_encoder(options.work, tokenizer, pool, options.text_steps)
    average = train_unet(options.work, tokenizer, text, pool, options.unet_steps)
    save_base(options.out, vae, tokenizer, average)
    log.info("the base is in %s", options.out)
    return 0
