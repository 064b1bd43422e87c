"""Where the real hosts are on this machine: environment variables, or ~/.config/hotlora/hosts.toml with the same keys."""
from __future__ import annotations

import os
from pathlib import Path

import pytest


def host(name: str) -> tuple[Path, Path]:
    """Folder and Python of a host, "COMFYUI", "WEBUI", "FORGE" or "REFORGE"; skips the test where there is none."""
    folder, python = setting(f"{name}_DIR"), setting(f"{name}_PYTHON")
    if not folder or not python:
        pytest.skip(f"no {name} here: set {name}_DIR and {name}_PYTHON, or the same keys in ~/.config/hotlora/hosts.toml")
    for path in (Path(folder), Path(python)):
        if not path.exists():
            pytest.skip(f"{path}, which {name} is said to be, does not exist")
    return Path(folder), Path(python)


def on_gpu() -> bool:
    """Whether hosts are started on the GPU: HOTLORA_HOSTS_ON=gpu, in the environment or in that file. On the CPU otherwise."""
    return setting("HOTLORA_HOSTS_ON") == "gpu"


def setting(name: str) -> str | None:
    """What this machine says under a name."""
    return {**_from_file(), **os.environ}.get(name)


def _from_file() -> dict[str, str]:
    path = Path.home() / ".config" / "hotlora" / "hosts.toml"
    if not path.is_file():
        return {}
    try:
        import tomllib
    except ImportError:  # Python 3.10
        import tomli as tomllib
    return tomllib.loads(path.read_text(encoding="utf-8"))
