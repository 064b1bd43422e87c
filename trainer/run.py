"""From settings to a session that is ready to train: the gallery first, so that its errors come before anything is loaded."""
from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch import nn

from .adapter import Adapter
from .backend import Backend
from .cache import CacheReport
from .captions.at_start import caption_before_training
from .config import TrainConfig
from .dataset import Dataset, cache_folder
from .distributed import ALONE, WHOLE, Alone, Part
from .gallery import Gallery, read_gallery
from .left_out import folders_apart
from .lora_file import LoraWeights, load_lora, to_file_weights, to_layers
from .memory import Plan, attempt, explained
from .names import check_name, safe_name
from .objective import prediction_of_run
from .optimizers import check_optimizer
from .output_files import OutputError, unwritable
from .peft_format import to_peft
from .samples import default_steps
from .session import Listener, Session
from .turns import Turn
from .validate import choose_held_out

log = logging.getLogger(__name__)


@dataclass
class Material:
    """What a run is made of before a base is loaded."""

    config: TrainConfig
    name: str
    gallery: Gallery
    prior: Gallery | None


def read_material(config: TrainConfig, make_captions: bool = True, model_folders: tuple[Path, ...] = (Path("models"),), device: str | None = None,
                  progress=None, cancelled=lambda: False) -> Material:
    """Read the galleries and settle the name; captions that are missing are made first, on `device` with a model from the host's `model_folders`.

    ValueError for a folder without a readable picture, a captioning model that cannot be used, or a bad name.
    """
    if make_captions:
        caption_before_training(config, model_folders, device, progress, cancelled)
    apart = folders_apart(config)
    gallery = read_gallery(config.train_data_dir, metadata_path=config.metadata_path, trigger=config.trigger, repeats=config.repeats,
                           masks=config.masks, max_megapixels=config.max_megapixels, leave_out=config.leave_out, apart=apart)
    prior = None
    if config.reg_data_dir:
        prior = read_gallery(config.reg_data_dir, masks=config.masks, max_megapixels=config.max_megapixels, is_prior=True, apart=apart)
    name = check_name(config.name) if config.name else safe_name(Path(config.train_data_dir).resolve().name)
    return Material(config, name, gallery, prior)


def make_adapter(config: TrainConfig, backend: Backend) -> Adapter:
    """A new adapter, or one that continues from `init_lora` with that file's own ranks and alphas."""
    components = backend.components()
    if config.init_lora:
        weights, _ = load_lora(config.init_lora)
        layers = to_layers(_without_encoders(weights, components, config), backend.lora_key, components, backend.name or "this base")
        return Adapter.from_weights(components, layers, dropout=config.lora_dropout)
    targets = {name: config.unet_target_modules if name == "unet" else (config.text_encoder_target_modules or []) for name in components}
    alpha = float(config.lora_rank if config.lora_alpha is None else config.lora_alpha)
    return Adapter.create(components, targets, rank=config.lora_rank, alpha=alpha, dropout=config.lora_dropout, rslora=config.rslora,
                          dora=config.dora, conv_rank=config.conv_rank, conv_alpha=config.conv_alpha, seed=config.seed)


def _without_encoders(weights: LoraWeights, components: dict[str, nn.Module], config: TrainConfig) -> LoraWeights:
    """The layers of a LoRA without those of text encoders that are not trained, as captions are encoded without them then. ValueError when there are no
    others."""
    file, one_encoder = config.init_lora, {"te", "te1"}
    known = components.keys() | (one_encoder if one_encoder & components.keys() else set()) if config.text_encoder_target_modules else set()
    advice = "" if config.text_encoder_target_modules or components.keys() == {"unet"} else "; set text_encoder_target_modules to train them further"
    kept = {prefix: layer for prefix, layer in weights.items() if not prefix.startswith("lora_te") or prefix.split("_")[1] in known}
    if not kept:
        raise ValueError(f"init_lora {file} has layers of a text encoder only, which is not trained here; choose a LoRA that has others{advice}")
    if len(kept) < len(weights):
        log.warning("%s also changes the text encoder, which is not trained here: %d of its %d layers are left out, of the training and of the result%s",
                    Path(file).name, len(weights) - len(kept), len(weights), advice)
    return kept


def _with_possible_form(config: TrainConfig, adapter: Adapter, backend: Backend) -> TrainConfig:
    """The config with the kohya form where the one for diffusers cannot be written, which is better known now than after the training."""
    if config.save_format == "kohya":
        return config
    try:
        to_peft(to_file_weights(adapter.weights(), backend.lora_key))
    except ValueError as error:
        log.warning("save_format is %s, but %s: the kohya form alone is written", config.save_format, error)
        return replace(config, save_format="kohya")
    return config


def total_steps(config: TrainConfig, dataset: Dataset) -> int:
    if config.steps is not None:
        return config.steps
    if config.epochs is not None:
        return config.epochs * dataset.order.steps_per_epoch
    return default_steps(len(dataset.gallery.examples), dataset.order.group)


def make_session(material: Material, backend: Backend, listeners: list[Listener] | None = None, progress=None, ranks: Alone = ALONE) -> Session:
    """Encode the gallery and put the session together. OutputError when the output folder cannot be written to.

    `ranks`: the processes that share the run; each of them calls this.
    """
    config = material.config
    plan = Plan(backend, config.gradient_checkpointing, config.batch_size)

    def attempted(work):
        """Before the first step nothing but the room beside the encoders and the denoiser can help."""
        with explained(lambda: plan.advice(config.resolution or backend.resolution)):
            return attempt(plan, work, encoding=True)

    adapter = ranks.together(lambda: attempted(lambda: make_adapter(config, backend)))
    ranks.same_values(adapter.parameters())
    ranks.together(lambda: _check_for_base(config, backend, adapter))
    config = _with_possible_form(config, adapter, backend)
    held_out = []
    if config.validation:
        held_out = ranks.leaders_first(lambda _: choose_held_out(material.gallery, cache_folder(config) / "looks.npz", config.seed, config.max_megapixels))
    dataset = Dataset(config, backend, material.gallery, material.prior, held_out)
    ranks.together(lambda: ranks.is_writer and check_folders(config))

    def prepare(part: Part) -> dict[str, CacheReport]:
        return attempted(lambda: _prepare(dataset, backend, progress, part))

    reports = ranks.shared(cache_folder(config), prepare)
    for what, report in reports.items():
        log.info("%s: %d encoded, %d from the cache%s", what, report.encoded, report.reused,
                 f", {report.repaired} damaged and made again" if report.repaired else "")
    if not dataset.trains_text:
        backend.offload_encoders()
        plan.encoders_away = not dataset.encodes_in_steps
    make = partial(ranks.session, config, backend, dataset, adapter, name=material.name, total_steps=total_steps(config, dataset), listeners=listeners, plan=plan)
    # several processes speak with each other meanwhile, which one of them cannot do twice
    return attempted(make) if ranks.world == 1 else make()


def _check_for_base(config: TrainConfig, backend: Backend, adapter: Adapter) -> None:
    """What a session would turn down, once the base is known and while nothing is encoded yet. `preflight` finds the rest without a base."""
    prediction_of_run(config, backend.prediction)
    check_optimizer(config, adapter.parameter_groups(config.learning_rate, config.text_encoder_lr, config.lora_plus_ratio))


def _prepare(dataset: Dataset, backend: Backend, progress, part: Part = WHOLE) -> dict[str, CacheReport]:
    """What is prepared is in the cache: doing it again does only what is missing."""
    with Turn(backend, backend.borrow) as turn:
        def prepared(done: int, total: int) -> None:
            if progress:
                progress(done, total)
            turn.give_way()

        return dataset.prepare(total_steps(dataset.config, dataset), prepared, part)


def check_folders(config: TrainConfig) -> None:
    check_writable("output_dir", Path(config.output_dir))
    if config.lora_dir:
        check_writable("lora_dir", Path(config.lora_dir))


def check_writable(setting: str, folder: Path) -> None:
    """Find out before the training whether its result can be written."""
    reason = unwritable(folder, make=True)
    if reason:
        another = (", which in ComfyUI is one more folder of loras in extra_model_paths.yaml, and in stable-diffusion-webui --lora-dir"
                   if setting == "lora_dir" else "")
        raise OutputError(f"{setting} {folder} cannot be written to ({reason}); change its permissions or set another {setting}{another}")


def epochs_of(steps: int, dataset: Dataset) -> int:
    return math.ceil(steps / dataset.order.steps_per_epoch)
