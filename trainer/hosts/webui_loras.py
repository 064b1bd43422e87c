"""LoRA files and the Lora extension of stable-diffusion-webui and of Forge: a file that was just written works in the next prompt.

`networks` is that extension's module, None where it is switched off. `forget` drops what the host has loaded from a file.
"""
from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Callable

from modules import cache, processing

from .webui_queue import queue


def add(networks: Any, forget: Callable[[str], None], name: str, path: Path) -> None:
    """Have the next prompt that names the LoRA read this file, whatever the host has kept under the name."""
    if networks is None:
        return
    with queue.held():
        _forget_cached(name)
        entry = sys.modules["network"].NetworkOnDisk(name, str(path))
        forget(entry.filename)
        networks.available_networks[name] = entry
        networks.available_network_aliases[name] = entry
        taken = networks.available_network_aliases.get(entry.alias)
        if taken is None or taken.filename == entry.filename:
            networks.available_network_aliases[entry.alias] = entry
        else:
            networks.forbidden_network_aliases[entry.alias.lower()] = 1
        _forget_texts()


def remove(networks: Any, forget: Callable[[str], None], name: str) -> None:
    """The file of a LoRA is gone; a prompt that names it is told so."""
    with queue.held():
        entry = networks.available_networks.pop(name, None) if networks else None
        if entry is None:
            return
        aliases = networks.available_network_aliases
        for alias in [alias for alias, other in aliases.items() if other is entry]:
            aliases.pop(alias)
        forget(entry.filename)
        _forget_texts()


def _forget_cached(name: str) -> None:
    """The host keeps metadata and hashes of files, and looks only whether a file is newer than what it kept."""
    for subsection in ("safetensors-metadata", "hashes", "hashes-addnet"):
        stored: Any = cache.cache(subsection)
        try:
            del stored[f"lora/{name}"]
        except KeyError:
            pass


def _forget_texts() -> None:
    """A prompt that stays the same is not encoded again, unless nothing is kept of it."""
    for kind in (processing.StableDiffusionProcessing, processing.StableDiffusionProcessingTxt2Img):
        for name in ("cached_c", "cached_uc", "cached_hr_c", "cached_hr_uc"):
            kept = getattr(kind, name, None)
            if kept is not None:
                kept[:] = [None] * len(kept)
