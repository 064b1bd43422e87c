"""A run that several processes share: each does its part of every step's samples, and all of them take the same step.

batch_size times gradient_accumulation_steps is what one step sees, whatever the number of processes; they share it, in batches of
batch_size at most. Which samples these are, and their noise, timesteps and captions, are functions of the seed and the step alone, so
nothing of the processes is in the result or in a saved state. Gradients are added up once per step, before they are clipped.
"""
from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch

from .commands import POLL
from .distributed import PeerFailed
from .session import Outcome, Session
from .turns import Turn
from .validate import Measurement

if TYPE_CHECKING:
    from .ranks import Ranks

WISHES = ("stop", "pause", "save", "preview")


def check_share(batch_size: int, accumulation: int, world: int) -> None:
    """ValueError when there are more processes than samples in a step."""
    if batch_size * accumulation < world:
        raise ValueError(f"a step has {batch_size * accumulation} pictures (batch_size {batch_size} x gradient_accumulation_steps {accumulation}), "
                         f"which {world} processes cannot share; set batch_size to {-(-world // accumulation)} or more, or start "
                         f"{batch_size * accumulation} processes at most")


class SharedSession(Session):
    """One process's session. The first one measures, draws and writes, while the others wait for it; `stop`, `pause`, `ask_save` and
    `ask_preview` may be called in any of them and hold for all."""

    def __init__(self, *arguments: Any, ranks: Ranks, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.ranks = ranks
        self.plan.moments = None  # held in 8 bits in one process only, they would lead it to other weights
        self._wishes = dict.fromkeys(WISHES, False)
        self._failure = ""
        self._added: tuple[int, torch.Tensor] = (-1, torch.zeros(0))

    def train(self) -> Outcome:
        try:
            self._hear(self.ranks.total(self._own_wishes()))
            return super().train()
        except PeerFailed as error:
            raise PeerFailed(self._failure or str(error), error.quiet) from error
        except Exception as error:
            if self.ranks.speaks:
                raise
            raise PeerFailed(self._failure or str(error), quiet=True) from error

    def _batches(self) -> list[list[tuple[int, int]]]:
        return self.dataset.order.batches(self.step, self.plan.batch_size, (self.ranks.rank, self.ranks.world))

    def _gradients(self) -> torch.Tensor:
        """Of all processes' samples. What was added up is kept: when this process must do the rest of the step again, because its memory
        is full, the others have gone on."""
        if self._added[0] != self.step:
            loss = super()._gradients()
            parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
            flat = torch.cat([*(part.flatten().float() for part in parts), loss.reshape(1), self._own_wishes().to(loss.device)])
            self._added = self.step, self.ranks.total(flat)
        flat, start = self._added[1], 0
        for p in self.parameters:
            part = flat[start:start + p.numel()].view_as(p).to(p.dtype)
            start += p.numel()
            if p.grad is not None or part.any():
                p.grad = part.clone()
        self._hear(flat[start + 1:])
        return flat[start]

    def _own_wishes(self) -> torch.Tensor:
        wanted = {name: getattr(self.commands, name).is_set() for name in WISHES}
        wanted["stop"] |= self.backend.interrupted()
        return torch.tensor([float(wanted[name]) for name in WISHES])

    def _hear(self, wishes: torch.Tensor) -> None:
        """Take in what was asked for in any of the processes, so that all do the same after this step."""
        for name, wanted in zip(WISHES, wishes.tolist()):
            self._wishes[name] = bool(wanted)
            if wanted:
                getattr(self.commands, name).set()

    def _asked_to_stop(self) -> bool:
        return self._wishes["stop"]

    @property
    def paused(self) -> bool:
        return self._wishes["pause"]

    def _wait_while_paused(self, turn: Turn) -> None:
        """Until one of them is unpaused, or stopped."""
        if not self.paused or self.step >= self.total_steps:
            return
        self._tell("paused", True)
        while self.paused and not self._asked_to_stop():
            with turn.left():
                self._listen_while_paused()
            self._save_and_draw(False, False)
        self._tell("paused", False)

    def _listen_while_paused(self) -> None:
        """Until something is to be done."""
        waiting = True
        while waiting:
            time.sleep(POLL)
            goes_on = torch.tensor([float(not self.commands.pause.is_set())])
            wishes = self.ranks.total(torch.cat([self._own_wishes(), goes_on]))
            self._hear(wishes[:-1])
            if wishes[-1]:
                self.commands.pause.clear()
                self._wishes["pause"] = False
            waiting = self._wishes == {**dict.fromkeys(WISHES, False), "pause": True}

    def _save_and_draw(self, save: bool, draw: bool) -> None:
        """The writer does it. Wishes that came after this step's sum are left for the next one, as the others do not know of them."""
        if self.ranks.is_writer:
            super()._save_and_draw(save, draw)
        else:
            for name in ("save", "preview"):
                if self._wishes[name]:
                    getattr(self.commands, name).clear()

    def _measure(self, turn: Turn) -> Measurement:
        return self.ranks.from_first(lambda: Session._measure(self, turn))

    def _load_state(self) -> dict[str, Any]:
        return self.ranks.from_first(lambda: Session._load_state(self))

    def _finish(self) -> Outcome:
        return self.ranks.from_first(lambda: Session._finish(self))

    def _keep_after(self, error: BaseException) -> Outcome:
        self.ranks.fail(error)
        if self.ranks.is_writer:
            outcome = super()._keep_after(error)
        else:
            self._forget_step()
            outcome = Outcome("failed", self.step, self.total_steps, None, str(error))
        self._failure = outcome.message
        return outcome
