"""What a run needs at its peak, measured on one micro-step before it begins, and said against what is free."""
from __future__ import annotations

import logging
import weakref
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, ContextManager

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from .device_memory import free_of, held_of, synchronize, with_allocator
from .optimizers import make_optimizer
from .packed_moments import NAMES, PACKED

if TYPE_CHECKING:
    from .dataset import Dataset
    from .session import Session

log = logging.getLogger(__name__)
Condition = Callable[[list[str]], dict[str, Any]]
"""From captions to what the denoiser is told of them."""
MARGIN = 1.05
"""So much more than what was measured must be free."""

VERDICTS = {"fits": "it fits", "steps": "the steps fit, the previews may not", "hardly": "it will hardly fit"}
SMALL = 5e6
"""Bytes that a sentence with two digits after the point can leave out."""


@dataclass(frozen=True)
class Footprint:
    """Bytes on the device. `held` is there before the first step: `base` (its weights), `adapter` (with its running average), and the
    program with whatever else it keeps. What comes: `optimizer` (its state between steps), `gradients`, `copies` (of what a step changes, while
    it does, and what the optimizer's state is larger then), `step` (the most that one micro-step of `batch` pictures holds at a time), `previews`, and `encoding` pictures before the first step.
    `free` is what the device has left beside `held`, without what the host wants for itself.
    """

    held: int
    base: int
    adapter: int
    optimizer: int
    gradients: int
    copies: int
    step: int
    batch: int
    accumulates: bool
    previews: int = 0
    encoding: int = 0
    free: int | None = None

    @property
    def training(self) -> int:
        """More than `held` at the peak of a step."""
        forward_and_backward = self.step + (self.gradients if self.accumulates else 0)
        return self.optimizer + max(forward_and_backward, self.gradients + self.copies)

    @property
    def peak(self) -> int:
        return self.held + max(self.training, self.optimizer + self.previews, self.encoding)

    @property
    def fits(self) -> bool:
        """Whether steps fit; previews that do not are left out. True where it is not known what is free."""
        return self.free is None or MARGIN * self.training <= self.free

    @property
    def verdict(self) -> str | None:
        """"fits", "steps" (these fit, previews may not) or "hardly"; None where it is not known what is free."""
        if self.free is None:
            return None
        if not self.fits:
            return "hardly"
        return "fits" if MARGIN * (self.peak - self.held) <= self.free else "steps"

    def facts(self) -> dict[str, Any]:
        """As data, for a page that says it in its own words."""
        return {"peak": self.peak, "more": self.peak - self.held, "free": self.free, "verdict": self.verdict}

    def sentence(self) -> str:
        """The plan and the verdict, for people."""
        parts = [(self.base, "the base, which is there anyway"), (self.adapter + self.optimizer + self.gradients, "LoRA and optimizer"),
                 (self.step, f"a step's {self.batch} picture{'s' * (self.batch > 1)}"), (self.previews, "a preview"), (self.encoding, "encoding a picture"),
                 (max(0, self.held - self.base - self.adapter), "the program")]
        told = f"memory: {_gb(self.peak)} GB at the peak (" + ", ".join(f"{_gb(size)} {what}" for size, what in parts if size >= SMALL) + ")"
        if self.free is None:
            return told
        return f"{told}; {_gb(self.peak - self.held)} more than now, and {_gb(self.free)} are free: {VERDICTS[self.verdict]}"


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f}"


def plan_ahead(session: Session, tell: Callable[[str], None], condition: Condition | None = None) -> Footprint:
    """Measure inside `borrow`, and take rungs of the ladder for as long as the steps would not fit; `tell` is told of each."""
    while True:
        footprint = measure(session, condition or session.dataset.condition)
        if footprint.fits:
            return footprint
        rung = session.plan.step_down()
        if rung is None:
            return footprint
        tell(f"{rung}, as a step would need {_gb(footprint.training)} GB and {_gb(footprint.free)} GB are free")


def measure(session: Session, condition: Condition) -> Footprint:
    """Of a session inside `borrow` with its adapter attached, as its plan is now: one forward and backward of the largest bucket with the
    longest caption. Nothing is learned."""
    backend, plan = session.backend, session.plan
    batch = min(plan.batch_size, session.dataset.order.group)
    held, device = held_of(backend.device), backend.device
    step = live_peak(device, lambda: micro_step(session, batch, condition))
    previews = live_peak(device, lambda: session.sample([""], steps=1)) if session.config.preview_steps else 0
    base = weight_bytes([p for m in backend.components().values() for p in m.parameters() if p.device.type == device.type])
    trained = sum(p.numel() * p.element_size() for p in session.parameters)
    average = sum(x.numel() * x.element_size() for x in session.ema.averages) if session.ema else 0
    state, moments = state_bytes(session)
    between = state - moments + round(moments * PACKED) if plan.packs_moments else state
    there = session.moments.bytes() + sum(x.numel() * x.element_size() for kept in session.optimizer.state.values() for x in kept.values() if torch.is_tensor(x))
    if with_allocator(device):
        held = held_of(device)  # by now the host has loaded what it wants to have loaded
    free = free_of(device)
    return Footprint(held, base, trained + average, max(0, between - there), trained, trained + average + 2 * state - between, step, batch,
                     session.dataset.order.group > batch, previews, free=None if free is None else max(0, free - backend.host_needs()))


def micro_step(session: Session, count: int, condition: Condition) -> None:
    """Forward and backward of so many pictures of the largest bucket; their gradients are forgotten."""
    backend, dataset, device = session.backend, session.dataset, session.backend.device
    width, height = largest_bucket(dataset)
    factor = backend.latent_factor
    z0_BCHW = torch.zeros(count, backend.latent_channels, height // factor, width // factor, device=device)
    t_B = session.objective.timesteps(torch.full((count,), 0.5, dtype=torch.float64)).to(device)
    noise_BCHW = session.objective.noise(z0_BCHW.shape, session.config.seed, 0, range(count)).to(device)
    size_B6 = torch.tensor([[height, width, 0, 0, height, width]] * count, dtype=torch.float32, device=device)
    caption = max((example.caption for example in dataset.examples), key=len)

    def loss() -> torch.Tensor:
        with session.precision.autocast(), session.plan.keeping():
            out_BCHW = backend.predict(session.objective.noisy(z0_BCHW, noise_BCHW, t_B), session.objective.model_timestep(t_B),
                                       condition([caption] * count), size_B6)
        return session.objective.loss(out_BCHW.float(), session.objective.target(z0_BCHW, noise_BCHW, t_B), t_B).sum()

    session.adapter.train()
    try:
        with session._seeded(0):
            # what preserves the class has a second forward, which is kept beside the first
            session.precision.backward(loss() + loss() if session.config.preservation_weight else loss())
    finally:
        session._forget_step()


def largest_bucket(dataset: Dataset) -> tuple[int, int]:
    """Width and height in pixels."""
    return max(dataset.sizes, key=lambda size: size[0] * size[1])


def weight_bytes(tensors: list[torch.Tensor]) -> int:
    """Of storages, each counted once."""
    return sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}.values())


def state_bytes(session: Session) -> tuple[int, int]:
    """What the chosen optimizer keeps for the trained weights, and how much of it are moments that can be held in 8 bits: found by one
    step of it over zeros, one of each shape."""
    shapes = Counter(tuple(p.shape) for p in session.parameters)
    scratch = {shape: nn.Parameter(torch.zeros(shape, device=session.backend.device)) for shape in shapes}
    optimizer = make_optimizer(session.config, [{"params": list(scratch.values()), "lr": 1.0, "name": "scratch"}])
    for p in scratch.values():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    kept = [(count, name, x) for shape, count in shapes.items() for name, x in optimizer.state[scratch[shape]].items()
            if torch.is_tensor(x) and x.device == scratch[shape].device]
    return sum(count * weight_bytes([x]) for count, _, x in kept), sum(count * weight_bytes([x]) for count, name, x in kept if name in NAMES)


def live_peak(device: torch.device, work: Callable[[], Any]) -> int:
    """The most bytes that `work()` holds on the device at a time, beyond what is left of it when it is done."""
    if with_allocator(device):
        kind = getattr(torch, device.type)
        synchronize(device)
        kind.reset_peak_memory_stats(device)
        work()
        synchronize(device)
        return kind.max_memory_allocated(device) - held_of(device)
    tracker = _LiveBytes(device) if _can_watch_storages() else _SavedBytes()
    with tracker.watching():
        work()
    return tracker.peak - tracker.now


def _can_watch_storages() -> bool:
    """Whether a storage is one Python object for as long as it lives, so that its end can be watched, and a host's tensors can be used
    meanwhile: in torch 2.1 it is not, and until some version after 2.3 `data` of an inference tensor fails."""
    with torch.inference_mode():
        x = torch.empty(1)
    if x.untyped_storage() is not x.untyped_storage():
        return False  # and torch 2.1 crashes when such an object is watched
    try:
        with _LiveBytes(x.device):
            return bool(x.data.numel())
    except RuntimeError:
        return False


class _LiveBytes(TorchDispatchMode):
    """Bytes of the storages that operations make, from their making to their end, in forward and backward."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device, self.now, self.peak = device, 0, 0
        self._known: dict[int, weakref.ref] = {}

    def watching(self) -> ContextManager[Any]:
        return self

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for x in tree_flatten((args, kwargs))[0]:
            self._see(x, is_new=False)
        out = function(*args, **kwargs)
        for x in tree_flatten(out)[0]:
            self._see(x, is_new=True)
        return out

    def _see(self, x: Any, is_new: bool) -> None:
        if type(x) not in (torch.Tensor, nn.Parameter) or x.device.type != self.device.type:
            return
        storage = x.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes() if is_new else 0

        def ended(_, key=key, size=size) -> None:
            self._known.pop(key, None)
            self.now -= size

        self._known[key] = weakref.ref(storage, ended)
        self.now += size
        self.peak = max(self.peak, self.now)


class _SavedBytes:
    """In older torch, where storages cannot be watched: the bytes that a forward saves for its backward, which are most of its peak."""

    def __init__(self) -> None:
        self.peak, self.now, self._seen = 0, 0, {}

    def watching(self) -> ContextManager[Any]:
        return torch.autograd.graph.saved_tensors_hooks(self._note, lambda x: x)

    def _note(self, x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        self._seen[storage.data_ptr()] = storage.nbytes()
        self.peak = max(self.peak, sum(self._seen.values()))
        return x
