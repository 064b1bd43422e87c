"""transformers' Trainer with perplexity per token, and its arguments from our settings."""
from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerState, TrainingArguments

from ..optimizers import settings_kept
from ..precision import pick_precision
from .config import OPTIMIZERS, LanguageConfig
from .tokens import NOT_COUNTED, Order, Rows

NEVER = 10**9
"""Steps: saving and measuring are asked for by `Flow`, in callbacks.py."""
KEPT_CHECKPOINTS = 2
FOREVER = 30 * 24 * 3600
"""Seconds: the first process may answer previews for as long as it takes; whether all live is what the roll call watches."""


class LanguageTrainer(Trainer):
    """Measures the mean loss of a token, whatever the batches; `general` are rows that are measured beside the held-out ones."""

    def __init__(self, *arguments: Any, general: Rows | None = None, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.general = general
        if self.is_fsdp_enabled:
            plugin = self.accelerator.state.fsdp_plugin
            plugin.state_dict_config = plugin.optim_state_dict_config = None  # else those of another type are kept
            plugin.set_state_dict_type("FULL_STATE_DICT")  # an adapter is small, and must be one file

    def _get_train_sampler(self, train_dataset: Any = None) -> Order:
        """Fillers only where the loss is that of all processes' tokens together, so that a batch may have none."""
        several = self.args.world_size > 1 and self.model_accepts_loss_kwargs
        return Order(len(self.train_dataset), self.args.per_device_train_batch_size * self.args.world_size if several else 1, self.args.seed)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """The state of a checkpoint, with rate and weight decay of the settings."""
        with settings_kept(self.optimizer, getattr(self.lr_scheduler, "scheduler", self.lr_scheduler)):
            super()._load_optimizer_and_scheduler(checkpoint)

    def take_up(self, checkpoint: Path) -> None:
        """Stand where a run ends that wrote `checkpoint` in its last step: its best weights, or else the last ones."""
        self.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        best = self.state.best_model_checkpoint if self.args.load_best_model_at_end else None
        self._load_from_checkpoint(best or str(checkpoint))

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Loss (nats per token) and perplexity of the held-out and of the general rows."""
        metrics = {}
        for name, rows in ((metric_key_prefix, eval_dataset or self.eval_dataset), ("general", self.general)):
            if rows is not None:
                loss = self.mean_loss(rows)
                metrics |= {f"{name}_loss": loss, f"{name}_perplexity": math.exp(min(loss, 700.0))}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def mean_loss(self, rows: Rows) -> float:
        """Nats per token that counts, over all rows and processes; a row that fills up the last batch counts once."""
        model, loss, tokens = self.model, 0.0, 0
        was_training = model.training
        model.eval()
        try:
            for batch in self.get_eval_dataloader(rows):
                batch = self._prepare_inputs(batch)
                labels_BN = batch.pop("labels")[:, 1:]
                with torch.no_grad(), self.compute_loss_context_manager():
                    logits_BNV = model(**batch).logits[:, :-1]
                loss_BN = torch.nn.functional.cross_entropy(logits_BNV.float().flatten(0, 1), labels_BN.flatten(), ignore_index=NOT_COUNTED,
                                                            reduction="none").view(labels_BN.shape)
                loss_B, tokens_B = self.accelerator.gather_for_metrics((loss_BN.double().sum(1) if loss_BN.device.type != "mps" else loss_BN.sum(1),
                                                                        (labels_BN != NOT_COUNTED).sum(1)))
                loss, tokens = loss + loss_B.sum().item(), tokens + int(tokens_B.sum())
        finally:
            model.train(was_training)
        return loss / max(tokens, 1)


def training_arguments(config: LanguageConfig, checkpoints: Path) -> TrainingArguments:
    """The Trainer's arguments; nothing is reported anywhere but by our own callbacks, and nothing is pushed.

    Under `accelerate launch` or torchrun this joins the other processes. ValueError for a precision that the device does not have.
    """
    if config.device.startswith("cuda:"):
        os.environ.setdefault("ACCELERATE_TORCH_DEVICE", config.device)
    device = device_of(config.device)
    precision = pick_precision(config.mixed_precision, device)
    scheduler = "constant_with_warmup" if config.lr_scheduler == "constant" and config.lr_warmup_steps else config.lr_scheduler
    length = {"max_steps": config.steps} if config.steps else {"num_train_epochs": config.epochs or 3}
    best = {"eval_strategy": "steps", "eval_steps": NEVER, "load_best_model_at_end": True, "metric_for_best_model": "eval_loss",
            "greater_is_better": False} if config.measures else {}
    arguments = TrainingArguments(
        output_dir=str(checkpoints), per_device_train_batch_size=config.batch_size, per_device_eval_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps, learning_rate=config.learning_rate, lr_scheduler_type=scheduler,
        warmup_steps=config.lr_warmup_steps, optim=OPTIMIZERS[config.optimizer], weight_decay=config.weight_decay, max_grad_norm=config.max_grad_norm,
        bf16=precision == "bf16", fp16=precision == "fp16", gradient_checkpointing=config.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if config.gradient_checkpointing else None, seed=config.seed, data_seed=config.seed,
        use_cpu=config.device == "cpu" or device.type == "cpu" and precision == "bf16", logging_steps=config.log_every, logging_first_step=True, logging_nan_inf_filter=False, report_to="none",
        disable_tqdm=True, save_strategy="steps", save_steps=NEVER, save_total_limit=KEPT_CHECKPOINTS, remove_unused_columns=False,
        label_names=["labels"], ddp_timeout=FOREVER, restore_callback_states_from_checkpoint=True, ddp_find_unused_parameters=False,
        dataloader_pin_memory=torch.cuda.is_available() and config.device != "cpu", **length, **best)
    assert arguments.device is not None  # joins the process group
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # several visible GPUs are used by one process each, under a launcher, and not by DataParallel
    return arguments


def device_of(setting: str) -> torch.device:
    """The device for "auto" or a name. ValueError when torch does not have it."""
    if setting == "auto":
        kinds = (("cuda", torch.cuda.is_available()), ("xpu", hasattr(torch, "xpu") and torch.xpu.is_available()), ("mps", torch.backends.mps.is_available()))
        return torch.device(next((kind for kind, is_there in kinds if is_there), "cpu"))
    device = torch.device(setting)
    there = {"cpu": True, "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
             "xpu": hasattr(torch, "xpu") and torch.xpu.is_available(), "mps": torch.backends.mps.is_available()}
    if not there[device.type]:
        raise ValueError(f"device is {setting}, which this machine or this build of torch does not have; use auto or cpu")
    return device
