"""How many tokens of CLIP a caption has, and where a text encoder cuts it off. Needs no package: the vocabulary ships with the project."""
from __future__ import annotations

import gzip
import re
import unicodedata
from functools import lru_cache
from pathlib import Path

VOCABULARY = Path(__file__).parent.parent / "hosts" / "diffusers_models" / "bpe_simple_vocab_16e6.txt.gz"
MERGES = 48894
LIMIT = 75
"""Tokens that CLIP's text encoder reads, besides its marks for start and end."""
WORDS = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|(?:[^\s\w]|_)+", re.IGNORECASE)


def count_tokens(text: str) -> int:
    return sum(len(_pieces(match.group().lower())) for match in WORDS.finditer(unicodedata.normalize("NFC", text)))


def cut_at(text: str, limit: int = LIMIT) -> str | None:
    """The part of the text that is read; None when it is read as a whole. A word that is cut in its middle counts as not read."""
    text = unicodedata.normalize("NFC", text)
    used = 0
    for match in WORDS.finditer(text):
        used += len(_pieces(match.group().lower()))
        if used > limit:
            return text[:match.start()].rstrip(" ,;.")
    return None


@lru_cache(maxsize=1)
def _ranks() -> dict[tuple[str, str], int]:
    lines = gzip.decompress(VOCABULARY.read_bytes()).decode("utf-8").split("\n")
    # the file's first line is a heading
    return {tuple(line.split()): rank for rank, line in enumerate(lines[1:1 + MERGES])}


@lru_cache(maxsize=1)
def _letters() -> list[str]:
    """The printable character that stands for each of the 256 bytes (GPT-2, Radford et al. 2019)."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


@lru_cache(maxsize=50000)
def _pieces(word: str) -> tuple[str, ...]:
    """A word as the pieces that byte-pair encoding makes of it (Sennrich et al. 2016)."""
    letters = _letters()
    pieces = [letters[byte] for byte in word.encode("utf-8", "replace")]
    pieces[-1] += "</w>"
    ranks = _ranks()
    while len(pieces) > 1:
        pairs = [ranks.get(pair, MERGES) for pair in zip(pieces, pieces[1:])]
        best = min(pairs)
        if best == MERGES:
            break
        left, right = next(pair for pair, rank in zip(zip(pieces, pieces[1:]), pairs) if rank == best)
        merged, i = [], 0
        while i < len(pieces):
            if i + 1 < len(pieces) and pieces[i] == left and pieces[i + 1] == right:
                merged.append(left + right)
                i += 2
            else:
                merged.append(pieces[i])
                i += 1
        pieces = merged
    return tuple(pieces)
