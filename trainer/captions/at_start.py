"""Captions at the start of a run, for pictures that have none: only with a model that is on this machine, never with a download."""
from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from .automatic import CaptionReport, CaptionWishes, caption_folder, pictures_without
from .download import first_local
from .library import ModelChoice
from .writing import destination
from ..config import TrainConfig
from ..gallery_files import folder_repeats, relative_name
from ..left_out import folders_apart
from ..memory import is_out_of_memory
from ..output_files import OutputError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlannedCaptions:
    """What would be written before training: by which model, for which pictures by name, and into what."""

    model: str
    names: tuple[str, ...]
    into: str

    @property
    def model_name(self) -> str:
        return Path(self.model).name

    def sentence(self) -> str:
        count = f"{len(self.names)} caption" + ("" if len(self.names) == 1 else "s")
        return (f"{count} would be written by {self.model_name} into {self.into} of the picture folder, marked, and can be taken out again; "
                "auto_caption: false turns this off")


def planned_captions(config: TrainConfig, model_folders: tuple[Path, ...]) -> PlannedCaptions | None:
    """None when there is nothing to do or nothing to do it with."""
    if not config.auto_caption or config.metadata_path:
        return None
    root, missing, _ = pictures_without(config.train_data_dir, apart=folders_apart(config))
    # a folder called 10_sks dog is the caption of what is in it, in the form of kohya's sd-scripts
    names = tuple(relative_name(path, root) for path in missing if config.trigger or not folder_repeats(path, root)[1])
    names = tuple(name for name in names if name not in config.leave_out)
    model = config.caption_model or str(first_local(list(model_folders)) or "")
    return PlannedCaptions(model, names, destination(root)) if model and names else None


def caption_before_training(config: TrainConfig, model_folders: tuple[Path, ...], device: str | None = None,
                            progress: Callable[[int, int], None] | None = None, cancelled: Callable[[], bool] = lambda: False) -> CaptionReport | None:
    """Make what is missing; None when there was nothing to do. ValueError when a model that the user named cannot be used, or torch's own error
    when it does not fit into the memory; one that was merely found costs a warning, and the run goes on."""
    planned = planned_captions(config, model_folders)
    if planned is None:
        return None
    log.info("writing captions for %d pictures with %s into %s; auto_caption: false turns this off", len(planned.names), planned.model_name, planned.into)
    wishes = CaptionWishes(purpose=config.purpose, trigger=config.trigger, only=planned.names, max_megapixels=config.max_megapixels)
    try:
        report = caption_folder(config.train_data_dir, ModelChoice(planned.model, model_folders, device or config.device), wishes, progress, cancelled)
    except Exception as error:
        if not isinstance(error, OutputError) and (config.caption_model or not (isinstance(error, ValueError) or is_out_of_memory(error))):
            raise
        log.warning("warning: no captions were made (%s); training goes on without", error)
        return None
    log.info("%s", report.text())
    return report
