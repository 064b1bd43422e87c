"""LoRAs that were trained here, as a page lists them, and their way to the trash and back."""
from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, Iterable

from .gallery_edit import Occupied, move_file
from .names import check_name

STEP = re.compile(r"(.+)-(\d{6,})")
COMPANIONS = (".preview.png", ".png", ".jpg", ".jpeg", ".webp", ".json", ".txt")
MARK = ".removed"
"""In the trash names end so, that nothing finds a LoRA there."""
_headers: dict[tuple[str, int, int], dict[str, str]] = {}


def metadata_of(path: Path) -> dict[str, str]:
    """A file's metadata, from its head alone; empty for a file that is none."""
    try:
        state = path.stat()
        key = (str(path), state.st_mtime_ns, state.st_size)
        if key not in _headers:
            with path.open("rb") as file:
                length = int.from_bytes(file.read(8), "little")
                found = json.loads(file.read(length)).get("__metadata__") if length <= 100_000_000 else {}
            _headers[key] = {name: value for name, value in (found or {}).items() if isinstance(value, str)}
        return _headers[key]
    except (OSError, ValueError, AttributeError):
        return {}


def list_loras(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """Ours among the files of the folders, newest first; saved steps stand with the LoRA that they belong to."""
    groups: dict[str, dict[str, Any]] = {}
    for folder in dict.fromkeys(folders):
        for path in _files(folder):
            metadata = metadata_of(path)
            if not metadata.get("hotlora.version"):
                continue
            match = STEP.fullmatch(path.stem)
            name = match[1] if match else path.stem
            entry = groups.setdefault(name, {"name": name, "steps": [], "finished": False, "created": 0.0})
            entry["created"] = max(entry["created"], path.stat().st_mtime)
            if match:
                entry["steps"].append({"step": int(match[2]), "name": path.stem, "tag": f"<lora:{path.stem}:1>"})
            if not match or not entry["finished"]:
                facts = {"tag": f"<lora:{path.stem}:1>", "trigger": metadata.get("hotlora.trigger", ""),
                         "path": path.relative_to(folder).as_posix(), "base": metadata.get("ss_sd_model_name", ""),
                         "trained": metadata.get("ss_steps", ""), "rank": metadata.get("ss_network_dim", ""), "bytes": path.stat().st_size}
                entry.update(facts, finished=entry["finished"] or not match)
    for entry in groups.values():
        entry["steps"].sort(key=lambda step: step["step"])
    return sorted(groups.values(), key=lambda entry: -entry["created"])


def remove_lora(home: Path, folders: list[Path], name: str) -> list[str]:
    """Move a LoRA with its saved steps (or one saved step) to the trash; returns the names that are gone. FileNotFoundError when there is none."""
    check_name(name)
    found = [(folder, path) for folder in dict.fromkeys(folders) for path in _files(folder)
             if metadata_of(path).get("hotlora.version") and (path.stem == name or ((match := STEP.fullmatch(path.stem)) and match[1] == name))]
    if not found:
        raise FileNotFoundError(f"there is no LoRA {name} that was trained here; load the list again")
    trash = home / "trash" / "loras"
    number = max((int(path.name) for path in trash.glob("*") if path.name.isdigit()), default=0) + 1
    place = trash / f"{number:06d}"
    place.mkdir(parents=True)
    moves = [(part, place / f"{index}-{part.name}{MARK}") for index, part in enumerate(part for _, path in found for part in _with_companions(path))]
    record = {"name": name, "files": [{"from": str(source), "to": target.name} for source, target in moves]}
    (place / "record.json").write_text(json.dumps(record, ensure_ascii=False), encoding="utf-8")
    for source, target in moves:
        move_file(source, target)
    return [path.stem for _, path in found]


def restore_lora(home: Path, name: str) -> list[Path]:
    """Bring back what was removed last under a name. FileNotFoundError when nothing was, Occupied when a file is in its place again."""
    for place in sorted((home / "trash" / "loras").glob("*"), reverse=True):
        try:
            record = json.loads((place / "record.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if record.get("name") != name:
            continue
        moves = [(place / entry["to"], Path(entry["from"])) for entry in record["files"] if (place / entry["to"]).is_file()]
        if not moves:
            continue
        for _, target in moves:
            if target.exists():
                raise Occupied(f"there is a LoRA {target.stem} again; rename or delete that one first")
        for source, target in moves:
            move_file(source, target)
        return [target for _, target in moves if target.suffix == ".safetensors"]
    raise FileNotFoundError(f"no LoRA {name[:200]} was removed here")


def _files(folder: Path) -> list[Path]:
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in ("trash", "jobs", "galleries", "cache", "thumbnails", "history")
                      or not (Path(place) / "server.lock").exists()]
        found += [Path(place, name) for name in names if name.endswith(".safetensors") and not name.startswith(".")]
    return sorted(found)


def _with_companions(path: Path) -> list[Path]:
    return [path, *(other for suffix in COMPANIONS if (other := path.with_name(path.stem + suffix)).is_file())]

