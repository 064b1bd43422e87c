"""Records as tokens: what is shown to the model, which of it counts, and how several short records share one row."""
from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, Iterable, Iterator, Sequence

import torch

from .chat import render_record
from .records import Record

NOT_COUNTED = -100
"""The label that transformers' losses leave out."""
FILLER = -1
"""The number of a row of which nothing counts."""


@dataclass(frozen=True)
class Sample:
    """One piece for the model: `ids` (n,), and `labels` (n,), which are the ids or NOT_COUNTED."""

    ids: list[int]
    labels: list[int]


@dataclass
class Samples:
    """All samples, and what was lost on the way: records that cannot be used, and how many were cut off."""

    samples: list[Sample] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    cut: int = 0

    @property
    def tokens(self) -> int:
        return sum(len(sample.ids) for sample in self.samples)

    @property
    def counted(self) -> int:
        """How many tokens are learned; the first of a sample is never predicted."""
        return sum(label != NOT_COUNTED for sample in self.samples for label in sample.labels[1:])


def tokenize(tokenizer: Any, records: Iterable[Record], max_length: int, answer_only: bool = True) -> Samples:
    """Samples of at most `max_length` tokens. A conversation is cut off at its end; a plain text becomes as many samples as it needs."""
    found = Samples()
    for record in records:
        try:
            samples, is_cut = _text_samples(tokenizer, record, max_length) if record.kind == "text" else \
                _chat_samples(tokenizer, record, max_length, answer_only)
        except ValueError as error:
            found.problems.append(f"{record.place}: {error}")
            continue
        found.samples += samples
        found.cut += is_cut
    return found


def _text_samples(tokenizer: Any, record: Record, max_length: int) -> tuple[list[Sample], bool]:
    """The text with its end token, in pieces of equal length but for the last; a last piece of one token would teach nothing."""
    ids = tokenizer(record.text)["input_ids"]
    if tokenizer.eos_token_id is not None and ids[-1:] != [tokenizer.eos_token_id]:
        ids = [*ids, tokenizer.eos_token_id]
    pieces = [ids[begin: begin + max_length] for begin in range(0, len(ids), max_length)]
    return [Sample(piece, list(piece)) for piece in pieces if len(piece) > 1], False


def _chat_samples(tokenizer: Any, record: Record, max_length: int, answer_only: bool) -> tuple[list[Sample], bool]:
    rendered = render_record(tokenizer, record)
    encoded = tokenizer(rendered.text, add_special_tokens=False, return_offsets_mapping=True)
    ids, spans = encoded["input_ids"], encoded["offset_mapping"]
    if answer_only:
        labels = [token if _reaches(span, rendered.answers) else NOT_COUNTED for token, span in zip(ids, spans)]
    else:
        labels = [NOT_COUNTED if _reaches(span, rendered.not_learned) else token for token, span in zip(ids, spans)]
    begin = next((number for number, label in enumerate(labels) if number and label != NOT_COUNTED), None)
    if begin is None or begin >= max_length:
        raise ValueError("its answer is no token at all" if begin is None else
                         f"the question alone has {begin} tokens, which leaves no room for its answer; raise max_length ({max_length})")
    return [Sample(ids[:max_length], labels[:max_length])], len(ids) > max_length


def _reaches(span: tuple[int, int], answers: Sequence[tuple[int, int]]) -> bool:
    """Whether a token's characters reach into one of the answers; one that begins before it is what the model has to say there."""
    begin, end = span
    return any(end > first and begin < last for first, last in answers)


def pack(samples: Sequence[Sample], max_length: int) -> list[list[Sample]]:
    """Samples in rows of at most `max_length` tokens: the longest first, each into the fullest row that has room (best fit decreasing)."""
    rows: list[list[Sample]] = []
    by_room: dict[int, list[int]] = {}
    for sample in sorted(samples, key=lambda sample: -len(sample.ids)):
        size = len(sample.ids)
        room = min((room for room, open_rows in by_room.items() if room >= size and open_rows), default=None)
        if room is None:
            rows.append([sample])
            number, left = len(rows) - 1, max_length - size
        else:
            number, left = by_room[room].pop(0), room - size
            rows[number].append(sample)
        by_room.setdefault(left, []).append(number)
    return rows


class Rows(torch.utils.data.Dataset):
    """Rows of one or several samples, for transformers' Trainer."""

    def __init__(self, rows: Sequence[Sequence[Sample]]) -> None:
        self.rows = list(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, list[int]]:
        """input_ids, labels and position_ids of one row; positions begin anew with each sample, and no sample predicts the next one's first token."""
        row = self.rows[number] if number != FILLER else [Sample(self.rows[0][0].ids[:2], [NOT_COUNTED] * 2)]
        return {"input_ids": [token for sample in row for token in sample.ids],
                "labels": [label for sample in row for label in (NOT_COUNTED, *sample.labels[1:])],
                "position_ids": [position for sample in row for position in range(len(sample.ids))]}

    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(sum(len(sample.ids) for sample in row) for row in self.rows)

    def fingerprint(self) -> str:
        """The same for the same rows in the same order."""
        digest = hashlib.sha256()
        for row in self.rows:
            for sample in row:
                digest.update(repr((sample.ids, sample.labels)).encode())
            digest.update(b"|")
        return digest.hexdigest()[:32]


class Order(torch.utils.data.Sampler):
    """The numbers of `count` rows, in an order that is a function of seed and epoch alone, and fillers up to a multiple of `at_once`: a last
    step that is not full would else be filled up, for several processes, with rows that one process does not see there."""

    def __init__(self, count: int, at_once: int, seed: int) -> None:
        self.count, self.seed, self.epoch = count, seed, 0
        self.fillers = -count % at_once

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count + self.fillers

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(self.count, generator=torch.Generator().manual_seed(self.seed + self.epoch))
        return iter([*order.tolist(), *[FILLER] * self.fillers])


@dataclass(frozen=True)
class Collator:
    """Rows of different lengths as one batch, filled up at the end with a token that does not count.

    Packed rows have no attention mask: transformers keeps their samples apart by `position_ids`, and what fills a row up is one
    more such sample.
    """

    pad_token: int
    packed: bool

    def __call__(self, rows: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        longest = max(len(row["input_ids"]) for row in rows)

        def filled(name: str, value: int) -> torch.Tensor:
            return torch.tensor([row[name] + [value] * (longest - len(row[name])) for row in rows])

        batch = {"input_ids": filled("input_ids", self.pad_token), "labels": filled("labels", NOT_COUNTED)}
        if self.packed:
            batch["position_ids"] = torch.tensor([row["position_ids"] + list(range(longest - len(row["position_ids"]))) for row in rows])
        else:
            batch["attention_mask"] = torch.tensor([[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows])
        return batch
