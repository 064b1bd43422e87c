"""What concerns the gallery as a whole: how many pictures, which of them twice, and whether they are varied enough."""
from __future__ import annotations

from collections import defaultdict

import numpy as np

from .copies import near_groups
from .finding import FIX, LOOK, NOTE, Action, Finding, Subject, share_lost
from .looks import COLOURS, THUMB

AMOUNTS = {"any": (5, 1000), "object": (5, 150), "person": (8, 250), "character": (6, 200), "style": (15, 2000)}
"""Fewest and most pictures for a purpose."""
SAME_BACKGROUND, SAME_FRAMING = 9.0, 0.035
OVERLAY, AGREEING = 9.0, 0.8
RING = np.ones((COLOURS, COLOURS), dtype=bool)
RING[2:-2, 2:-2] = False


def gallery_findings(subject: Subject) -> list[Finding]:
    return [*_amount(subject), *_duplicates(subject), *_variety(subject)]


def _amount(subject: Subject) -> list[Finding]:
    count, (fewest, most) = len(set(subject.hashes)), AMOUNTS[subject.purpose]
    values = {"count": count, "fewest": fewest, "most": most}
    if count < fewest:
        return [Finding("too_few", "amount", FIX if count < fewest / 2 else LOOK, (), values, None, min(1.0, 1.2 * (1 - count / fewest)))]
    if count > most:
        return [Finding("too_many", "amount", NOTE, (), values, None, 0.2)]
    return []


def _duplicates(subject: Subject) -> list[Finding]:
    findings = []
    groups: dict[str, list[int]] = defaultdict(list)
    for i, key in enumerate(subject.hashes):
        groups[key].append(i)
    exact = [group for group in groups.values() if len(group) > 1]
    firsts = [group[0] for group in groups.values()]
    near = near_groups(subject.looks, subject.sizes, firsts)
    for code, severity, found in (("same_file", FIX, exact), ("near_copy", LOOK, near)):
        if found:
            extra = tuple(subject.names[i] for group in found for i in _keep_best(subject, group))
            values = {"groups": [[subject.names[i] for i in group] for group in found], "extra": len(extra)}
            findings.append(Finding(code, "duplicates", severity, tuple(subject.names[i] for group in found for i in group), values,
                                    Action("leave_out", extra), share_lost(len(extra), len(subject.names), 2.0)))
    return findings


def _keep_best(subject: Subject, group: list[int]) -> list[int]:
    """All but the largest picture of a group; one with a caption goes before one without."""
    best = max(group, key=lambda i: (bool(subject.captions[i]), subject.sizes[i][0] * subject.sizes[i][1], -i))
    return [i for i in group if i != best]


def _variety(subject: Subject) -> list[Finding]:
    known = [i for i, look in enumerate(subject.looks) if look is not None]
    if len(known) < 8:
        return []
    findings, total = [], len(known)
    ring = np.stack([subject.looks[i].colours_CC3[RING] for i in known]).astype(np.float32).reshape(total, -1)
    alike = _largest_cluster(ring, SAME_BACKGROUND)
    if len(alike) > 0.6 * total:
        findings.append(Finding("same_background", "variety", NOTE if subject.purpose == "style" else LOOK, tuple(subject.names[known[i]] for i in alike),
                                {"count": len(alike), "total": total, "percent": round(100 * len(alike) / total)}, None, 0.5))
    elif (place := _overlay(subject, known)) is not None:
        findings.append(Finding("overlay", "variety", FIX, (), {"place": place, "total": total}, None, 0.7))
    if total >= 15:
        framed = np.stack([_framing(subject.looks[i].colours_CC3) for i in known])
        alike = _largest_cluster(framed, SAME_FRAMING)
        if len(alike) > 0.85 * total:
            findings.append(Finding("same_framing", "variety", NOTE, tuple(subject.names[known[i]] for i in alike),
                                    {"count": len(alike), "total": total, "percent": round(100 * len(alike) / total)}, None, 0.3))
    return findings


def _largest_cluster(values_NK: np.ndarray, distance: float) -> list[int]:
    """Those within a mean distance of the one that has most around it; of very many every n-th is tried as the middle."""
    best: list[int] = []
    for i in range(0, len(values_NK), max(1, len(values_NK) // 200)):
        near = np.nonzero(np.abs(values_NK - values_NK[i]).mean(1) < distance)[0]
        if len(near) > len(best):
            best = near.tolist()
    return best


def _framing(colours_CC3: np.ndarray) -> np.ndarray:
    """Middle and extent, from 0 to 1, of what stands out from the colour of the border."""
    values = colours_CC3.astype(np.float32)
    weight = np.abs(values - np.median(values[RING], axis=0)).sum(-1)
    weight = np.maximum(weight - 0.3 * weight.max(), 0) + 1e-3
    weight /= weight.sum()
    position = (np.arange(COLOURS) + 0.5) / COLOURS
    x, y = (weight.sum(0) * position).sum(), (weight.sum(1) * position).sum()
    return np.array([x, y, np.sqrt((weight.sum(0) * (position - x) ** 2).sum()), np.sqrt((weight.sum(1) * (position - y) ** 2).sum())])


def _overlay(subject: Subject, known: list[int]) -> str | None:
    """Where the same lines lie in nearly all pictures, as a logo or a date does (Dekel et al., "On the effectiveness of visible
    watermarks", 2017: the median of the gradients); None when there are none, or when they lie in the middle."""
    chosen = known[::max(1, len(known) // 150)]
    grey_NTT = np.stack([subject.looks[i].grey_TT for i in chosen]).astype(np.float32)
    lines = np.maximum(_common_steps(np.diff(grey_NTT, axis=2)[:, :-1]), _common_steps(np.diff(grey_NTT, axis=1)[:, :, :-1]))
    strong = lines > OVERLAY
    edge = THUMB // 4
    middle = strong[edge:-edge, edge:-edge].sum()
    corners = {"top": strong[:edge].sum(), "bottom": strong[-edge:].sum(), "left": strong[edge:-edge, :edge].sum(),
               "right": strong[edge:-edge, -edge:].sum()}
    place = max(corners, key=corners.get)
    # the outermost line is the edge of a frame or of a resize, no logo
    inner = strong[2:-2, 2:-2].sum()
    return place if corners[place] >= 14 and inner >= 14 and middle < 0.3 * corners[place] else None


def _common_steps(steps_NTT: np.ndarray) -> np.ndarray:
    """Size of the median step at each place, 0 where fewer than `AGREEING` have one of its direction: of few pictures without a logo the
    median alone is large somewhere by chance."""
    median = np.median(steps_NTT, axis=0)
    agreeing = (np.sign(median) * steps_NTT > OVERLAY / 2).mean(0)
    return np.where(agreeing >= AGREEING, np.abs(median), 0)
