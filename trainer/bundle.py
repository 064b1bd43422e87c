"""Export job: one zip file with all that a run needs but its base, which is named by its hash. Another machine runs it with
`python train.py run-bundle`; what it trains is bit for bit what would have been trained here, on the same kind of machine.

    bundle.json       what is in it: pictures with their captions in the order of the gallery, base, all files with size and hash
    job.yaml          the settings
    pictures/, masks/, prior/, init_lora.safetensors    each picture and mask under the hash of its content

Pictures, captions, masks and repeats are told in bundle.json as the run sees them, so that no name of a file matters on the other side.
"""
from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

from .config import TrainConfig
from .gallery import Example, Gallery
from .gallery_files import printable, relative_name
from .hosts.base_files import BaseFacts
from .output_files import written_whole
from .run import Material
from .. import __version__
from .paths import path_of

FORMAT, VERSION = "hotlora-bundle", 1
MANIFEST, SETTINGS_FILE, INIT_LORA = "bundle.json", "job.yaml", "init_lora.safetensors"
BLOCK = 1 << 20
EPOCH = (1980, 1, 1, 0, 0, 0)
"""The date of every file in a bundle: the same job gives the same bytes."""
HERE_ONLY = {"metadata_path": None, "leave_out": [], "caption_model": None, "auto_caption": False, "output_dir": "output", "lora_dir": None,
             "cache_dir": None, "device": "auto"}
"""Settings that mean something on one machine only, or that are done with once the captions are in the bundle."""
CODE = ("augmentation", "loss_term")


@dataclass
class Exported:
    """A bundle that has been written; `warnings` are sentences for the user."""

    path: Path
    pictures: int
    bytes: int
    warnings: list[str] = field(default_factory=list)


def export_job(path: Path, material: Material, base: BaseFacts) -> Exported:
    """Write the bundle of a run, whose settings are complete: no preset fills in anything later.

    Whole or not at all; pictures go through in blocks and are never in memory together. ValueError when a picture changes meanwhile, or for
    settings that name a program of the user's; OutputError when it cannot be written.
    """
    config = material.config
    for key in CODE:
        if getattr(config, key):
            raise ValueError(f"{key} is {getattr(config, key)}, a program of yours, which a bundle does not carry; remove it, or take the job to the "
                             "other machine by hand")
    contents = _Contents()
    told = {"format": FORMAT, "version": VERSION, "made_by": f"HotLoRA {__version__}", "name": material.name, "trigger": config.trigger,
            "base": {"name": base.name, "hash": base.hash}, "pictures": contents.add_gallery("pictures", material.gallery)}
    if material.prior:
        told["prior"] = contents.add_gallery("prior", material.prior)
    if config.init_lora:
        contents.sources[INIT_LORA] = path_of(config.init_lora)
    settings = portable(config, material.name, base.name)
    with written_whole(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        _write(archive, SETTINGS_FILE, settings.to_yaml().encode("utf-8"))
        files = {name: _copy(archive, name, source) for name, source in contents.sources.items()}
        _write(archive, MANIFEST, json.dumps({**told, "files": files}, ensure_ascii=False, indent=1).encode("utf-8"))
    return Exported(path, len(material.gallery.examples), path.stat().st_size, _warnings(config, material))


def portable(config: TrainConfig, name: str, base: str) -> TrainConfig:
    """The settings without anything of this machine."""
    kept = {"train_data_dir": "pictures", "reg_data_dir": "prior" if config.reg_data_dir else None, "init_lora": INIT_LORA if config.init_lora else None,
            # a host reads no other form
            "save_format": "kohya" if config.save_format == "peft" else config.save_format}
    return replace(config, **HERE_ONLY, **kept, name=name, base_model=base)


class _Contents:
    """Which file of this machine becomes which of the bundle; what is there several times is written once."""

    def __init__(self) -> None:
        self.sources: dict[str, Path] = {}

    def add_gallery(self, folder: str, gallery: Gallery) -> list[dict[str, Any]]:
        return [self._add(folder, gallery.root, example) for example in gallery.examples]

    def _add(self, folder: str, root: Path, example: Example) -> dict[str, Any]:
        name = f"{folder}/{example.content_hash}{example.path.suffix.lower()}"
        self.sources.setdefault(name, example.path)
        told = {"file": name, "name": relative_name(example.path, root), "caption": printable(example.caption), "written": printable(example.written),
                "repeats": example.repeats}
        if example.mask_path is not None:
            told["mask"] = f"masks/{hash_of(example.mask_path)}{example.mask_path.suffix.lower()}"
            self.sources.setdefault(told["mask"], example.mask_path)
        return told


def hash_of(path: Path) -> str:
    """The hash by which pictures are known, of a file's content."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _copy(archive: zipfile.ZipFile, name: str, source: Path) -> dict[str, Any]:
    """Write a file into the archive and say how large it is and what its hash is; what its name promises must be what is in it."""
    digest, size = hashlib.blake2b(digest_size=16), 0
    try:
        file = source.open("rb")
    except OSError as error:
        raise ValueError(f"{source} cannot be read ({error.strerror or error}); check that it is still there, then export again") from None
    with file, _member(archive, name) as member:
        while block := file.read(BLOCK):
            digest.update(block)
            size += len(block)
            member.write(block)
    if name != INIT_LORA and digest.hexdigest() != Path(name).stem:
        raise ValueError(f"{source} has been changed while it was exported; export again")
    return {"bytes": size, "hash": digest.hexdigest()}


def _write(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    with _member(archive, name) as member:
        member.write(data)


def _member(archive: zipfile.ZipFile, name: str) -> BinaryIO:
    return archive.open(zipfile.ZipInfo(name, EPOCH), "w", force_zip64=True)


def _warnings(config: TrainConfig, material: Material) -> list[str]:
    # without a trigger, the name of a folder such as 10_sks dog is a caption
    bare = sum(not example.written and (bool(config.trigger) or not example.caption) for example in material.gallery.examples)
    told = list(material.gallery.warnings)
    if bare and config.auto_caption:
        told.append(f"{bare} pictures have no caption, and none is written on the other machine; write them here first if they should have one")
    if material.gallery.skipped:
        told.append(f"{len(material.gallery.skipped)} pictures cannot be read and are not in the bundle")
    return told
