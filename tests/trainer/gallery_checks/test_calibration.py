"""Planted faults are found and clean pictures are left alone: the thresholds on pictures that they were not set by."""
from __future__ import annotations

import random
from pathlib import Path

import pytest

from hotlora.tests.trainer.gallery_checks import faults
from hotlora.trainer.gallery import read_gallery
from hotlora.trainer.gallery_check import check_gallery

QUALITY = {"blurred", "moved", "noisy", "blocky", "small", "enlarged", "uniform", "broken", "bars", "strip", "extreme"}


def found_in(folder: Path) -> dict[str, set[str]]:
    """Codes about the quality by picture."""
    report = check_gallery(read_gallery(folder), resolution=512)
    hits: dict[str, set[str]] = {example.path.name: set() for example in read_gallery(folder).examples}
    for finding in report.findings:
        for name in finding.files:
            hits[name] |= {finding.code} & QUALITY
    return hits


def planted(folder: Path, photos: int, drawings: int, first: int) -> None:
    """Clean pictures, and each of them with each fault."""
    for kind, count, make in (("photo", photos, faults.photo), ("drawing", drawings, faults.drawing)):
        for seed in range(first, first + count):
            clean = make(seed)
            clean.save(folder / f"{kind}_clean_{seed}.png")
            for name, damage in faults.FAULTS.items():
                # no other decoder than that of JPEG files leaves a part away
                suffix = "jpg" if name == "broken" else "png"
                damage(clean, random.Random(seed)).save(folder / f"{kind}_{name}_{seed}.{suffix}", quality=95)


def missed_and_false(folder: Path, kind: str) -> tuple[float, float, list[str]]:
    """Of the planted faults the share that was found, of the clean pictures the share that was complained about, and what was missed."""
    hits = {name: codes for name, codes in found_in(folder).items() if name.startswith(kind)}
    damaged = {name: bool(codes) for name, codes in hits.items() if "_clean_" not in name}
    clean = [bool(codes) for name, codes in hits.items() if "_clean_" in name]
    return sum(damaged.values()) / len(damaged), sum(clean) / len(clean), [name for name, was_found in damaged.items() if not was_found]


@pytest.mark.parametrize("kind, count", [("photo", 6), ("drawing", 6), pytest.param("photo", 25, marks=pytest.mark.slow),
                                         pytest.param("drawing", 25, marks=pytest.mark.slow)])
def test_planted_faults_are_found_and_clean_pictures_left_alone(tmp_path: Path, kind: str, count: int) -> None:
    planted(tmp_path, count if kind == "photo" else 0, count if kind == "drawing" else 0, 9000 if count == 6 else 20000)
    found, false, missed = missed_and_false(tmp_path, kind)
    assert found >= 0.95 and false <= 0.05, (found, false, missed)
