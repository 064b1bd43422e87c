"""Previews of a run: the same prompts answered by the base and by the LoRA, side by side, in a file for each step."""
from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Sequence

from transformers import TrainerCallback

from ..output_files import write_atomically
from ..state import step_stem
from .answering import answer
from .chat import Question
from .peers import is_sharded

log = logging.getLogger(__name__)


class Previews(TrainerCallback):
    """Answers `prompts` every `every` steps and at the end, into `folder/<name>-<step>.md`, the log, and `shown` (TensorBoard).

    The base answers once. With sharded weights (FSDP) every process answers, as they compute together; otherwise the first one
    alone does. Answers are the likeliest ones, so that steps can be compared and no random number is drawn.
    """

    def __init__(self, folder: Path, name: str, tokenizer: Any, prompts: Sequence[Question], every: int, max_tokens: int, shown: Any = None) -> None:
        self.folder, self.name, self.tokenizer, self.prompts = folder, name, tokenizer, list(prompts)
        self.every, self.max_tokens, self.shown, self.base = every, max_tokens, shown, None

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        if state.global_step % self.every and state.global_step < state.max_steps:
            return
        if not (state.is_world_process_zero or is_sharded()):
            return
        if self.base is None:
            self.base = answer(model, self.tokenizer, self.prompts, self.max_tokens, with_adapter=False)
        answers = answer(model, self.tokenizer, self.prompts, self.max_tokens)
        if state.is_world_process_zero:
            self._write(state.global_step, answers)

    def _write(self, step: int, answers: list[str]) -> None:
        path = self.folder / f"{step_stem(self.name, step)}.md"
        lines = [f"# {self.name}, step {step}", "", "| prompt | base | LoRA |", "|---|---|---|"]
        lines += [f"| {_cell(prompt.text)} | {_cell(base)} | {_cell(new)} |" for prompt, base, new in zip(self.prompts, self.base, answers)]
        text = "\n".join(lines) + "\n"
        write_atomically(path, text.encode("utf-8", "replace"))
        for prompt, base, new in zip(self.prompts, self.base, answers):
            log.info("step %d: %s\n  base: %s\n  LoRA: %s", step, prompt.text, base, new)
        if self.shown:
            self.shown(text, step)


def _cell(text: str) -> str:
    """Text that stays in one cell of a Markdown table."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\r", "").replace("\n", "<br>")
