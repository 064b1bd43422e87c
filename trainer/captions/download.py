"""Captioning models by name: found on this machine, or downloaded after saying how large they are."""
from __future__ import annotations

import hashlib
import json
import os
import re
import urllib.error
import urllib.parse
import urllib.request
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Callable

from ..caption_choices import KNOWN, Known
from ..paths import path_of

FOLDER = "captioners"
CHUNK = 1 << 20
TIMEOUT = 30
WEIGHTS = (".safetensors", ".bin", ".onnx", ".pt", ".pth")


PACKAGES = {"transformers": "transformers", "open_clip": "open_clip_torch", "onnxruntime": "onnxruntime"}
"""Modules and the packages that have them."""
AUTOMATIC = ("blip-large", "blip-base", "coca", "blip2")
"""What is used by itself at the start of a run when it is on this machine already."""


def repo_of(name: str) -> str | None:
    """The repository that a short or a full name means; None for what is neither."""
    if name in KNOWN:
        return KNOWN[name].repo
    return name if re.fullmatch(r"[\w.-]+/[\w.-]+", name) else None


def find_local(name: str, folders: list[Path]) -> Path | None:
    """A model by path or by name: in the given model folders, their `captioners`, or where other programs keep downloads."""
    path = path_of(name)
    if path.exists():
        return path
    repo = repo_of(name)
    if repo is None:
        return None
    stem = repo.split("/")[-1]
    for folder in folders:
        for place in (folder / FOLDER / stem, folder / stem, folder / "BLIP" / stem, folder / "LLM" / stem, folder / "clip" / stem, folder / "blip" / stem):
            if _is_complete(place):
                return place
    hub = Path(os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface") / "hub")
    shots = sorted((hub / f"models--{repo.replace('/', '--')}" / "snapshots").glob("*"), key=lambda place: place.stat().st_mtime, reverse=True)
    return next((place for place in shots if _is_complete(place)), None)


def first_local(folders: list[Path]) -> Path | None:
    """The best model for sentences that is on this machine."""
    return next((found for name in AUTOMATIC if (found := find_local(name, folders)) is not None), None)


def offered(folders: list[Path]) -> list[dict[str, Any]]:
    """What a page can choose from: the known models, and others that lie in the folders for captioners.

    `here` is whether it is on this machine, `folder` where it is or would be put, `lacks` the package that it needs and that is not installed.
    """
    models, paths = [], set()
    for name, known in KNOWN.items():
        path = find_local(name, folders)
        paths.add(path)
        models.append({"model": name, "name": known.repo, "gigabytes": known.gigabytes, "here": path is not None,
                       "folder": str(path or target_folder(name, folders)), "lacks": "" if find_spec(known.package) else PACKAGES[known.package]})
    others = sorted(path for folder in folders for path in (folder / FOLDER).glob("*") if path not in paths)
    models += [{"model": str(path), "name": path.name, "gigabytes": None, "here": True, "folder": str(path), "lacks": ""} for path in others
               if path.suffix in WEIGHTS or _is_complete(path)]
    return models


def inside_folders(name: str, folders: list[Path]) -> None:
    """ValueError for a path outside of the model folders: what others on the network may name is bounded."""
    path = path_of(name)
    if path.exists() and not any(path.resolve().is_relative_to(folder.resolve()) for folder in folders):
        raise ValueError(f"caption_model is {name[:200]!r}, which lies outside of the model folders ({', '.join(map(str, folders))}); put it there, or use "
                         f"one of {', '.join(KNOWN)}")


def _is_complete(folder: Path) -> bool:
    return folder.is_dir() and any(path.suffix in WEIGHTS for path in folder.iterdir()) and not (folder / ".incomplete").exists()


def not_here(name: str, folders: list[Path]) -> ValueError:
    """The sentence for a model that is not on this machine."""
    repo = repo_of(name)
    if repo is None:
        return ValueError(f"caption_model is {name[:200]!r}, which is neither a file or folder on this machine nor a known model; use one of "
                          f"{', '.join(KNOWN)}, the name of a repository such as owner/model, or a path")
    size = f" ({KNOWN[name].gigabytes:g} GB)" if name in KNOWN else ""
    return ValueError(f"the captioning model {repo}{size} is not on this machine; let it be downloaded (on the page, in HotLoRA Caption, or with `python train.py caption --model "
                      f"{name} --download`), or put its files into {target_folder(name, folders)}")


def target_folder(name: str, folders: list[Path]) -> Path:
    return (folders[0] if folders else Path("models")) / FOLDER / str(repo_of(name)).split("/")[-1]


def download(name: str, folders: list[Path], announce: Callable[[str], None], progress: Callable[[int, int], None] | None = None) -> Path:
    """Fetch a model into the first model folder and return its folder; a broken download goes on where it ended.

    `announce` hears what will be downloaded and how large it is before the first byte; `progress` gets (bytes done, bytes in all).
    ValueError when there is no network or the server has no such model.
    """
    repo, folder = repo_of(name), target_folder(name, folders)
    if repo is None:
        raise not_here(name, folders)
    host = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    try:
        with _open(f"{host}/api/models/{urllib.parse.quote(repo)}/tree/main") as answer:
            listed = json.loads(answer.read())
        files = _chosen(listed, KNOWN[name].files if name in KNOWN else Known.files)
        if not any(Path(entry["path"]).suffix in WEIGHTS for entry in files):
            raise ValueError(f"{repo} has no weights that can be read; choose one of {', '.join(KNOWN)}")
        total = sum(int(entry["size"]) for entry in files)
        announce(f"downloading {repo}, {_size(total)}, from {urllib.parse.urlsplit(host).netloc} to {folder}")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".incomplete").touch()
        done = 0
        for entry in files:
            _fetch(f"{host}/{urllib.parse.quote(repo)}/resolve/main/{urllib.parse.quote(entry['path'])}", folder / entry["path"], entry,
                   lambda got, before=done: progress(before + got, total) if progress else None)
            done += int(entry["size"])
        (folder / ".incomplete").unlink(missing_ok=True)
    except (urllib.error.URLError, TimeoutError, ConnectionError, json.JSONDecodeError) as error:
        reason = getattr(error, "reason", None) or error
        raise ValueError(f"{repo} could not be downloaded ({str(reason)[:150]}); what arrived is kept and the next try goes on; without a network, "
                         f"put the model's files into {folder} by hand") from error
    except OSError as error:
        raise ValueError(f"{repo} could not be written to {folder} ({error.strerror or error}); free some space, or give another folder") from error
    return folder


def _open(url: str, start: int = 0):
    request = urllib.request.Request(url, headers={"User-Agent": "hotlora", **({"Range": f"bytes={start}-"} if start else {})})
    return urllib.request.urlopen(request, timeout=TIMEOUT)


def _chosen(listed: list[dict], pattern: str) -> list[dict]:
    """What is needed of a repository: its small files, and the weights in one form only."""
    files = [entry for entry in listed if entry.get("type") == "file" and re.fullmatch(pattern, entry["path"])]
    weights = [entry for entry in files if Path(entry["path"]).suffix in WEIGHTS]
    for suffix in (".onnx", ".safetensors", ".bin"):
        kind = [entry for entry in weights if entry["path"].endswith(suffix)]
        if kind:
            # a whole file and the same in shards
            shards = [entry for entry in kind if re.search(r"-\d{5}-of-\d{5}", entry["path"])]
            kind = [entry for entry in kind if entry not in shards] or shards
            return [entry for entry in files if entry not in weights] + kind
    return files


def _fetch(url: str, path: Path, entry: dict, progress: Callable[[int], None]) -> None:
    size, digest = int(entry["size"]), (entry.get("lfs") or {}).get("oid")
    if path.is_file() and path.stat().st_size == size:
        progress(size)
        return
    part = path.with_name(path.name + ".part")
    start = part.stat().st_size if part.is_file() else 0
    if start > size:
        part.unlink()
        start = 0
    if start < size:
        with _open(url, start) as answer:
            # a server that cannot continue sends everything
            if start and answer.status != 206:
                start = 0
            with part.open("ab" if start else "wb") as file:
                while data := answer.read(CHUNK):
                    file.write(data)
                    start += len(data)
                    progress(start)
    if part.stat().st_size != size:
        raise ConnectionError(f"{path.name} ended after {part.stat().st_size} of {size} bytes")
    if digest and _sha256(part) != digest:
        part.unlink()
        raise ConnectionError(f"{path.name} arrived damaged")
    os.replace(part, path)


def _sha256(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(CHUNK):
            found.update(data)
    return found.hexdigest()


def _size(number: int) -> str:
    return f"{number / 1e9:.2f} GB" if number >= 1e8 else f"{number / 1e6:.1f} MB"
