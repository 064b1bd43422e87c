"""Looks at a gallery as an experienced trainer would: what hurts the result, on which picture, why, and what to do. No model is needed."""
from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

from .gallery import Gallery
from .gallery_checks import texts
from .gallery_checks.caption_rules import Similarity, caption_findings
from .gallery_checks.finding import FIX, PARTS, Finding, Subject
from .gallery_checks.gallery_rules import AMOUNTS, gallery_findings
from .gallery_checks.looks import LookCache, look_at_all
from .gallery_checks.picture_rules import picture_findings
from .gallery_files import folder_repeats, relative_name

PURPOSES = tuple(AMOUNTS)
GOOD = 80
SHOWN = 8
ORDER = {"fix": 0, "look": 1, "note": 2}
__all__ = ["Finding", "GOOD", "PURPOSES", "Report", "check_gallery"]


@dataclass
class Report:
    """What was found, worst first; `points` are those that each part of the score has kept."""

    pictures: int
    findings: list[Finding]
    points: dict[str, float]
    seconds: float = 0.0
    skipped: list[tuple[str, str]] = field(default_factory=list)

    @property
    def score(self) -> int:
        """0 to 100."""
        return round(sum(self.points.values()))

    @property
    def is_good(self) -> bool:
        """Whether the gallery would train as is."""
        return self.score >= GOOD and not any(finding.severity == FIX for finding in self.findings)

    def sentence(self, language: str = "en") -> str:
        """ "would train as is", or what to fix first."""
        which = texts.LANGUAGES.index(language)
        if self.is_good:
            return texts.VERDICTS["good"][which]
        urgent = [f for f in self.findings if f.severity == FIX] or self.findings[:3]
        what = ("; " if language == "en" else "；").join(texts.sentences(finding, language)["what"] for finding in urgent[:3])
        return texts.VERDICTS["fix"][which].format(what=what)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the API and for pages, every text in both languages."""
        return {
            "score": self.score, "good": self.is_good, "sentence": {lang: self.sentence(lang) for lang in texts.LANGUAGES}, "pictures": self.pictures,
            "seconds": round(self.seconds, 2), "skipped": [{"file": name, "reason": reason} for name, reason in self.skipped],
            "parts": [{"code": part, "name": _both(texts.PART_NAMES[part]), "points": round(points, 1), "of": PARTS[part]}
                      for part, points in self.points.items()],
            "findings": [_finding_dict(finding) for finding in self.findings]}

    def text(self, language: str = "en") -> str:
        """Several lines for people."""
        which = texts.LANGUAGES.index(language)
        parts = ", ".join(f"{texts.PART_NAMES[part][which]} {points:.0f}/{PARTS[part]}" for part, points in self.points.items())
        head = (f"gallery check: {self.score} of 100, {self.sentence()}" if language == "en" else f"图集检查：{self.score}/100，{self.sentence('zh')}")
        lines = [head, f"  {parts}"]
        for finding in self.findings:
            said = texts.sentences(finding, language)
            mark = texts.SEVERITIES[finding.severity][which]
            if language == "en":
                lines.append(f"  [{mark}] {said['what']}: {said['why']}; {said['do']}.")
            else:
                lines.append(f"  [{mark}] {said['what']}：{said['why']}；{said['do']}。")
            if finding.files:
                more = f" (+{len(finding.files) - SHOWN})" if len(finding.files) > SHOWN else ""
                lines.append(f"      {', '.join(finding.files[:SHOWN])}{more}")
        return "\n".join(lines)


def check_gallery(gallery: Gallery, *, resolution: int | None = None, purpose: str = "any", trigger: str = "", token_limit: int | None = None,
                  bucketing: bool = True, upscale: bool = False, cache: Path | None = None, similarity: Similarity | None = None,
                  max_megapixels: float = 180.0, progress: Callable[[int, int], None] | None = None) -> Report:
    """Check a gallery that was read by `read_gallery`, with the settings that it will be trained with.

    `resolution` is the training size in pixels (512 when it is not known), `cache` a file that keeps what was measured, `similarity` what a
    CLIP model says of pictures and captions. ValueError for an unknown purpose; raises what `progress` raises, and what was measured is kept.
    """
    if purpose not in PURPOSES:
        raise ValueError(f"purpose is {str(purpose)[:80]!r} but must be one of {', '.join(PURPOSES)}; change it, or remove it")
    began = time.monotonic()
    examples = gallery.examples
    looks = look_at_all([(example.path, example.seen_hash) for example in examples], LookCache(cache), max_megapixels, progress)
    trigger = trigger.strip()
    subject = Subject(
        names=[relative_name(example.path, gallery.root) for example in examples], sizes=[(example.width, example.height) for example in examples],
        hashes=[example.content_hash for example in examples], captions=[example.written for example in examples],
        by_folder=[not trigger and not example.written and bool(folder_repeats(example.path, gallery.root)[1]) for example in examples], looks=looks,
        resolution=resolution or 512, purpose=purpose, trigger=trigger, token_limit=token_limit, bucketing=bucketing, upscale=upscale)
    findings = [*picture_findings(subject), *gallery_findings(subject), *caption_findings(subject, similarity)]
    findings.sort(key=lambda finding: (ORDER[finding.severity], -finding.lost * PARTS[finding.part]))
    points = {part: max(0.0, whole * (1 - sum(f.lost for f in findings if f.part == part))) for part, whole in PARTS.items()}
    skipped = [(relative_name(item.path, gallery.root), item.reason) for item in gallery.skipped]
    return Report(len(examples), findings, points, time.monotonic() - began, skipped)


def _finding_dict(finding: Finding) -> dict[str, Any]:
    said = {language: texts.sentences(finding, language) for language in texts.LANGUAGES}
    action = finding.action
    return {
        "code": finding.code, "part": finding.part, "severity": finding.severity, "severity_name": _both(texts.SEVERITIES[finding.severity]),
        "files": list(finding.files), "values": {name: value for name, value in finding.values.items() if name != "worst"},
        **{key: {language: said[language][key] for language in texts.LANGUAGES} for key in ("what", "why", "do", "mark")},
        "points_lost": round(min(1.0, finding.lost) * PARTS[finding.part], 1),
        "action": None if action is None else {"kind": action.kind, "name": _both(texts.ACTIONS[action.kind]), "files": list(action.files),
                                               "values": action.values}}


def _both(pair: tuple[str, str]) -> dict[str, str]:
    return dict(zip(texts.LANGUAGES, pair))
