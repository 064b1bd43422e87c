"""A captioning model from a name or a path: what kind it is is read off its files."""
from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

from .download import download, find_local, not_here
from .models import CaptionModel
from .vocabulary import FILE, Section, own_section, read_vocabulary


@dataclass(frozen=True)
class ModelChoice:
    """Which model captions, and where it may come from.

    `model` is a path or a name (see caption_choices.KNOWN); `folders` are the host's model folders. Nothing is downloaded unless `may_download`.
    """

    model: str
    folders: tuple[Path, ...] = (Path("models"),)
    device: str = "auto"
    may_download: bool = False
    own_tags: tuple[str, ...] = ()
    vocabulary: Path | None = FILE
    announce: Callable[[str], None] = print
    progress: Callable[[int, int], None] | None = field(default=None)

    def sections(self) -> list[Section]:
        """What a CLIP model is asked: the user's own list first, then the vocabulary."""
        own = [own_section(list(self.own_tags))] if self.own_tags else []
        return own + (read_vocabulary(self.vocabulary) if self.vocabulary else [])


def load_model(choice: ModelChoice) -> CaptionModel:
    """ValueError when it is not on this machine, cannot be downloaded, or is no captioning model."""
    path = find_local(choice.model, list(choice.folders))
    if path is None:
        if not choice.may_download:
            raise not_here(choice.model, list(choice.folders))
        path = download(choice.model, list(choice.folders), choice.announce, choice.progress)
    kind = kind_of(path)
    try:
        if kind == "onnx":
            from .onnx_tagger import OnnxTagger

            return OnnxTagger(path if path.is_file() else _onnx_file(path), choice.device)
        if kind in ("blip", "blip-2"):
            from .blip import Blip

            return Blip(path, kind, choice.device)
        from .clip import ClipCaptions

        return ClipCaptions(load_clip(path, choice.device), choice.sections())
    except ImportError as error:
        raise ValueError(f"the captioning model {path} needs the package {error.name or error}; install it with `pip install transformers`") from error


def load_clip(path: Path, device: str = "auto") -> Any:
    """A CLIP model that embeds pictures and texts."""
    from .clip import OpenClip, TransformersClip

    return TransformersClip(path, device) if kind_of(path) == "clip" else OpenClip(path, device)


def kind_of(path: Path) -> str:
    """ "blip", "blip-2", "clip", "open_clip" or "onnx". ValueError when it is none of them."""
    if path.is_file():
        if path.suffix.lower() == ".onnx":
            return "onnx"
        if path.suffix.lower() in (".safetensors", ".bin", ".pt", ".pth"):
            return "open_clip"
        raise ValueError(f"{path} is no captioning model; give an .onnx file, a file of open_clip, or a folder")
    if _onnx_file(path) is not None:
        return "onnx"
    if (path / "open_clip_config.json").is_file():
        return "open_clip"
    try:
        model_type = json.loads((path / "config.json").read_text(encoding="utf-8")).get("model_type", "")
    except OSError:
        raise ValueError(f"{path} is no captioning model; a folder needs config.json, open_clip_config.json, or an .onnx file with its selected_tags.csv") from None
    except (ValueError, AttributeError):
        raise ValueError(f"{path / 'config.json'} is not JSON; copy it again from where the model is from") from None
    if model_type in ("blip", "blip-2", "clip"):
        return model_type
    raise ValueError(f"{path} is a model of type {str(model_type)[:60]!r}; captions are made by blip, blip-2 and clip")


def _onnx_file(folder: Path) -> Path | None:
    return next(iter(sorted(folder.glob("*.onnx"))), None)
