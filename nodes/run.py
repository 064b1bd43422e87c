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

from .images import as_images
from .places import cache_folder, lora_folders, run_folder
from ..trainer.config import TrainConfig
from ..trainer.footprint import Footprint
from ..trainer.hosts.comfy import ComfyBackend
from ..trainer.listeners import RunLog
from ..trainer.lora_file import to_file_weights
from ..trainer.lora_tensors import kohya_tensors
from ..trainer.memory import FREE_SOME, explained
from ..trainer.plot import draw_curve
from ..trainer.presets import apply_preset
from ..trainer.run import make_session, read_material
from ..trainer.session import Listener, Session, StepReport
from ..trainer.state import find_states

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
        log.info("%s: %s", session.name, self.plan)
        PromptServer.instance.send_progress_text(self.plan, self.node_id)

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
    """Read the pictures, train, and apply the result. Cancelling saves first and then raises ComfyUI's own exception."""
    with torch.inference_mode(False), explained(lambda: FREE_SOME):
        name = values["name"]
        config = TrainConfig.from_dict({**apply_preset(values, preset, 1), "output_dir": str(run_folder(name)), "lora_dir": str(lora_folders()[0]),
                                        "cache_dir": str(cache_folder()), "mixed_precision": "no", "tensorboard": False})
        material = read_material(config, True, (Path(folder_paths.models_dir),), str(mm.get_torch_device()), _raise_if_cancelled)
        backend = ComfyBackend(model, clip, vae)
        progress = NodeProgress(node_id)
        steps = apply_preset(values, preset, len(material.gallery.examples))["steps"]
        material = replace(material, config=replace(config, steps=steps))
        session = make_session(material, backend, [progress, RunLog(material.gallery.warnings)], _raise_if_cancelled)
        _continue(session)
        outcome = session.train()
        if outcome.status == "stopped":
            mm.interrupt_current_processing(False)
            log.info("%s", outcome.message)
            raise mm.InterruptProcessingException()
        weights = kohya_tensors(to_file_weights(session.adapter.weights(), backend.lora_key), torch.float16)
    applied, applied_clip = comfy.sd.load_lora_for_models(model, clip, weights, 1.0, 1.0)
    plot = as_images([draw_curve(progress.losses)])
    told = f"{outcome.message}\n{progress.plan}" if progress.plan else outcome.message
    return Result(applied, applied_clip, plot, as_images(progress.pictures) if progress.pictures else plot, told)


def _continue(session: Session) -> None:
    """Take up an unfinished run of the same name and settings; one with other settings is left where it is."""
    if not find_states(session.folder, session.name):
        return
    if session.resumable():
        session.resume()
        log.info("%s: going on from step %d of %d", session.name, session.step, session.total_steps)
    else:
        log.info("%s: an unfinished run with other settings or pictures is in %s; this one starts anew", session.name, session.folder)


def _raise_if_cancelled(done: int, total: int) -> None:
    mm.throw_exception_if_processing_interrupted()
