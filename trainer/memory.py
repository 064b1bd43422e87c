"""What a run gives up, one thing after the other, when the memory is full. None of it changes what is learned."""
from __future__ import annotations

import logging
from contextlib import contextmanager
from copy import deepcopy
from typing import TYPE_CHECKING, Any, Iterator

import torch

if TYPE_CHECKING:
    from .backend import Backend
    from .optimizers import EMA

log = logging.getLogger(__name__)
_SENTENCES = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device or the machine has no memory left; libraries under torch say it as a RuntimeError."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sentence in str(error).lower() for sentence in _SENTENCES)


class Plan:
    """How a step is done. `step_down` takes the next rung of the ladder, the cheapest first.

    Encoders leave the device; blocks are computed twice (gradient checkpointing, 1604.06174); a batch is done in parts, whose
    gradients add up; what the backward needs waits in main memory. The sum over the step's samples stays what it was.
    """

    def __init__(self, backend: Backend, checkpointing: bool, batch_size: int) -> None:
        self.backend, self.checkpointing, self.batch_size = backend, checkpointing, batch_size
        self.encoders_away = self.activations_away = False
        self.taken: list[str] = []

    def step_down(self) -> str | None:
        """The rung that was taken, in words; None when there is none left."""
        self.backend.free_memory()
        rung = self._next()
        if rung:
            self.taken.append(rung)
        return rung

    def _next(self) -> str | None:
        if not self.encoders_away:
            self.encoders_away = True
            self.backend.offload_encoders()
            return "text encoder and autoencoder leave the device between uses"
        if not self.checkpointing:
            try:
                self.backend.set_checkpointing(True)
            except ValueError as error:
                log.info("no gradient checkpointing: %s", error)
            else:
                self.checkpointing = True
                return "gradient checkpointing is on, a step takes about 1.5 times as long"
        if self.batch_size > 1:
            self.batch_size = (self.batch_size + 1) // 2
            return f"a batch is done in parts of {self.batch_size}"
        if not self.activations_away and self.backend.device.type != "cpu":
            self.activations_away = True
            return "what the backward needs waits in main memory, a step takes longer"
        return None

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Around a forward: where what it keeps for the backward goes."""
        if self.activations_away:
            with torch.autograd.graph.save_on_cpu():
                yield
        else:
            yield


def advice(error: BaseException, plan: Plan, resolution: int) -> str:
    """One sentence for a run that does not fit, after the last rung."""
    tried = f"; {'; '.join(plan.taken)}: it was not enough" if plan.taken else ""
    return (f"the memory is full ({str(error).splitlines()[0] if str(error) else type(error).__name__}){tried}. Set resolution lower than "
            f"{resolution}, or lora_rank lower, or free memory that other programs hold")


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
    """`backend.encode_image`, one picture at a time where the memory does not suffice. ValueError when one does not fit either."""
    try:
        return backend.encode_image(x_B3HW)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    backend.free_memory()
    try:
        return torch.cat([backend.encode_image(x_B3HW[i:i + 1]) for i in range(len(x_B3HW))])
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        height, width = x_B3HW.shape[2:]
        raise ValueError(f"the memory is full: the autoencoder cannot take a picture of {width} x {height}; set resolution lower, or free "
                         "memory that other programs hold") from error


def attempt(plan: Plan, work, undo=None, tell=None) -> Any:
    """`work()`, again on the next rung for as long as it runs out of memory. The error of the last rung comes out."""
    while True:
        try:
            return work()
        except Exception as error:
            if undo:
                undo()
            rung = plan.step_down() if is_out_of_memory(error) else None
            if rung is None:
                raise
        # outside of the except block, where the error no longer keeps the tensors of the failed attempt alive
        log.warning("the memory is full: %s", rung)
        if tell:
            tell(rung)
