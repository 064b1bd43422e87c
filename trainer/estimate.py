"""`--dry-run`: what a run would do, how long it would take and what it would need, without training."""
from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Callable

import torch

from .backend import Backend, SampleRequest
from .cache import BATCH
from .captions.at_start import planned_captions
from .dataset import Dataset
from .device_memory import synchronize
from .footprint import Footprint, largest_bucket, live_peak, micro_step, plan_ahead
from .gallery_check import check_gallery
from .memory import attempt, encode_image, explained
from .run import Material, epochs_of, make_adapter, total_steps
from .session import Session
from .validate import choose_held_out


def dry_run(material: Material, backend: Backend) -> str:
    """Read, do one micro-step of the largest bucket, and say in words what would happen. Writes nothing."""
    config = material.config
    adapter = make_adapter(config, backend)
    held_out = choose_held_out(material.gallery, None, config.seed, config.max_megapixels) if config.validation else []
    dataset = Dataset(config, backend, material.gallery, material.prior, held_out)
    steps = total_steps(config, dataset)
    session = Session(config, backend, dataset, adapter, name=material.name, total_steps=steps)
    buckets = Counter(dataset.sizes)
    rungs: list[str] = []
    footprint, of_step, of_preview = measure_ahead(session, rungs.append)
    previews = (steps // config.preview_steps) * max(1, len(config.preview_prompts)) if config.preview_steps else 0
    seconds = steps * of_step + previews * of_preview
    # besides the marks for start and end
    token_limit = backend.token_count("")[1] - 2
    checked = check_gallery(material.gallery, resolution=dataset.resolution, purpose=config.purpose, trigger=config.trigger, token_limit=token_limit,
                            bucketing=config.bucketing, upscale=config.upscale, max_megapixels=config.max_megapixels)
    planned = planned_captions(config, (Path("models"),))
    held = f", {len(held_out)} pictures are held out to measure with" if held_out else ""
    lines = [
        material.gallery.report(),
        checked.text(),
        *([f"captions: {planned.sentence()}"] if planned else []),
        f"base: {backend.name} ({backend.family}, {backend.prediction.kind}-prediction) on {backend.device}",
        f"name: {material.name}, so the tag will be <lora:{material.name}:1>" + (f", trigger {config.trigger}" if config.trigger else ""),
        "buckets: " + ", ".join(f"{w}x{h} ({n})" for (w, h), n in sorted(buckets.items())),
        f"adapter: {len(adapter.layers)} layers, {sum(p.numel() for p in adapter.parameters()):,} parameters",
        f"steps: {steps} of {dataset.order.group} pictures each, {epochs_of(steps, dataset)} epochs{held}",
        f"estimated time: {duration(seconds)} (from one measured step of {of_step:.3f} s"
        + (f", and {previews} previews of {of_preview:.1f} s)" if previews else ")"),
        footprint.sentence(),
        *rungs,
    ]
    if material.prior:
        lines.insert(1, f"prior preservation: {len(material.prior.examples)} pictures, weight {config.prior_loss_weight:g}")
    return "\n".join([*lines, "nothing was trained or written (--dry-run)"])


def measure_ahead(session: Session, tell: Callable[[str], None]) -> tuple[Footprint, float, float]:
    """What a run would need, and the seconds of a step and of drawing a preview (0 where none are drawn), before anything is prepared."""
    backend, dataset = session.backend, session.dataset
    width, height = largest_bucket(dataset)
    x_B3HW = torch.zeros(min(BATCH, dataset.config.crops * (2 if dataset.config.flip else 1)), 3, height, width)
    condition = partial(backend.encode_text, grad=True) if dataset.trains_text else _encoded_once(backend)
    with explained(lambda: session.plan.advice(dataset.resolution)), backend.borrow():
        # in the order of a run: its allocator comes to the peak from there
        encoding = live_peak(backend.device, lambda: encode_image(backend, x_B3HW))
        condition([""])
        if not dataset.trains_text:
            backend.offload_encoders()
            session.plan.encoders_away = not dataset.encodes_in_steps
        with session.adapter.attached(backend.components()):
            backend.set_checkpointing(session.plan.checkpointing)
            footprint = attempt(session.plan, lambda: plan_ahead(session, tell, condition), tell=tell)
            batches = dataset.order.group / footprint.batch
            of_step = batches * _seconds(backend, lambda: micro_step(session, footprint.batch, condition))
            backend.set_checkpointing(False)
            of_preview = _seconds(backend, lambda: _forward(session, width, height, condition)) if dataset.config.preview_steps else 0.0
    return replace(footprint, encoding=encoding), of_step, SampleRequest.steps * of_preview


def _encoded_once(backend: Backend) -> Callable[[list[str]], dict[str, torch.Tensor]]:
    """The texts as a run has them, which reads them from its cache."""
    known: dict[str, dict[str, torch.Tensor]] = {}

    def condition(captions: list[str]) -> dict[str, torch.Tensor]:
        for caption in captions:
            if caption not in known:
                known[caption] = {key: x[0] for key, x in backend.encode_text([caption]).items()}
        return backend.batch_text([known[caption] for caption in captions])

    return condition


def _forward(session: Session, width: int, height: int, condition: Callable[[list[str]], dict[str, torch.Tensor]]) -> None:
    """Of a preview's step: with and without its prompt."""
    backend, factor = session.backend, session.backend.latent_factor
    size_26 = torch.tensor([[height, width, 0, 0, height, width]] * 2, dtype=torch.float32, device=backend.device)
    with torch.no_grad(), session.precision.autocast():
        backend.predict(torch.zeros(2, backend.latent_channels, height // factor, width // factor, device=backend.device),
                        torch.zeros(2, dtype=torch.long, device=backend.device), condition(["", ""]), size_26)


def _seconds(backend: Backend, work: Callable[[], None]) -> float:
    """Of the second time, as the first one often prepares something."""
    for _ in range(2):
        synchronize(backend.device)
        began = time.perf_counter()
        work()
        synchronize(backend.device)
    return time.perf_counter() - began


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
