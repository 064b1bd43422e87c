"""Drawing pictures with a base's own scheduler and classifier-free guidance (Ho and Salimans 2022, 2207.12598)."""
from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import torch
from PIL import Image

from ..backend import SampleRequest
from ..pixels import to_picture

if TYPE_CHECKING:
    from .standalone import StandaloneBackend


@torch.no_grad()
def draw(backend: StandaloneBackend, request: SampleRequest, sparing: bool = False) -> list[Image.Image]:
    """One picture per prompt, or fewer when it is cancelled. `sparing`: no two parts of the base are on the device at a time. Raises ValueError
    for a size that the base cannot draw."""
    width, height = request.width or backend.resolution, request.height or backend.resolution
    for name, side in (("width", width), ("height", height)):
        if side < 16 or side % backend.latent_factor:
            raise ValueError(f"{name} is {side}; it must be a multiple of {backend.latent_factor}, at least 16")
    guidance = backend.default_guidance if request.guidance is None else request.guidance
    # Each text is encoded on its own, so that a picture does not depend on its neighbours.
    texts = dict.fromkeys([*request.prompts, *([request.negative] if guidance != 1 else [])])
    if sparing:
        backend.offload_encoders()
        backend.offload_denoiser()
    conds = {text: backend.encode_text([text]) for text in texts}
    if sparing:
        backend.offload_encoders()
    batch = request.batch or backend.sample_batch
    pictures = []
    for start in range(0, len(request.prompts), batch):
        chosen = range(start, min(start + batch, len(request.prompts)))
        generators = [torch.Generator().manual_seed(request.seed_of(i)) for i in chosen]
        shape = (backend.latent_channels, height // backend.latent_factor, width // backend.latent_factor)
        noise_BCHW = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
        cond = _stack([conds[request.prompts[i]] for i in chosen])
        uncond = _stack([conds[request.negative]] * len(chosen)) if guidance != 1 else None
        z_BCHW = denoise(backend, noise_BCHW, cond, uncond, guidance, request, generators)
        if z_BCHW is None:
            break
        pictures += [to_picture(backend.decode_image(z_BCHW[i:i + 1])[0]) for i in range(len(chosen))]
    return pictures


def denoise(backend: StandaloneBackend, noise_BCHW: torch.Tensor, cond: dict[str, torch.Tensor],
            uncond: dict[str, torch.Tensor] | None, guidance: float, request: SampleRequest,
            generators: list[torch.Generator]) -> torch.Tensor | None:
    """From unit noise to scaled latents, both `(B, C, h, w)` float32; None when the request is cancelled meanwhile.

    Samplers that add noise take it from `generators`.
    """
    scheduler = type(backend.scheduler).from_config(backend.scheduler.config)
    scheduler.set_timesteps(request.steps, device=backend.device)
    own_noise = {"generator": generators} if "generator" in inspect.signature(scheduler.step).parameters else {}
    z_BCHW = noise_BCHW.to(backend.device) * scheduler.init_noise_sigma
    count, factor = len(z_BCHW), backend.latent_factor
    side = torch.tensor([[z_BCHW.shape[2] * factor, z_BCHW.shape[3] * factor]], dtype=torch.float32, device=backend.device)
    size_B6 = torch.cat([side, torch.zeros_like(side), side], dim=1).repeat(count, 1)
    for t in scheduler.timesteps:
        if request.cancelled():
            return None
        x_BCHW = scheduler.scale_model_input(z_BCHW, t)
        t_B = t.to(backend.device).expand(count)
        if uncond is None:
            out_BCHW = backend.predict(x_BCHW, t_B, cond, size_B6)
        else:
            both = _stack([uncond, cond])
            out_2BCHW = backend.predict(torch.cat([x_BCHW] * 2), torch.cat([t_B] * 2), both, torch.cat([size_B6] * 2))
            without, with_ = out_2BCHW.chunk(2)
            out_BCHW = without + guidance * (with_ - without)
        z_BCHW = scheduler.step(out_BCHW, t, z_BCHW, **own_noise).prev_sample
    return z_BCHW


def _stack(conds: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {key: torch.cat([cond[key] for cond in conds]) for key in conds[0]}
