"""Answers of a model to prompts, with the adapter and without it."""
from __future__ import annotations

from contextlib import nullcontext
from typing import Any, Sequence

import torch

from .chat import Question, prompt_text


def answer(model: Any, tokenizer: Any, prompts: Sequence[Question], max_tokens: int = 64, temperature: float = 0.0, with_adapter: bool = True,
           batch_size: int = 16) -> list[str]:
    """The model's answer to each prompt, put into its chat template; the likeliest words for a temperature of 0.

    The model's mode is put back. With `with_adapter=False` a peft model answers as its base does.
    """
    was_training, side, used_cache = model.training, tokenizer.padding_side, model.config.use_cache
    tokenizer.padding_side = "left"
    model.eval()
    try:
        with torch.no_grad(), nullcontext() if with_adapter else model.disable_adapter():
            return [text for begin in range(0, len(prompts), batch_size)
                    for text in _answers(model, tokenizer, prompts[begin: begin + batch_size], max_tokens, temperature)]
    finally:
        tokenizer.padding_side, model.config.use_cache = side, used_cache
        model.train(was_training)


def _answers(model: Any, tokenizer: Any, prompts: Sequence[Question], max_tokens: int, temperature: float) -> list[str]:
    texts = [prompt_text(tokenizer, prompt) for prompt in prompts]
    # a template writes the first token itself
    batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=not tokenizer.chat_template)
    batch = {name: tensor.to(model.device) for name, tensor in batch.items() if name in ("input_ids", "attention_mask")}
    if not tokenizer.chat_template and tokenizer.eos_token_id is not None and (batch["input_ids"][:, -1] == tokenizer.eos_token_id).all():
        batch = {name: tensor[:, :-1] for name, tensor in batch.items()}  # some tokenizers end every text
    sampling = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    out = model.generate(**batch, max_new_tokens=max_tokens, pad_token_id=tokenizer.pad_token_id, **_ends(model, tokenizer), **sampling)
    return [tokenizer.decode(row[batch["input_ids"].shape[1]:], skip_special_tokens=True).strip() for row in out]


def _ends(model: Any, tokenizer: Any) -> dict[str, Any]:
    """The model's own tokens that end an answer, and the tokenizer's."""
    own = model.generation_config.eos_token_id
    own = [] if own is None else own if isinstance(own, list) else [own]
    ends = sorted({*own, *([tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else [])})
    return {"eos_token_id": ends} if ends else {}
