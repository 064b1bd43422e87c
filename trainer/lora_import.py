"""Import result: a LoRA that was trained on another machine, as its file or as the result of an exported job, becomes one of this host's."""
from __future__ import annotations

import io
import json
import re
import secrets
import shutil
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from .bundle import MANIFEST
from .bundle_read import DAMAGED
from .bundle_run import PREVIEW, RESULT, RESULT_FORMAT, RESULT_VERSION
from .captions.matching import composed
from .host import Host
from .hosts.base_files import BaseFacts, facts_of_files
from .lora_file import load_lora
from .loras import namesakes
from .names import check_name, safe_name
from .output_files import writable_of, write_atomically

LARGEST, LARGEST_PREVIEW = 1_000_000_000, 50_000_000
"""Bytes of a LoRA and of a picture."""


@dataclass
class Imported:
    """What has become of it: `kept` is the name under which a former LoRA of its name is kept, `warnings` are sentences for the user."""

    name: str
    trigger: str
    base: str
    path: Path
    kept: str | None = None
    warnings: list[str] = field(default_factory=list)

    def public(self) -> dict[str, Any]:
        return {"name": self.name, "tag": f"<lora:{self.name}:1>", "trigger": self.trigger, "base": self.base, "kept": self.kept, "warnings": self.warnings}


def import_lora(host: Host, file: str, data: bytes) -> Imported:
    """Put `data`, uploaded as `file`, into the host's first LoRA folder that can be written to and tell the host of it: the next prompt can name it.

    A LoRA of its name is kept as `name-v1`. ValueError when it is no LoRA, OutputError when it cannot be written; nothing is changed then.
    """
    given = Path(file.replace("\\", "/"))
    file = safe_name(given.stem) + given.suffix.lower()[:20]  # what a browser tells is a name, whatever else is sent
    lora, name, preview = _of_result(file, data) if data[:4] == b"PK\x03\x04" else (data, "", None)
    metadata = _metadata(host, file, lora)
    trained_as = _trained_as(metadata)
    name = name or _name_of(given.stem, trained_as)
    path = writable_of(host.lora_folders()) / f"{name}.safetensors"
    is_same = path.is_file() and path.read_bytes() == lora
    kept = None if is_same else write_atomically(path, lora, keep_old=True)
    picture = path.with_name(f"{name}.preview.png")
    if preview and not picture.exists():
        write_atomically(picture, preview)
    for written in filter(None, (kept, path)):
        host.lora_written(written.stem, written)
    base = BaseFacts(metadata.get("ss_sd_model_name") or "", metadata.get("ss_new_sd_model_hash") or "")
    warnings = [*_doubts(host, name, base), *namesakes(host.lora_folders(), name)]
    if trained_as and name != trained_as:
        warnings.append(f"{name} was trained as {trained_as}, and is called here as its file is: its tag is <lora:{name}:1>")
    if is_same:
        warnings.append(f"{name} is here already, with the very same content")
    if not metadata.get("hotlora.version"):
        warnings.append(f"{name} was not trained by HotLoRA: its tag works, and it is not among the LoRAs of this page")
    return Imported(name, metadata.get("hotlora.trigger") or metadata.get("modelspec.trigger_phrase") or "", base.name, path, kept.stem if kept else None, warnings)


def _of_result(file: str, data: bytes) -> tuple[bytes, str, bytes | None]:
    """The LoRA, its name and perhaps a preview, out of what `run-bundle` has written."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
            if MANIFEST in names:
                raise ValueError(f"{file} is an exported job and not its result; run it with `python train.py run-bundle {file}`, and import what that writes")
            told = json.loads(_read(file, archive, RESULT, 1_000_000)) if RESULT in names else None
            if not isinstance(told, dict) or told.get("format") != RESULT_FORMAT:
                raise ValueError(f"{file} is a zip file but no result of an exported job; choose NAME-result.zip, or a .safetensors file")
            if not isinstance(told.get("version"), int) or told["version"] > RESULT_VERSION:
                raise ValueError(f"{file} was made by a newer HotLoRA; update this one, or import the .safetensors file in it")
            name = check_name(told.get("name", ""))
            lora = _read(file, archive, f"{name}.safetensors", LARGEST)
            return lora, name, _picture(_read(file, archive, PREVIEW, LARGEST_PREVIEW)) if PREVIEW in names else None
    except (*DAMAGED, json.JSONDecodeError) as error:
        raise ValueError(f"{file} is damaged ({error}); copy it again") from None


def _read(file: str, archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    if name not in archive.namelist():
        raise ValueError(f"{file} lacks {name}, so it is damaged; copy it again")
    with archive.open(name) as member:
        data = member.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"{name} in {file} has more than {limit / 1e6:.0f} MB, which no LoRA has")
    return data


def _picture(data: bytes) -> bytes | None:
    """Only what is a picture is kept; a preview is no reason to turn a LoRA down."""
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            picture.verify()
        return data
    except Exception:  # Pillow's decoders raise anything
        return None


def _metadata(host: Host, file: str, lora: bytes) -> dict[str, str]:
    """What the file says of itself, once it has been read as a LoRA. ValueError when it cannot be."""
    place = host.home / "imports" / secrets.token_hex(6)
    path = place / f"{Path(file).stem}.safetensors"
    try:
        write_atomically(path, lora)
        return load_lora(path)[1]
    except ValueError as error:
        raise ValueError(str(error).replace(str(path), file)) from None
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _trained_as(metadata: dict[str, str]) -> str:
    """The name that HotLoRA gave the file; empty for another program's, or for one that cannot be used here."""
    name = metadata.get("ss_output_name", "") if metadata.get("hotlora.version") else ""
    return name if name and safe_name(name) == name else ""


def _name_of(stem: str, trained_as: str) -> str:
    """That of the file, as its user may have chosen it. The number that browsers put behind a second download is nobody's choice, and a name that cannot be
    used gives way to the one that it was trained under."""
    if not trained_as:
        return safe_name(stem)
    stem = composed(re.sub(r" ?\(\d+\)$", "", stem))
    return stem if safe_name(stem) == stem else trained_as


def _doubts(host: Host, name: str, trained_on: BaseFacts) -> list[str]:
    """Whether it fits what is loaded here."""
    loaded = host.base()
    here = loaded["name"] if loaded else host.bases()[0] if len(host.bases()) == 1 else None
    if here is None:
        return [f"{name} was trained on {trained_on}; draw with that base"] if trained_on.name else []
    if not (trained_on.name or trained_on.hash):
        return [f"{name} does not say which base it was trained on, so whether it fits {base_name(here)} cannot be told"]
    base = facts_of_files(base_name(here), host.base_files(here))
    if base.hash and trained_on.hash:
        if base.hash == trained_on.hash:
            return []
    elif base.name.casefold() == trained_on.name.casefold():
        return []
    return [f"{name} was trained on {trained_on}, and {base} is loaded here: it may look different or do nothing; load the base that it was trained on"]


def base_name(base_model: str) -> str:
    """Of a base as a host offers it, without folders and suffix: the same for the same file on every machine."""
    return Path(base_model.replace("\\", "/")).name.removesuffix(".safetensors").removesuffix(".ckpt")
