"""The pictures of HotLoRA Compare, drawn with ComfyUI's own sampler."""
from __future__ import annotations

import math

import comfy.sample
import comfy.sd
import comfy.utils
import torch
from PIL import Image

from .images import as_images
from .loras import apply_tags, name_of, read, registry
from ..trainer.grid import draw_grid
from ..trainer.live import LoraTag, parse_prompt
from ..trainer.pixels import to_picture


def compare(name: str, weights: str, max_rows: int, *, model, clip, vae, prompt, negative, **request) -> torch.Tensor:
    """A grid as `(1, H, W, 3)` in [0, 1], where the LoRAs that the prompt's own tags name are on every picture.

    ValueError for a weight that is no number, for a name without a file, and for a tag of the LoRA that is compared.
    """
    numbers = read_weights(weights)
    prompt, tags = parse_prompt(prompt)
    negative, unwanted = parse_prompt(negative)
    name = name_of(name)
    steps = registry().saved_steps(name)
    model, clip = with_tags(model, clip, tags + unwanted, steps)
    rows = evenly(steps, max_rows)
    bar = comfy.utils.ProgressBar(1 + len(rows) * len(numbers))
    base = _draw(model, clip, vae, prompt, negative, **request)
    bar.update(1)
    pictures = []
    for path in rows.values():
        row = [base]
        for weight in numbers:
            applied, applied_clip = comfy.sd.load_lora_for_models(model, clip, read(path), weight, weight)
            row.append(_draw(applied, applied_clip, vae, prompt, negative, **request))
            bar.update(1)
        pictures.append(row)
    grid = draw_grid(pictures, list(rows), ["base", *(f"<lora:{name}:{weight:g}>" for weight in numbers)], scale=1)
    return as_images([grid])


def with_tags(model, clip, tags: list[LoraTag], steps: dict) -> tuple:
    """The model and the text encoder with the other LoRAs on them, which stay the same in the whole grid."""
    compared = set(steps.values())
    for tag in tags:
        if registry().path(tag.name) in compared:
            raise ValueError(f"the prompt has a tag <lora:{tag.name}> of the LoRA that is compared; take it out, its weights are across the grid")
    return apply_tags(model, clip, tags)


def read_weights(text: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.replace(";", ",").split(",") if part.strip()]
    except ValueError:
        numbers = []
    if not numbers or not all(map(math.isfinite, numbers)):
        raise ValueError(f"weights is {text!r} but must be numbers with commas between them, such as 0.4, 0.8, 1.2")
    return numbers


def evenly(rows: dict, count: int) -> dict:
    """At most `count` entries, evenly spread, the last always among them."""
    names = list(rows)
    if len(names) <= count:
        return rows
    chosen = [names[-1]] if count == 1 else [names[round(i * (len(names) - 1) / (count - 1))] for i in range(count)]
    return {name: rows[name] for name in chosen}


def _draw(model, clip, vae, prompt, negative, *, seed, steps, cfg, sampler_name, scheduler, width, height) -> Image.Image:
    positive, unwanted = (clip.encode_from_tokens_scheduled(clip.tokenize(text), show_pbar=False) for text in (prompt, negative))
    latent_format = model.get_model_object("latent_format")
    factor = latent_format.spacial_downscale_ratio
    empty = torch.zeros(1, latent_format.latent_channels, height // factor, width // factor)
    noise = comfy.sample.prepare_noise(empty, seed)
    z_BCHW = comfy.sample.sample(model, noise, steps, cfg, sampler_name, scheduler, positive, unwanted, empty, disable_pbar=True, seed=seed)
    return to_picture(vae.decode(z_BCHW)[0].movedim(-1, 0) * 2 - 1)
