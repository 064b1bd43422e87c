"""A folder of pictures becomes examples: every picture decoded once, with its caption, mask and repeats.

Nothing in the folder is ever moved or written. What cannot be used is listed with the reason.
"""
from __future__ import annotations

import os
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Container, Iterable, TypeVar

from .captions.marks import Marks
from .captions.matching import CaptionTable
from .captions.sidecar import read_sidecar, tidy
from .gallery_files import GalleryFiles, Skipped, existing_folder, existing_metadata, folder_repeats, list_files, path_order, printable
from .gallery_files import relative_name, said_apart
from .known_pictures import KnownPictures
from .left_out import left_out
from .pictures import ONE_COLOUR, SUFFIXES, PictureFacts, UnreadablePicture, check_picture, read_bytes, read_mask

SHOWN = 10
Item, Result = TypeVar("Item"), TypeVar("Result")


@dataclass(frozen=True)
class Example:
    """One picture to learn from; width and height in pixels after rotation, `content_hash` of the file's bytes.

    `written` is the caption as it was found, before the trigger was put first; empty when none was. `is_converted`: see PictureFacts.
    """

    path: Path
    caption: str
    width: int
    height: int
    repeats: int
    content_hash: str
    mask_path: Path | None = None
    is_prior: bool = False
    written: str = field(default="", compare=False)
    is_converted: bool = field(default=False, compare=False)

    @property
    def seen_hash(self) -> str:
        """Of what is seen, to keep what was made of it: `content_hash` alone until colours are converted, which earlier versions did not."""
        return f"{self.content_hash} sRGB" if self.is_converted else self.content_hash


@dataclass
class Gallery:
    """What a folder holds. `caption_sources` counts examples by where their captions came from, `former_triggers` those whose caption a machine wrote with
    another trigger first; `left_out` are pictures that are not to be used."""

    root: Path
    examples: list[Example]
    skipped: list[Skipped] = field(default_factory=list)
    caption_sources: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    former_triggers: dict[str, int] = field(default_factory=dict)

    def report(self) -> str:
        """Several lines for people: pictures found and skipped with reasons, captions, masks, warnings."""
        seen = sum(example.repeats for example in self.examples)
        lines = [f"Gallery {printable(self.root)}: {_count(len(self.examples), 'picture')}"
                 + (f", {seen} with repeats" if seen != len(self.examples) else "")]
        if self.caption_sources:
            lines.append("  captions: " + ", ".join(f"{count} without" if source == "none" else f"{count} from {source}"
                                                    for source, count in sorted(self.caption_sources.items())))
        lines += [f"  trigger {trigger} of an earlier run taken out of {_count(count, 'caption')} that a machine wrote" for trigger, count in self.former_triggers.items()]
        masks = sum(example.mask_path is not None for example in self.examples)
        if masks:
            lines.append(f"  masks: {masks}")
        if self.left_out:
            lines.append(f"  left out: {len(self.left_out)} ({_listing(self.left_out)})")
        if self.skipped:
            lines.append(f"  skipped: {len(self.skipped)}")
            lines += [f"    {relative_name(item.path, self.root)}: {item.reason}" for item in self.skipped]
        lines += [f"  warning: {warning}" for warning in self.warnings]
        return "\n".join(lines)


def read_gallery(folder: str | Path, *, metadata_path: str | Path | None = None, trigger: str = "", repeats: int = 1,
                 masks: bool = False, max_megapixels: float = 180.0, is_prior: bool = False, leave_out: Iterable[str] = (),
                 known: KnownPictures | None = None, apart: Container[str] = ()) -> Gallery:
    """Read a folder with its sub-folders; examples come sorted by their path. Pictures that are left out, there or by `leave_out`, are not
    among them, nor are those of folders `apart` (see list_files); `known` spares the decoding of files that have not changed.

    A caption comes from the metadata (`metadata_path`, else every metadata.csv and metadata.jsonl inside), else from a `.txt` or
    `.caption` file, else from the name of a `10_name` folder when there is no trigger, else it is the trigger. A trigger that a
    caption lacks is put first, in the place of another one that a machine put there. Raises ValueError when the folder or the metadata cannot be
    read or no picture is usable.
    """
    root = existing_folder(folder)
    files = list_files(root, masks, apart)
    gallery = Gallery(root, [], list(files.skipped))
    told_apart = said_apart(files, root)
    if not files.pictures:
        raise ValueError(_no_pictures(gallery, told_apart))
    unwanted = left_out(root).union(leave_out)
    gallery.left_out += [relative_name(path, root) for pictures in files.apart.values() for path in pictures]
    table = CaptionTable(root, files.pictures, [existing_metadata(metadata_path, root)] if metadata_path else files.metadata)
    trigger = tidy(trigger)
    sources: Counter[str] = Counter()
    former: Counter[str] = Counter()
    marks = Marks(root)
    transparent = 0
    used = [path for path in files.pictures if relative_name(path, root) not in unwanted]
    empty_masks: set[Path] = set()
    checked = dict(zip(used, _in_threads(lambda path: _check(path, files.mask_of(path) if masks else None, max_megapixels, known, empty_masks), used)))
    for path in files.pictures:
        # asked for skipped pictures too, whose rows are no mistake
        caption, source = table.caption_of(path), "metadata"
        if (found := checked.get(path)) is None:
            gallery.left_out.append(relative_name(path, root))
            continue
        times, concept = folder_repeats(path, root)
        if isinstance(found, PictureFacts) and times == 0:
            found = Skipped(path, "its folder's name asks for 0 repeats")
        if isinstance(found, Skipped):
            gallery.skipped.append(found)
            continue
        if not caption:
            caption, source = _sidecar_caption(path, files, gallery.warnings)
        written = caption = _without_former_trigger(caption, marks.trigger_of(relative_name(path, root), caption), trigger, former)
        if not caption:
            caption, source = (trigger, "the trigger") if trigger else (concept, "folder names") if concept else ("", "none")
        sources[source] += 1
        transparent += found.has_alpha
        gallery.examples.append(Example(path, add_trigger(caption, trigger), found.width, found.height, repeats * times,
                                        found.content_hash, files.mask_of(path) if masks else None, is_prior, written, found.is_converted))
    gallery.skipped.sort(key=lambda item: path_order(item.path, root))
    if not gallery.examples:
        raise ValueError(_no_pictures(gallery, told_apart))
    gallery.caption_sources, gallery.former_triggers = dict(sources), dict(former)
    _add_warnings(gallery, table, files, masks, transparent)
    _check_masks(gallery, empty_masks)
    gallery.warnings += [f"{told_apart}."] if told_apart else []
    return gallery


def _without_former_trigger(caption: str, marked: str, trigger: str, former: Counter[str]) -> str:
    """The caption without the trigger that a machine put first, counted in `former`, where the run has another."""
    if not (marked and trigger) or marked.casefold() == trigger.casefold():
        return caption
    former[marked] += 1
    return caption.removeprefix(marked).lstrip(", ")


def add_trigger(caption: str, trigger: str) -> str:
    """`trigger, caption`; the caption alone when it has the trigger as words of its own, in whatever case."""
    if not trigger or not caption:
        return trigger or caption
    return caption if re.search(_as_words(trigger), caption, re.IGNORECASE) else f"{trigger}, {caption}"


def without_trigger(caption: str, trigger: str, instead: str = "") -> str:
    """The caption with `instead` where the trigger stood; the caption itself where it does not stand."""
    trigger, instead = trigger.strip(), instead.strip()
    if not trigger or not re.search(_as_words(trigger), caption, re.IGNORECASE):
        return caption
    gone = re.sub(_as_words(trigger) + ("" if instead else r"\s*,?"), lambda _: instead, caption, flags=re.IGNORECASE)
    return " ".join(gone.split()).strip(" ,")


def _as_words(trigger: str) -> str:
    """Only Latin words have edges: in Chinese text a trigger stands between characters without a space."""
    before = r"(?<![A-Za-z0-9])" if trigger[0].isascii() and trigger[0].isalnum() else ""
    after = r"(?![A-Za-z0-9])" if trigger[-1].isascii() and trigger[-1].isalnum() else ""
    return before + re.escape(trigger) + after


def _check(path: Path, mask_path: Path | None, max_megapixels: float, known: KnownPictures | None, empty_masks: set[Path]) -> PictureFacts | Skipped:
    """Decode a picture and its mask; both must be whole, or the picture is skipped. A mask in which nothing is white joins `empty_masks`."""
    try:
        facts = known.facts(path, max_megapixels) if known is not None else check_picture(read_bytes(path, max_megapixels), max_megapixels)
    except UnreadablePicture as error:
        return Skipped(path, printable(error))
    if mask_path is not None:
        try:
            if read_mask(mask_path, max_megapixels).getextrema()[1] <= ONE_COLOUR:
                empty_masks.add(mask_path)
        except UnreadablePicture as error:
            return Skipped(path, printable(f"its mask {mask_path.name} cannot be used: {error}"))
    return facts


def _in_threads(function: Callable[[Item], Result], items: list[Item]) -> list[Result]:
    """`function` of every item, in order. Pillow decodes without the interpreter's lock, so threads are enough."""
    pool = ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1))
    try:
        return list(pool.map(function, items))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _sidecar_caption(path: Path, files: GalleryFiles, warnings: list[str]) -> tuple[str, str]:
    for sidecar in files.sidecars_of(path):
        try:
            caption = read_sidecar(sidecar)
        except ValueError as error:
            warnings.append(printable(error))
            continue
        if caption:
            return caption, f"{sidecar.suffix.lower()} files"
    return "", "none"


def _add_warnings(gallery: Gallery, table: CaptionTable, files: GalleryFiles, masks: bool, transparent: int) -> None:
    warnings = []
    bare = gallery.caption_sources.get("none", 0)
    if bare:
        warnings.append(f"{_count(bare, 'picture')} without a caption; set a trigger, or write captions into .txt files or metadata.csv.")
    if table.ambiguous:
        warnings.append(f"Several pictures or metadata rows are called {_listing(table.ambiguous)}; write the sub-folder into the metadata.")
    if table.unused:
        warnings.append(f"{_count(len(table.unused), 'metadata row')} without a picture in the gallery: {_listing(table.unused.values())}.")
    if masks:
        orphans = [path.name for path in files.orphaned_masks()]
        if orphans:
            warnings.append(f"These masks belong to no picture: {_listing(orphans)}.")
        if not transparent and not any(example.mask_path for example in gallery.examples):
            warnings.append("masks is on, but no picture has a *_mask.png or transparency.")
    gallery.warnings += map(printable, warnings)


def _check_masks(gallery: Gallery, empty: set[Path]) -> None:
    """A warning about pictures of which nothing is trained; ValueError when that is so of all."""
    names = [relative_name(example.mask_path, gallery.root) for example in gallery.examples if example.mask_path in empty]
    if not names:
        return
    if len(names) == len(gallery.examples):
        raise ValueError(f"In the gallery {printable(gallery.root)} no mask has a white part, so that nothing would be trained: {_listing(names)}; paint white "
                         "what is to be trained, or set masks: false.")
    gallery.warnings.append(f"These masks have no white part, so that nothing of their pictures is trained: {_listing(names)}; paint white what is to be trained, "
                            "or remove them.")


def _no_pictures(gallery: Gallery, told_apart: str = "") -> str:
    where = f"The gallery {printable(gallery.root)}"
    if told_apart and not gallery.skipped:
        return f"{where} has no picture to use: {told_apart}; set train_data_dir to the folder with your pictures."
    if gallery.left_out:
        return f"{where} has no picture to use: {len(gallery.left_out)} are left out ({_listing(gallery.left_out)}); put some back."
    if not gallery.skipped:
        return f"{where} has no pictures; it needs files of type {', '.join(sorted(suffix[1:] for suffix in SUFFIXES))}."
    reasons = "; ".join(f"{relative_name(item.path, gallery.root)}: {item.reason}" for item in gallery.skipped[:SHOWN])
    more = f"; and {len(gallery.skipped) - SHOWN} more" if len(gallery.skipped) > SHOWN else ""
    return f"{where} has no usable picture, {len(gallery.skipped)} skipped ({reasons}{more})."


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _listing(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
