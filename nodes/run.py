"""One training run inside ComfyUI, from the widgets' values to a model with the LoRA applied."""
from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import comfy.sd
import comfy.utils
import folder_paths
import torch
from server import PromptServer

from .finished import Trained, made_from, trained_once
from .images import as_images
from .loras import read
from .places import cache_folder, lora_folders, run_folder
from .unfinished import going_on
from ..trainer.config import TrainConfig
from ..trainer.footprint import Footprint
from ..trainer.hosts.comfy import ComfyBackend
from ..trainer.listeners import RunLog
from ..trainer.memory import FREE_SOME, explained
from ..trainer.output_files import writable_of
from ..trainer.plot import draw_curve
from ..trainer.preflight import preflight
from ..trainer.presets import apply_preset
from ..trainer.run import make_session, read_material
from ..trainer.session import Listener, Outcome, Session, StepReport
from ..trainer.state import find_states, put_states_aside

log = logging.getLogger("hotlora")


@dataclass
class Result:
    """What HotLoRA Train hands on; pictures are `(B, H, W, 3)` in [0, 1]."""

    model: Any
    clip: Any
    loss_plot: torch.Tensor
    previews: torch.Tensor
    message: str


class NodeProgress(Listener):
    """The node's progress bar, with the newest preview in it, and the losses for the plot."""

    def __init__(self, node_id: str) -> None:
        self.node_id, self.bar, self.losses, self.pictures, self.seconds, self.told, self.plan = node_id, None, [], [], 0.0, 0.0, ""

    def started(self, session: Session) -> None:
        self.bar = comfy.utils.ProgressBar(session.total_steps, node_id=self.node_id)

    def planned(self, session: Session, footprint: Footprint) -> None:
        self.plan = footprint.sentence()
        self._say(session, self.plan)

    def lightened(self, session: Session, rung: str) -> None:
        PromptServer.instance.send_progress_text(rung, self.node_id)

    def ended(self, session: Session, outcome: Outcome) -> None:
        """A run that is cancelled or fails gives the graph nothing, so what it kept is told here."""
        self._say(session, outcome.message.replace("go on with --resume", "run again to go on"))

    def _say(self, session: Session, text: str) -> None:
        log.info("%s: %s", session.name, text)
        PromptServer.instance.send_progress_text(text, self.node_id)

    def stepped(self, session: Session, report: StepReport) -> None:
        self.losses.append((report.step, report.loss))
        self.seconds += report.seconds
        left = (report.total_steps - report.step) * self.seconds / len(self.losses)
        # words that a page in any language shows
        text = f"{report.step} / {report.total_steps}, loss {report.loss:.4f}, ETA {timedelta(seconds=round(left))}"
        if report.step % session.config.log_every == 0:
            log.info("%s: %s", session.name, text)
        if time.monotonic() - self.told > 0.5:
            self.told = time.monotonic()
            PromptServer.instance.send_progress_text(text, self.node_id)
        self._show(session, report.step)

    def drew(self, session: Session, step: int, prompts: list[str], pictures: list) -> None:
        self.pictures += pictures
        if pictures:
            self._show(session, step, ("JPEG", pictures[0], 512))

    def _show(self, session: Session, step: int, preview=None) -> None:
        try:
            self.bar.update_absolute(step, session.total_steps, preview)
        except mm.InterruptProcessingException:
            # raised because the user pressed cancel, and the flag is gone with it: end the run as a stopped one
            session.stop()


def run_session(model, clip, vae, values: dict[str, Any], preset: str, node_id: str) -> Result:
    """Train, unless this node has done so on the same inputs, and apply the result."""
    trained = trained_once(node_id, [model, clip, vae], made_from(values, preset), lambda: _train(model, clip, vae, values, preset, node_id))
    # the file, as it holds the best step or the average where those are wanted
    applied, applied_clip = comfy.sd.load_lora_for_models(model, clip, read(trained.lora), 1.0, 1.0)
    return Result(applied, applied_clip, trained.loss_plot, trained.previews, trained.message)


def _train(model, clip, vae, values: dict[str, Any], preset: str, node_id: str) -> Trained:
    """Read the pictures and train. Cancelling saves first and then raises ComfyUI's own exception."""
    name = values["name"]
    with torch.inference_mode(False), explained(lambda: FREE_SOME), going_on(name):
        config = TrainConfig.from_dict({**apply_preset(values, preset, 1), "output_dir": str(run_folder(name)), "lora_dir": str(writable_of(lora_folders())),
                                        "cache_dir": str(cache_folder()), "mixed_precision": "no", "tensorboard": False})
        preflight(config, mm.get_torch_device())
        backend = ComfyBackend(model, clip, vae)
        material = read_material(config, True, (Path(folder_paths.models_dir),), str(mm.get_torch_device()), _raise_if_cancelled)
        progress = NodeProgress(node_id)
        steps = apply_preset(values, preset, len(material.gallery.examples))["steps"]
        material = replace(material, config=replace(config, steps=steps))
        session = make_session(material, backend, [progress, RunLog(material.gallery.warnings)], _raise_if_cancelled)
        _continue(session)
        outcome = session.train()
        _pass_cancel_on(session, outcome)
    plot = as_images([draw_curve(progress.losses)])
    given_up = "given up, as the memory did not suffice: " + "; ".join(session.plan.taken) if session.plan.taken else ""
    told = "\n".join(filter(None, (outcome.message, progress.plan, given_up)))
    return Trained(outcome.lora, plot, as_images(progress.pictures) if progress.pictures else plot, told)


def _pass_cancel_on(session: Session, outcome: Outcome) -> None:
    """What was pressed while we trained is about the whole graph. A run that is complete is handed on first, so that it is not done again."""
    if outcome.status == "stopped":
        mm.interrupt_current_processing(False)
        raise mm.InterruptProcessingException()
    if session.commands.stop.is_set() or session.backend.interrupted():
        mm.interrupt_current_processing(True)


def _continue(session: Session) -> None:
    """Take up an unfinished run of the same name and settings; the states of one with other settings are put aside, and never mixed with ours."""
    if not find_states(session.folder, session.name):
        return
    if session.resumable():
        session.resume()
        log.info("%s: going on from step %d of %d", session.name, session.step, session.total_steps)
    else:
        kept = put_states_aside(session.folder, session.name)
        log.info("%s: an unfinished run with other settings or pictures is kept in %s; this one starts anew", session.name, kept)


def _raise_if_cancelled(done: int, total: int) -> None:
    mm.throw_exception_if_processing_interrupted()
