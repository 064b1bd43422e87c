"""What watches a run: a progress bar, TensorBoard, and a log file with all that a bug report needs."""
from __future__ import annotations

import importlib.metadata
import logging
import platform
import sys
import time
import traceback
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from .footprint import Footprint
from .progress_file import ProgressFile
from .session import Listener, Outcome, Session, StepReport
from .validate import Measurement
from .. import __version__

log = logging.getLogger(__name__)
PACKAGES = ("torch", "safetensors", "numpy", "Pillow", "diffusers", "transformers", "peft", "accelerate", "tensorboard", "bitsandbytes")


class Bar(Listener):
    """A tqdm bar with the time that is left and a smoothed loss."""

    def __init__(self) -> None:
        self.bar, self.loss = None, None

    def started(self, session: Session) -> None:
        from tqdm import tqdm

        self.bar = tqdm(total=session.total_steps, initial=session.step, desc=session.name, unit="step", file=sys.stderr, dynamic_ncols=True)

    def planned(self, session: Session, footprint: Footprint) -> None:
        self.bar.write(footprint.sentence(), file=sys.stderr)

    def stepped(self, session: Session, report: StepReport) -> None:
        self.loss = report.loss if self.loss is None else 0.95 * self.loss + 0.05 * report.loss
        self.bar.set_postfix(loss=f"{self.loss:.4f}", lr=f"{report.learning_rate:.1e}", refresh=False)
        self.bar.update(report.step - self.bar.n)

    def ended(self, session: Session, outcome: Outcome) -> None:
        if self.bar is not None:
            self.bar.close()


class TensorBoard(Listener):
    """Loss, learning rate, gradient norm, pictures per second, peak memory and previews, in `<output_dir>/tensorboard/<name>`."""

    def __init__(self) -> None:
        self.writer = None

    def started(self, session: Session) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = session.folder / "tensorboard" / session.name
        self.writer = SummaryWriter(str(folder), purge_step=purge_step(session.step))

    def stepped(self, session: Session, report: StepReport) -> None:
        if report.step % session.config.log_every and report.step != report.total_steps and report.step != 1:
            return
        for name, value in (("loss", report.loss), ("learning_rate", report.learning_rate), ("gradient_norm", report.gradient_norm),
                            ("images_per_second", report.samples / max(report.seconds, 1e-9)), ("peak_memory_GB", peak_memory(session) / 1e9)):
            self.writer.add_scalar(name, value, report.step)

    def validated(self, session: Session, measurement: Measurement) -> None:
        if measurement.held_out is not None:
            self.writer.add_scalar("held_out_loss", measurement.held_out, measurement.step)
        self.writer.add_scalar("prior_drift", measurement.drift, measurement.step)

    def drew(self, session: Session, step: int, prompts: list[str], pictures: list) -> None:
        for number, picture in enumerate(pictures):
            self.writer.add_image(f"preview/{number}", np.asarray(picture), step, dataformats="HWC")

    def ended(self, session: Session, outcome: Outcome) -> None:
        if self.writer is not None:
            with suppress(OSError):
                self.writer.close()


def purge_step(done: int) -> int:
    """From which step on a run that begins after `done` steps takes the place of what is in its folder: of all where it is new."""
    return done + 1 if done else 0


class LogFile(logging.FileHandler):
    """The log file of a run. A full disk ends the run by itself and is told then, so nothing more is said of lines that have no place."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8")
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        with suppress(OSError):
            super().close()


class RunLog(Listener):
    """One log file per run, `<output_dir>/logs/<name>-<time>.log`."""

    def __init__(self, warnings: list[str] = ()) -> None:
        self.warnings, self.handler, self.path = list(warnings), None, None

    def started(self, session: Session) -> None:
        folder = session.folder / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{session.name}-{time.strftime('%Y%m%d-%H%M%S')}.log"
        self.handler = LogFile(self.path)
        root = logging.getLogger(__package__)
        root.addHandler(self.handler)
        self._write(f"HotLoRA {__version__}, {versions()}")
        self._write(f"device {describe_device(session.backend.device)}, precision {session.precision.kind}")
        self._write(f"base {session.backend.name} ({session.backend.family}), hash {session.backend.base_hash}")
        self._write("settings:\n" + session.config.to_yaml())
        self._write("gallery: " + session.dataset.gallery.report())
        for warning in self.warnings:
            self._write("warning: " + warning)
        trained = sum(p.numel() for p in session.parameters)
        self._write(f"training {len(session.adapter.layers)} layers, {trained:,} parameters, from step {session.step} to {session.total_steps}")

    def planned(self, session: Session, footprint: Footprint) -> None:
        self._write(footprint.sentence())

    def stepped(self, session: Session, report: StepReport) -> None:
        if report.step % session.config.log_every == 0 or report.step in (1, report.total_steps):
            self._write(f"step {report.step} loss {report.loss:.6f} lr {report.learning_rate:.3e} gradient {report.gradient_norm:.4f} "
                        f"{report.seconds:.3f} s, peak {peak_memory(session) / 1e9:.2f} GB")

    def saved(self, session: Session, lora: Path) -> None:
        self._write(f"saved {lora}")

    def validated(self, session: Session, measurement: Measurement) -> None:
        held_out = "nothing held out" if measurement.held_out is None else f"held-out loss {measurement.held_out:+.4f} of the base's"
        self._write(f"step {measurement.step} {held_out}, prior drift {measurement.drift:.4f}")

    def drew(self, session: Session, step: int, prompts: list[str], pictures: list) -> None:
        self._write(f"drew {len(pictures)} previews at step {step}: {prompts}")

    def ended(self, session: Session, outcome: Outcome) -> None:
        if self.handler is None:
            return
        if outcome.status == "failed":
            self._write(traceback.format_exc())
        self._write(f"{outcome.status}: {outcome.message}")
        logging.getLogger(__package__).removeHandler(self.handler)
        self.handler.close()

    def _write(self, text: str) -> None:
        self.handler.emit(logging.LogRecord(__name__, logging.INFO, "", 0, text, None, None))


def usual_listeners(config, warnings: list[str] = ()) -> list[Listener]:
    """The bar, the log file, TensorBoard where it is wanted and installed, and the file that whoever started this process looks at."""
    listeners: list[Listener] = [RunLog(warnings)]
    progress = ProgressFile.from_environment()
    if progress:
        listeners.append(progress)
    elif find_spec("tqdm"):
        listeners.append(Bar())
    if config.tensorboard:
        if find_spec("tensorboard"):
            listeners.append(TensorBoard())
        else:
            log.warning("tensorboard is true but TensorBoard is not installed; `pip install tensorboard`, or set tensorboard: false")
    return listeners


def versions() -> str:
    found = [f"Python {platform.python_version()} on {platform.platform()}"]
    for package in PACKAGES:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)


def describe_device(device: torch.device) -> str:
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{device} {properties.name}, {properties.total_memory / 1e9:.1f} GB"
    return f"{device}, {torch.get_num_threads()} threads"


def peak_memory(session: Session) -> int:
    """Bytes: of the GPU where there is one, else of the whole process."""
    if session.backend.device.type == "cuda":
        return torch.cuda.max_memory_allocated(session.backend.device)
    return peak_resident()


def peak_resident() -> int:
    """Peak memory of this process in bytes; 0 where the system does not tell (Windows without psutil)."""
    try:
        import resource
    except ImportError:
        if not find_spec("psutil"):
            return 0
        import psutil

        return psutil.Process().memory_info().peak_wset
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
