"""One job being carried out: from its settings to a session, and what the session says, on disk and to whoever listens."""
from __future__ import annotations

import logging
import threading
import time
import traceback
from dataclasses import asdict, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .backend import Backend, BaseChanged
from .config import TrainConfig
from .footprint import Footprint
from .gallery_files import existing_folder, printable
from .job_settings import base_of, checked_settings, placed, with_preset
from .job_store import Job, LossFile
from .listeners import RunLog, TensorBoard
from .memory import FREE_SOME, explained
from .output_files import OutputError
from .preflight import preflight
from .run import Material, make_session, read_material
from .session import Listener, Outcome, Session, StepReport
from .state import find_states
from .validate import Measurement

if TYPE_CHECKING:
    from .jobs import JobQueue

log = logging.getLogger(__name__)
STEPS_TOLD = 0.2
"""Seconds between two step events; the losses of the steps between come with the next."""


class Stopped(Exception):
    """The user stopped a job that was still being prepared."""


class JobRun(Listener):
    """Carries out `job`, which belongs to `queue`. `ask` may be called from any thread."""

    def __init__(self, queue: JobQueue, job: Job) -> None:
        self.queue, self.job, self.host = queue, job, queue.host
        self.folder = queue.store.run_folder(job)
        self.losses = LossFile(self.folder)
        self.session: Session | None = None
        self.failure: Outcome | None = None
        self.stop_asked = self.closing = self.wrote_captions = False
        self._asking = threading.Lock()
        self._told, self._untold, self._began, self._step_seconds, self._drawing_seconds = 0.0, [], 0.0, None, 0.0

    def ask(self, command: str) -> None:
        """stop, pause, resume, save or sample; a stop counts also before there is a session."""
        with self._asking:
            self.stop_asked |= command == "stop"
            if self.session is not None:
                {"stop": self.session.stop, "pause": self.session.pause, "resume": self.session.unpause, "save": self.session.ask_save,
                 "sample": self.session.ask_preview}[command]()

    def execute(self) -> None:
        """Run to whatever end. Nothing is raised: a failure is told in one sentence, its traceback kept beside it."""
        self.job.message = self.job.details = ""
        self.job.started, self.job.ended = self.job.started or time.time(), None
        handler = _Warnings(self)
        logging.getLogger(__package__).addHandler(handler)
        try:
            with explained(lambda: FREE_SOME):
                material = self._material()
                self._raise_if_stopped()
                outcome = self.host.with_backend(material.config, lambda backend: self._train(material, backend))
            self._end(outcome.status, outcome.message.replace("go on with --resume", "Resume goes on from here"))
        except Stopped:
            self._end("stopped", "stopped before the first step; nothing had been learned yet")
        except BaseChanged as error:
            self._end("stopped", f"stopped before the first step, because {error}")
        except BaseException as error:  # a host's own exceptions are among them, and the worker has to live on
            log.warning("the job %s failed: %s", self.job.name, sentence(error))
            self._end("failed", self._why(error), "".join(traceback.format_exception(error)))
        finally:
            logging.getLogger(__package__).removeHandler(handler)

    def _material(self) -> Material:
        """The pictures, and the settings in full; those of a run that goes on are the ones that it began with."""
        if self.job.config:
            config, warnings = TrainConfig.from_dict(self.job.config), []
        else:
            config, warnings = checked_settings(self.host, self.job.settings)
        config = placed(replace(config, name=self.job.name), self.host, self.folder)
        preflight(config, self.host.device())
        material = read_material(config, not self.job.config, tuple(self.host.model_folders()), str(self.host.device()), self._captioned, lambda: self.stop_asked)
        if self.wrote_captions:
            self.queue.events.add("gallery", folder=printable(existing_folder(config.train_data_dir)))
        self._raise_if_stopped()
        if not self.job.config:
            config = with_preset(config, self.job.settings, self.job.preset, len(material.gallery.examples), base_of(self.host, config))
            self.job.config = config.to_dict()
        self.job.pictures, self.job.trigger = len(material.gallery.examples), config.trigger
        self.job.warnings = warnings + material.gallery.warnings
        self._become("preparing")
        self.tell("log", text=material.gallery.report())
        return replace(material, config=config)

    def _train(self, material: Material, backend: Backend) -> Outcome:
        self.job.base = backend.name
        listeners: list[Listener] = [self, RunLog(self.job.warnings)]
        if material.config.tensorboard and find_spec("tensorboard"):
            listeners.append(TensorBoard())
        session = make_session(material, backend, listeners, partial(self._prepared, backend))
        if find_states(self.folder, session.name):
            for change in session.resume():
                self.tell("log", text=f"unlike the saved run, {change}")
            self.tell("log", text=f"going on from step {session.step} of {session.total_steps}")
        with self._asking:
            self.session = session
        self._raise_if_stopped()
        return session.train()

    def _captioned(self, done: int, total: int) -> None:
        self.job.message = f"writing captions: {done} of {total}"
        self.wrote_captions = True
        self.queue.publish(self.job)

    def _prepared(self, backend: Backend, done: int, total: int) -> None:
        self._raise_if_stopped()
        if backend.interrupted():
            raise Stopped
        if time.monotonic() - self._told > STEPS_TOLD or done == total:
            self._told = time.monotonic()
            self.job.message = f"preparing pictures: {done} of {total}"
            self.queue.publish(self.job)

    def _raise_if_stopped(self) -> None:
        if self.stop_asked:
            raise Stopped

    def started(self, session: Session) -> None:
        self.job.step, self.job.total_steps, self.job.message = session.step, session.total_steps, ""
        self.job.run = str(session.started_at)
        self._began = time.monotonic()
        self._become("running")

    def planned(self, session: Session, footprint: Footprint) -> None:
        self.tell("log", text=footprint.sentence())
        self.job.memory = {**footprint.facts(), "given_up": list(session.plan.taken)}
        self.queue.store.save(self.job)
        self.queue.publish(self.job)
        self._began = time.monotonic()

    def lightened(self, session: Session, rung: str) -> None:
        if self.job.memory is not None:
            self.job.memory = {**self.job.memory, "given_up": list(session.plan.taken)}
            self.queue.publish(self.job)

    def stepped(self, session: Session, report: StepReport) -> None:
        now, job = time.monotonic(), self.job
        taken, self._began = now - self._began, now
        self._step_seconds = taken if self._step_seconds is None else 0.9 * self._step_seconds + 0.1 * taken
        job.step, job.loss = report.step, report.loss
        every = session.config.preview_steps
        drawings = report.total_steps // every - report.step // every if every else 0
        job.seconds_left = round((report.total_steps - report.step) * self._step_seconds + drawings * self._drawing_seconds, 1)
        job.seconds_per_picture = self._step_seconds / report.samples
        self.losses.add(report.step, report.loss)
        self._untold.append([report.step, report.loss])
        if now - self._told > STEPS_TOLD or report.step == report.total_steps:
            self._tell_steps()

    def _tell_steps(self) -> None:
        if self._untold:
            job, self._told = self.job, time.monotonic()
            self.tell("step", step=job.step, total_steps=job.total_steps, loss=job.loss, seconds_left=job.seconds_left, losses=self._untold)
            self._untold = []

    def saved(self, session: Session, lora: Path) -> None:
        self._tell_steps()
        name = lora.stem
        if all(entry["name"] != name for entry in self.job.saved):
            self.job.saved.append({"step": session.step, "name": name, "tag": f"<lora:{name}:1>"})
        self.queue.store.save(self.job)
        self.tell("saved", step=session.step, name=name)
        self._hand_over(name, lora)

    def _hand_over(self, name: str, lora: Path) -> None:
        """The host hears of a new file; that it cannot use it is no reason to end a run."""
        self.job.lora = name
        try:
            self.host.lora_written(name, lora)
        except Exception as error:
            log.exception("%s could not be loaded into the host", lora)
            self.tell("log", text=f"{name} is saved but could not be loaded into the host: {error}")
        self.queue.events.add("loras", names=[name])

    def drew(self, session: Session, step: int, prompts: list[str], pictures: list) -> None:
        self._tell_steps()
        drawn = prompts[:len(pictures)]  # a cancelled drawing, or one without memory, has fewer
        if not drawn:
            return
        new = [{"step": step, "prompt": prompt, "file": f"{session.name}-{step:06d}-{number}.png"} for number, prompt in enumerate(drawn)]
        files = {entry["file"] for entry in new}
        self.job.previews = [entry for entry in self.job.previews if entry["file"] not in files] + new
        self.queue.store.save(self.job)
        self.tell("preview", step=step, previews=new)
        now = time.monotonic()
        self._drawing_seconds, self._began = now - self._began, now

    def validated(self, session: Session, measurement: Measurement) -> None:
        self._tell_steps()
        told = asdict(measurement)
        # a run that went on from a saved state measures some steps again
        self.job.measured = [one for one in self.job.measured if one["step"] < measurement.step] + [told]
        self.queue.store.save(self.job)
        self.tell("measured", **told)
        self._began = time.monotonic()

    def paused(self, session: Session, is_paused: bool) -> None:
        self._tell_steps()
        self.job.message = ""
        self._become("paused" if is_paused else "running")
        self._began = time.monotonic()

    def ended(self, session: Session, outcome: Outcome) -> None:
        self._tell_steps()
        self.job.step = outcome.step
        if outcome.status == "failed":
            self.failure = outcome
            if outcome.lora is not None:
                self._hand_over(outcome.lora.stem, outcome.lora)

    def _end(self, status: str, message: str, details: str = "") -> None:
        if self.closing and status == "stopped":
            status, message = "interrupted", f"the server was closed at step {self.job.step}; Resume goes on from here"
        self.job.message, self.job.details, self.job.seconds_left, self.job.ended = message, details, None, time.time()
        self._become(status)

    def _why(self, error: BaseException) -> str:
        why = sentence(error)
        if self.failure is None:
            return why
        where = self.failure.message.partition(":")[0]
        if not self.failure.step:
            kept = "nothing had been learned yet"
        elif find_states(self.folder, self.job.name):
            kept = "what was learned is kept, and Resume goes on from there"
        else:
            kept = f"what was learned is {self.failure.lora}" if self.failure.lora else "what was learned could not be saved either"
        return f"{where}: {why}; {kept}"

    def _become(self, status: str) -> None:
        self.queue.change(self.job, status)

    def tell(self, kind: str, **facts: Any) -> None:
        self.queue.events.add(kind, self.job.id, **facts)


class _Warnings(logging.Handler):
    """What the core warns of while the job runs, as log events."""

    def __init__(self, run: JobRun) -> None:
        super().__init__(logging.WARNING)
        self.run = run

    def emit(self, record: logging.LogRecord) -> None:
        if record.name != __name__:
            self.run.tell("log", text=record.getMessage())


def sentence(error: BaseException) -> str:
    """Why, for the user, in one sentence."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else ""
    if isinstance(error, ImportError) and error.name:
        return f"the package {error.name} is missing; install it, or change the setting that needs it"
    if isinstance(error, (ValueError, OutputError)):
        return text or "a value is not allowed"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
