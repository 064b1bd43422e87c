"""Names of LoRA files: safe on every system, and safe inside `<lora:name:weight>`."""

from __future__ import annotations

import re
import unicodedata

MAX_BYTES = 120
_PUNCTUATION = "-_. "
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{digit}" for port in ("com", "lpt") for digit in range(1, 10))}
_SUFFIX = ".safetensors"
_RULE = f"a name may have letters, digits, '-', '_', '.' and spaces, and at most {MAX_BYTES} bytes"


def check_name(name: str) -> str:
    """Return `name` if it can be the stem of a LoRA file on every system.

    Raises ValueError, with a name that would do, for anything else: path separators and other characters, names that Windows
    reserves, dots or spaces at an end (Windows drops them), more than 120 bytes of UTF-8, letters in a form that a file
    system may change (Unicode NFC is kept by all).
    """
    problem = _problem(name)
    if problem:
        raise ValueError(f"the name {str(name)[:160]!r} {problem}; {_RULE}; use {safe_name(str(name))!r} instead")
    return name


def safe_name(text: str) -> str:
    """The name nearest to `text` that `check_name` accepts; `text` itself when it is one."""
    name = unicodedata.normalize("NFC", text)
    name = "".join(character if _allowed(character) else "_" for character in name)
    if name != text:
        name = re.sub(r"_{2,}", "_", name)
    while name.lower().endswith(_SUFFIX):
        name = name[: -len(_SUFFIX)]
    name = _cut(name.strip(". "), MAX_BYTES)
    if not any(character.isalnum() for character in name):
        return "lora"
    if _is_reserved(name):
        name = _cut(f"lora_{name}", MAX_BYTES)
    # Cutting and stripping can uncover what an earlier step had removed: one more round ends it.
    return name if _problem(name) is None else safe_name(name)


def _problem(name: object) -> str | None:
    if not isinstance(name, str):
        return "is not text"
    if not any(character.isalnum() for character in name):
        return "has no letter or digit"
    bad = next((character for character in name if not _allowed(character)), None)
    if bad is not None:
        return f"has {bad!r}"
    if name != unicodedata.normalize("NFC", name):
        return "has letters in a decomposed form that some systems change"
    if name != name.strip(". "):
        return "starts or ends with a dot or a space"
    if len(name.encode("utf-8")) > MAX_BYTES:
        return f"has {len(name.encode('utf-8'))} bytes"
    if name.lower().endswith(_SUFFIX):
        return f"ends with {_SUFFIX}, which is added to every name"
    if _is_reserved(name):
        return "is reserved on Windows"
    return None


def _allowed(character: str) -> bool:
    """Letters, the marks that belong to them, and decimal digits of every script."""
    category = unicodedata.category(character)
    return character in _PUNCTUATION or category[0] == "L" or category in ("Mn", "Mc", "Nd")


def _is_reserved(name: str) -> bool:
    """Windows reserves `con` and `con.anything`, in any case and with spaces before the dot."""
    return name.split(".")[0].strip().lower() in _RESERVED


def _cut(name: str, limit: int) -> str:
    return name.encode("utf-8")[:limit].decode("utf-8", "ignore").rstrip(". ")
