"""A picture by the webui's own sampler, without what belongs to a user's request: no files, no counters, no tags, no scripts."""
from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import k_diffusion.sampling
import torch
from modules import devices, extra_networks, processing, prompt_parser, sd_samplers, sd_samplers_common, shared
from PIL import Image

from ..backend import SampleRequest
from ..pixels import to_picture

SAMPLER, FACTOR = "Euler", 8
PROGRESS = ("sampling_step", "sampling_steps", "current_latent", "current_image", "current_image_sampling_step", "id_live_preview")
"""What sampling changes in the host's state."""


class _Noise:
    """What samplers ask for further noise."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.generator, self.device = torch.Generator().manual_seed(seed), device

    def next(self, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator).to(self.device)


def draw(model: Any, request: SampleRequest, number: int, guidance: float, width: int, height: int, channels: int,
         prediction: tuple[Any, str, str]) -> Image.Image | None:
    """Picture `number` of the request, of the model as it is now; None when it is cancelled. The host's state of its own job is what
    it was, before and after. `prediction` is the host's object that knows what the model predicts, its attribute for that, and the value."""
    negative, seed, steps = request.negative, request.seed_of(number), request.steps
    text, _ = extra_networks.parse_prompts([request.prompts[number]])

    def step_taken() -> None:
        """Called by the host's sampler, which ends at this error of its own."""
        if request.cancelled():
            raise sd_samplers_common.InterruptedException

    p = processing.StableDiffusionProcessingTxt2Img(prompt=text[0], negative_prompt=negative, seed=seed, steps=steps, cfg_scale=guidance,
                                                    width=width, height=height, sampler_name=SAMPLER)
    p.fill_fields_from_opts()
    p.all_seeds, p.prompts, p.negative_prompts, p.seeds = [seed], text, [negative], [seed]
    noise = _Noise(seed, devices.device)
    with torch.no_grad(), ExitStack() as stack:
        _keep(stack, shared.state, interrupted=False, skipped=False, stopping_generation=False)
        _keep(stack, shared.state, **{name: getattr(shared.state, name) for name in PROGRESS})
        _keep(stack, shared.total_tqdm, update=step_taken)
        owner, name, value = prediction
        _keep(stack, owner, **{name: value})
        stack.callback(setattr, k_diffusion.sampling, "torch", k_diffusion.sampling.torch)
        with devices.autocast():
            size = {"width": width, "height": height}
            uc = prompt_parser.get_learned_conditioning(model, prompt_parser.SdConditioning([negative], is_negative_prompt=True, **size), steps)
            c = prompt_parser.get_multicond_learned_conditioning(model, prompt_parser.SdConditioning(text, **size), steps)
        x_BCHW = noise.next((1, channels, height // FACTOR, width // FACTOR))
        p.rng = _Rng(noise, x_BCHW.shape)
        sampler = sd_samplers.create_sampler(SAMPLER, model)
        with devices.without_autocast() if devices.unet_needs_upcast else devices.autocast():
            z_BCHW = sampler.sample(p, x_BCHW, c, uc, image_conditioning=p.txt2img_image_conditioning(x_BCHW))
        if request.cancelled():
            return None
        [x_3HW] = processing.decode_latent_batch(model, z_BCHW, target_device=devices.cpu, check_for_nans=True)
    return to_picture(x_3HW.float())


class _Rng:
    def __init__(self, noise: _Noise, shape: tuple[int, ...]) -> None:
        self.noise, self.shape = noise, shape

    def next(self) -> torch.Tensor:
        return self.noise.next(self.shape)


def _keep(stack: ExitStack, owner: Any, **values: Any) -> None:
    """Give an object's attributes these values until the stack closes."""
    for name, value in values.items():
        own = name in owner.__dict__ or isinstance(owner, torch.nn.Module)
        stack.callback(*((setattr, owner, name, getattr(owner, name)) if own else (owner.__dict__.pop, name, None)))
        setattr(owner, name, value)
