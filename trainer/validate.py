"""When to stop: what pictures that are not trained on, and prompts that have nothing to do with the gallery, say of the adapter.

Everything is measured on fixed noise and against the base with the adapter off, so that the curves show what was learned and not
which noise was drawn. Held-out loss: the loss of the training's objective on pictures that were held back, at timesteps that are
spread evenly, as a share of what the base alone has there. Prior drift: how far the predictions for prompts without the trigger
have moved from the base's, as a share of those.
"""
from __future__ import annotations

import math
from collections import Counter
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Iterator, Sequence

import torch

from .gallery import Example, Gallery
from .gallery_checks.gallery_rules import near_groups
from .gallery_checks.looks import LookCache, look_at_all
from .randomness import noise, python_random

if TYPE_CHECKING:
    from .adapter import Adapter
    from .backend import Backend
    from .config import TrainConfig
    from .dataset import Dataset
    from .objective import Objective

FEWEST, SHARE, LEAST, MOST = 12, 0.1, 2, 16
"""From so many pictures on, this share of them is held back, at least and at most so many."""
STRATA = 4
"""Timesteps at which each held-out picture is looked at."""
DRIFTS = 4
"""Predictions of which the prior drift is the mean."""
COST = 0.03
"""Share of a run's time that measuring may take. A step costs at least two forwards for each of its samples, but on a small base a batch of many costs
little more than half as many single ones."""
FIRST, PATIENCE, SETTLED = 0.2, 0.3, 0.5
"""Shares of a run's steps: it is never stopped in the first of them, but when the step to keep lies so far behind, or, where nothing is held back,
when the drift has found no new height for so long (see bench/QUALITY.md)."""
FEWEST_AFTER, FEWEST_SETTLED = 2, 4
"""So many measurements at least must say so."""
RISE = 0.05
"""What counts as a new height of the drift: by this share of the last one."""
KEPT = 2 / 3
"""Share of the most that was ever learned about the held-out pictures. As long as so much of it is left, more steps do more good than harm: what a LoRA draws
still comes together when the loss on other pictures has begun to rise (measured, bench/QUALITY.md)."""


@dataclass(frozen=True)
class Measurement:
    """After `step` steps. `held_out`: loss above the base's as a share of it, negative is better than the base; None where nothing is
    held back. `drift`: 0 is none."""

    step: int
    held_out: float | None
    drift: float


@dataclass
class Progress:
    """The measurements of a run, and which step is to be kept: `best` is the last one with `KEPT` of the most that was learned about the held-out
    pictures, or the least bad one where nothing was. What is no number, as of weights that diverge, is never kept and nothing is compared with it."""

    measurements: list[Measurement] = field(default_factory=list)
    best: int | None = None

    def add(self, measurement: Measurement) -> bool:
        """True when this is the one to keep; where nothing is held back the last one always is."""
        self.measurements.append(measurement)
        if measurement.held_out is None:
            return True
        lowest = min((m.held_out for m in self.measurements if math.isfinite(m.held_out)), default=math.nan)
        if math.isfinite(measurement.held_out) and measurement.held_out <= (KEPT * lowest if lowest < 0 else lowest):
            self.best = measurement.step
            return True
        return False

    def is_over(self, total_steps: int) -> bool:
        """Whether to stop: the step to keep lies long behind; where nothing is held back, the drift no longer rises."""
        if not self.measurements or self.measurements[-1].step < FIRST * total_steps:
            return False
        if self.best is None:
            return self._is_since(self._highest(), SETTLED * total_steps, FEWEST_SETTLED)
        return self._is_since(self.best, PATIENCE * total_steps, FEWEST_AFTER)

    def _is_since(self, step: int, steps: float, measurements: int) -> bool:
        return self.measurements[-1].step - step >= steps and sum(m.step > step for m in self.measurements) >= measurements

    def _highest(self) -> int:
        """The step at which the drift last was clearly higher than ever before."""
        height, step = -1.0, 0
        for m in self.measurements:
            if math.isfinite(m.drift) and m.drift > height * (1 + RISE):
                height, step = m.drift, m.step
        return step

    def why(self, total_steps: int) -> str:
        stopped = f"stopped at step {self.measurements[-1].step:,} of {total_steps:,}"
        if self.best is None:
            return f"{stopped}: prior drift has not risen since step {self._highest():,}, so that more steps would teach little"
        if not any(m.held_out < 0 for m in self.measurements if math.isfinite(m.held_out)):
            return f"{stopped}: held-out loss has never been below the base's; step {self.best:,}, where it was lowest, is kept"
        return f"{stopped}: held-out loss has lost more than a third of its gain since step {self.best:,}, which is kept"

    def state_dict(self) -> dict[str, Any]:
        return {"measurements": [asdict(m) for m in self.measurements], "best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.measurements, self.best = [Measurement(**m) for m in state["measurements"]], state["best"]


def choose_held_out(gallery: Gallery, cache: Path | None, seed: int, max_megapixels: float = 180.0) -> list[Example]:
    """Which pictures are held back: none below 12, else a tenth. One that has a near copy in the gallery is never among them, or what is
    measured would have been trained on. A function of the pictures and the seed; `cache` is a file that keeps what was seen of them."""
    examples = gallery.examples
    if len(examples) < FEWEST:
        return []
    looks = look_at_all([(e.path, e.seen_hash) for e in examples], LookCache(cache), max_megapixels)
    counts = Counter(e.content_hash for e in examples)
    groups = near_groups(looks, [(e.width, e.height) for e in examples], list(range(len(examples))))
    copies = {i for group in groups for i in group}
    alone = sorted((e for i, e in enumerate(examples) if i not in copies and counts[e.content_hash] == 1), key=lambda e: e.content_hash)
    python_random(seed, "held out", 0, 0).shuffle(alone)
    count = min(MOST, max(LEAST, round(SHARE * len(examples))))
    return alone[:count] if len(alone) >= count else []


@dataclass
class _Item:
    """One prediction that is measured again and again. Latents `(C, H, W)`, all on the CPU."""

    caption: str
    z_t_CHW: torch.Tensor
    target_CHW: torch.Tensor | None
    t: torch.Tensor
    size_6: torch.Tensor
    mask_1HW: torch.Tensor | None = None
    base_CHW: torch.Tensor | None = None


class Validation:
    """Measures an attached adapter. The base's own predictions are made once, at the first measurement."""

    def __init__(self, config: TrainConfig, backend: Backend, dataset: Dataset, objective: Objective, autocast: Callable) -> None:
        self.config, self.backend, self.dataset, self.objective, self.autocast = config, backend, dataset, objective, autocast
        self._held_out: list[_Item] | None = None
        self._drifting: list[_Item] = []
        self._base_loss = 0.0

    def interval(self, total_steps: int) -> int:
        """Steps between two measurements, so that all of them take at most `COST` of the run's time."""
        forwards = len(self.dataset.held_out) * STRATA + DRIFTS
        planning = 2 * self.config.batch_size  # the micro-step that tells what memory is needed
        # the base is measured once, with as many to find what it draws
        samples = self.dataset.order.group
        budget = COST * total_steps * (samples + math.ceil(samples / self.config.batch_size)) - 2 * forwards - planning
        return math.ceil(total_steps / max(1, math.floor(budget / forwards)))

    def measure(self, adapter: Adapter, step: int, give_way: Callable[[], None] = lambda: None) -> Measurement:
        """`give_way` is called between any two forwards, so that a host need not wait for all of them."""
        was_training = adapter.training
        adapter.eval()
        try:
            with torch.no_grad():
                if self._held_out is None:
                    self._prepare(adapter, give_way)
                moved = total = loss = 0.0
                for item in self._drifting:
                    out_CHW = self._predict(item)
                    moved += (out_CHW - item.base_CHW).square().sum().item()
                    total += item.base_CHW.square().sum().item()
                    give_way()
                for item in self._held_out:
                    loss += self._loss(item, self._predict(item))
                    give_way()
        finally:
            adapter.train(was_training)
        # masks can leave nothing of the pictures that are held out
        held_out = (loss - self._base_loss) / self._base_loss if self._base_loss else None
        return Measurement(step, held_out, moved / total)

    def _prepare(self, adapter: Adapter, give_way: Callable[[], None]) -> None:
        """What is measured, and what the base alone says there."""
        held_out, drifting = [], []
        for number, example in enumerate(self.dataset.held_out):
            held_out += self._items_of(example, number)
        with adapter_off(adapter):
            prompts, size = self.dataset.drift_prompts(), self.dataset.sizes[0]
            shape_CHW = self.dataset.latents.load(self.dataset.examples[0])["z_VCHW"].shape[1:]
            for number in range(DRIFTS):
                drifting.append(self._drift_item(number, prompts[number % len(prompts)], size, shape_CHW))
                give_way()
            for item in (*held_out, *drifting):
                item.base_CHW = self._predict(item)
                give_way()
        self._base_loss = sum(self._loss(item, item.base_CHW) for item in held_out)
        self._held_out, self._drifting = held_out, drifting

    def _items_of(self, example: Example, number: int) -> list[_Item]:
        stored = self.dataset.latents.load(example)
        z0_1CHW, items = stored["z_VCHW"][:1], []
        for k in range(STRATA):
            t_1 = self._timestep(k, STRATA, number)
            noise_1CHW = self._noise(z0_1CHW.shape[1:], number, k)
            items.append(_Item(
                example.caption, self.objective.noisy(z0_1CHW, noise_1CHW, t_1)[0], self.objective.target(z0_1CHW, noise_1CHW, t_1)[0], t_1,
                stored["size_V6"][0], stored["mask_V1HW"][0] if "mask_V1HW" in stored else None))
        return items

    def _drift_item(self, number: int, caption: str, size: tuple[int, int], shape_CHW: Sequence[int]) -> _Item:
        """A prompt without the trigger, at a picture that the base itself sees in pure noise: its guess of the clean latents there,
        noised again. No picture of the gallery is in it."""
        width, height = size
        size_6 = torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32)
        start_CHW = self._noise(shape_CHW, number, STRATA)
        t_1 = self.objective.timesteps(torch.tensor([0.98], dtype=torch.float64))
        guess_CHW = self._predict(_Item(caption, start_CHW, None, t_1, size_6))
        z0_1CHW = self.objective.clean(start_CHW[None], guess_CHW[None], t_1)
        t_1 = self._timestep(number, DRIFTS, number + 1000)
        return _Item(caption, self.objective.noisy(z0_1CHW, self._noise(shape_CHW, number, STRATA + 1)[None], t_1)[0], None, t_1, size_6)

    def _timestep(self, stratum: int, strata: int, number: int) -> torch.Tensor:
        u = (stratum + python_random(self.config.seed, "validation timestep", stratum, number).random()) / strata
        return self.objective.timesteps(torch.tensor([u], dtype=torch.float64))

    def _noise(self, shape_CHW: Sequence[int], number: int, draw: int) -> torch.Tensor:
        return noise(shape_CHW, self.config.seed, draw, number, "validation")

    def _predict(self, item: _Item) -> torch.Tensor:
        device = self.backend.device
        with self.autocast():
            cond = self.dataset.condition([item.caption])
            out_1CHW = self.backend.predict(item.z_t_CHW[None].to(device), self.objective.model_timestep(item.t).to(device), cond,
                                            item.size_6[None].to(device))
        return out_1CHW[0].float().cpu()

    def _loss(self, item: _Item, out_CHW: torch.Tensor) -> float:
        mask = None if item.mask_1HW is None else item.mask_1HW[None]
        return self.objective.loss(out_CHW[None], item.target_CHW[None], item.t, mask).item()


@contextmanager
def adapter_off(adapter: Adapter) -> Iterator[None]:
    """The base alone, bit for bit."""
    before = {key: layer.multiplier for key, layer in adapter.layers.items()}
    adapter.set_multiplier(0.0, 0.0)
    try:
        yield
    finally:
        for key, multiplier in before.items():
            adapter.layers[key].multiplier = multiplier
