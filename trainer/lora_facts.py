"""What the head of a LoRA file tells of its run, and which LoRA a saved step belongs to by that."""
from __future__ import annotations

import json
import re
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Mapping

RUN = "ss_training_started_at"
"""The moment at which a run began: every file of one run has the same, also after a resume, and no two runs of one name do."""
FACTS = ("hotlora.version", "hotlora.trigger", "ss_sd_model_name", "ss_steps", "ss_network_dim", RUN)
STEP = re.compile(r"(.+)-(\d{6,})(-v\d+)?")
_headers: dict[Path, tuple[tuple[int, int], dict[str, str]]] = {}


def metadata_of(path: Path) -> dict[str, str]:
    """What a list says of a LoRA of ours, and the `name` that it was trained under, from the file's head alone; empty for every other file."""
    try:
        state = path.stat()
        version = (state.st_mtime_ns, state.st_size)
        if path not in _headers or _headers[path][0] != version:
            _headers[path] = version, _read_facts(path)
        return _headers[path][1]
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}


def _read_facts(path: Path) -> dict[str, str]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        found = json.loads(file.read(length)).get("__metadata__") if length <= 100_000_000 else None
    if not (found and found.get("hotlora.version")):
        return {}
    facts = {key: found[key] for key in FACTS if isinstance(found.get(key), str)}
    with suppress(KeyError, ValueError, TypeError, AttributeError):
        facts["name"] = json.loads(found["hotlora.config"]).get("name") or ""
    return facts


def loras_and_steps(files: Mapping[str, Path]) -> dict[str, tuple[str, int | None]]:
    """The LoRA that each file belongs to, and the step that it is of; None for one that is no saved step.

    `files`, the answer and the LoRAs in it go by the path below the folder, without suffix. A saved step belongs to what its own run has written, which is
    `name-v1` and so on once a later run has taken the name. As long as its run has written no more, it goes by the name, or by its newest step where
    the name is another run's. Where no run is told, the name decides.
    """
    found = {place: _lora_and_step(place, path) for place, path in files.items()}
    runs = {place: metadata_of(path).get(RUN) for place, path in files.items()}
    whole: dict[str, list[str]] = defaultdict(list)
    steps: dict[tuple[str, str], list[str]] = defaultdict(list)
    for place, (_, step) in found.items():
        if runs[place] and step is None:
            whole[runs[place]].append(place)
        elif runs[place]:
            steps[STEP.fullmatch(place)[1], runs[place]].append(place)
    newest: dict[str, str] = {}
    for name, run in steps:
        newest[name] = max(run, newest.get(name, ""))
    for (name, run), places in steps.items():
        if own := [place for place in whole[run] if re.fullmatch(re.escape(name) + r"(-v\d+)?", place)]:
            lora = max(own, key=lambda place: (place == name, len(place), place))
        elif runs.get(name) or run != newest[name]:
            lora = max(places, key=lambda place: found[place][1])
        else:
            lora = name
        found.update((place, (lora, found[place][1])) for place in places)
    return found


def _lora_and_step(place: str, path: Path) -> tuple[str, int | None]:
    """By the name, and by what the file says of it, as a name may end in a date too."""
    match = STEP.fullmatch(place)
    if not match:
        return place, None
    facts, kept = metadata_of(path), match[3] or ""  # -v1 where a later run of that name has written the same step
    is_step = facts.get("ss_steps") == str(int(match[2])) and facts.get("name") not in (path.stem, path.stem.removesuffix(kept))
    return (match[1] + kept, int(match[2])) if is_step else (place, None)
