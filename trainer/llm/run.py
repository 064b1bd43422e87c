"""One training run of a language model, from its material to a peft adapter folder. The loop is transformers' Trainer."""
from __future__ import annotations

import json
import logging
import os
import shutil
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from ..listeners import LogFile, describe_device, versions
from ..memory import is_out_of_memory
from ..output_files import OutputError, disk_full, put_folder
from ..progress_file import ProgressFile
from ..run import check_writable
from ..session import Outcome
from .. import __name__ as PACKAGE
from ... import __version__
from .checkpoints import (begin_anew, checkpoints_folder, find_checkpoints, read_run, remove_incomplete, write_run)
from .material import Material
from .model import DTYPES, add_adapter, check_bits, check_packing, load_base
from .needs import advice, check_fits, free_memory, measure, weights_on_paper
from .peers import Peers, wait_for_all
from .quantised import check_quantised
from .tokens import Collator

log = logging.getLogger(__name__)
FREE = {"output_dir", "save_steps", "state_minutes", "early_stop", "patience", "preview_steps", "preview_prompts", "preview_max_tokens", "tensorboard",
        "log_every", "name", "device", "merge", "steps", "epochs", "general_data_dir", "batch_size", "gradient_accumulation_steps"}
"""Settings that may change in a resumed run: they change nothing, or are told of in their own way."""


class LanguageRun:
    """A run that can be trained once, stopped from a signal handler, and gone on with by another one.

    Works in one process and under `accelerate launch` or torchrun: every process makes the same run, transformers' Trainer joins
    them, and the first one writes.
    """

    def __init__(self, material: Material, warnings: list[str] = ()) -> None:
        from .callbacks import Flow
        from .trainer import training_arguments

        self.material, self.config, self.name, self.warnings = material, material.config, material.name, list(warnings)
        self.folder = Path(self.config.output_dir)
        self.checkpoints = checkpoints_folder(self.folder, self.name)
        self.arguments = training_arguments(self.config, self.checkpoints)
        self.device = self.arguments.device
        self.peers = Peers(self.arguments.process_index, self.arguments.world_size, self.checkpoints)
        self.in_bits = check_quantised(material.base, self.device, self.config.load_in, self.config)
        check_bits(self.config.load_in, self.device, self.config.optimizer)
        self.flow = Flow(self.config, self.name, self.checkpoints, measures=bool(material.held_out or material.general))
        self.trainer: Any = None
        self.checkpoint: Path | None = None
        self.step, self.log_file = 0, None
        self.progress = ProgressFile.from_environment() if self.is_first else None

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.arguments.process_index == 0

    @property
    def precision(self) -> str:
        return "bf16" if self.arguments.bf16 else "fp16" if self.arguments.fp16 else "no"

    @property
    def steps_per_epoch(self) -> int:
        batches = -(-len(self.material.train) // (self.config.batch_size * self.arguments.world_size))
        return -(-batches // self.config.gradient_accumulation_steps)

    @property
    def total_steps(self) -> int:
        return self.config.steps or (self.config.epochs or 3) * self.steps_per_epoch

    @property
    def wants_fsdp(self) -> bool:
        return os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("true", "1", "yes")

    def launch_warnings(self) -> list[str]:
        """What accelerate was told and does not do here."""
        if self.wants_fsdp and str(self.arguments.distributed_state.distributed_type).endswith("MULTI_CPU"):
            return ["accelerate is set to FSDP, which it does on GPUs only; on the CPU each process has the whole base"]
        return []

    def stop(self) -> None:
        """End after the step that is being done, and save."""
        self.flow.stop.set()

    def load(self, timed: bool = False) -> str:
        """Load the base, add the adapter, and say what the run will need; `timed` is for a run that only tells.

        ValueError when the base does not fit into the memory, OutputError when the result could not be written.
        """
        if not timed:
            check_writable("output_dir", self.folder)
        dtype = DTYPES[self.precision]
        check_fits(self.material.base, weights_on_paper(self.material.base, dtype, self.config.load_in, self.in_bits), self.device, self.config)
        try:
            self.collate = Collator(self.material.tokenizer.pad_token_id, self.config.packing)
            base = load_base(self.material.base, self.device, dtype, self.config.load_in)
            if self.config.packing:
                check_packing(base, self.material.train, self.collate)
            self.model = add_adapter(base, self.config)
            free = free_memory(self.device)
            mixed = None if self.precision == "no" else dtype
            self.needs = measure(self.model, self.material.train, self.config, self.collate, self.device, mixed, timed)
        except Exception as error:
            raise self._explained(error) from error
        there = None if free is None else free + self.needs.weights
        sentence = self.needs.sentence(self.config, self.material.train.longest(), self.device, there)
        if there is not None and self.needs.total > there:
            sentence += f". That is too much, and the run will probably end for lack of memory{advice(self.config, self.material.base)}"
        return sentence

    def resume(self) -> list[str]:
        """Go on from the newest complete checkpoint. Returns what differs from the run that wrote it; ValueError when it cannot be done."""
        facts = read_run(self.checkpoints, self.name)
        step, self.checkpoint = find_checkpoints(self.checkpoints)[0]
        only_result = step == self.total_steps == facts["total_steps"] and not self.wants_fsdp
        if step >= self.total_steps and not only_result:
            raise ValueError(f"the saved run is at step {step} and this one ends at {self.total_steps}: there is nothing left to do; raise steps or "
                             "epochs to train further")
        then, now = facts["config"], self.config.to_dict()
        for key in ("lora_rank", "target_modules", "init_lora", "dora", "load_in", "optimizer"):
            if then.get(key) != now[key]:
                raise ValueError(f"the saved run has {key} {then.get(key)!r} and this one {now[key]!r}, so its state does not fit; set {key} back, or "
                                 "start without --resume")
        changed = [f"{key} was {then.get(key)!r} and is now {now[key]!r}" for key in now if then.get(key) != now[key] and key not in FREE]
        batch = self.config.batch_size * self.config.gradient_accumulation_steps * self.arguments.world_size
        if facts["batch"] != batch:
            changed.append(f"a step took {facts['batch']} rows and now takes {batch}")
        if facts["total_steps"] != self.total_steps:
            changed.append(f"the run was to end at step {facts['total_steps']} and now ends at {self.total_steps}")
        for what, sentence in (("data", "the records have changed since"), ("base", "the base is another one")):
            if facts[what] != self._facts()[what]:
                changed.append(sentence)
        self.step = step
        return changed

    def train(self) -> Outcome:
        """Train to the end, or until stopped. Whatever ends it, what was learned is saved first; then errors are raised again."""
        self._prepare_folders()
        self._start_log()
        self._make_trainer()
        try:
            if self.step < self.total_steps:
                self.trainer.train(resume_from_checkpoint=str(self.checkpoint) if self.checkpoint else None)
            else:  # all is trained, and the result could not be written
                self.trainer.take_up(self.checkpoint)
        except (Exception, KeyboardInterrupt) as error:
            said = self.peers.explained(self._explained(error))
            outcome = self._keep_after(said)
            self._end(outcome, traceback.format_exc())
            if said is error:
                raise
            raise said from error
        state = self.trainer.state
        try:
            outcome = self._finish()
        except OSError as error:
            self._end(Outcome("failed", state.global_step, state.max_steps, None, f"trained to step {state.global_step}, but {error}"), traceback.format_exc())
            raise
        self.peers.stop()
        self._end(outcome)
        return outcome

    def _make_trainer(self) -> None:
        from transformers import EarlyStoppingCallback, PrinterCallback, ProgressCallback

        from .callbacks import Progress, Tell, make_writer
        from .trainer import LanguageTrainer

        config, material = self.config, self.material
        self.arguments.eval_on_start = self.flow.measures and self.checkpoint is None
        self.tell = Tell(self.name, self._write_log, make_writer(config, self.name, self.step) if self.is_first else None)
        callbacks = [self.flow, self.tell, *([Progress(self.progress)] if self.progress else [])]
        if config.measures and config.early_stop:
            callbacks.append(EarlyStoppingCallback(early_stopping_patience=config.patience))
        if config.preview_steps and material.prompts:
            from .previews import Previews

            callbacks.append(Previews(self.folder / "previews", self.name, material.tokenizer, material.prompts, config.preview_steps,
                                      config.preview_max_tokens, self.tell.show))
        self.trainer = LanguageTrainer(model=self.model, args=self.arguments, train_dataset=material.train, eval_dataset=material.held_out,
                                       data_collator=self.collate, processing_class=material.tokenizer, callbacks=callbacks, general=material.general)
        for printing in (PrinterCallback, ProgressCallback):
            self.trainer.remove_callback(printing)

    def _prepare_folders(self) -> None:
        if self.is_first:
            if self.checkpoint is None:
                aside = begin_anew(self.checkpoints)
                if aside:
                    log.warning("warning: the state of an earlier run is kept as %s", aside)
            else:
                remove_incomplete(self.checkpoints)
            write_run(self.checkpoints, self._facts())
        wait_for_all()

    def _facts(self) -> dict[str, Any]:
        weights = sorted((file.name, file.stat().st_size) for file in self.material.base.iterdir() if file.suffix in (".safetensors", ".bin", ".json"))
        return {"config": self.config.to_dict(), "total_steps": self.total_steps, "data": self.material.train.fingerprint(), "base": json.dumps(weights),
                "batch": self.config.batch_size * self.config.gradient_accumulation_steps * self.arguments.world_size}

    def _finish(self) -> Outcome:
        """The result holds the best step, which the Trainer has loaded; if that is not the last one, the last one is `name-last`."""
        state = self.trainer.state
        best = state.best_global_step if self.config.measures and state.best_model_checkpoint else None
        last = self.checkpoints / f"checkpoint-{state.global_step}"
        if best not in (None, state.global_step) and self.is_first and last.is_dir():
            from .callbacks import keep_adapter

            log.info("the last step is %s", keep_adapter(last, self.folder / f"{self.name}-last"))
        adapter = self._save_result(best or state.global_step)
        how = f"completed {state.global_step} steps"
        if state.global_step < state.max_steps:
            how = f"the held-out perplexity got no better in {self.config.patience} measurements, so the run ended at step {state.global_step} of {state.max_steps}"
        if best is not None:
            how += self._best(state)
        how += self._compared(state)
        if self.flow.stopped:
            return Outcome("stopped", state.global_step, state.max_steps, adapter,
                           f"stopped after step {state.global_step} of {state.max_steps}; what was learned is {adapter}; go on with --resume")
        merged = self._merge(adapter) if self.config.merge else []
        if self.is_first:
            shutil.rmtree(self.checkpoints, ignore_errors=True)
        return Outcome("completed", state.global_step, state.max_steps, adapter, f"{how}; the LoRA is {adapter}"
                       + (f", the whole model {merged[0]}" if merged else ""), merged)

    def _best(self, state: Any) -> str:
        """The step that became the result, and whether it is better than what the run began with."""
        step, lowest = state.best_global_step, _perplexity(state.best_metric)
        begun = next((entry["eval_loss"] for entry in state.log_history if entry["step"] == 0 and "eval_loss" in entry), None)
        if begun is None or state.best_metric < begun:
            return f"; step {step} was the best (held-out perplexity {lowest})"
        whose = "that of init_lora" if self.config.init_lora else "the base's"
        return f"; the held-out perplexity has never been below {whose} ({_perplexity(begun)}); step {step}, where it was lowest ({lowest}), is kept"

    def _compared(self, state: Any) -> str:
        """What became of the general texts' perplexity."""
        values = [entry["general_perplexity"] for entry in state.log_history if "general_perplexity" in entry]
        return f"; perplexity of the general texts {values[0]:.4g} before and {values[-1]:.4g} after" if len(values) > 1 else ""

    def _save_result(self, step: int) -> Path:
        """The adapter as `output_dir/name`, put there as a whole by the first process; an earlier one is kept as `name-v1`."""
        path = self.folder / self.name
        temporary = self.folder / f".{self.name}.tmp"
        if self.is_first:
            shutil.rmtree(temporary, ignore_errors=True)
        wait_for_all()
        try:
            self.trainer.save_model(str(temporary))
            if self.is_first:
                (temporary / "training_args.bin").unlink(missing_ok=True)  # a pickle, and of no use to others
                about = {"hotlora_version": __version__, "step": step, "base_model": str(self.material.base.resolve()), "settings": self.config.to_dict(),
                         "measured": [{key: entry[key] for key in entry if key == "step" or key.endswith("perplexity")}
                                      for entry in self.trainer.state.log_history if any(key.endswith("perplexity") for key in entry)]}
                (temporary / "hotlora.json").write_text(json.dumps(about, indent=2, ensure_ascii=False), encoding="utf-8")
                put_folder(temporary, path)
        except Exception as error:
            if full := disk_full(path, error):
                raise full from error
            if not isinstance(error, OSError):
                raise
            raise OutputError(f"{path} could not be written: {error.strerror or error}; set another output_dir (the state to go on from is in "
                              f"{self.checkpoints})") from error
        finally:
            if self.is_first:
                shutil.rmtree(temporary, ignore_errors=True)
        wait_for_all()
        return path

    def _merge(self, adapter: Path) -> list[Path]:
        """The whole model with the LoRA worked in, from the base as it is on the disk, in its own number format."""
        from .merging import write_merged

        if not self.is_first:
            return []
        self.trainer = self.model = None  # the base is loaded once more
        return [write_merged(self.material.base, adapter, self.folder / f"{self.name}-merged")]

    def _keep_after(self, error: BaseException) -> Outcome:
        """A failed run keeps its last good weights, if the failure lets it. Another process of several may be gone, so then checkpoints must do."""
        state, saved, go_on = self.trainer.state, find_checkpoints(self.checkpoints), self._go_on()
        if self.is_first:
            remove_incomplete(self.checkpoints)  # which may have filled the disk
        adapter, kept = None, "nothing had been learned yet"
        if state.global_step and self.arguments.world_size == 1:
            try:
                adapter = self._save_result(state.global_step)
                kept = f"what was learned in {state.global_step} steps is {adapter}" + ("" if go_on in str(error) else f"; {go_on}")
            except OSError as second:
                kept = f"what was learned could not be saved either: {second}"
        elif saved or state.global_step:
            kept = go_on
        return Outcome("failed", state.global_step, state.max_steps, adapter, f"failed at step {state.global_step + 1}: {error}; {kept}")

    def _explained(self, error: BaseException) -> BaseException:
        """A full memory or disk as a sentence with what to do; any other error as it is."""
        if isinstance(error, Exception) and is_out_of_memory(error):
            return ValueError(f"the memory of {self.device} does not suffice{advice(self.config, self.material.base) or '; take a smaller base'} (what was saved is kept)")
        full = disk_full(self.folder, error)
        return OutputError(f"{full}; {self._go_on()}") if full else error

    def _go_on(self) -> str:
        saved = find_checkpoints(self.checkpoints)
        return f"go on with --resume (from step {saved[0][0]})" if saved else "no state to go on from had been saved yet"

    def _start_log(self) -> None:
        if not self.is_first:
            return
        folder = self.folder / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        self.log_file = LogFile(folder / f"{self.name}-{time.strftime('%Y%m%d-%H%M%S')}.log")
        logging.getLogger(PACKAGE).addHandler(self.log_file)
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        for text in (f"HotLoRA {__version__}, {versions()}", f"device {describe_device(self.device)}, precision {self.precision}, "
                     f"{self.arguments.world_size} processes", f"base {self.material.base}", "settings:\n" + self.config.to_yaml(),
                     *self.material.report, *(f"warning: {warning}" for warning in self.warnings), *(f"skipped {problem}" for problem in self.material.problems),
                     f"training {trained:,} parameters, from step {self.step} to {self.total_steps}"):
            self._write_log(text)

    def _end(self, outcome: Outcome, details: str = "") -> None:
        with suppress(OSError):  # of a full disk, which is what the user is told already
            self.tell.close()
        if self.progress is not None:
            self.progress.end(outcome.status, outcome.step, outcome.message, outcome.lora)
        if self.log_file is None:
            return
        if details:
            self._write_log(details)
        self._write_log(f"{outcome.status}: {outcome.message}")
        logging.getLogger(PACKAGE).removeHandler(self.log_file)
        self.log_file.close()

    def _write_log(self, text: str) -> None:
        """Into the log file and not on the screen."""
        if self.log_file is None:
            return
        self.log_file.emit(logging.LogRecord(__name__, logging.INFO, "", 0, text, None, None))


def _perplexity(loss: float) -> str:
    return f"{torch.tensor(loss).double().exp().item():.4g}"
