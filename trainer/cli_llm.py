"""`python train.py` for language models: train, --dry-run, --resume, and generate."""
from __future__ import annotations

import argparse
import logging
import math
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .distributed import told_once
from .llm.base_folder import find_adapter_base, find_base, is_language_base
from .llm.config import LanguageConfig

if TYPE_CHECKING:
    from .llm.run import LanguageRun
    from .session import Outcome

log = logging.getLogger(__name__)
NEEDED = {"transformers": (4, 56), "peft": (0, 17), "accelerate": (1, 0)}
INSTALL = "install the packages for language models with `pip install -e .[llm]`"


def train_language(config: LanguageConfig, warnings: list[str], options: argparse.Namespace) -> int:
    """Train by the settings; 0 when it was completed, 3 when it was stopped."""
    from .llm.offline import go_offline
    from .cli import train_until_signal

    go_offline()
    with told_once():
        run, lines = _prepared(config, warnings, options)
    if options.dry_run:
        if run.is_first:
            print("\n".join([*lines, f"result: {run.folder / run.name}", "nothing was trained or written (--dry-run)"]))
        return 0
    for line in lines:
        log.info("%s", line)
    if options.resume:
        log.info("going on from step %d of %d", run.step, run.total_steps)
    outcome = train_until_signal(run, run.peers)
    if run.is_first:
        _tell_end(run, outcome, options)
    return 0 if outcome.status == "completed" else 3


def _prepared(config: LanguageConfig, warnings: list[str], options: argparse.Namespace) -> tuple[LanguageRun, list[str]]:
    """A run that is ready to train, and what is to be said of it before."""
    need_packages()
    from .llm.offline import quiet_libraries

    quiet_libraries()
    from .estimate import duration
    from .llm.material import read_material, tell_problems
    from .llm.run import LanguageRun

    material = read_material(config)
    config, warnings = material.config, [*warnings, *material.warnings]
    run = LanguageRun(material, warnings)
    if not run.is_first:
        logging.getLogger(__package__).setLevel(logging.ERROR)
    for warning in [*warnings, *run.launch_warnings()]:
        log.warning("warning: %s", warning)
    tell_problems(material.problems)
    if options.resume:
        for change in run.resume():
            log.warning("warning: unlike the saved run, %s", change)
    sentence = run.load(timed=options.dry_run)
    rows = config.batch_size * config.gradient_accumulation_steps * run.arguments.world_size
    lines = [*material.report, f"base: {material.base} on {run.device}, precision {run.precision}" + _bits(config, material.base),
             f"steps: {run.total_steps} of {rows} rows, {-(-run.total_steps // run.steps_per_epoch)} epochs", sentence]
    if options.dry_run:
        tokens = sum(len(sample.ids) for row in material.train.rows for sample in row) / len(material.train)
        seconds = run.total_steps * config.batch_size * config.gradient_accumulation_steps * tokens * run.needs.seconds_per_token
        lines.append(f"estimated time: {duration(seconds)} (from a measured forward and backward)")
    return run, lines


def _bits(config: LanguageConfig, base: Path) -> str:
    """In how many bits the base is, as the end of a sentence; "" for those of the precision."""
    from .llm.quantised import method_of, quantised_by

    quantised = quantised_by(base)
    return f", loaded in {config.load_in}" if config.load_in else f", quantised already ({method_of(quantised)})" if quantised else ""


def _tell_end(run: LanguageRun, outcome: Outcome, options: argparse.Namespace) -> None:
    from .cli import go_on_command
    from .llm.chat import Question

    print(outcome.message)
    if outcome.status == "completed":
        asked = (run.material.prompts or [Question("...")])[0]
        system = f" --system {_quoted(asked.system)}" if asked.system else ""
        print(f'try it: python train.py generate --base "{run.config.base_model}" --lora "{outcome.lora}" --prompt {_quoted(asked.text)}{system}')
    else:
        print(f"go on: {go_on_command(options)}")


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '\\"').replace("\n", " ") + '"'


def need_packages() -> None:
    """ValueError when one of the packages that language models need is missing or too old."""
    missing = missing_package()
    if missing:
        raise ValueError(f"language models need {missing}; {INSTALL}")


def missing_package() -> str | None:
    """Which package is missing or too old, as a part of a sentence; None when all are there."""
    from importlib.metadata import PackageNotFoundError, version

    for package, oldest in NEEDED.items():
        try:
            found = version(package)
        except PackageNotFoundError:
            return f"the package {package}, which is not installed"
        if tuple(int(part) for part in re.findall(r"\d+", found)[:2]) < oldest:
            return f"{package} {'.'.join(map(str, oldest))} or newer, and here is {found}"
    return None


def add_generate_options(draw: argparse.ArgumentParser) -> None:
    """What `generate` takes for language models."""
    draw.add_argument("--lora", metavar="FOLDER", default=None, help="language models: the adapter folder; with it, --base may be left out")
    draw.add_argument("--system", metavar="TEXT", default="", help="language models: the system text before the prompt, for a LoRA that was trained with one")
    draw.add_argument("--max-tokens", type=int, default=256, help="language models: longest answer (default: 256)")
    draw.add_argument("--temperature", type=float, default=0.0, help="language models: 0 takes the likeliest words (default), 0.7 is usual for variety")
    draw.add_argument("--compare", action="store_true", help="language models: also answer without the LoRA")
    draw.add_argument("--load-in", choices=("8bit", "4bit"), default=None, help="language models: load the base in fewer bits")


def is_language_request(options: argparse.Namespace) -> bool:
    """Whether `generate` is asked of a language model: its base or its LoRA says so. ValueError for a --lora that is no such folder."""
    if options.lora is not None and not is_language_base(options.lora):
        raise ValueError(f"--lora is {options.lora}, which is no adapter folder of a language model (adapter_config.json with task_type CAUSAL_LM). For "
                         'pictures, name the LoRA in the prompt, as in "a photo <lora:my_lora:0.8>", and its folder as --lora-dir')
    return options.lora is not None or is_language_base(options.base)


def generate_text(options: argparse.Namespace) -> int:
    """Print the answer to the prompt, with the LoRA, and with --compare the base's too."""
    from .llm.offline import go_offline, quiet_libraries

    go_offline()
    need_packages()
    quiet_libraries()
    import torch

    from .llm.answering import answer
    from .llm.chat import Question
    from .llm.model import DTYPES, check_bits, load_adapter, load_base, load_tokenizer
    from .llm.quantised import check_quantised
    from .llm.trainer import device_of
    from .precision import pick_precision

    if options.max_tokens < 1 or not 0 <= options.temperature < math.inf:
        raise ValueError(f"--max-tokens is {options.max_tokens} and --temperature {options.temperature:g}; the first must be at least 1, the second at least 0")
    base_name, options.lora = _base_and_lora(options.base, options.lora)
    base = find_base(base_name)
    device = device_of(options.device)
    check_quantised(base, device, options.load_in)
    check_bits(options.load_in, device)
    dtype = DTYPES[pick_precision("auto", device)]
    adapter = Path(options.lora) if options.lora else None
    tokenizer = load_tokenizer(adapter if adapter and (adapter / "tokenizer_config.json").is_file() else base)
    model = load_base(base, device, dtype, options.load_in)
    if adapter:
        try:
            model = load_adapter(model, adapter)
        except (RuntimeError, ValueError, OSError) as error:
            raise ValueError(f"the LoRA {adapter} does not fit the base {base} ({str(error).strip().splitlines()[0]}); give the base that it was "
                             "trained on") from None
    torch.manual_seed(options.seed)
    asked = [Question(options.prompt, options.system)]
    if options.compare and adapter:
        print(f"base: {answer(model, tokenizer, asked, options.max_tokens, options.temperature, with_adapter=False)[0]}")
        print("LoRA: ", end="")
    print(answer(model, tokenizer, asked, options.max_tokens, options.temperature)[0])
    sys.stdout.flush()
    return 0


def _base_and_lora(base: str, lora: str | None) -> tuple[str, str | None]:
    """An adapter folder given as base, or no base at all, means the base that the adapter names."""
    if (Path(base) / "adapter_config.json").is_file():
        base, lora = "demo", lora or base
    if base != "demo" or lora is None:
        return base, lora
    return find_adapter_base(Path(lora)), lora
