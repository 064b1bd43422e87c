"""Pictures that stay in the gallery's folder and are not trained: a small hidden file there names them, so that every way to train knows."""
from __future__ import annotations

import json
from pathlib import Path

from .output_files import write_atomically

FILE = ".hotlora-left-out.json"


def left_out(root: Path) -> set[str]:
    """Names of the pictures that are left out; none when the file is absent or damaged."""
    try:
        names = json.loads((root / FILE).read_text(encoding="utf-8"))["files"]
        return {name for name in names if isinstance(name, str)}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def write_left_out(root: Path, names: set[str]) -> None:
    """OutputError when it cannot be written."""
    path = root / FILE
    if not names:
        path.unlink(missing_ok=True)
        return
    stored = {"about": "pictures that HotLoRA does not train; delete this file to use all of them", "files": sorted(names)}
    write_atomically(path, json.dumps(stored, ensure_ascii=False, indent=1).encode("utf-8", "replace"))
