"""Reading a bundle that came from another machine: nothing in it is trusted. Only files that its table names are written, under names that are
hashes, with the sizes and contents that the table says; what is wrong is named before anything is trained."""
from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
import zipfile
import zlib
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Iterator

from .bundle import BLOCK, CODE, FORMAT, INIT_LORA, MANIFEST, SETTINGS_FILE, VERSION, hash_of, portable
from .config import OPTIMIZERS, TrainConfig
from .config_files import load_config, parse_override
from .gallery import Example, Gallery
from .hosts.base_files import BaseFacts
from .names import check_name
from .output_files import OutputError
from .pictures import SUFFIXES, UnreadablePicture, check_picture, read_bytes
from .run import Material
from .settings import shown

MOST_FILES, LARGEST_FILE, LARGEST_TABLE = 200_000, 4_000_000_000, 200_000_000
"""What is larger is no job of anybody's."""
NAME = re.compile(rf"(?:(?:pictures|prior|masks)/[0-9a-f]{{32}}(?:{'|'.join(map(re.escape, sorted(SUFFIXES)))})|{re.escape(INIT_LORA)})")
OF_TORCH = re.compile(r"torch\.optim\.\w+")
DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, UnicodeDecodeError)
"""What `zipfile` raises for archives that are damaged, encrypted, or packed in a way that it does not know."""


@dataclass(frozen=True)
class Bundle:
    """What a bundle says of itself, checked. `id` changes with anything in it."""

    path: Path
    id: str
    name: str
    trigger: str
    base: BaseFacts
    pictures: list[dict[str, Any]]
    prior: list[dict[str, Any]]
    files: dict[str, dict[str, Any]]
    settings: str

    @property
    def bytes(self) -> int:
        return sum(file["bytes"] for file in self.files.values())

    def config(self, overrides: list[str | tuple[str, Any]]) -> tuple[TrainConfig, list[str]]:
        """Its settings with `overrides` (key=value, or a pair) in their place. ValueError for what is wrong with either, and for settings that would run
        a program or reach for files of this machine."""
        try:
            self._check_settings([parse_override(override)[0] for override in overrides])
            return load_config(SETTINGS_FILE, overrides, text=self.settings)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from None

    def _check_settings(self, given: list[str]) -> None:
        """ValueError for settings that no exported job has, unless they are `given` on this machine."""
        own, _ = load_config(SETTINGS_FILE, text=self.settings)
        exported = replace(portable(own, self.name, self.base.name), **dict.fromkeys(CODE)).to_dict()
        for key, value in own.to_dict().items():
            if value != exported[key]:
                raise ValueError(f"{SETTINGS_FILE} sets {key} to {shown(value)}, which no exported job does, so it has been changed; "
                                 "export the job again")
        if own.optimizer not in OPTIMIZERS and not OF_TORCH.fullmatch(own.optimizer) and "optimizer" not in given:
            raise ValueError(f"optimizer is {own.optimizer}, a program that is no part of HotLoRA or torch; if you trust it, add --set "
                             f"optimizer={own.optimizer}")


def read_bundle(path: Path) -> Bundle:
    """ValueError, in one sentence, for a file that is no bundle, or one that is damaged or dangerous."""
    with _opened(path) as archive:
        members = _members(path, archive)
        if MANIFEST not in members or SETTINGS_FILE not in members:
            raise ValueError(f"{path} is a zip file but no exported job: it has no {MANIFEST} and {SETTINGS_FILE}; export the job again on HotLoRA's page")
        table = _read(path, archive, members[MANIFEST], LARGEST_TABLE)
        settings = _read(path, archive, members[SETTINGS_FILE], 1_000_000).decode("utf-8")
    told = _table(path, table)
    strangers = sorted(members.keys() - told["files"].keys() - {MANIFEST, SETTINGS_FILE})
    missing = sorted(told["files"].keys() - members.keys())
    if strangers or missing:
        raise ValueError(f"{path} {f'has {strangers[0]!r}, which its table does not name' if strangers else f'lacks {missing[0]}'}; export the job again")
    for name, file in told["files"].items():
        if members[name].file_size != file["bytes"]:
            raise ValueError(f"{name} in {path} has {members[name].file_size} bytes but should have {file['bytes']}; copy or export it again")
    identity = hashlib.blake2b(table + settings.encode(), digest_size=16).hexdigest()
    return Bundle(path, identity, told["name"], told["trigger"], BaseFacts(told["base"]["name"], told["base"]["hash"]), told["pictures"],
                  told.get("prior", []), told["files"], settings)


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except FileNotFoundError:
        raise ValueError(f"there is no file {path}; check the path") from None
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise ValueError(f"{path} cannot be read ({error.strerror or error}); check its permissions") from None
    except DAMAGED as error:
        raise ValueError(f"{path} is damaged or no zip file ({error}); copy or export it again") from None


def _members(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    infos = archive.infolist()
    if len(infos) > MOST_FILES:
        raise ValueError(f"{path} holds {len(infos)} files, more than the {MOST_FILES} that a job may have")
    members = {info.filename: info for info in infos}
    if len(members) != len(infos):
        raise ValueError(f"{path} holds two files of one name, so it has been tampered with; export the job again")
    return members


def _read(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo, limit: int) -> bytes:
    """A member that is small enough to be in memory as a whole, whatever it claims to be."""
    with archive.open(info) as member:
        data = member.read(limit + 1)
    if len(data) > limit:
        raise ValueError(f"{info.filename} in {path} has more than {limit / 1e6:.0f} MB, which no exported job has")
    return data


def _table(path: Path, data: bytes) -> dict[str, Any]:
    """bundle.json, checked against its schema and in itself."""
    from .api.schema import check

    try:
        told = json.loads(data.decode("utf-8"))
        check(told, _schema(), MANIFEST)
        if told["format"] != FORMAT or told["version"] > VERSION:
            raise ValueError(f"it is of version {told['version']} of {told['format']!r}, and this HotLoRA reads {FORMAT} up to version {VERSION}; update it")
        check_name(told["name"])
        for name, file in told["files"].items():
            if not NAME.fullmatch(name) or (name != INIT_LORA and name.split("/")[1].split(".")[0] != file["hash"]):
                raise ValueError(f"the file name {name[:100]!r} is none that an exported job has")
        for entry in [*told["pictures"], *told.get("prior", [])]:
            for name in filter(None, (entry["file"], entry.get("mask"))):
                if name not in told["files"]:
                    raise ValueError(f"{name[:100]!r} is used and not among the files")
        return told
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be used: {MANIFEST} is wrong ({str(error)[:300]}); export the job again") from None


def _schema() -> dict[str, Any]:
    from .api.schema import integer, text

    hashed = text(pattern=r"^[0-9a-f]{32}$")
    picture = {"type": "object", "required": ["file", "name", "caption", "written", "repeats"], "properties": {
        "file": text(), "name": text(), "caption": text(maxLength=1_000_000), "written": text(maxLength=1_000_000), "repeats": integer(1, 10_000_000),
        "mask": text()}}
    return {"type": "object", "required": ["format", "version", "name", "trigger", "base", "pictures", "files"], "properties": {
        "format": text(), "version": integer(1, 1_000_000), "name": text(), "trigger": text(),
        "base": {"type": "object", "required": ["name", "hash"], "properties": {"name": text(), "hash": text(pattern=r"^([0-9a-f]{64})?$")}},
        "pictures": {"type": "array", "minItems": 1, "maxItems": MOST_FILES, "items": picture},
        "prior": {"type": "array", "maxItems": MOST_FILES, "items": picture},
        "files": {"type": "object", "maxProperties": MOST_FILES, "additionalProperties": {
            "type": "object", "required": ["bytes", "hash"], "properties": {"bytes": integer(0, LARGEST_FILE), "hash": hashed}}}}}


def unpack(bundle: Bundle, folder: Path) -> Path:
    """The bundle's files below `folder`, whole and checked or not at all; those of a former call are used again where they are still right.

    OutputError when the disk is full or cannot be written to, ValueError when the bundle is damaged.
    """
    place = folder / f"{bundle.name}-{bundle.id[:12]}"
    if place.is_dir() and not _wrong(bundle, place):
        return place
    temporary = folder / f".{bundle.id[:12]}-{secrets.token_hex(6)}.tmp"
    try:
        temporary.mkdir(parents=True)
        free = shutil.disk_usage(temporary).free
        if bundle.bytes > free:
            raise OutputError(f"{bundle.path} needs {bundle.bytes / 1e9:.2f} GB in {folder}, and {free / 1e9:.2f} GB are free; free some space or set another --out")
        with _opened(bundle.path) as archive:
            for name, file in bundle.files.items():
                _extract(bundle, archive, name, file, temporary / name)
        if place.exists():  # something has been changed in it
            shutil.rmtree(place)
        os.replace(temporary, place)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"{bundle.path} could not be unpacked into {folder} ({error.strerror or error}); set another --out") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return place


def _extract(bundle: Bundle, archive: zipfile.ZipFile, name: str, file: dict[str, Any], target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    digest, left = hashlib.blake2b(digest_size=16), file["bytes"]
    with archive.open(name) as member, target.open("xb") as out:
        while block := member.read(min(BLOCK, left + 1)):
            left -= len(block)
            if left < 0:
                break
            digest.update(block)
            out.write(block)
    if left or digest.hexdigest() != file["hash"]:
        raise ValueError(f"{name} in {bundle.path} is not what its table says, so it is damaged; copy or export it again")


def _wrong(bundle: Bundle, place: Path) -> bool:
    """Whether a file that was unpacked before is not as it was."""
    for name, file in bundle.files.items():
        path = place / name
        if not path.is_file() or path.stat().st_size != file["bytes"] or hash_of(path) != file["hash"]:
            return True
    return False


def material_of(bundle: Bundle, place: Path, config: TrainConfig) -> Material:
    """What `read_material` made on the machine that the bundle is from, of the files that `unpack` wrote. ValueError for a picture that cannot be read."""
    gallery = _gallery(bundle, place, bundle.pictures, config, is_prior=False)
    prior = _gallery(bundle, place, bundle.prior, config, is_prior=True) if bundle.prior else None
    return Material(config, check_name(config.name or bundle.name), gallery, prior)


def _gallery(bundle: Bundle, place: Path, entries: list[dict[str, Any]], config: TrainConfig, is_prior: bool) -> Gallery:
    examples, taken = [], set()
    for entry in entries:
        path = place / entry["file"]
        try:
            facts = check_picture(read_bytes(path, config.max_megapixels), config.max_megapixels)
        except UnreadablePicture as error:
            raise ValueError(f"{entry['name']} in {bundle.path} cannot be read as a picture: {error}; leave it out and export the job again") from None
        path = _own_path(path, taken)
        mask = place / entry["mask"] if entry.get("mask") else None
        examples.append(Example(path, entry["caption"], facts.width, facts.height, entry["repeats"], facts.content_hash, mask, is_prior, entry["written"],
                                facts.is_converted))
    return Gallery(place / ("prior" if is_prior else "pictures"), examples, caption_sources={"the bundle": len(examples)})


def _own_path(path: Path, taken: set[Path]) -> Path:
    """A picture that is in the gallery several times, perhaps with several captions or masks, has a path for each."""
    number, own = 2, path
    while own in taken:
        own = path.with_name(f"{path.stem}-{number}{path.suffix}")
        number += 1
    taken.add(own)
    if not own.is_file():
        shutil.copyfile(path, own)
    return own
