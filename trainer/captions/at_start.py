"""Captions at the start of a run, for pictures that have none: only with a model that is on this machine, never with a download."""
from __future__ import annotations

import logging
from pathlib import Path
from typing import Callable

from .automatic import CaptionReport, CaptionWishes, caption_folder, pictures_without
from .download import first_local
from .library import ModelChoice
from ..config import TrainConfig
from ..gallery_files import folder_repeats, relative_name
from ..output_files import OutputError

log = logging.getLogger(__name__)


def planned_captions(config: TrainConfig, model_folders: tuple[Path, ...]) -> tuple[str, tuple[str, ...]]:
    """(model, names of the pictures that it would caption); ("", ()) when there is nothing to do or nothing to do it with."""
    if not config.auto_caption or config.metadata_path:
        return "", ()
    root, missing, _ = pictures_without(config.train_data_dir)
    # a folder called 10_sks dog is the caption of what is in it, in the form of kohya's sd-scripts
    names = tuple(relative_name(path, root) for path in missing if config.trigger or not folder_repeats(path, root)[1])
    names = tuple(name for name in names if name not in config.leave_out)
    model = config.caption_model or str(first_local(list(model_folders)) or "")
    return (model, names) if model and names else ("", ())


def caption_before_training(config: TrainConfig, model_folders: tuple[Path, ...], progress: Callable[[int, int], None] | None = None,
                            cancelled: Callable[[], bool] = lambda: False) -> CaptionReport | None:
    """Make what is missing; None when there was nothing to do. ValueError when a model that the user named cannot be used; one that was
    merely found costs a warning, and the run goes on."""
    model, names = planned_captions(config, model_folders)
    if not model:
        return None
    log.info("making captions for %d pictures with %s; auto_caption: false turns this off", len(names), Path(model).name)
    wishes = CaptionWishes(purpose=config.purpose, trigger=config.trigger, only=names, max_megapixels=config.max_megapixels)
    try:
        report = caption_folder(config.train_data_dir, ModelChoice(model, model_folders, config.device), wishes, progress, cancelled)
    except (ValueError, OutputError) as error:
        if config.caption_model and isinstance(error, ValueError):
            raise
        log.warning("warning: no captions were made (%s); training goes on without", error)
        return None
    log.info("%s", report.text())
    return report
