"""`python train.py caption` and `python train.py check`: captions for a folder, and what hurts the result in it."""
from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path

from .caption_choices import KNOWN, PURPOSES
from .captions.download import first_local
from .config import SETTINGS

log = logging.getLogger(__name__)


def add_commands(commands: argparse._SubParsersAction) -> None:
    models = "\n".join(f"  {name:12} {known.gigabytes:5.2f} GB  {known.repo}: {known.what}" for name, known in KNOWN.items())
    caption = commands.add_parser(
        "caption", help="make captions for the pictures of a folder that have none", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Make captions for pictures that have none. A caption that a person wrote or changed is never touched; what was made is marked "
                    "and can be taken out again with --undo. Ctrl-C keeps what is done, and the next call does only the rest.",
        epilog=f"models by name (any other: a folder or file on this machine, or owner/model):\n{models}\n"
               "A model is looked for in --models-dir, its captioners folder, and the cache of huggingface_hub; nothing is downloaded without --download.")
    caption.add_argument("--dir", type=Path, required=True, help="folder with the pictures")
    caption.add_argument("--model", default=None, help="name, folder or file (default: the best one that is on this machine)")
    caption.add_argument("--models-dir", type=Path, action="append", help="where models lie and are downloaded to (default: models); may be given several times")
    caption.add_argument("--download", action="store_true", help="download the model when it is not on this machine; its size is said first")
    caption.add_argument("--purpose", choices=PURPOSES, default="any",
                         help="what will be learned: captions leave out the looks of a person, character or object, and the style of a style")
    caption.add_argument("--trigger", default="", help="put this word first")
    caption.add_argument("--subject", default="", help="the word for what is learned, such as dog, which is left out too")
    caption.add_argument("--tags", type=Path, default=None, help="your own list of tags for CLIP models, one a line; it replaces the one that comes along")
    caption.add_argument("--into", choices=("auto", "metadata", "sidecars"), default="auto",
                         help="metadata.csv (file_name,text) or .txt files (default: as the folder does it already, else metadata.csv)")
    caption.add_argument("--batch-size", type=int, default=8)
    caption.add_argument("--device", default="auto")
    caption.add_argument("--again", action="store_true", help="also replace captions that were made by a model before and not changed since")
    caption.add_argument("--undo", action="store_true", help="take out what was made by a model and not changed since")
    caption.set_defaults(run=_caption)
    check = commands.add_parser("check", help="say what in a folder of pictures hurts the result: copies, blur, noise, size, captions, ...")
    check.add_argument("--dir", type=Path, required=True, help="folder with the pictures")
    check.add_argument("--purpose", choices=PURPOSES, default="any", help="what will be learned")
    check.add_argument("--trigger", default="", help="the trigger word of the training")
    check.add_argument("--resolution", type=int, default=512, help="training size in pixels (default: 512; SDXL: 1024)")
    check.add_argument("--clip", type=Path, default=None, help="a CLIP model, to find captions that stand by the wrong picture")
    check.add_argument("--device", default="auto", help="where the CLIP model computes")
    check.add_argument("--cache", type=Path, default=None, help="folder that keeps what was measured, for the next time (default: hotlora in the user's cache)")
    check.add_argument("--no-cache", action="store_true", help="keep nothing and measure everything")
    check.add_argument("--language", choices=("en", "zh"), default="en")
    check.add_argument("--json", action="store_true")
    check.set_defaults(run=_check)


def _caption(options: argparse.Namespace) -> int:
    from .captions.automatic import CaptionWishes, caption_folder, pictures_without, undo
    from .captions.library import ModelChoice
    from .captions.vocabulary import FILE
    from .gallery_files import existing_folder

    if options.undo:
        print(f"{len(undo(existing_folder(options.dir)))} captions taken out")
        return 0
    wishes = CaptionWishes(options.purpose, options.trigger, options.subject, options.batch_size, options.into, options.again)
    _, missing, _ = pictures_without(options.dir, options.again)
    if not missing:
        print("no caption is missing")
        return 0
    folders = tuple(options.models_dir or [Path("models")])
    model = options.model or first_local(list(folders))
    if model is None:
        raise ValueError(f"there is no captioning model on this machine; name one, for example --model blip-base --download "
                         f"({KNOWN['blip-base'].gigabytes:g} GB), or give the folder of one with --model")
    choice = ModelChoice(str(model), folders, options.device, options.download, vocabulary=options.tags or FILE,
                         announce=lambda text: print(text, file=sys.stderr), progress=_megabytes)
    report = caption_folder(options.dir, choice, wishes, _pictures, _first_interrupt().is_set)
    print(("\r" if sys.stderr.isatty() else "") + report.text())
    return 0 if not report.left else 3


def _first_interrupt() -> threading.Event:
    """Set by the first Ctrl-C; the second one ends at once."""
    asked = threading.Event()

    def stop(number, frame) -> None:
        print("\nstopping after this batch; press Ctrl-C again to end at once", file=sys.stderr)
        asked.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    signal.signal(signal.SIGINT, stop)
    return asked


def _pictures(done: int, total: int) -> None:
    print(f"\r{done} of {total} pictures", end="" if sys.stderr.isatty() and done < total else "\n", file=sys.stderr, flush=True)


def _megabytes(done: int, total: int) -> None:
    if sys.stderr.isatty() or done >= total:
        print(f"\r{done / 1e6:.0f} of {total / 1e6:.0f} MB", end="\n" if done >= total else "", file=sys.stderr, flush=True)


def _check(options: argparse.Namespace) -> int:
    from .checking import CheckSettings, cache_files, check_folder, user_cache
    from .gallery_files import existing_folder
    from .known_pictures import KnownPictures

    resolution = replace(SETTINGS["resolution"], optional=False, default=512).convert(options.resolution, called="--resolution")
    root = existing_folder(options.dir)
    looks, facts = (None, None) if options.no_cache else cache_files(options.cache or user_cache(), root)
    settings = CheckSettings(resolution, options.purpose, options.trigger)
    report = check_folder(root, settings, looks, KnownPictures(facts), options.clip, options.device, _pictures if sys.stderr.isatty() else None)
    print(json.dumps(report.to_dict(), ensure_ascii=False, indent=2) if options.json else report.text(options.language))
    return 0
