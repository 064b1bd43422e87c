"""What a language run is made of before the base is loaded: records, tokens and rows, with their errors."""
from __future__ import annotations

import logging
import random
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..names import check_name, safe_name
from .base_folder import find_base
from .chat import Question, choose_template
from .config import LanguageConfig
from .model import load_tokenizer
from .records import Record, Records, read_records
from .tokens import Rows, Samples, pack, tokenize

log = logging.getLogger(__name__)
LEAST_FOR_VALIDATION = 20
SHOWN_PROBLEMS = 10
PREVIEWS = 3


@dataclass
class Material:
    """Everything that is known before the base is loaded. `template` is the chat template's name, None for plain texts alone."""

    config: LanguageConfig
    name: str
    base: Path
    tokenizer: Any
    template: str | None
    train: Rows
    held_out: Rows | None
    general: Rows | None
    report: list[str]
    problems: list[str] = field(default_factory=list)
    prompts: list[Question] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def read_material(config: LanguageConfig) -> Material:
    """Read and tokenize all data. ValueError for a base, a tokenizer, a template or data that cannot be used."""
    base = find_base(config.base_model)
    found = read_records(config.train_data_dir)
    tokenizer = load_tokenizer(base)
    warnings = found.warnings("train_data_dir")
    limit = _model_limit(base)
    if limit is not None and config.max_length > limit:
        warnings.append(f"max_length is {config.max_length}, but the base reaches to {limit} tokens only; {limit} is used")
        config = replace(config, max_length=limit)
    template = choose_template(tokenizer, config.chat_template, found.records)
    trained, held_out = found.records, []
    if config.validation:
        trained, held_out = split(found.records, config.seed)
    train = tokenize(tokenizer, trained, config.max_length, config.answer_only)
    if not train.samples:
        raise ValueError(f"train_data_dir is {config.train_data_dir}, where no record can be used; the first: {train.problems[0]}")
    problems = found.problems + train.problems
    report = _report(found, train, template, config)
    measured = _measured("validation", held_out, tokenizer, config, problems)
    if config.eval_data_dir:
        measured = _measured("eval_data_dir", _others(config.eval_data_dir, "eval_data_dir", problems, warnings), tokenizer, config, problems)
    general = None
    if config.general_data_dir:
        others = _others(config.general_data_dir, "general_data_dir", problems, warnings)
        if config.general_share:
            replayed, others = replay(tokenizer, others, len(train.samples), config)
            train.samples += replayed.samples
            problems += replayed.problems
            report.append(f"{len(replayed.samples)} general samples are trained as well, {len(replayed.samples) / len(train.samples):.0%} of all")
        general = _measured("general_data_dir", others, tokenizer, config, problems)
    rows = pack(train.samples, config.max_length) if config.packing else [[sample] for sample in train.samples]
    if config.packing:
        report.append(f"packed into {len(rows)} rows of up to {config.max_length} tokens, which are "
                      f"{train.tokens / (len(rows) * config.max_length):.0%} full")
    if measured:
        report.append(f"{len(measured)} samples are measured and not trained")
    return Material(config, run_name(config), base, tokenizer, template, Rows(rows), measured, general, report, problems,
                    [Question(prompt) for prompt in config.preview_prompts] or questions([*held_out, *trained]), warnings)


def run_name(config: LanguageConfig) -> str:
    """The name that was given, else that of the data."""
    source = Path(config.train_data_dir).resolve()
    return check_name(config.name) if config.name else safe_name(source.stem if source.is_file() else source.name)


def split(records: list[Record], seed: int) -> tuple[list[Record], list[Record]]:
    """(trained, held out): a tenth, drawn by the seed. ValueError for too few records."""
    if len(records) < LEAST_FOR_VALIDATION:
        raise ValueError(f"validation is on, but {len(records)} records are too few to hold some back; it needs {LEAST_FOR_VALIDATION}. Add records, "
                         "or give others as eval_data_dir")
    chosen = set(random.Random(f"held out {seed}").sample(range(len(records)), max(2, len(records) // 10)))
    return [r for number, r in enumerate(records) if number not in chosen], [r for number, r in enumerate(records) if number in chosen]


def replay(tokenizer: Any, records: list[Record], new: int, config: LanguageConfig) -> tuple[Samples, list[Record]]:
    """General samples that are trained beside `new` others (replay against forgetting, 2403.08763), and the records that are left to measure.

    A tenth of the records is left, and at least 20; where the others do not make up `general_share`, all of them are taken. ValueError
    for too few.
    """
    if len(records) < 2 * LEAST_FOR_VALIDATION:
        raise ValueError(f"general_share is {config.general_share:g}, but general_data_dir has only {len(records)} records, of which {LEAST_FOR_VALIDATION} are "
                         f"kept for measuring; give at least {2 * LEAST_FOR_VALIDATION}, or set general_share: 0")
    shuffled = random.Random(f"general {config.seed}").sample(records, len(records))
    kept = max(LEAST_FOR_VALIDATION, len(records) // 10)
    wanted = round(new * config.general_share / (1 - config.general_share))
    found = Samples()
    for record in shuffled[kept:]:
        if len(found.samples) >= wanted:
            break
        more = tokenize(tokenizer, [record], config.max_length, config.answer_only)
        found.samples += more.samples[: wanted - len(found.samples)]
        found.problems += more.problems
    return found, shuffled[:kept]


def questions(records: list[Record]) -> list[Question]:
    """The first prompts of one user turn each, with the system text of their record; for plain texts their first words."""
    return list(dict.fromkeys(asked for record in records if (asked := _first_question(record))))[:PREVIEWS]


def _first_question(record: Record) -> Question | None:
    if not record.messages:
        return Question(" ".join(record.text.split()[:8]))
    system = record.messages[0]["content"] if record.messages[0]["role"] == "system" else ""
    asked = record.messages[1 if system else 0:][:2]
    return Question(asked[0]["content"], system) if [message["role"] for message in asked] == ["user", "assistant"] and not record.tools else None


def tell_problems(problems: list[str]) -> None:
    """Name the first of them, and how many there are."""
    for problem in problems[:SHOWN_PROBLEMS]:
        log.warning("warning: skipped %s", problem)
    if len(problems) > SHOWN_PROBLEMS:
        log.warning("warning: %d more were skipped; the log file names all of them", len(problems) - SHOWN_PROBLEMS)


def _others(path: str, setting: str, problems: list[str], warnings: list[str]) -> list[Record]:
    found = read_records(path, setting)
    problems += found.problems
    warnings += found.warnings(setting)
    return found.records


def _measured(setting: str, records: list[Record], tokenizer: Any, config: LanguageConfig, problems: list[str]) -> Rows | None:
    """Rows of one sample each; None without records. ValueError when none of them can be used."""
    if not records:
        return None
    samples = tokenize(tokenizer, records, config.max_length, config.answer_only)
    if not samples.samples:
        raise ValueError(f"{setting}: none of its records can be used; the first: {samples.problems[0]}")
    problems += samples.problems
    return Rows([[sample] for sample in samples.samples])


def _report(found: Records, train: Samples, template: str | None, config: LanguageConfig) -> list[str]:
    lines = [found.report(len(found.problems) + len(train.problems)),
             f"{len(train.samples)} samples of {train.tokens:,} tokens, the longest {max(len(sample.ids) for sample in train.samples)}; {train.counted:,} of "
             "them are learned" + (" (answers only)" if template and config.answer_only else "")]
    if template:
        lines.append(f"chat template: {template}")
    if train.cut:
        lines.append(f"{train.cut} records are longer than {config.max_length} tokens and are cut off at their end")
    return lines


def _model_limit(base: Path) -> int | None:
    """The tokens that the base's positions reach to."""
    from transformers import AutoConfig

    try:
        limit = AutoConfig.from_pretrained(str(base), local_files_only=True, trust_remote_code=False).get_text_config().max_position_embeddings
    except (AttributeError, OSError, ValueError, KeyError):
        return None
    return limit if isinstance(limit, int) and limit > 0 else None
