"""Which pictures each step sees: a function of the seed and the step alone, so that a resumed run goes on exactly."""
from __future__ import annotations

import math
from functools import lru_cache
from typing import Iterable, Sequence

from .randomness import python_random


class SampleOrder:
    """The samples of every step, as indices into a list of pictures with their sizes and repeats.

    Pictures with 0 repeats take turns: each epoch shows `turns` of them, and the next one goes on from there.

    A step has `group` samples: batch size times accumulation. Within an epoch every picture comes as often as its repeats
    say. Groups of one size are formed as far as possible, so that batches are full; what is left over is mixed, and the last
    group is filled up from the front of the epoch. How a group is cut into batches changes nothing but rounding.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]], repeats: Sequence[int], group: int, seed: int, turns: int = 0) -> None:
        assert len(sizes) == len(repeats) > 0 and group > 0
        self.sizes, self.repeats, self.group, self.seed = list(sizes), list(repeats), group, seed
        self.samples_per_epoch = sum(repeats) + turns
        self.steps_per_epoch = math.ceil(self.samples_per_epoch / group)
        self._turns, self._waiting = turns, [index for index, repeat in enumerate(repeats) if not repeat]
        python_random(seed, "turns", 0, 0).shuffle(self._waiting)
        assert turns <= len(self._waiting)
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    def of_step(self, step: int) -> list[int]:
        """Picture indices of a step, `group` of them; steps count from 0."""
        return self._epoch(step // self.steps_per_epoch)[step % self.steps_per_epoch]

    def shown_within(self, steps: int) -> list[int]:
        """The pictures that the first `steps` steps show, in whole epochs."""
        never = set(self._waiting[math.ceil(steps / self.steps_per_epoch) * self._turns:])
        return [index for index in range(len(self.sizes)) if index not in never]

    def batches(self, step: int, batch_size: int, part: tuple[int, int] = (0, 1)) -> list[list[tuple[int, int]]]:
        """The step's samples as batches of one size each: lists of (sample number within the step, picture index).

        `part`: (index, of) for one of so many processes that share the step, in parts that differ by one sample at most. Where a part
        ends with a batch of the whole, its batches are those of the whole.
        """
        by_size = self._by_size(enumerate(self.of_step(step)))
        if part != (0, 1):
            index, parts = part
            in_order = [pair for same in by_size.values() for pair in same]
            by_size = self._by_size(in_order[self.group * index // parts:self.group * (index + 1) // parts])
        return [same[i:i + batch_size] for same in by_size.values() for i in range(0, len(same), batch_size)]

    def _by_size(self, samples: Iterable[tuple[int, int]]) -> dict[tuple[int, int], list[tuple[int, int]]]:
        by_size: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for number, index in samples:
            by_size.setdefault(self.sizes[index], []).append((number, index))
        return by_size

    def _make_epoch(self, epoch: int) -> list[list[int]]:
        rng = python_random(self.seed, "order", epoch, 0)
        everything = [index for index, repeat in enumerate(self.repeats) for _ in range(repeat)]
        everything += [self._waiting[(epoch * self._turns + turn) % len(self._waiting)] for turn in range(self._turns)]
        rng.shuffle(everything)
        by_size: dict[tuple[int, int], list[int]] = {}
        for index in everything:
            by_size.setdefault(self.sizes[index], []).append(index)
        groups, rest = [], []
        for same in by_size.values():
            full = len(same) // self.group * self.group
            groups += [same[i:i + self.group] for i in range(0, full, self.group)]
            rest += same[full:]
        if rest:
            rng.shuffle(rest)
            missing = -len(rest) % self.group
            rest += [everything[i % len(everything)] for i in range(missing)]
            groups += [rest[i:i + self.group] for i in range(0, len(rest), self.group)]
        rng.shuffle(groups)
        assert len(groups) == self.steps_per_epoch
        return groups


def default_steps(pictures: int, group: int, passes: int = 80) -> int:
    """Steps where the user gave neither steps nor epochs: `passes` samples for each picture, in all at least those of 10 pictures and at most of 50."""
    return math.ceil(passes * min(50, max(10, pictures)) / group)
