"""What a language-model run needs of memory and time: measured on one short row, and put into a sentence."""
from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..device_memory import free_of, memory_of
from ..needs import ADAM
from .config import LanguageConfig
from .quantised import quantised_by, stored_bytes

MEASURED_TOKENS = 128
BITS = {"4bit": 0.55, "8bit": 1.05}
"""Bytes of a weight with what bitsandbytes keeps beside it."""


@dataclass(frozen=True)
class Needs:
    """Bytes of a run at its peak, in parts, and the seconds of one token of a step (None when it was not timed)."""

    weights: int
    adapter: int
    batch: int
    seconds_per_token: float | None = None

    @property
    def total(self) -> int:
        return self.weights + self.adapter + self.batch

    def sentence(self, config: LanguageConfig, tokens: int, device: torch.device, free: int | None) -> str:
        """The memory in words; `tokens` are those of the longest row."""
        text = (f"memory: about {_gb(self.total)} on {device}: {_gb(self.weights)} the base, {_gb(self.adapter)} adapter and optimizer, "
                f"{_gb(self.batch)} a batch of {config.batch_size} x {tokens} tokens")
        return text + (f"; {_gb(free)} are there" if free is not None else "")


def weights_on_paper(folder: Path, dtype: torch.dtype, load_in: str | None, in_bits: bool = False) -> int:
    """Bytes of the base's weights once it is loaded, from its config alone; those on the disk for a base that is kept `in_bits` of its own."""
    from transformers import AutoConfig, AutoModelForCausalLM

    if in_bits:
        return stored_bytes(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False))
    count = sum(parameter.numel() for parameter in model.parameters())
    ends = {id(p): p.numel() for layer in (model.get_input_embeddings(), model.get_output_embeddings()) if layer is not None for p in layer.parameters()}
    width = dtype.itemsize
    return int(count * width if load_in is None else (count - sum(ends.values())) * BITS[load_in] + sum(ends.values()) * width)


def check_fits(folder: Path, weights: int, device: torch.device, config: LanguageConfig) -> None:
    """ValueError before the base is loaded, when its weights alone need more than the device has."""
    there = free_memory(device)
    if there is not None and weights > there:
        raise ValueError(f"the base {folder} needs {_gb(weights)} for its weights alone and {device} has {_gb(there)} free"
                         f"{advice(config, folder) or '; take a smaller base, or free memory that other programs hold'}")


def measure(model: Any, rows: Any, config: LanguageConfig, collate: Any, device: torch.device, mixed: torch.dtype | None = None, timed: bool = False) -> Needs:
    """Run one short row through the model with its adapter and note what its backward keeps; scaled up to a whole batch. `mixed`: of autocast."""
    longest = rows.longest()
    index = max(range(min(len(rows), 200)), key=lambda number: len(rows[number]["input_ids"]))
    row = {name: values[:MEASURED_TOKENS] for name, values in rows[index].items()}
    row["labels"] = list(row["input_ids"])
    batch = {name: tensor.to(device) for name, tensor in collate([row]).items()}
    tokens = len(row["input_ids"])
    weights = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in (*model.parameters(), *model.buffers())}
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    was_training = model.training
    model.train()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), \
                torch.autocast(device.type, mixed) if mixed else nullcontext():
            kept = _kept(model, batch, weights)
            if config.gradient_checkpointing:
                kept = _checkpointed(model, batch, weights, kept)
            seconds = _seconds(model, batch) / tokens if timed else None
    finally:
        model.zero_grad(set_to_none=True)
        model.train(was_training)
    logits = tokens * model.config.get_text_config().vocab_size * 4  # their gradient, beside what was kept of them
    per_token = (kept + logits) / tokens
    return Needs(sum(weights.values()) - 4 * trained, trained * ADAM, int(per_token * longest * config.batch_size) + _restored(model), seconds)


def _restored(model: Any) -> int:
    """Bytes of the largest layer in full width, which bitsandbytes makes of its fewer bits while that layer computes."""
    counts = [p.shape[0] * p.shape[1] if type(p).__name__ == "Int8Params" else p.quant_state.shape.numel() for p in model.parameters()
              if type(p).__name__ == "Int8Params" or getattr(p, "quant_state", None) is not None]
    return 2 * max(counts, default=0)


def _kept(model: Any, batch: dict[str, torch.Tensor], weights: dict[int, int]) -> int:
    """Bytes that autograd keeps between forward and backward, without the weights."""
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        held = model(**batch, use_cache=False)
    del held
    return sum(kept.values())


def _checkpointed(model: Any, batch: dict[str, torch.Tensor], weights: dict[int, int], plain: int) -> int:
    """With gradient checkpointing the inputs of the layers are kept, and one layer at a time is computed again."""
    layers = max(1, model.config.get_text_config().num_hidden_layers)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    try:
        return min(plain, _kept(model, batch, weights) + plain // layers)
    finally:
        model.gradient_checkpointing_disable()


def _seconds(model: Any, batch: dict[str, torch.Tensor]) -> float:
    """Of one forward and backward, the faster of two."""
    best = float("inf")
    for _ in range(2):
        began = time.perf_counter()
        model(**batch, use_cache=False).loss.backward()
        next(p.grad for p in model.parameters() if p.grad is not None).sum().item()
        best = min(best, time.perf_counter() - began)
    return best


def free_memory(device: torch.device) -> int | None:
    """Bytes that are free on the device; what the machine has where it does not tell."""
    free = free_of(device)
    return memory_of(device) if free is None else free


def advice(config: LanguageConfig, base: Path) -> str:
    """What a run could still give up, cheapest first; "" when nothing is left."""
    options = [text for text, left in (
        ("gradient_checkpointing: true", not config.gradient_checkpointing),
        (f"batch_size: {max(1, config.batch_size // 2)} with gradient_accumulation_steps: {2 * config.gradient_accumulation_steps} (the same result)",
         config.batch_size > 1),
        ("load_in: 4bit", config.load_in != "4bit" and not quantised_by(base)), (f"max_length: {config.max_length // 2}", config.max_length >= 256)) if left]
    return f"; try {', then '.join(options)}" if options else ""


def _gb(amount: int) -> str:
    return f"{amount / 1e9:.2f} GB" if amount >= 5e6 else f"{amount / 1e6:.2f} MB"
