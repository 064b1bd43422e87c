"""What was tried on the balanced preset to be faster than it is, for bench/quality.py alone: none of it helped beyond the luck of a run (bench/QUALITY.md)."""
from __future__ import annotations

from typing import Any, Callable

import torch

from hotlora.trainer.randomness import uniform

GOLDEN = 0.6180339887498949


def spread_timesteps(session: Any) -> None:
    """Timesteps of neighbouring samples far apart, within a step and from step to step: multiples of the golden ratio (a low-discrepancy sampler as in
    2107.00630, appendix I.1) instead of independent numbers."""
    objective, group, start = session.objective, session.dataset.order.group, uniform(session.config.seed, "timestep", 0, [0]).item()
    usual, drawn = objective.timesteps, 0

    def timesteps(u_B: torch.Tensor) -> torch.Tensor:
        nonlocal drawn
        first = session.step * group + drawn
        drawn = (drawn + len(u_B)) % group
        return usual((start + (first + torch.arange(len(u_B), dtype=torch.float64)) * GOLDEN) % 1)

    objective.timesteps = timesteps


def high_noise(session: Any) -> None:
    """More of the high noise levels: level 1 - (1 - u)^1.5, two thirds as often as uniform near clean pictures and the more often the noisier."""
    _respread(session, lambda u_B: 1 - (1 - u_B) ** 1.5)


def low_noise(session: Any) -> None:
    """The opposite: level u^1.5."""
    _respread(session, lambda u_B: u_B ** 1.5)


def _respread(session: Any, spread: Callable[[torch.Tensor], torch.Tensor]) -> None:
    objective = session.objective
    usual = objective.timesteps
    objective.timesteps = lambda u_B: usual(spread(u_B.double()))


def wider_average(session: Any) -> None:
    """The average of about the last quarter of the run, however long that is (2312.02696, section 3.1, gamma 3), instead of at most 20 steps."""
    average = session.ema

    @torch.no_grad()
    def update() -> None:
        average.updates += 1
        for mean, parameter in zip(average.averages, average.parameters):
            mean.lerp_(parameter.detach().float(), 4 / (5 + average.updates))

    average.update = update


def late_decay(session: Any) -> None:
    """No weight decay in the first 100 steps."""
    decay = {id(group): group["weight_decay"] for group in session.optimizer.param_groups}

    def set_decay(optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            group["weight_decay"] = decay[id(group)] if session.step >= 100 else 0.0

    session.optimizer.register_step_pre_hook(set_decay)


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal by five Newton-Schulz steps, at AdamW's size (K. Jordan 2024; 2502.16982, eq. 4). Kernels of convolutions
    are matrices with one row for each output."""

    def __init__(self, params, lr: float = 1e-3, weight_decay: float = 0.0, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                g_OI = parameter.grad.flatten(1)
                m_OI = self.state[parameter].setdefault("momentum", torch.zeros_like(g_OI))
                m_OI.lerp_(g_OI, 1 - group["momentum"])
                update_OI = orthogonal(g_OI.lerp(m_OI, group["momentum"])) * 0.2 * max(g_OI.shape) ** 0.5
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update_OI.view_as(parameter), alpha=-group["lr"])


def orthogonal(x: torch.Tensor) -> torch.Tensor:
    """About the nearest matrix whose singular values are all 1."""
    if x.shape[0] > x.shape[1]:
        return orthogonal(x.t()).t()
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.t()
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x
