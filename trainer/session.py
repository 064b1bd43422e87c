"""One training run. It can be stopped, saved, read back and continued, and it never owns the base that it trains against."""
from __future__ import annotations

import json
import logging
import math
import time
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Iterator

import torch

from .adapter import Adapter
from .backend import Backend, BaseChanged, SampleRequest
from .commands import POLL, Commands
from .config import TrainConfig
from .dataset import Dataset
from .extension_points import load_function
from .footprint import Footprint, plan_ahead
from .left_out import mark_results
from .lora_file import DTYPES, load_lora, save_lora, to_file_weights, to_layers, write_safetensors
from .lora_metadata import build_metadata
from .memory import Plan, Undo, attempt, explained, is_out_of_memory
from .objective import Objective
from .optimizers import EMA, make_optimizer, make_scheduler, settings_kept, settled
from .packed_moments import PackedMoments
from .peft_format import to_peft
from .pixels import write_png
from .preservation import preservation_loss
from .precision import Precision, gradient_norm
from .randomness import global_seed, hashed_seed, uniform
from .spilling import Spilling
from .state import load_newest_state, remove_states, save_state, step_stem
from .turns import Turn
from .validate import Measurement, Progress, Validation

log = logging.getLogger(__name__)
STATE_SHARE = 50
"""Writing states takes at most one of so many seconds."""


class NotANumber(ValueError):
    """The loss or its gradient is NaN or infinite; the weights are still those of the step before."""


@dataclass(frozen=True)
class StepReport:
    """What a finished step tells its listeners; `seconds` is the step's own time."""

    step: int
    total_steps: int
    loss: float
    learning_rate: float
    gradient_norm: float
    samples: int
    seconds: float


@dataclass
class Outcome:
    """How a run ended: `status` is "completed", "stopped" or "failed"; `lora` is the file that keeps what was learned."""

    status: str
    step: int
    total_steps: int
    lora: Path | None
    message: str
    files: list[Path] = field(default_factory=list)


class Listener:
    """Is told what happens in a run. Every method may be left out."""

    def started(self, session: Session) -> None: ...
    def planned(self, session: Session, footprint: Footprint) -> None: ...
    def stepped(self, session: Session, report: StepReport) -> None: ...
    def saved(self, session: Session, lora: Path) -> None: ...
    def validated(self, session: Session, measurement: Measurement) -> None: ...
    def drew(self, session: Session, step: int, prompts: list[str], pictures: list) -> None: ...
    def paused(self, session: Session, is_paused: bool) -> None: ...
    def lightened(self, session: Session, rung: str) -> None: ...
    def ended(self, session: Session, outcome: Outcome) -> None: ...


class Session:
    """A run of `total_steps` steps over `dataset` with the adapter attached to the backend's modules.

    `step` counts finished steps. Between two calls of `train`, while the run is paused and while the host has the base for itself,
    a session holds the adapter, the optimizer and counters only. `stop`, `pause`, `unpause`, `ask_save` and `ask_preview` may be
    called from any thread, `stop` also from a signal handler; they take effect after the step that is being done. A stopped
    run is saved and ready to go on.
    """

    def __init__(self, config: TrainConfig, backend: Backend, dataset: Dataset, adapter: Adapter, *, name: str,
                 total_steps: int, listeners: list[Listener] | None = None, plan: Plan | None = None) -> None:
        self.config, self.backend, self.dataset, self.adapter, self.name = config, backend, dataset, adapter, name
        self.total_steps, self.listeners, self.step, self.elapsed = total_steps, list(listeners or []), 0, 0.0
        self.folder = Path(config.output_dir)
        self.lora_folder = Path(config.lora_dir or config.output_dir)
        self.objective = Objective(config, backend.prediction)
        adapter.to(backend.device)
        groups = adapter.parameter_groups(config.learning_rate, config.text_encoder_lr, config.lora_plus_ratio)
        self.parameters = [p for group in groups for p in group["params"]]
        self.optimizer = make_optimizer(config, groups)
        self.scheduler = make_scheduler(config, self.optimizer, total_steps)
        self.precision = Precision(config.mixed_precision, backend.device, self.optimizer, backend.dtype)
        self.ema = EMA(self.parameters, config.ema_decay) if config.ema_decay else None
        self.loss_term = load_function(config.loss_term, "loss_term") if config.loss_term else None
        self.started_at = time.time()
        self.plan = plan or Plan(backend, config.gradient_checkpointing, config.batch_size)
        self.moments = self.plan.moments = PackedMoments(self.optimizer)
        self.spilling = Spilling(backend.device)
        self.validation = Validation(config, backend, dataset, self.objective, self.precision.autocast) if config.validation else None
        self.progress, self.best = Progress(), {}
        self.commands, self._stop_reason = Commands(), ""
        self._state_written, self._state_pause = time.monotonic(), 0.0

    def stop(self) -> None:
        self.commands.stop.set()

    def pause(self) -> None:
        self.commands.pause.set()

    def unpause(self) -> None:
        self.commands.pause.clear()

    @property
    def paused(self) -> bool:
        return self.commands.pause.is_set()

    def ask_save(self) -> None:
        """Save the LoRA and the state as soon as a step is done."""
        self.commands.save.set()

    def ask_preview(self) -> None:
        """Draw the preview prompts as soon as a step is done."""
        self.commands.preview.set()

    def train(self) -> Outcome:
        """Train to the end, or until stopped. Whatever ends it, what was learned is saved first; then errors are raised again."""
        self._tell("started")
        try:
            self._take_steps()
            outcome = self._finish()
        except (Exception, KeyboardInterrupt) as error:
            self._tell("ended", self._keep_after(error))
            raise
        self._tell("ended", outcome)
        return outcome

    def _take_steps(self) -> None:
        try:
            with explained(lambda: self.plan.advice(self.dataset.resolution)), Turn(self.backend, self._borrowed) as turn:
                self._plan()
                while not (self.is_done or self._asked_to_stop()):
                    self._tell("stepped", report := self.train_step())
                    self._look_for_spilling(report)
                    self._validate(turn)
                    self._save_and_draw(self._due(self.config.save_steps) and self.step < self.total_steps, self._due(self.config.preview_steps))
                    self._wait_while_paused(turn)
                    turn.give_way()
        except BaseChanged as error:
            self._stop_reason = f" because {error}"

    def _plan(self) -> None:
        """Say what will be needed against what is free, and take rungs at once where it would not fit."""
        if not (self.is_done or self._asked_to_stop()):
            self._tell("planned", self._attempt(lambda: plan_ahead(self, self._lightened)))

    def _lightened(self, rung: str) -> None:
        log.warning("memory: %s", rung)
        self._tell("lightened", rung)

    def _look_for_spilling(self, report: StepReport) -> None:
        """Memory that the driver has moved elsewhere is no error, but makes every step slow: that is answered as a full memory is."""
        usual = self.spilling.noticed(report.seconds)
        if usual is not None:
            rung = self.plan.step_down() or "there is nothing left to give up" + self.plan.advice(self.dataset.resolution)
            self._lightened(f"step {report.step} took {report.seconds:.1f} s, {usual:.1f} are usual, and the memory is full, so that some of it lies "
                            f"elsewhere now: {rung}")

    @contextmanager
    def _borrowed(self) -> Iterator[None]:
        with self._attempt(self._borrow):
            yield

    def _borrow(self) -> ExitStack:
        with ExitStack() as stack:
            stack.enter_context(self.backend.borrow())
            stack.enter_context(self.adapter.attached(self.backend.components()))
            self.backend.set_checkpointing(self.plan.checkpointing)
            self.backend.stream_weights(self.plan.streamed)
            return stack.pop_all()

    def _attempt(self, work, undo=None) -> Any:
        return attempt(self.plan, work, undo, lambda rung: self._tell("lightened", rung))

    def _save_and_draw(self, save: bool, draw: bool) -> None:
        """What the settings or a command ask for after this step; and the state alone now and then, against crashes."""
        if save | Commands.take(self.commands.save):
            self.save()
        elif self.step < self.total_steps and self._state_is_old():
            self._save_state()
        if draw | Commands.take(self.commands.preview):
            self.draw_previews()

    @property
    def is_done(self) -> bool:
        """Whether all steps are done, or more of them would do no good."""
        return self.step >= self.total_steps or (self.config.early_stop and self.validation is not None and self.progress.is_over(self.total_steps))

    def _validate(self, turn: Turn) -> None:
        """Measure when it is due, and remember the weights if they are the best so far."""
        if self.validation is None or not (self.step >= self.total_steps or self._due(self.validation.interval(self.total_steps))):
            return

        measurement = self._measure(turn)
        if self.progress.add(measurement) and measurement.held_out is not None:
            with self._final_weights():
                self.best = {key: x.detach().cpu().clone() for key, x in self.adapter.state_dict().items()}
        self._tell("validated", measurement)

    def _measure(self, turn: Turn) -> Measurement:
        def measure() -> Measurement:
            with self._final_weights():
                return self.validation.measure(self.adapter, self.step, turn.give_way)

        return self._attempt(measure)

    def _state_is_old(self) -> bool:
        return bool(self.config.state_minutes) and time.monotonic() - self._state_written > max(60 * self.config.state_minutes, self._state_pause)

    def _save_state(self) -> None:
        began = time.monotonic()
        save_state(self.folder, self.name, self.step, self._attempt(self.state_dict))
        self._state_written = time.monotonic()
        self._state_pause = STATE_SHARE * (self._state_written - began)

    def _wait_while_paused(self, turn: Turn) -> None:
        """Leave the base to the host until the run is unpaused or stopped; commands to save or draw are carried out meanwhile."""
        if not self.paused or self.step >= self.total_steps:
            return
        self._tell("paused", True)
        while self.paused and not self._asked_to_stop():
            with turn.left():
                while not self.commands.waiting and not self.backend.interrupted():
                    time.sleep(POLL)
            self._save_and_draw(False, False)
        self._tell("paused", False)

    def train_step(self) -> StepReport:
        """One optimizer step. Where the memory does not suffice the same step is done again in a way that needs less."""
        return self._attempt(self._step, self._forget_step)

    def _step(self) -> StepReport:
        """Over all samples of the step, summed up batch by batch."""
        began = time.perf_counter()
        self.adapter.train()
        total = self._gradients()
        self.precision.unscale()
        norm = gradient_norm(self.parameters, self.config.max_grad_norm)
        self._update(total.item(), norm.item())
        report = StepReport(self.step + 1, self.total_steps, total.item(), self.scheduler.get_last_lr()[0], norm.item(), self.dataset.order.group,
                            time.perf_counter() - began)
        self.optimizer.zero_grad(set_to_none=True)
        self.scheduler.step()
        self.step += 1
        self.elapsed += report.seconds
        return report

    def _gradients(self) -> torch.Tensor:
        """The backward of the step's samples; their loss, summed up over the step's `group`, which it is a mean of."""
        total = torch.zeros((), device=self.backend.device)
        for batch in self._batches():
            with self.plan.keeping():
                loss = self._loss(batch) / self.dataset.order.group
            self.precision.backward(loss)
            total += loss.detach()
        return total

    def _batches(self) -> list[list[tuple[int, int]]]:
        return self.dataset.order.batches(self.step, self.plan.batch_size)

    def _update(self, loss: float, norm: float) -> None:
        """Take the optimizer's step: as a whole, and not if it would spoil the weights."""
        overflow_is_normal = self.precision.scaler is not None and math.isfinite(loss)
        if not math.isfinite(loss) or not (math.isfinite(norm) or overflow_is_normal):
            raise NotANumber(_advice_for_nan(self.config, self.step, loss, self.precision.kind))
        self.moments.unpack()
        undo = Undo(self.parameters, self.optimizer, self.ema)
        try:
            if self.precision.step() and self.ema:
                self.ema.update()
            if self.plan.packs_moments:
                self.moments.pack()
        except Exception:
            undo.restore()
            raise

    def _forget_step(self) -> None:
        """After a failure inside a step nothing of it is left."""
        self.optimizer.zero_grad(set_to_none=True)
        self.precision.forget()

    def _loss(self, batch: list[tuple[int, int]]) -> torch.Tensor:
        """Summed loss of one batch of (sample number, picture index)."""
        config, device, step = self.config, self.backend.device, self.step
        numbers = [number for number, _ in batch]
        data = self.dataset.collate(batch, step)
        z0_BCHW = data["z_BCHW"].to(device)
        t_B = self.objective.timesteps(uniform(config.seed, "timestep", step, numbers)).to(device)
        noise_BCHW = self.objective.noise(z0_BCHW.shape, config.seed, step, numbers).to(device)
        z_t_BCHW = self.objective.noisy(z0_BCHW, noise_BCHW, t_B)
        target_BCHW = self.objective.target(z0_BCHW, noise_BCHW, t_B)
        with self._seeded(numbers[0]), self.precision.autocast():
            cond = self.dataset.condition(data["captions"])
            if self.plan.encoders_away and self.dataset.encodes_in_steps and not self.dataset.trains_text:
                self.backend.offload_encoders()
            out_BCHW = self.backend.predict(z_t_BCHW, self.objective.model_timestep(t_B), cond, data["size_B6"].to(device))
        mask = data["mask_B1HW"].to(device) if "mask_B1HW" in data else None
        loss = self.objective.loss(out_BCHW.float(), target_BCHW, t_B, mask, data["weight_B"].to(device)).sum()
        if self.loss_term is not None:
            loss = loss + len(batch) * self.loss_term(out_BCHW.float(), target_BCHW, t_B, {**data, "z_t_BCHW": z_t_BCHW, "step": step})
        if config.preservation_weight:
            with self._seeded(numbers[0]):
                loss = loss + preservation_loss(self, data, z_t_BCHW, t_B)
        return loss

    def _seeded(self, number: int):
        """Dropout and users' own code draw from torch's global generator: give it a seed of the step, and give it back."""
        if not (self.config.lora_dropout or self.loss_term):
            return nullcontext()
        return global_seed(hashed_seed(self.config.seed, "torch", self.step, number), self.backend.device)

    def save(self) -> Path:
        """Write `name-<step>.safetensors` and, beside it, the state to go on from."""
        lora = self.save_lora(step_stem(self.name, self.step))
        self._save_state()
        self._tell("saved", lora)
        return lora

    def save_lora(self, stem: str) -> Path:
        """Write the adapter as `stem.safetensors` in the chosen form; every key is checked against the base's layers."""
        return self._write_lora(stem, self._attempt(self._weights_to_save))

    def _weights_to_save(self) -> dict[str, Any]:
        with self._final_weights():
            return self._copied_weights()

    def _copied_weights(self) -> dict[str, Any]:
        """What the adapter has at the moment, in main memory."""
        weights = to_file_weights(self.adapter.weights(), self.backend.lora_key)
        return {key: {name: x.detach().cpu().clone() if torch.is_tensor(x) else x for name, x in layer.items()} for key, layer in weights.items()}

    def _write_lora(self, stem: str, weights: dict[str, Any]) -> Path:
        path = self.lora_folder / f"{stem}.safetensors"
        if self.config.save_format in ("kohya", "both"):
            save_lora(path, weights, self.metadata(stem), self.config.save_dtype)
            written, _ = load_lora(path)
            placed = written if self._stop_reason else to_layers(written, self.backend.lora_key, self.backend.components())
            assert self._stop_reason or placed.keys() == self.adapter.layers.keys(), "a key of the written file does not lead back to its layer"
        if self.config.save_format in ("peft", "both"):
            peft = self.lora_folder / f"{stem}-peft" / "pytorch_lora_weights.safetensors"
            write_safetensors(peft, to_peft(weights, DTYPES[self.config.save_dtype]), {"format": "pt", **self.metadata(stem)})
            path = path if self.config.save_format == "both" else peft
        return path

    def _save_result(self) -> Path:
        """The final file holds the best step; if that is not the last one, the last one is `name-last`."""
        if not self.best or self.progress.best == self.step:
            return self.save_lora(self.name)
        self._tell("saved", self.save_lora(f"{self.name}-last"))
        last, step = {key: x.clone() for key, x in self.adapter.state_dict().items()}, self.step
        try:
            self.adapter.load_state_dict(self.best)
            self.step = self.progress.best
            return self._write_lora(self.name, self._copied_weights())
        finally:
            self.adapter.load_state_dict(last)
            self.step = step

    def metadata(self, stem: str) -> dict[str, str]:
        measured = {"hotlora_validation": json.dumps(self.progress.state_dict())} if self.progress.measurements else {}
        return measured | build_metadata(
            replace(self.config, name=self.name), name=stem, family=self.backend.family, base_hash=self.backend.file_hash, base_name=self.backend.name,
            trigger=self.config.trigger, tag_counts=self.dataset.tag_counts(), steps=self.step,
            epochs=self.step // self.dataset.order.steps_per_epoch, pictures=len(self.dataset.examples),
            resolution=self.dataset.resolution, prediction=self.backend.prediction.kind, started_at=self.started_at,
            layers=self.adapter.weights().values() if self.config.init_lora else None)

    def draw_previews(self) -> list:
        """Draw the preview prompts with the adapter as it is now; the pictures go to `previews/` and to the listeners."""
        prompts = self.config.preview_prompts or [self.dataset.preview_prompt()]
        pictures, folder = self.sample(prompts), self.folder / "previews"
        mark_results(folder)
        for number, picture in enumerate(pictures):
            write_png(folder / f"{step_stem(self.name, self.step)}-{number}.png", picture)
        self._tell("drew", self.step, prompts, pictures)
        return pictures

    def sample(self, prompts: list[str], steps: int = SampleRequest.steps) -> list:
        """Pictures of the preview's size and seed with the adapter as it is now."""
        request = SampleRequest(prompts=tuple(prompts), seed=self.config.preview_seed, guidance=self.config.preview_guidance, steps=steps,
                                width=self.dataset.resolution, height=self.dataset.resolution, cancelled=self._asked_to_stop)
        self.adapter.eval()
        try:
            return self._sample(request)
        finally:
            if self.plan.encoders_away:
                self.backend.offload_encoders()

    def _sample(self, request: SampleRequest) -> list:
        """No memory for previews is no reason to end a run: they are left out then."""
        for _ in range(2):
            try:
                with self._final_weights():
                    return self.backend.sample(request)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            self.backend.offload_encoders()
            self.backend.free_memory()
        log.warning("there is no memory to draw previews at %d x %d; this one is left out", request.width, request.height)
        return []

    @contextmanager
    def _final_weights(self) -> Iterator[None]:
        """The weights to draw and to save with."""
        with settled(self.optimizer), self.ema.applied() if self.ema else nullcontext():
            yield

    def state_dict(self) -> dict[str, Any]:
        return {"adapter": self.adapter.state_dict(), "optimizer": self.moments.state_dict(), "scheduler": self.scheduler.state_dict(),
                "precision": self.precision.state_dict(), "ema": self.ema.state_dict() if self.ema else {}, "elapsed": self.elapsed,
                "config": self.config.to_dict(), "pictures": self.dataset.fingerprint(), "use": self.dataset.use, "base": self._base(),
                "started_at": self.started_at, "validation": {**self.progress.state_dict(), "weights": self.best}}

    def resume(self) -> list[str]:
        """Go on from the newest readable state in the output folder. Returns what differs from the run that wrote it.

        A state of the last step is of a run that failed while it ended, which is then done again. ValueError when there is no state, when it belongs
        to other layers, or when it is past the last step.
        """
        state = self._load_state()
        if state["step"] > self.total_steps:
            raise ValueError(f"the saved run is at step {state['step']} and this one ends at {self.total_steps}: there is nothing left "
                             "to do; raise steps or epochs to train further")
        changed = self._changes_since(state)
        if self._is_of_another_base(state):
            was, now = state["base"]["name"] or "another model", self.backend.name or "this one"
            raise ValueError(f"the saved run trains {was}, and what it learned means nothing to {now}, which is loaded; load {was} to go on, or start "
                             "anew under another name")
        if not self._has_layers_of(state):
            raise ValueError("the saved run trained other layers or another rank; set lora_rank and the target modules back, or start "
                             "without --resume")
        self._check_optimizer_of(state)
        self.adapter.load_state_dict(state["adapter"])
        then, now = state["config"].get("optimizer_args", {}), self.config.optimizer_args
        with settings_kept(self.optimizer, self.scheduler, [name for name in {**then, **now} if then.get(name) != now.get(name)]):
            self.optimizer.load_state_dict(state["optimizer"])
            self.scheduler.load_state_dict(state["scheduler"])
        self.precision.load_state_dict(state["precision"])
        if self.ema and state["ema"]:
            self.ema.load_state_dict(state["ema"])
        elif self.ema:  # the saved run had none: the average begins with what it learned, and not with what a new LoRA has
            self.ema = EMA(self.parameters, self.config.ema_decay)
        if state.get("validation"):
            self.progress.load_state_dict(state["validation"])
            self.best = state["validation"]["weights"]
        self.step, self.elapsed, self.started_at = state["step"], state["elapsed"], state["started_at"]
        return changed

    def _load_state(self) -> dict[str, Any]:
        return load_newest_state(self.folder, self.name)

    def resumable(self) -> bool:
        """Whether the output folder has an unfinished run of this name with the same settings, pictures and layers."""
        try:
            state = load_newest_state(self.folder, self.name)
        except ValueError:
            return False
        return (state["step"] <= self.total_steps and self._has_layers_of(state) and not self._changes_since(state)
                and not self._is_of_another_base(state))

    def _changes_since(self, state: dict[str, Any]) -> list[str]:
        now, then = self.config.to_dict(), state["config"]
        changed = [f"{key} was {then.get(key)!r} and is now {now[key]!r}" for key in now if then.get(key) != now[key] and key not in _FREE]
        if state["pictures"] != self.dataset.fingerprint():
            changed.append("pictures or captions have changed since")
        elif state.get("use", self.dataset.use) != self.dataset.use:
            changed.append("repeats, masks or prior pictures have changed since")
        return changed

    def _base(self) -> dict[str, str]:
        return {"name": self.backend.name, "hash": self.backend.base_hash, "file_hash": self.backend.file_hash}

    def _is_of_another_base(self, state: dict[str, Any]) -> bool:
        """Hashes of files decide where both are known. Else a base of the same name is the same: a host may have taken its file's hash since."""
        then, now = state.get("base"), self._base()
        if then is None or then["hash"] == now["hash"]:
            return False
        return bool(then["file_hash"] and now["file_hash"]) or then["name"] != now["name"] or not now["name"]

    def _has_layers_of(self, state: dict[str, Any]) -> bool:
        own, saved = self.adapter.state_dict(), state["adapter"]
        # in one order, too: optimizer and averages are saved by place, and the fused optimizer writes past a tensor that is smaller than its state
        return [(k, v.shape) for k, v in own.items()] == [(k, v.shape) for k, v in saved.items()]

    def _check_optimizer_of(self, state: dict[str, Any]) -> None:
        """ValueError for a state that means nothing to this optimizer: of another one, or with other groups, as LoRA+ has."""
        groups = [[len(group["params"]) for group in optimizer["param_groups"]] for optimizer in (state["optimizer"], self.optimizer.state_dict())]
        for key, fits in (("optimizer", False), ("lora_plus_ratio", groups[0] == groups[1])):
            then, now = state["config"].get(key, getattr(self.config, key)), getattr(self.config, key)
            if then != now and not fits:
                raise ValueError(f"the saved run has {key} {then!r} and this one {now!r}, so its state does not fit; set {key} back, or start without "
                                 "--resume")

    def _finish(self) -> Outcome:
        done = self.is_done
        if not done and self.step == 0:
            # a file that changes nothing would take the place of an earlier LoRA of that name
            save_state(self.folder, self.name, 0, self.state_dict())
            return Outcome("stopped", 0, self.total_steps, None, f"stopped before the first step{self._stop_reason}; nothing had been learned yet, "
                                                                 "so that no LoRA was written; go on with --resume")
        lora = self._save_result()
        if done:
            remove_states(self.folder, self.name)
            how = f"completed {self.step} steps" if self.step >= self.total_steps else self.progress.why(self.total_steps)
            message = f"{how}; the LoRA is {lora}"
        else:
            save_state(self.folder, self.name, self.step, self.state_dict())
            message = f"stopped after step {self.step} of {self.total_steps}{self._stop_reason}; what was learned is {lora}; go on with --resume"
        self._tell("saved", lora)
        return Outcome("completed" if done else "stopped", self.step, self.total_steps, lora, message)

    def _keep_after(self, error: BaseException) -> Outcome:
        """A failed run keeps its last good weights, if the failure lets it: all of the state, or else what is in the LoRA."""
        self._forget_step()
        where = "while it ended" if self.is_done else f"at step {self.step + 1}"
        lora, kept = None, "nothing had been learned yet"
        if self.step:
            try:
                save_state(self.folder, self.name, self.step, self.state_dict())
                kept = f"what was learned in {self.step} steps is kept; go on with --resume"
            except Exception as second:
                kept = f"what was learned could not be saved either: {second}"
            try:
                lora = self.save_lora(self.name)
                kept = f"what was learned in {self.step} steps is {lora}" + ("; go on with --resume" if "--resume" in kept else "")
            except Exception as second:
                log.warning("no LoRA could be written: %s", second)
        return Outcome("failed", self.step, self.total_steps, lora, f"failed {where}: {error}; {kept}")

    def _asked_to_stop(self) -> bool:
        return self.commands.stop.is_set() or self.backend.interrupted()

    def _due(self, every: int) -> bool:
        return bool(every) and self.step % every == 0

    def _tell(self, event: str, *arguments: Any) -> None:
        for listener in self.listeners:
            getattr(listener, event)(self, *arguments)


_FREE = {"early_stop", "output_dir", "lora_dir", "cache_dir", "save_steps", "state_minutes", "save_dtype", "save_format", "preview_steps", "preview_prompts", "preview_seed",
         "preview_guidance", "tensorboard", "log_every", "name", "device"}
"""Settings that may change in a resumed run without changing its result."""


def _advice_for_nan(config: TrainConfig, step: int, loss: float, precision: str) -> str:
    look_at = f"learning_rate ({config.learning_rate:g}): try a tenth of it"
    if precision == "fp16":
        look_at += "; or set mixed_precision to bf16 or no, as fp16 overflows on some models"
    what = "loss" if not math.isfinite(loss) else "gradient"
    return f"the {what} at step {step + 1} is not a number any more; the weights from before that step are kept. Look at {look_at}"
