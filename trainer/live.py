"""How a prompt finds a LoRA: the tags in its text, and the registry that turns a name into weights."""

from __future__ import annotations

import difflib
import math
import os
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterable, Iterator

from .captions.matching import composed
from .lora_facts import loras_and_steps, metadata_of
from .lora_file import LoraWeights, load_lora
from .names import check_name

_TAG = re.compile(r"<lora:([^<>]*)>", re.IGNORECASE)
_HOW = "write <lora:name:weight>, <lora:name:text encoder:unet>, te=... or unet=..."
_PICKLES = (".pt", ".ckpt", ".pth", ".bin")


@dataclass(frozen=True)
class LoraTag:
    """One `<lora:...>` of a prompt: the name and how strongly it acts on the text encoder and on the denoiser."""

    name: str
    te: float = 1.0
    unet: float = 1.0


def parse_prompt(text: str) -> tuple[str, list[LoraTag]]:
    """The prompt without its LoRA tags, and the tags in order.

    `<lora:name>` (weight 1), `<lora:name:weight>`, `<lora:name:te:unet>`, `te=` and `unet=`; the denoiser gets the text encoder's
    weight when it has none of its own, as in A1111. A comma or space that only parted a tag from the text goes with it;
    a prompt without tags comes back unchanged. Raises ValueError for a tag that cannot be read.
    """
    tags, clean, position = [], "", 0
    matches = list(_TAG.finditer(text))
    for match in matches:
        tags.append(_tag(match[0], match[1]))
        clean = _join(clean, text[position : match.start()]) if position else text[: match.start()]
        position = match.end()
    if matches:
        clean = _join(clean, text[position:])
    else:
        clean = text
    unread = re.search(r"<lora:[^\s,]*", clean, re.IGNORECASE)
    if unread:
        raise ValueError(f"the tag {unread[0]!r} is not closed with '>'; {_HOW}")
    return clean, tags


def _tag(whole: str, inside: str) -> LoraTag:
    fields = [field.strip() for field in inside.split(":")]
    name, positional, named = fields[0], [], {}
    for field in fields[1:]:
        key, equals, value = field.partition("=")
        if not equals:
            positional.append(_weight(whole, field))
        elif key.strip().lower() in ("te", "unet") and key.strip().lower() not in named:
            named[key.strip().lower()] = _weight(whole, value)
        else:
            raise ValueError(f"{field!r} in {whole} is not known or stands there twice; {_HOW}")
    if not name:
        raise ValueError(f"{whole} has no name; {_HOW}")
    if len(positional) > 2:
        raise ValueError(f"{whole} has {len(positional)} weights, at most two are allowed; {_HOW}")
    te = named.get("te", positional[0] if positional else 1.0)
    unet = named.get("unet", positional[1] if len(positional) > 1 else te)
    return LoraTag(name, te, unet)


def _weight(whole: str, text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise ValueError(f"{text.strip()!r} in {whole} is not a weight; a weight is a number such as 0.8")
    return weight


def _join(left: str, right: str) -> str:
    """Close the gap that a tag leaves, without touching spaces and line breaks anywhere else."""
    before, after = left.rstrip(" \t"), right.lstrip(" \t")
    parted = before != left or after != right
    if not before.strip(" \t,"):
        return after.lstrip(" \t,")
    if not after.strip(" \t,"):
        return before.rstrip(" \t,")
    if before.endswith(",") and after.startswith(","):
        after = after[1:].lstrip(" \t")
        return f"{before} {after}"
    if after.startswith((",", "\n", "\r")) or before.endswith("\n") or not parted:
        return before + after
    return f"{before} {after}"


Source = "LoraWeights | Callable[[], LoraWeights]"


@dataclass(frozen=True)
class FoundLora:
    """Weights that answer to a name; `path` is None when they live in memory."""

    name: str
    weights: LoraWeights
    metadata: dict[str, str]
    path: Path | None = None


class Registry:
    """Name -> weights: what is registered in memory first, then the files in the folders. Safe to use from several threads.

    A file is read once and again when its size or time changes, so one that is overwritten is never served from before.
    """

    def __init__(self, folders: Iterable[str | Path] = ()) -> None:
        self.folders = [Path(folder) for folder in folders]
        self._memory: dict[str, LoraWeights | Callable[[], LoraWeights]] = {}
        self._files: dict[Path, tuple[tuple[int, int], FoundLora]] = {}
        self._lock = threading.RLock()

    def register(self, name: str, source: LoraWeights | Callable[[], LoraWeights]) -> None:
        """Let `name` mean weights in memory, or what a function returns at the time they are asked for (a running session)."""
        check_name(name)
        with self._lock:
            self._memory[name] = source

    def unregister(self, name: str) -> None:
        """Let `name` mean files again; a name that is not registered is left alone."""
        with self._lock:
            self._memory.pop(name, None)

    def find(self, name: str) -> FoundLora:
        """The weights that a tag's name means: a stem, or with its folders in front (`faces/anna`) where a stem is not enough.

        Raises ValueError with the closest names when nothing matches, with the paths when several files do, and with the
        reason when the file cannot be read.
        """
        name = composed(name)
        with self._lock:
            if name in self._memory:
                source = self._memory[name]
                return FoundLora(name, source() if callable(source) else source, {})
            return self._read(self.path(name))

    def path(self, name: str) -> Path:
        """The file that a name means; ValueError as for `find`. What is registered in memory has none and is not looked at."""
        name = composed(name)
        with self._lock:
            files = self._scan((".safetensors",))
            matches = ([path for path, relative in files.items() if name in (composed(path.stem), composed(relative))]
                       or [path for path, relative in files.items() if name in _names_of_peft(relative)])
            if len(matches) > 1:
                listed = ", ".join(str(path) for path in sorted(matches))
                raise ValueError(
                    f"{name!r} is the name of {len(matches)} files: {listed}; put the folder in front of the name, or rename one"
                )
            if not matches:
                raise self._unknown(name, files)
            return matches[0]

    def saved_steps(self, name: str) -> dict[str, Path]:
        """The saved steps of a LoRA (`name-000100`, ...) in order, then the finished one, where they are there; not those of another run of its name.

        ValueError as for `find` when there is neither.
        """
        name = composed(name)
        with self._lock:
            of_name = re.compile(re.escape(re.sub(r"(-v?\d+)+$", "", stem_of(name))) + r"(-v?\d+)*")
            files: dict[str, Path] = {}
            for path, relative in self._scan((".safetensors",)).items():
                if of_name.fullmatch(composed(path.stem)):
                    files.setdefault(composed(relative), path)
            steps = {form: step for form, (lora, step) in self._loras_and_steps(files).items() if step is not None and name in (lora, stem_of(lora))}
            found = {form if "/" in name else stem_of(form): files[form] for form in sorted(steps, key=lambda form: (steps[form], form))}
            if found and name not in files and name not in map(stem_of, files):
                return found
            return {**found, name: self.path(name)}

    def _loras_and_steps(self, files: dict[str, Path]) -> dict[str, tuple[str, int | None]]:
        """Of other programs' files only the name tells."""
        told = loras_and_steps(files)
        for form, path in files.items():
            if (match := re.fullmatch(r"(.+)-(\d{6,})", form)) and not metadata_of(path):
                told[form] = match[1], int(match[2])
        return told

    def files(self) -> list[Path]:
        """Every file that a name can mean, sorted."""
        with self._lock:
            return sorted(self._scan((".safetensors",)))

    def names(self) -> list[str]:
        """Every name that can be used, sorted."""
        with self._lock:
            found = self._scan((".safetensors",)).items()
            return sorted({*self._memory, *(min(_names_of_peft(relative), key=len, default=composed(path.stem)) for path, relative in found)})

    def _read(self, path: Path) -> FoundLora:
        try:
            state = path.stat()
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror or error}; check that it is still there") from None
        fingerprint = (state.st_mtime_ns, state.st_size)
        if path not in self._files or self._files[path][0] != fingerprint:
            weights, metadata = load_lora(path)
            self._files[path] = fingerprint, FoundLora(path.stem, weights, metadata, path)
        return self._files[path][1]

    def _unknown(self, name: str, files: dict[Path, str]) -> ValueError:
        pickles = [path for path in self._scan(_PICKLES) if composed(path.stem) == name]
        if pickles:
            return ValueError(
                f"there is no LoRA {name!r}, only {pickles[0]}, a pickle that can run any program when it is opened; "
                "convert it to .safetensors first"
            )
        known = {known.casefold(): known for known in [*self._memory, *(path.stem for path in files)]}
        close = [known[match] for match in difflib.get_close_matches(name.casefold(), known, n=3, cutoff=0.5)]
        if close:
            return ValueError(f"there is no LoRA {name!r}; the closest names are {', '.join(close)}")
        places = ", ".join(str(folder) for folder in self.folders) or "no folder"
        return ValueError(f"there is no LoRA {name!r} among {len(known)} in {places}; check the name, or put its file there")

    def _scan(self, suffixes: tuple[str, ...]) -> dict[Path, str]:
        """Files with one of the suffixes -> path below their folder without suffix."""
        return {path: path.relative_to(folder).with_suffix("").as_posix() for folder, root, _, names in walk_once(self.folders)
                for path in (Path(root, name) for name in names) if path.suffix.lower() in suffixes}


def walk_once(folders: Iterable[Path]) -> Iterator[tuple[Path, str, list[str], list[str]]]:
    """What `os.walk` gives of each folder, with that folder in front. Links are followed, no place is visited twice."""
    visited: set[str] = set()
    for folder in folders:
        for root, directories, names in os.walk(folder, followlinks=True):
            real = os.path.realpath(root)
            if real in visited:
                directories.clear()
                continue
            visited.add(real)
            yield folder, root, directories, names


def stem_of(relative: str) -> str:
    """The last part of a path below a folder, which is written with slashes."""
    return relative.rpartition("/")[2]


def _names_of_peft(relative: str) -> set[str]:
    """What the form for diffusers of a LoRA is called, `name-peft/pytorch_lora_weights`, where that is all there is of it."""
    match = re.fullmatch(r"(.+)-peft/pytorch_lora_weights", composed(relative))
    return {match[1], match[1].rpartition("/")[2]} if match else set()
