"""LoRAs that were trained here, as a page lists them, and their way to the trash and back."""
from __future__ import annotations

import json
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterable

from .captions.matching import composed
from .gallery_edit import Occupied, move_file
from .live import Registry, stem_of, walk_once
from .lora_facts import RUN, loras_and_steps, metadata_of

COMPANIONS = (".preview.png", ".png", ".jpg", ".jpeg", ".webp", ".json", ".txt")
MARK = ".removed"
"""In the trash names end so, that nothing finds a LoRA there."""


@dataclass(frozen=True)
class LoraFile:
    """A file of ours. `place` and `lora` are paths below their folder, without suffix, of the file and of its LoRA, `name` and `lora_name` what tags and
    the list call the two; `step` is None for the finished one."""

    path: Path
    place: str
    lora: str
    name: str
    lora_name: str
    step: int | None


def list_loras(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """Ours among the files of the folders, newest first; saved steps stand with the LoRA that they belong to."""
    groups: dict[str, dict[str, Any]] = {}
    for file in sorted(_our_files(folders), key=lambda file: file.step or 0):
        metadata, state = metadata_of(file.path), file.path.stat()
        tag = f"<lora:{file.name}:1>"
        entry = groups.setdefault(file.lora, {"name": file.lora_name, "steps": [], "finished": False, "created": 0.0})
        entry["created"] = max(entry["created"], state.st_mtime)
        if file.step is not None:
            entry["steps"].append({"step": file.step, "name": file.name, "tag": tag})
        if file.step is None or not entry["finished"]:
            facts = {"tag": tag, "trigger": metadata.get("hotlora.trigger", ""), "path": f"{file.place}.safetensors", "run": metadata.get(RUN, ""),
                     "base": metadata.get("ss_sd_model_name", ""), "trained": metadata.get("ss_steps", ""), "rank": metadata.get("ss_network_dim", ""),
                     "bytes": state.st_size}
            entry.update(facts, finished=entry["finished"] or file.step is None)
    for entry in groups.values():
        entry["steps"].sort(key=lambda step: step["step"])
    return sorted(groups.values(), key=lambda entry: -entry["created"])


def namesakes(folders: list[Path], name: str) -> list[str]:
    """A sentence when files elsewhere in the folders, of whatever program, have the stem that a LoRA in the first of them would get."""
    target = folders[0] / f"{name}.safetensors"
    others = [str(path) for path in Registry(folders).files() if composed(path.stem) == name and path != target]
    if not others:
        return []
    return [f"{name} is also the name of {', '.join(others)}: <lora:{name}:1> cannot tell them apart; rename that file, or give this LoRA another name"]


def remove_lora(home: Path, folders: list[Path], name: str) -> list[Path]:
    """Move a LoRA with its saved steps, or one saved step, to the trash, by the name in the list; returns the files that are gone.

    FileNotFoundError when there is none.
    """
    files = list(_our_files(folders))
    found = [file.path for file in files if file.lora_name == name] or [file.path for file in files if file.name == name]
    if not found:
        raise FileNotFoundError(f"there is no LoRA {name[:200]} that was trained here; load the list again")
    trash = home / "trash" / "loras"
    number = max((int(path.name) for path in trash.glob("*") if path.name.isdigit()), default=0) + 1
    place = trash / f"{number:06d}"
    place.mkdir(parents=True)
    moves = [(part, place / f"{index}-{part.name}{MARK}") for index, part in enumerate(part for path in found for part in _with_companions(path))]
    record = {"name": name, "files": [{"from": str(source), "to": target.name} for source, target in moves]}
    (place / "record.json").write_text(json.dumps(record, ensure_ascii=False), encoding="utf-8")
    for source, target in moves:
        move_file(source, target)
        if _is_peft(source):
            with suppress(OSError):
                source.parent.rmdir()
    return found


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
                raise Occupied(f"there is a LoRA {target.parent.name if _is_peft(target) else target.stem} again; rename or delete that one first")
        for source, target in moves:
            move_file(source, target)
        return [target for _, target in moves if target.suffix == ".safetensors" and not _is_peft(target)]
    raise FileNotFoundError(f"no LoRA {name[:200]} was removed here")


def _our_files(folders: Iterable[Path]) -> Iterable[LoraFile]:
    """Under the bare name where it is the only one in all folders, else with its folders in front, which is how a tag tells two apart.

    Of several of ours of one path the first folder's counts, as in hosts.
    """
    files, ours = _files(folders), {}
    for place, path in files:
        if metadata_of(path):
            ours.setdefault(place, path)
    belongs = loras_and_steps(ours)
    places: dict[str, set[str]] = defaultdict(set)
    for one in (*(place for place, _ in files), *(lora for lora, _ in belongs.values())):
        places[stem_of(one)].add(one)

    def shown(place: str) -> str:
        return place if len(places[stem_of(place)]) > 1 else stem_of(place)

    for place, path in ours.items():
        lora, step = belongs[place]
        yield LoraFile(path, place, lora, shown(place), shown(lora), step)


def _files(folders: Iterable[Path]) -> list[tuple[str, Path]]:
    """Each with its path below the folder, without suffix. A file that lies in two of the folders, one within the other, counts once."""
    found: dict[Path, list[Path]] = {}
    for folder, place, inside, names in walk_once(folders):
        inside[:] = [name for name in inside if name not in ("trash", "jobs", "galleries", "cache", "thumbnails", "history")
                     or not (Path(place) / "server.lock").exists()]
        found.setdefault(folder, []).extend(Path(place, name) for name in names if name.endswith(".safetensors") and not name.startswith("."))
    return [(path.relative_to(folder).as_posix().removesuffix(".safetensors"), path) for folder, paths in found.items() for path in sorted(paths)
            if not _is_peft(path)]


def _is_peft(path: Path) -> bool:
    """Whether it is the form of a LoRA for diffusers, which `save_format: both` writes beside it."""
    return path.parent.name.endswith("-peft") and path.name.startswith("pytorch_lora_weights")


def _with_companions(path: Path) -> list[Path]:
    peft = [other for other in sorted(path.with_name(f"{path.stem}-peft").glob("pytorch_lora_weights*.safetensors")) if metadata_of(other)]
    return [path, *(other for suffix in COMPANIONS if (other := path.with_name(path.stem + suffix)).is_file()), *peft]
