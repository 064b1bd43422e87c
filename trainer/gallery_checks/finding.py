"""What the check found, as data: a code with its values, which `texts.py` turns into sentences."""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

FIX, LOOK, NOTE = "fix", "look", "note"
PARTS = {"amount": 15, "quality": 30, "duplicates": 15, "variety": 15, "captions": 25}
"""The parts of the score and how many points each has."""


@dataclass(frozen=True)
class Action:
    """Something that can be done at a click and undone again. `values` holds what it needs besides the files."""

    kind: str
    files: tuple[str, ...] = ()
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    """`files` are names relative to the gallery; `lost` is the share, 0 to 1, of its part's points that it costs."""

    code: str
    part: str
    severity: str
    files: tuple[str, ...] = ()
    values: dict[str, Any] = field(default_factory=dict)
    action: Action | None = None
    lost: float = 0.0


@dataclass(frozen=True)
class Subject:
    """What the rules know of a gallery: one entry per picture that can be read, in the gallery's order. `by_folder`: the name of its folder, such as
    10_sks dog, is trained as the caption that it does not have."""

    names: list[str]
    sizes: list[tuple[int, int]]
    hashes: list[str]
    captions: list[str]
    by_folder: list[bool]
    looks: list[Any]
    resolution: int
    purpose: str
    trigger: str
    token_limit: int | None
    bucketing: bool
    upscale: bool


def share_lost(found: int, total: int, weight: float) -> float:
    """The share of a part's points that `found` of `total` pictures cost; `weight` says how much each counts."""
    return min(1.0, weight * found / max(1, total))
