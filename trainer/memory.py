"""What a run gives up, one thing after the other, when the memory is full. None of it changes what is learned."""
from __future__ import annotations

import logging
import traceback
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from typing import TYPE_CHECKING, Any, Callable, ContextManager, Iterator

import torch

from .offloading import saved_in_main_memory

if TYPE_CHECKING:
    from .backend import Backend
    from .optimizers import EMA
    from .packed_moments import PackedMoments

log = logging.getLogger(__name__)
_SENTENCES = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed", "unable to find an engine")
"""The last one is cuDNN's, for want of room to work in."""
FREE_SOME = "; free memory that other programs hold, or restart this one"
"""What can be done where there is nothing to give up."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device or the machine has no memory left; libraries under torch say it as a RuntimeError."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sentence in str(error).lower() for sentence in _SENTENCES)


class MemoryFull(ValueError):
    """The memory does not suffice, whatever is given up for it; the message says what was tried and what would fit."""


@contextmanager
def explained(advice: Callable[[], str]) -> Iterator[None]:
    """Turns the allocator's error into MemoryFull: what ran full, and the advice. An error that is explained already passes."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        # whoever keeps the error, as a host does that shows it, would keep what the failed work held
        traceback.clear_frames(error.__traceback__)
        said = str(error).strip().splitlines()
        raise MemoryFull(f"the memory is full ({said[0] if said else type(error).__name__}){advice()}") from error


class Plan:
    """How a step is done. `step_down` takes the next rung of the ladder, the cheapest first.

    Blocks are computed twice (gradient checkpointing, 1604.06174); a batch is done in parts, whose gradients add up; the optimizer's
    moments are held in 8 bits between its steps (2110.02861); what the backward needs waits in main memory; encoders leave the device
    after each use; weights do so as well. The sum over the step's samples stays what it was.
    """

    def __init__(self, backend: Backend, checkpointing: bool, batch_size: int) -> None:
        self.backend, self.checkpointing, self.batch_size = backend, checkpointing, batch_size
        self.packs_moments = self.activations_away = self.encoders_away = self.denoiser_away = False
        self.streamed = 0.0
        self.moments: PackedMoments | None = None
        self.taken: list[str] = []

    def step_down(self, encoding: bool = False) -> str | None:
        """The rung that was taken, in words; None when there is none left. `encoding`: before the first step, only pictures and captions
        are worked on, and nothing but the room beside the encoders can help."""
        self.backend.free_memory()
        ladder = (self._send_encoders, self._send_denoiser) if encoding else (
            self._compute_twice, self._part, self._pack_moments, self._send_activations, self._send_encoders, self._stream)
        rung = next(filter(None, (take() for take in ladder)), None)
        if rung:
            self.taken.append(rung)
            self.backend.free_memory()
        return rung

    def _compute_twice(self) -> str | None:
        if self.checkpointing:
            return None
        try:
            self.backend.set_checkpointing(True)
        except ValueError as error:
            log.info("no gradient checkpointing: %s", error)
            return None
        self.checkpointing = True
        return "gradient checkpointing is on, a step takes about 1.5 times as long"

    def _part(self) -> str | None:
        if self.batch_size <= 1:
            return None
        self.batch_size = (self.batch_size + 1) // 2
        return f"a batch is done in parts of {self.batch_size}"

    def _pack_moments(self) -> str | None:
        if self.packs_moments or self.moments is None or not self.moments.can_pack():
            return None
        self.packs_moments = True
        try:
            self.moments.pack()
        except Exception as error:  # they are packed after the next step then
            if not is_out_of_memory(error):
                raise
        return "the optimizer's moments are held in 8 bits"

    def _send_activations(self) -> str | None:
        if self.activations_away or self.backend.device.type == "cpu":
            return None
        self.activations_away = True
        return "what the backward needs waits in main memory, a step takes longer"

    def _send_encoders(self) -> str | None:
        if self.encoders_away:
            return None
        self.send_encoders()
        return "text encoder and autoencoder leave the device between uses"

    def send_encoders(self) -> None:
        """As the steps do without them, or because they must."""
        self.encoders_away = True
        self.backend.offload_encoders()

    def _send_denoiser(self) -> str | None:
        if self.denoiser_away or not self.backend.offload_denoiser():
            return None
        self.denoiser_away = True
        return "the denoiser leaves the device until the first step"

    def _stream(self) -> str | None:
        """Half of the weights at first."""
        if self.streamed >= 1:
            return None
        share = 0.5 if self.streamed == 0 else 1.0
        if not self.backend.stream_weights(share):
            return None
        self.streamed = share
        return f"{'half of ' if share < 1 else ''}the base's weights wait in main memory and are copied for each use, a step takes longer"

    def advice(self, resolution: int) -> str:
        """What was tried and what would fit, to follow on what went wrong."""
        tried = f"; {'; '.join(self.taken)}: it was not enough" if self.taken else ""
        return f"{tried}. Set resolution lower than {resolution}, or lora_rank lower, or free memory that other programs hold"

    def keeping(self) -> ContextManager[Any]:
        """Around a forward: where what it keeps for the backward goes."""
        return saved_in_main_memory() if self.activations_away else nullcontext()


class Undo:
    """The weights, the optimizer and the average as they are now, so that a step which fails half way can be taken back.

    Holds a copy on the same device; at the time of the optimizer's step what the backward needed is free again.
    """

    def __init__(self, parameters: list[torch.Tensor], optimizer: torch.optim.Optimizer, ema: EMA | None) -> None:
        self.optimizer, self.ema, self.updates = optimizer, ema, ema.updates if ema else 0
        self.known = {id(p): self._plain(optimizer.state[p]) for p in parameters if p in optimizer.state}
        self.groups = [self._plain(group) for group in optimizer.param_groups]
        tensors = [*parameters, *(ema.averages if ema else []), *self._tensors()]
        self.copies = [(x, x.detach().clone()) for x in tensors]

    def _tensors(self) -> list[torch.Tensor]:
        places = [*self.optimizer.state.values(), *self.optimizer.param_groups]
        return [x for place in places for key, x in place.items() if torch.is_tensor(x) and key != "params"]

    @staticmethod
    def _plain(place: dict[str, Any]) -> dict[str, Any]:
        return {key: deepcopy(x) for key, x in place.items() if key != "params" and not torch.is_tensor(x)}

    @torch.no_grad()
    def restore(self) -> None:
        for x, copy in self.copies:
            x.copy_(copy)
        for p in list(self.optimizer.state):
            if id(p) not in self.known:
                del self.optimizer.state[p]
            else:
                self.optimizer.state[p].update(self.known[id(p)])
        for group, plain in zip(self.optimizer.param_groups, self.groups):
            group.update(plain)
        if self.ema:
            self.ema.updates = self.updates


def encode_image(backend: Backend, x_B3HW: torch.Tensor) -> torch.Tensor:
    """`backend.encode_image`, one picture at a time where the memory does not suffice. MemoryFull when one does not fit either."""
    try:
        return backend.encode_image(x_B3HW)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    backend.free_memory()
    height, width = x_B3HW.shape[2:]
    with explained(lambda: f": the autoencoder cannot take a picture of {width} x {height}; set resolution lower, or free memory that other "
                           "programs hold"):
        return torch.cat([backend.encode_image(x_B3HW[i:i + 1]) for i in range(len(x_B3HW))])


def attempt(plan: Plan, work, undo=None, tell=None, encoding: bool = False) -> Any:
    """`work()`, again on the next rung for as long as it runs out of memory. The error of the last rung comes out."""
    while True:
        try:
            return work()
        except Exception as error:
            if undo:
                undo()
            if not is_out_of_memory(error) and not isinstance(error, MemoryFull):
                raise
            # the error must not keep what the failed attempt held while memory is given back
            traceback.clear_frames(error.__traceback__)
            rung = plan.step_down(encoding)
            if rung is None:
                raise
        log.warning("the memory is full: %s", rung)
        if tell:
            tell(rung)
