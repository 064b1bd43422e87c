"""What happens between the steps of transformers' Trainer: stopping, saving, measuring, and telling people."""
from __future__ import annotations

import logging
import math
import shutil
import sys
import threading
import time
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Callable

import torch
from transformers import TrainerCallback

from ..listeners import purge_step
from ..output_files import disk_full, put_folder
from ..progress_file import ProgressFile
from ..session import NotANumber
from ..state import step_stem
from .checkpoints import mark_complete
from .config import LanguageConfig
from .peers import is_one_of_several, wait_for_all

log = logging.getLogger(__name__)
NOT_OF_THE_ADAPTER = ("optimizer.pt", "scheduler.pt", "trainer_state.json", "training_args.bin", "complete.json", "scaler.pt")
MEASUREMENTS = 20
"""In one run, where eval_steps does not say."""


class Flow(TrainerCallback):
    """Stops, saves and measures when it is due, in the same step on all processes.

    `stop` may be set by a signal handler. Complete checkpoints are marked as such; every `save_steps` their adapter is kept as
    `<name>-<step>`. A gradient that is not a number ends the run before it reaches the weights.
    """

    def __init__(self, config: LanguageConfig, name: str, checkpoints: Path, measures: bool) -> None:
        self.config, self.name, self.checkpoints, self.measures = config, name, checkpoints, measures
        self.stop = threading.Event()
        self.stopped = False
        self._state_written = time.monotonic()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if args.fp16:  # the scaler leaves such a step out
            return
        peaks = [_local(p.grad).abs().max() for p in model.parameters() if p.grad is not None and _local(p.grad).numel()]
        if peaks and not torch.isfinite(torch.stack([peak.float() for peak in peaks]).sum()):
            advice = "" if args.bf16 else "; or set mixed_precision: bf16"
            raise NotANumber(f"the gradient at step {state.global_step + 1} is not a number any more; the weights from before that step are kept. "
                             f"Look at learning_rate ({self.config.learning_rate:g}): try a tenth of it{advice}")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        is_last = state.global_step >= state.max_steps
        pause = 60 * self.config.state_minutes
        old = bool(pause) and state.is_world_process_zero and time.monotonic() - self._state_written > pause
        stop, old = _on_any_process([self.stop.is_set(), old], args.device)
        if stop and not is_last:
            self.stopped = control.should_training_stop = True
        if stop or old or is_last or _due(self.config.save_steps, state.global_step):
            control.should_save = True
        if self.measures and (is_last or _due(self._interval(state), state.global_step)):
            control.should_evaluate = control.should_save = True
        return control

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        wait_for_all()
        self._state_written = time.monotonic()
        if not state.is_world_process_zero:
            return
        checkpoint = self.checkpoints / f"checkpoint-{state.global_step}"
        mark_complete(checkpoint)
        if _due(self.config.save_steps, state.global_step) and state.global_step < state.max_steps:
            log.info("saved %s", keep_adapter(checkpoint, self.checkpoints.parent / step_stem(self.name, state.global_step)))

    def _interval(self, state: Any) -> int:
        return self.config.eval_steps or max(1, math.ceil(state.max_steps / MEASUREMENTS))


def keep_adapter(checkpoint: Path, target: Path) -> Path:
    """Copy what a checkpoint has of the adapter to `target`; a folder that is there already is kept as `-v1`."""
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        shutil.copytree(checkpoint, temporary, ignore=lambda _, names: [name for name in names if name in NOT_OF_THE_ADAPTER or name.startswith("rng_state")])
        put_folder(temporary, target)
    except Exception as error:
        if full := disk_full(target, error):
            raise full from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


class Tell(TrainerCallback):
    """Loss and measurements for people: the log, a bar, TensorBoard (`writer`, or None), and `details` for the log file alone."""

    def __init__(self, name: str, details: Callable[[str], None], writer: Any = None) -> None:
        self.name, self.details, self.writer, self.bar, self.shown = name, details, writer, None, ExitStack()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if find_spec("tqdm") and state.is_world_process_zero:
            from tqdm import tqdm
            from tqdm.contrib.logging import logging_redirect_tqdm

            self.shown.enter_context(logging_redirect_tqdm())
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc=self.name, unit="step", file=sys.stderr, dynamic_ncols=True)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if not state.is_world_process_zero or not logs:
            return
        if self.writer is not None:
            for key, value in logs.items():
                if isinstance(value, (int, float)) and not key.startswith("train_") and key not in ("epoch", "total_flos"):
                    self.writer.add_scalar(key, value, state.global_step)
            self.writer.flush()
        if "loss" in logs:
            if self.bar is not None:
                self.bar.set_postfix(loss=f"{logs['loss']:.4f}", lr=f"{logs['learning_rate']:.1e}", refresh=False)
            self.details(f"step {state.global_step} loss {logs['loss']:.6f} lr {logs['learning_rate']:.3e} gradient {logs.get('grad_norm', math.nan):.4f}")
        measured = [f"{words} {logs[key]:.4g}" for key, words in (("eval_perplexity", "held-out perplexity"), ("general_perplexity", "perplexity of the "
                    "general texts")) if key in logs]
        if measured:
            log.info("step %d: %s", state.global_step, ", ".join(measured))

    def show(self, text: str, step: int) -> None:
        if self.writer is not None:
            self.writer.add_text("previews", text, step)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        self.shown.close()
        if self.writer is not None:
            self.writer.close()


class Progress(TrainerCallback):
    """Writes down how far the run is, for whoever looks on from another process."""

    def __init__(self, file: ProgressFile) -> None:
        self.file, self.loss = file, None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.file.begin(state.global_step, state.max_steps)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        self.loss = (logs or {}).get("loss", self.loss)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.file.step(state.global_step, state.max_steps, self.loss)


def make_writer(config: LanguageConfig, name: str, step: int) -> Any:
    """TensorBoard's writer for `<output_dir>/tensorboard/<name>`, or None where it is not wanted or not installed."""
    if not config.tensorboard:
        return None
    if not find_spec("tensorboard"):
        log.warning("tensorboard is true but TensorBoard is not installed; `pip install tensorboard`, or set tensorboard: false")
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(Path(config.output_dir) / "tensorboard" / name), purge_step=purge_step(step))


def _due(every: int, step: int) -> bool:
    return bool(every) and step % every == 0


def _local(tensor: torch.Tensor) -> torch.Tensor:
    """This process's part of a sharded tensor."""
    return getattr(tensor, "_local_tensor", tensor)


def _on_any_process(flags: list[bool], device: torch.device) -> list[bool]:
    """Each flag, set on all processes if it is on one."""
    if not is_one_of_several():
        return flags
    together = torch.tensor(flags, dtype=torch.uint8, device=device)
    torch.distributed.all_reduce(together, op=torch.distributed.ReduceOp.MAX)
    return [bool(flag) for flag in together.tolist()]
