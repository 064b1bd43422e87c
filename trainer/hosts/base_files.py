"""Which base it is, told by its files and without loading it: the same hash and name as those of the backend that has loaded it."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..paths import path_of
from .fingerprint import sha256_of
from .folder import files_of
from .standalone import DEMO_DIR


@dataclass(frozen=True)
class BaseFacts:
    """`name` without folders and suffix, `hash` the SHA-256 (hex) of its weights; empty where it cannot be told."""

    name: str
    hash: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({f'SHA-256 {self.hash[:12]}...' if self.hash else 'hash not known'})"


def base_files(base_model: str) -> list[Path]:
    """The files of a base as `load_base` takes it. ValueError when there is no such base."""
    if base_model == "demo":
        return files_of(DEMO_DIR)
    path = path_of(base_model)
    if path.is_dir():
        return files_of(path)
    if not path.is_file():
        raise ValueError(f"base_model {base_model} does not exist; give demo, a .safetensors file or a diffusers folder")
    return [path]


def facts_of_base(base_model: str) -> BaseFacts:
    """Reads all of it, the first time."""
    path = path_of(base_model)
    return facts_of_files("demo" if base_model == "demo" else path.resolve().name if path.is_dir() else path.stem, base_files(base_model))


def facts_of_files(name: str, files: list[Path]) -> BaseFacts:
    """Of a base that a host calls `name`; without files there is no hash."""
    return BaseFacts(name, sha256_of(files) if files else "")
