"""Paths as people write them."""
from __future__ import annotations

import os
from pathlib import Path


def path_of(text: str | Path) -> Path:
    """`~` and `~name` are the home folders of people that this machine knows; any other name that begins so stays what it is, where
    `Path.expanduser` would raise a RuntimeError."""
    return Path(os.path.expanduser(text))
