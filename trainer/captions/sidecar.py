"""Captions in text files beside the pictures: `photo.txt` or `photo.caption` for `photo.jpg`."""
from __future__ import annotations

import unicodedata
from pathlib import Path

from .decoding import decode_text

SUFFIXES = (".txt", ".caption")
LARGEST = 1_000_000


def read_sidecar(path: str | Path) -> str:
    """The caption in a text file, on one line; empty when the file is.

    Raises ValueError when the file cannot be opened, is no text, or is larger than a megabyte.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except OSError as error:
        raise ValueError(f"The caption file {path.name} cannot be opened ({error.strerror or error}).") from error
    if len(data) > LARGEST:
        raise ValueError(f"The caption file {path.name} is larger than a megabyte, which is no caption.")
    try:
        return tidy(decode_text(data))
    except ValueError as error:
        raise ValueError(f"The caption file {path.name} cannot be read: {error}") from error


def tidy(text: str) -> str:
    """The caption on one line, composed (NFC), without control characters and doubled spaces.

    Lines become parts between commas, as in files with one tag per line, unless they end with a mark of their own.
    """
    text = unicodedata.normalize("NFC", text)
    lines = []
    for line in text.splitlines():
        kept = "".join(char if unicodedata.category(char) not in ("Cc", "Cs") else " " for char in line)
        kept = " ".join(kept.replace("\ufeff", "").split())
        if kept:
            lines.append(kept)
    caption = ""
    for line in lines:
        joint = "" if not caption else " " if caption[-1] in ".,;:!?。，；：！？、" else ", "
        caption += joint + line
    return caption
