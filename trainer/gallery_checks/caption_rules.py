"""Captions as an experienced trainer reads them. They are judged as written, before the trigger word is put first."""
from __future__ import annotations

import re
from collections import Counter
from typing import Callable

import numpy as np

from .finding import FIX, LOOK, NOTE, Action, Finding, Subject, share_lost
from ..captions.tokens import count_tokens, cut_at

PRAISE = frozenset((
    "absurdres", "amazing", "artstation", "aesthetic", "award", "awesome", "beautiful", "best", "breathtaking", "brilliant", "clear", "cool",
    "cute", "detailed", "details", "elegant", "epic", "excellent", "extremely", "fantastic", "fine", "focus", "good", "gorgeous", "great", "hd",
    "high", "highly", "highres", "hyper", "image", "impressive", "incredible", "intricate", "lovely", "magnificent", "masterpiece", "nice",
    "official", "perfect", "photo", "picture", "pretty", "professional", "quality", "realistic", "res", "resolution", "sharp", "stunning", "super",
    "superb", "the", "top", "trending", "ultra", "unreal", "very", "wallpaper", "winning", "wonderful", "wow", "a", "an", "and", "of", "on", "so",
    "4k", "8k", "16k", "uhd", "hdr", "杰作", "高质量", "最高质量", "美丽", "漂亮", "精美", "完美", "超高清", "高清", "细节", "唯美", "大师作品", "最佳质量"))
WORDS = re.compile(r"[^\W_]+(?:'[^\W_]+)?")
HAN = re.compile(r"[\u3400-\u9fff\u3040-\u30ff\uac00-\ud7af]")
FEWEST_WORDS = 3
FEWEST_COMPARED = 6
AHEAD, FITS_ANOTHER = 1.5, 1.0
"""Standard deviations by which a right caption at least stands out, and by which a wrong one fits some other picture better."""
Similarity = Callable[[list[str], list[str]], np.ndarray]
"""(picture names, captions) -> similarity of each picture with each caption, as a CLIP model computes it."""


def caption_findings(subject: Subject, similarity: Similarity | None = None) -> list[Finding]:
    bare = {i: _without(subject.captions[i], subject.trigger) for i in range(len(subject.names))}
    written = [i for i, text in bare.items() if text or subject.captions[i]]
    findings = [*_missing(subject, written), *_trigger(subject, written)]
    praise = [i for i in written if bare[i] and _is_praise(bare[i])]
    short = [i for i in written if i not in praise and _length(bare[i]) < FEWEST_WORDS]
    for code, indices, weight in (("praise_only", praise, 1.0), ("short_caption", short, 0.6)):
        if indices:
            files = tuple(subject.names[i] for i in indices)
            findings.append(Finding(code, "captions", LOOK, files, {"example": subject.captions[indices[0]][:80]}, None,
                                    share_lost(len(indices), len(subject.names), weight)))
    findings += _identical(subject, [i for i in written if i not in short and i not in praise], bare)
    if subject.token_limit:
        findings += _too_long(subject, written)
    if similarity is not None:
        findings += _wrong_picture(subject, [i for i in written if _length(bare[i]) >= FEWEST_WORDS], similarity)
    return findings


def _without(caption: str, trigger: str) -> str:
    text = caption if not trigger else re.sub(re.escape(trigger), " ", caption, flags=re.IGNORECASE)
    return " ".join(text.split()).strip(" ,.;，。")


def _length(text: str) -> int:
    """Words; two characters of a script without spaces count as one."""
    return len(WORDS.findall(HAN.sub(" ", text))) + len(HAN.findall(text)) // 2


def _is_praise(text: str) -> bool:
    parts = [part.strip().lower() for part in re.split(r"[,，、.;]", text) if part.strip()]
    return bool(parts) and all(part in PRAISE or all(word in PRAISE for word in WORDS.findall(part)) for part in parts)


def _missing(subject: Subject, written: list[int]) -> list[Finding]:
    missing = tuple(subject.names[i] for i in range(len(subject.names)) if i not in set(written) and not subject.by_folder[i])
    if not missing:
        return []
    severity = LOOK if subject.trigger else FIX
    return [Finding("no_caption", "captions", severity, missing, {"trigger": subject.trigger}, Action("make_captions", missing),
                    share_lost(len(missing), len(subject.names), 0.6 if subject.trigger else 1.0))]


def _trigger(subject: Subject, written: list[int]) -> list[Finding]:
    if not subject.trigger:
        return [Finding("no_trigger", "captions", NOTE, (), {}, None, 0.1)] if written and subject.purpose in ("object", "person", "character") else []
    lacking = tuple(subject.names[i] for i in written if subject.trigger.lower() not in subject.captions[i].lower())
    # training puts it first by itself, so it costs no points
    return [Finding("trigger_missing", "captions", NOTE, lacking, {"trigger": subject.trigger},
                    Action("add_trigger", lacking, {"trigger": subject.trigger}))] if lacking else []


def _identical(subject: Subject, written: list[int], bare: dict[int, str]) -> list[Finding]:
    # pictures that are the same may well have the same caption
    keys = {i: re.sub(r"\W+", " ", bare[i].lower()).strip() for i in written}
    distinct: dict[str, set[str]] = {}
    for i in written:
        distinct.setdefault(keys[i], set()).add(subject.hashes[i])
    counts = Counter({key: len(hashes) for key, hashes in distinct.items() if key})
    repeated = {key for key, count in counts.items() if count >= 3 and count > 0.3 * len(subject.names)}
    files = tuple(subject.names[i] for i in written if keys[i] in repeated)
    if not files:
        return []
    example = next(subject.captions[i] for i in written if keys[i] in repeated)
    return [Finding("same_caption", "captions", LOOK, files, {"example": example[:80]}, None, share_lost(len(files), len(subject.names), 0.6))]


def _too_long(subject: Subject, written: list[int]) -> list[Finding]:
    cut = {}
    for i in written:
        caption = subject.captions[i]
        if subject.trigger and subject.trigger.lower() not in caption.lower():
            caption = f"{subject.trigger}, {caption}"
        if (read := cut_at(caption, subject.token_limit)) is not None:
            cut[i] = (read, count_tokens(caption))
    if not cut:
        return []
    worst = max(cut, key=lambda i: cut[i][1])
    values = {"limit": subject.token_limit, "tokens": cut[worst][1], "end": cut[worst][0][-40:],
              "cuts": {subject.names[i]: read for i, (read, _) in cut.items()}}
    return [Finding("too_long", "captions", NOTE, tuple(subject.names[i] for i in cut), values, None, share_lost(len(cut), len(subject.names), 0.3))]


def _wrong_picture(subject: Subject, indices: list[int], similarity: Similarity) -> list[Finding]:
    """A caption that fits its picture hardly better than any other one, while it fits another picture well.

    How much better a caption fits its own picture is told in standard deviations of how all others fit. Where captions and pictures are
    much alike, right ones stand out little, and then only what is far off the others is named.
    """
    if len(indices) < FEWEST_COMPARED:
        return []
    names, captions = [subject.names[i] for i in indices], [subject.captions[i] for i in indices]
    values_PC = np.asarray(similarity(names, captions), dtype=np.float64)
    # some pictures fit everything a little better, and some captions
    centred = values_PC - values_PC.mean(1, keepdims=True)
    others = np.where(np.eye(len(indices), dtype=bool), np.nan, centred)
    ahead_C = (np.diag(centred) - np.nanmean(others, axis=0)) / (np.nanstd(others) + 1e-9)
    best_C = (np.nanmax(others, axis=0) - np.nanmean(others, axis=0)) / (np.nanstd(others) + 1e-9)
    typical = float(np.median(ahead_C))
    spread = max(0.5, 1.4826 * float(np.median(np.abs(ahead_C - typical))))
    limit = min(AHEAD, typical - 3 * spread)
    wrong = np.nonzero((ahead_C < limit) & (best_C > ahead_C + FITS_ANOTHER))[0].tolist()
    files = tuple(names[k] for k in wrong)
    return [Finding("wrong_caption", "captions", LOOK, files, {"example": captions[wrong[0]][:80]}, None,
                    share_lost(len(files), len(subject.names), 1.0))] if files else []
