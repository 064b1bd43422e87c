"""A bundle becomes a run on this machine, on the base that it was made for, and the run a result to take back."""
from __future__ import annotations

import json
import logging
import re
import zipfile
from pathlib import Path

from .bundle import EPOCH, INIT_LORA, Exported
from .bundle_read import Bundle, material_of, unpack
from .hosts.base_files import facts_of_base
from .output_files import written_whole
from .run import Material
from .session import Outcome, Session

log = logging.getLogger(__name__)
RESULT_FORMAT, RESULT_VERSION = "hotlora-result", 1
RESULT, PREVIEW = "result.json", "preview.png"
NEAR = (".", "models", "checkpoints", "models/checkpoints", "models/Stable-diffusion")
"""Where the base is looked for by its name, from the current folder and from the bundle's."""


def choose_base(bundle: Bundle, given: str | None, any_base: bool = False) -> str:
    """What to train on: `given`, or a base of the bundle's name that lies near. ValueError, which names both, when it is not the base that
    the bundle was made for, unless `any_base`."""
    base = given or _near(bundle)
    if base is None:
        raise ValueError(f"{bundle.path} was made for the base {bundle.base}, which is not here; name it with --base")
    found, wanted = facts_of_base(base), bundle.base
    if found.hash == wanted.hash or (not wanted.hash and found.name.casefold() == wanted.name.casefold()):
        if not wanted.hash:
            log.warning("warning: where %s was made nothing but the name of its base was known; %s has that name", bundle.path, base)
        return base
    if not any_base:
        raise ValueError(f"{bundle.path} was made for the base {wanted}, but {base} is {found}; name the right one with --base, or add --any-base to "
                         "train on this one all the same")
    log.warning("warning: this is trained on %s, not on %s, for which the job was made", found, wanted)
    return base


def _near(bundle: Bundle) -> str | None:
    if bundle.base.name == "demo":
        return "demo"
    for folder in (root / near for root in (Path(), bundle.path.parent) for near in NEAR):
        for path in (folder / f"{bundle.base.name}.safetensors", folder / bundle.base.name):
            if path.is_file() or (path / "model_index.json").is_file():
                return str(path)
    return None


def prepare(bundle: Bundle, base: str, out: Path, overrides: list[str]) -> tuple[Material, list[str]]:
    """The pictures, unpacked, and the settings with what this machine decides. ValueError and OutputError as for `unpack` and `Bundle.config`."""
    bundle.config(overrides)  # what is wrong with it is said before anything is written
    place = unpack(bundle, out / "bundles")
    decided = {"train_data_dir": str(place / "pictures"), "base_model": base, "output_dir": str(out), "cache_dir": str(out / "cache")}
    if bundle.prior:
        decided["reg_data_dir"] = str(place / "prior")
    if INIT_LORA in bundle.files:
        decided["init_lora"] = str(place / INIT_LORA)
    config, warnings = bundle.config([*decided.items(), *overrides])
    return material_of(bundle, place, config), warnings


def write_result(session: Session, outcome: Outcome, bundle: Bundle) -> Exported:
    """`name-result.zip` beside the LoRA: the LoRA, its newest preview, and what "Import result" wants to know."""
    path = session.folder / f"{session.name}-result.zip"
    previews = _previews(session, outcome.step)
    told = {"format": RESULT_FORMAT, "version": RESULT_VERSION, "name": session.name, "trigger": session.config.trigger, "steps": outcome.step,
            "base": {"name": session.backend.name, "hash": session.backend.base_hash}, "bundle": bundle.id}
    files = {f"{session.name}.safetensors": outcome.lora, **({PREVIEW: previews[-1]} if previews else {})}
    with written_whole(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo(RESULT, EPOCH), json.dumps(told, ensure_ascii=False, indent=1))
        for name, source in files.items():
            archive.writestr(zipfile.ZipInfo(name, EPOCH), source.read_bytes())
    return Exported(path, 0, path.stat().st_size)


def _previews(session: Session, last: int) -> list[Path]:
    """The first pictures that this run drew, oldest first. Others in the folder, of a LoRA `name-2` or of an earlier run, may show another person."""
    found = []
    for path in (session.folder / "previews").glob("*-0.png"):
        match = re.fullmatch(rf"{re.escape(session.name)}-(\d{{6,}})-0\.png", path.name)
        if match and int(match[1]) <= last and path.stat().st_mtime >= session.started_at:
            found.append((int(match[1]), path))
    return [path for _, path in sorted(found)]
