"""Which row of a metadata file belongs to which picture, however the row writes the picture's name."""
from __future__ import annotations

import os
import unicodedata
from collections import Counter
from pathlib import Path

from .metadata import read_metadata


class CaptionTable:
    """Captions of a gallery's pictures from metadata files, found by a picture's path in ever looser ways.

    `unused` maps the rows that no picture has asked for yet to the names in them, `ambiguous` holds names that fit several.
    """

    def __init__(self, root: Path, pictures: list[Path], metadata_files: list[Path]) -> None:
        """Raises ValueError when a metadata file cannot be understood."""
        self.root = root
        self.tables: list[tuple[Path, dict[str, str]]] = []
        self.rows_by_name: dict[str, dict[str, str]] = {}
        self.pictures_by_name = Counter(form for path in pictures for form in _forms(path.name))
        self.unused: dict[str, str] = {}
        self.ambiguous: set[str] = set()
        for path in metadata_files:
            self._add(path)

    def _add(self, path: Path) -> None:
        table: dict[str, str] = {}
        for name, caption in self.read(path).items():
            key = _normal(name)
            table.setdefault(key, caption)
            self.unused.setdefault(key.casefold(), name)
            last = key.rsplit("/", 1)[-1]
            for form in {last, last.casefold()}:
                self.rows_by_name.setdefault(form, {}).setdefault(key.casefold(), caption)
        # a name in another case counts only where no row has the right one
        for key, caption in list(table.items()):
            table.setdefault(key.casefold(), caption)
        self.tables.append((path.parent, table))

    def read(self, path: Path) -> dict[str, str]:
        """Names and captions of one metadata file."""
        return read_metadata(path)

    def caption_of(self, path: Path) -> str:
        """Its path from the metadata file or from the gallery, with or without extension; else its mere name, if only one has it.

        Empty when no row fits.
        """
        for folder, table in self.tables:
            for name in (_relative(path, folder), _relative(path, self.root), os.path.abspath(path)):
                for form in _forms(name):
                    if form in table:
                        self.unused.pop(form.casefold(), None)
                        return table[form]
        for form in _forms(path.name):
            rows = self.rows_by_name.get(form, {})
            for key in rows:
                self.unused.pop(key, None)
            if len(rows) == 1 and self.pictures_by_name[form] == 1:
                return next(iter(rows.values()))
            if rows:
                self.ambiguous.add(form)
                return ""
        return ""


def composed(text: str) -> str:
    """The text in NFC: macOS stores names decomposed (NFD), tables mostly have them composed."""
    return unicodedata.normalize("NFC", text)


def _forms(name: str) -> list[str]:
    """A path as metadata may write it: as it is, without extension, and both in lower case."""
    name = _normal(name)
    bare = name[:-len(suffix)] if (suffix := os.path.splitext(name)[1]) else name
    return list(dict.fromkeys((name, bare, name.casefold(), bare.casefold())))


def _normal(name: str) -> str:
    parts = [part for part in composed(name).replace("\\", "/").split("/") if part not in ("", ".")]
    return "/".join(parts)


def _relative(path: Path, base: Path) -> str:
    try:
        return os.path.relpath(path, base)
    except ValueError:  # on another Windows drive
        return str(path)
