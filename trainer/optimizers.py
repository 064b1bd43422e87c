"""Optimizers by name, learning rate schedules, and the running average of the weights (EMA)."""
from __future__ import annotations

import importlib
import inspect
import logging
import math
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Callable, Iterable, Iterator

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from .extension_points import load_class

if TYPE_CHECKING:
    from .config import TrainConfig

log = logging.getLogger(__name__)

SOURCES = {
    "adamw": (("torch.optim", "AdamW"),),
    "adamw8bit": (("bitsandbytes.optim", "AdamW8bit"),),
    "prodigy": (("prodigyopt", "Prodigy"),),
    "adafactor": (("transformers.optimization", "Adafactor"), ("torch.optim", "Adafactor")),
    "lion": (("lion_pytorch", "Lion"), ("bitsandbytes.optim", "Lion")),
}
"""Where each optimizer comes from, best first: transformers' Adafactor takes the arguments that settings files in use have."""
PACKAGES = {"lion_pytorch": "lion-pytorch"}
"""Names to install, where they differ from the names to import."""

CURVES: dict[str, Callable[[float, int], float]] = {
    "constant": lambda x, cycles: 1.0,
    "linear": lambda x, cycles: 1 - x,
    "cosine": lambda x, cycles: 0.5 * (1 + math.cos(math.pi * x)),
    "cosine_with_restarts": lambda x, cycles: 0.5 * (1 + math.cos(math.pi * (x * cycles % 1))) if x < 1 else 0.0,
    "polynomial": lambda x, cycles: (1 - x) ** 2,
}
"""Share of the learning rate after the share `x` (0 to 1) of the steps that follow the warm-up. Cosine: 1608.03983."""
TIME_SCALE = 25
"""Steps after which inverse_sqrt is down to sqrt(1/2)."""


def make_optimizer(config: TrainConfig, groups: list[dict[str, Any]]) -> Optimizer:
    """The optimizer of the settings over `groups` (dicts with `params`, `lr` and `name`).

    weight_decay is passed on where the optimizer has it; optimizer_args go to its constructor as they are, lists as tuples.
    Raises ValueError when its package is missing, or when it does not take the arguments or the groups.
    """
    optimizer = _made(config, groups)
    if config.optimizer == "prodigy" and groups and groups[0]["lr"] < 0.1:
        log.warning("learning_rate is %g, but prodigy multiplies it with the rate that it finds by itself; 1 is usual", groups[0]["lr"])
    if hasattr(optimizer, "train"):  # schedule-free optimizers step in this mode only
        optimizer.train()
    return optimizer


def check_optimizer(config: TrainConfig, groups: list[dict[str, Any]]) -> None:
    """Whether `make_optimizer` would make one over such groups, said at once. ValueError as there; nothing is kept and nothing logged.

    Small weights on any device may stand for those of the run: `fused`, which depends on where they lie, is not looked at.
    """
    _made(replace(config, optimizer_args={name: value for name, value in config.optimizer_args.items() if name != "fused"}), groups)


def _made(config: TrainConfig, groups: list[dict[str, Any]]) -> Optimizer:
    found = _optimizer_class(config.optimizer)
    arguments = {name: tuple(value) if isinstance(value, list) else value for name, value in config.optimizer_args.items()}
    accepted = _accepted(found)
    defaults: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    if found is torch.optim.AdamW:
        defaults["fused"] = _fused_works(groups)
    if found.__module__.startswith("transformers"):  # its own default sets the rate by itself, which rules a schedule out
        defaults.update(scale_parameter=False, relative_step=False)
    if config.optimizer == "prodigy":
        _check_prodigy(config, groups)
    defaults = {name: value for name, value in defaults.items() if accepted is None or name in accepted}
    try:
        optimizer = found([dict(group) for group in groups], **{**defaults, **arguments})
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        takes = "" if accepted is None else f" (it takes {', '.join(accepted)})"
        raise ValueError(f"optimizer {config.optimizer} does not work with optimizer_args {config.optimizer_args}: "
                         f"{error}{takes}; change optimizer_args") from error
    _check_step(config, optimizer)
    return optimizer


def _optimizer_class(name: str) -> type:
    if name not in SOURCES:
        found = load_class(name, "optimizer")
        if not issubclass(found, Optimizer):
            raise ValueError(f"optimizer is {name}, which is not an optimizer of torch's kind; name a class made from "
                             "torch.optim.Optimizer")
        return found
    for module, attribute in SOURCES[name]:
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError, OSError, RuntimeError) as error:
            log.info("optimizer %s: %s of %s is not there (%s)", name, attribute, module, error)
    packages = [PACKAGES.get(module.split(".")[0], module.split(".")[0]) for module, _ in SOURCES[name]]
    raise ValueError(f"optimizer is {name}, which needs the package {' or '.join(packages)}, and that is not installed or does "
                     f"not load here; run `pip install {packages[0]}` in the Python environment that runs HotLoRA, or use adamw")


def _accepted(found: type) -> list[str] | None:
    """Names that the constructor takes besides the parameters; None for any."""
    parameters = list(inspect.signature(found).parameters.values())
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return [parameter.name for parameter in parameters[1:] if parameter.kind is not inspect.Parameter.VAR_POSITIONAL]


def _fused_works(groups: list[dict[str, Any]]) -> bool:
    """One kernel for all parameters takes a fifth of the time of a loop over some hundred small ones."""
    kinds = {parameter.device.type for group in groups for parameter in group["params"]}
    return kinds == {"cuda"} or kinds == {"cpu"} and torch.__version__ >= (2, 4)


def _check_prodigy(config: TrainConfig, groups: list[dict[str, Any]]) -> None:
    rates = sorted({group["lr"] for group in groups})
    if len(rates) > 1:
        raise ValueError(f"optimizer prodigy finds one learning rate for everything, but there are {', '.join(map(str, rates))}; "
                         "remove text_encoder_lr and lora_plus_ratio, or use adamw")


def _check_step(config: TrainConfig, optimizer: Optimizer) -> None:
    """Optimizers such as LBFGS run the model themselves inside a step, which a training with accumulation cannot offer."""
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise ValueError(f"optimizer {config.optimizer} wants to run the model itself in each step (a closure), which is not "
                         "supported; use another, such as adamw")


@contextmanager
def settled(optimizer: Optimizer) -> Iterator[None]:
    """Inside, the parameters are those to draw and to save with.

    Only schedule-free optimizers (2405.15682) make a difference: they take gradients at one point and average at another.
    """
    if not (hasattr(optimizer, "eval") and hasattr(optimizer, "train")):
        yield
        return
    optimizer.eval()
    try:
        yield
    finally:
        optimizer.train()


def make_scheduler(config: TrainConfig, optimizer: Optimizer, total_steps: int) -> LambdaLR:
    """Warm-up, then the curve of `lr_scheduler` down to the end of the run at `total_steps` (optimizer steps).

    Step k of the warm-up (from 0) has the share (k + 1) / (warm-up + 1), so that no step is wasted on a rate of 0. The rate is
    worked out from the step number alone, unlike in torch's own CosineAnnealingLR, whose saved state keeps the old length:
    so a run that is resumed with more steps follows the longer curve. inverse_sqrt (1706.03762, eq. 3) does not depend on
    the length: k steps after the warm-up it has the share sqrt(s / (s + k)), with s = `TIME_SCALE`.
    """
    warmup, cycles, curve = config.lr_warmup_steps, config.lr_cycles, CURVES.get(config.lr_scheduler)
    if warmup and warmup >= total_steps:
        log.warning("lr_warmup_steps is %d, but the run has %d steps, so the full learning rate is never reached", warmup,
                    total_steps)

    def share(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if curve is None:
            return math.sqrt(TIME_SCALE / (TIME_SCALE + step - warmup))
        return curve(min(1.0, (step - warmup) / max(1, total_steps - warmup)), cycles)

    return LambdaLR(optimizer, share)


@contextmanager
def settings_kept(optimizer: Optimizer, scheduler: LambdaLR, names: Iterable[str] = ()) -> Iterator[None]:
    """Inside, a saved state is loaded; rates, weight_decay and what `names` has of each group are then still those of the settings.

    The schedule goes on at the saved step.
    """
    rates = list(scheduler.base_lrs)
    before = [{name: group[name] for name in ("initial_lr", "weight_decay", *names) if name in group} for group in optimizer.param_groups]
    yield
    scheduler.base_lrs = rates
    scheduler._last_lr = [rate * share(scheduler.last_epoch) for rate, share in zip(rates, scheduler.lr_lambdas)]
    for group, own, rate in zip(optimizer.param_groups, before, scheduler._last_lr):
        group.update(own, lr=rate)


class EMA:
    """Running average of parameters, float32: average += (1 - d) (parameter - average), with d = min(decay, (1 + n) / (10 + n)).

    The lower d of the first n updates keeps the start, where a LoRA does nothing yet, from weighing on short runs.
    """

    def __init__(self, parameters: Iterable[Tensor], decay: float) -> None:
        assert 0 <= decay < 1, decay
        self.parameters = list(parameters)
        self.decay = decay
        self.updates = 0
        self.averages = [parameter.detach().float().clone() for parameter in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Take the parameters in as they are now; call after each optimizer step."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for average, parameter in zip(self.averages, self.parameters):
            average.lerp_(parameter.detach().float(), 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the parameters are the averages; afterwards exactly what they were. Nothing is copied."""
        before = [parameter.data for parameter in self.parameters]
        try:
            for parameter, average in zip(self.parameters, self.averages):
                parameter.data = average.to(parameter.dtype)
            yield
        finally:
            for parameter, data in zip(self.parameters, before):
                parameter.data = data

    def state_dict(self) -> dict[str, Any]:
        """The averages (not copied) and how many updates made them; the decay is a setting."""
        return {"updates": self.updates, "averages": list(self.averages)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave; ValueError when it belongs to other parameters."""
        shapes = [tuple(average.shape) for average in state["averages"]]
        if shapes != [tuple(average.shape) for average in self.averages]:
            raise ValueError(f"the saved EMA has {len(shapes)} tensors that do not fit the {len(self.averages)} of this LoRA; "
                             "resume with the settings that the run was started with")
        self.updates = int(state["updates"])
        for average, saved in zip(self.averages, state["averages"]):
            average.copy_(saved)
