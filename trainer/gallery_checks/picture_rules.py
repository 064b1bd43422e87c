"""Faults of single pictures: thresholds, each next to what it was calibrated on (tests/trainer/gallery_checks)."""
from __future__ import annotations

from typing import Callable

from .finding import FIX, LOOK, NOTE, Action, Finding, Subject, share_lost
from .looks import Look
from ..buckets import choose_bucket, lost_share

BLURRED, MOTION = 1.05, 1.35
"""Edge widths in pixels of a picture of about 512x512: sharp ones have below 0.9, a Gaussian blur of 2 pixels gives 1.2 to 1.6."""
SMOOTH_STEPS, SMEARED = 0.315, 1.2
"""Steps in the smoothest direction, and across it in relation; pictures without motion have at most 1.16."""
RAMP, STEEPER = (1.5, 20.0), 2.0
"""Grey levels of the strongest edges along a motion, and how much stronger they are across it: clean drawings have 12 to 207 and at most 1.5,
those with motion over 14 pixels and more 2 to 15 and at least 2.4. A drawing of stripes only has nothing at all along them."""
NOISY, WHITE = 7.0, 1.35
"""Deviation in grey levels of 255, and how much goes when the picture is halved; grass has 8.7 and 0.95."""
BLOCKY, BLOCKY_RATIO = 0.24, 4.0
"""Share of frequencies left in blocks, and its relation to a shifted grid: 0.05 to 0.25 and above 4 at JPEG quality 20, 2.2 to 3 at 75."""
HISTORY, HISTORY_QUALITY = 0.5, 25
"""Certainty of an earlier compression, at most 0.25 for none and for qualities that are twice as high, above 0.6 for nearly all others."""
SOFT, SOFT_DRAWING, SOFT_COMPRESSED, PERIODIC, PERIODIC_DETAIL = 0.07, 0.15, 0.05, 6.0, 0.12
FLAT_DRAWING = 0.5
VECTOR = 0.8, 0.78
"""From this share of flat pixels on edges are as sharp as the grid of pixels allows, at most 0.55 wide, 0.7 after JPEG at quality 50."""
FLAT = 4.0
EXTREME, MOST_CUT = 3.0, 0.3
BAR, BAR_PAIR = 0.05, 0.025
Rule = Callable[[Subject, int, Look], "dict | None"]


def picture_findings(subject: Subject) -> list[Finding]:
    """Each picture gets its worst fault of each kind once; those that make it worthless can be left out at a click."""
    findings = []
    seen_broken: set[int] = set()
    for code, severity, weight, leave_out, rule in RULES:
        hits = {}
        for i, look in enumerate(subject.looks):
            if look is not None and i not in seen_broken and (values := rule(subject, i, look)) is not None:
                hits[i] = values
        if not hits:
            continue
        if code in ("uniform", "broken"):
            seen_broken |= set(hits)
        files = tuple(subject.names[i] for i in hits)
        findings.append(Finding(code, "quality", severity, files, _common(list(hits.values())), Action("leave_out", files) if leave_out else None,
                                share_lost(len(hits), len(subject.names), weight)))
    return findings


def _common(values: list[dict]) -> dict:
    """One set of values for the sentence: that of the worst picture, which comes first in each rule's `worst`."""
    return max(values, key=lambda entry: entry.get("worst", 0)) | {"resolution": values[0].get("resolution", 0)}


def _uniform(subject: Subject, i: int, look: Look) -> dict | None:
    return {"worst": -look.contrast} if look.contrast < FLAT else None


def _broken(subject: Subject, i: int, look: Look) -> dict | None:
    return {"worst": look.missing_part, "percent": round(100 * look.missing_part)} if look.missing_part >= 0.04 else None


def _blurred(subject: Subject, i: int, look: Look) -> dict | None:
    # what is measured at 512 pixels is seen twice as large when training at 1024
    allowed = BLURRED if subject.resolution <= 640 else 0.8 * BLURRED
    if look.sharpest_edge > allowed:
        return {"worst": look.sharpest_edge, "width": round(look.sharpest_edge, 1)}
    return None


def _moved(subject: Subject, i: int, look: Look) -> dict | None:
    if look.sharpest_edge > BLURRED:
        return None
    by_edges = look.edge_across > MOTION and look.edge_across > look.sharpest_edge + 0.6
    if look.flatness > FLAT_DRAWING:
        by_detail = RAMP[0] < look.steepest < RAMP[1] and look.steeper_across > STEEPER
    else:
        by_detail = look.smoothest < SMOOTH_STEPS and look.smeared > SMEARED
    return {"worst": max(look.edge_across, look.smeared)} if by_edges or by_detail else None


def _noisy(subject: Subject, i: int, look: Look) -> dict | None:
    return {"worst": look.noise, "level": round(look.noise)} if look.noise > NOISY and look.noise_whiteness > WHITE else None


def _blocky(subject: Subject, i: int, look: Look) -> dict | None:
    width, height = subject.sizes[i]
    # blocks of a large picture are shrunk away
    if width * height > 9 * subject.resolution ** 2:
        return None
    if look.kept_frequencies <= BLOCKY and look.shifted_frequencies > BLOCKY_RATIO * look.kept_frequencies:
        return {"worst": -look.kept_frequencies, "quality": look.jpeg_quality}
    if look.history_certainty > HISTORY and look.history_quality <= HISTORY_QUALITY:
        return {"worst": 0, "quality": look.history_quality}
    return {"worst": 0, "quality": look.jpeg_quality} if look.jpeg_quality < 20 else None


def _small(subject: Subject, i: int, look: Look) -> dict | None:
    width, height = subject.sizes[i]
    if width * height < 0.5 * subject.resolution ** 2:
        return {"worst": -width * height, "width": width, "height": height, "resolution": subject.resolution}
    return None


def _enlarged(subject: Subject, i: int, look: Look) -> dict | None:
    width, height = subject.sizes[i]
    if _small(subject, i, look) or _blurred(subject, i, look) or _moved(subject, i, look):
        return None
    if look.repeated > 1:
        factor = look.repeated
    elif look.enlarged_certainty > PERIODIC and look.detail < PERIODIC_DETAIL and look.flatness < FLAT_DRAWING:
        factor = look.enlarged if look.edge_across > 0.5 else 1.5
    elif look.detail < _soft(look) or look.flatness > VECTOR[0] and look.sharpest_edge > VECTOR[1]:
        factor = 1.8
    else:
        return None
    real_width, real_height = round(width / factor), round(height / factor)
    if real_width * real_height < 0.6 * subject.resolution ** 2:
        return {"worst": -real_width * real_height, "width": width, "height": height, "real_width": real_width, "real_height": real_height,
                "resolution": subject.resolution}
    return None


def _soft(look: Look) -> float:
    """Less detail than this is left where a picture was enlarged; compression takes the finest from clean drawings as well."""
    if look.flatness < FLAT_DRAWING:
        return SOFT
    was_compressed = look.jpeg_quality < 90 or look.shifted_frequencies > 1.15 * look.kept_frequencies
    return SOFT_COMPRESSED if was_compressed else SOFT_DRAWING


def _extreme(subject: Subject, i: int, look: Look) -> dict | None:
    width, height = subject.sizes[i]
    ratio = max(width, height) / min(width, height)
    bucket = choose_bucket(width, height, subject.resolution, upscale=subject.upscale, bucketing=subject.bucketing) if subject.resolution >= 64 else (width, height)
    cut = lost_share(width, height, *bucket)
    if ratio > EXTREME or cut > MOST_CUT:
        return {"worst": max(ratio, cut), "ratio": round(ratio, 1), "percent": round(100 * cut)}
    return None


def _barred(subject: Subject, i: int, look: Look) -> dict | None:
    pairs = ((look.bar_top, look.bar_bottom), (look.bar_left, look.bar_right))
    pair = max((min(p) for p in pairs), default=0.0)
    if pair > BAR_PAIR and not look.missing_part:
        return {"worst": pair, "percent": round(100 * max(a + b for a, b in pairs))}
    return None


def _striped(subject: Subject, i: int, look: Look) -> dict | None:
    """One bar only: where a caption strip, a date or a logo is put."""
    if _barred(subject, i, look) or look.missing_part or look.flatness > FLAT_DRAWING:
        return None
    single = max(look.bar_top, look.bar_bottom, look.bar_left, look.bar_right)
    return {"worst": single, "percent": round(100 * single)} if single > BAR else None


RULES: tuple[tuple[str, str, float, bool, Rule], ...] = (
    ("uniform", FIX, 3.0, True, _uniform),
    ("broken", FIX, 3.0, True, _broken),
    ("blurred", FIX, 1.5, True, _blurred),
    ("moved", LOOK, 1.0, True, _moved),
    ("noisy", LOOK, 1.0, True, _noisy),
    ("blocky", LOOK, 1.0, True, _blocky),
    ("small", LOOK, 1.0, True, _small),
    ("enlarged", LOOK, 0.8, True, _enlarged),
    ("extreme", LOOK, 0.8, True, _extreme),
    ("bars", FIX, 1.2, True, _barred),
    ("strip", NOTE, 0.5, True, _striped),
)
