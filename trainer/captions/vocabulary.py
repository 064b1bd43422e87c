"""The phrases that a CLIP model is asked about: those that ship with us, and the user's own list."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .decoding import decode_text

FILE = Path(__file__).parent / "vocabulary.txt"
ROLES = ("style", "content", "trait")
OWN = "own"


@dataclass(frozen=True)
class Section:
    """`role` says what purposes leave its phrases out; a picture gets at most `most` of them, each with a share of at least `least`."""

    name: str
    role: str
    most: int
    least: float
    phrases: tuple[str, ...]


def read_vocabulary(path: Path = FILE) -> list[Section]:
    """Sections of a vocabulary file. A file without sections is the user's own list: one phrase a line, or separated by commas.

    ValueError with the line when it cannot be understood.
    """
    try:
        lines = decode_text(path.read_bytes()).splitlines()
    except OSError as error:
        raise ValueError(f"the list of tags {path} cannot be opened ({error.strerror or error}); give a text file with one tag a line") from error
    except ValueError as error:
        raise ValueError(f"the list of tags {path} cannot be read: {error}") from error
    heads: list[tuple[str, str, int, float]] = []
    phrases: list[list[str]] = []
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        if line.startswith("["):
            heads.append(_head(line, f"{path.name}, line {number}"))
            phrases.append([])
            continue
        if not heads:
            heads.append((OWN, "content", 5, 0.1))
            phrases.append([])
        phrases[-1] += [line] if heads[-1][0] != OWN else [part.strip() for part in line.split(",") if part.strip()]
    found = [Section(*head, tuple(dict.fromkeys(words))) for head, words in zip(heads, phrases) if words]
    if not found:
        raise ValueError(f"the list of tags {path} is empty; write one tag a line")
    return found


def own_section(phrases: list[str], most: int = 5, least: float = 0.1) -> Section:
    return Section(OWN, "content", most, least, tuple(dict.fromkeys(phrase.strip() for phrase in phrases if phrase.strip())))


def _head(line: str, where: str) -> tuple[str, str, int, float]:
    parts = [part.strip() for part in line.strip("[]").split("|")]
    try:
        name, role, most, least = parts[0], parts[1], int(parts[2]), float(parts[3])
    except (IndexError, ValueError):
        raise ValueError(f"{where}: a section must look like [place | content | 1 | 0.3]: name, {' or '.join(ROLES)}, most phrases, least share") from None
    if role not in ROLES or most < 1 or not 0 <= least <= 1:
        raise ValueError(f"{where}: a section is {' or '.join(ROLES)}, with at least 1 phrase and a share from 0 to 1")
    return name, role, most, least
