"""`--dry-run`: what a run would do, how long it would take and what it would need, without training."""
from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from .backend import Backend
from .captions.at_start import planned_captions
from .captions.tokens import LIMIT
from .dataset import Dataset
from .gallery_check import check_gallery
from .needs import ADAM, BACKWARD, CHECKPOINTED, KEPT_BY_CHECKPOINTING
from .run import Material, epochs_of, make_adapter, total_steps


def dry_run(material: Material, backend: Backend) -> str:
    """Read, measure one forward of the base at the first bucket's size, and say in words what would happen. Writes nothing."""
    config = material.config
    dataset = Dataset(config, backend, material.gallery, material.prior)
    adapter = make_adapter(config, backend)
    steps = total_steps(config, dataset)
    buckets = Counter(dataset.sizes)
    measured = measure_forward(backend, max(buckets, key=lambda size: size[0] * size[1]))
    seconds = steps * dataset.order.group * measured["seconds"] * (CHECKPOINTED if config.gradient_checkpointing else BACKWARD)
    parameters = sum(p.numel() for p in adapter.parameters())
    activations = measured["activation_bytes"] * config.batch_size * (KEPT_BY_CHECKPOINTING if config.gradient_checkpointing else 1.0)
    needed = measured["weight_bytes"] + parameters * ADAM + activations
    checked = check_gallery(material.gallery, resolution=dataset.resolution, purpose=config.purpose, trigger=config.trigger, token_limit=LIMIT,
                            bucketing=config.bucketing, upscale=config.upscale, max_megapixels=config.max_megapixels)
    planned = planned_captions(config, (Path("models"),))
    lines = [
        material.gallery.report(),
        checked.text(),
        *([f"captions: {planned.sentence()}"] if planned else []),
        f"base: {backend.name} ({backend.family}) on {backend.device}",
        f"name: {material.name}, so the tag will be <lora:{material.name}:1>" + (f", trigger {config.trigger}" if config.trigger else ""),
        "buckets: " + ", ".join(f"{w}x{h} ({n})" for (w, h), n in sorted(buckets.items())),
        f"adapter: {len(adapter.layers)} layers, {parameters:,} parameters",
        f"steps: {steps} of {dataset.order.group} pictures each, {epochs_of(steps, dataset)} epochs",
        f"estimated time: {duration(seconds)} (from one measured forward of {measured['seconds']:.3f} s)",
        f"estimated memory: {needed / 1e9:.2f} GB, of which {measured['weight_bytes'] / 1e9:.2f} GB are the base and "
        f"{activations / 1e9:.2f} GB what a step keeps for its backward",
    ]
    if material.prior:
        lines.insert(1, f"prior preservation: {len(material.prior.examples)} pictures, weight {config.prior_loss_weight:g}")
    return "\n".join([*lines, "nothing was trained or written (--dry-run)"])


def measure_forward(backend: Backend, size: tuple[int, int]) -> dict[str, Any]:
    """Seconds of one forward for one picture of `size` (width, height) pixels, bytes of the weights, and bytes kept for a backward."""
    width, height = size
    with torch.no_grad():
        z_1CHW = backend.encode_image(torch.zeros(1, 3, height, width))
    cond = backend.encode_text([""])
    t_1 = torch.zeros(1, dtype=torch.long)
    size_16 = torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32)
    weights = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for m in backend.components().values() for p in m.parameters()}
    with backend.borrow():
        with torch.no_grad():
            backend.predict(z_1CHW, t_1, cond, size_16)
            began = time.perf_counter()
            backend.predict(z_1CHW, t_1, cond, size_16).sum().item()
            seconds = time.perf_counter() - began
        kept: dict[int, int] = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            backend.predict(z_1CHW.detach().requires_grad_(True), t_1, cond, size_16)
    return {"seconds": seconds, "weight_bytes": sum(weights.values()), "activation_bytes": sum(kept.values())}


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
