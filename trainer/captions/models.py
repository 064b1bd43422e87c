"""What a captioning model is to us, and how its pictures are prepared. The models themselves are in blip.py, clip.py and onnx_tagger.py."""
from __future__ import annotations

import gc
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Tag:
    """`kind` is the section of the vocabulary that it is from ("own" for the user's list), or general, character, rating."""

    text: str
    kind: str
    confidence: float


@dataclass(frozen=True)
class Said:
    """What a model says of one picture: a sentence, tags, or both."""

    sentence: str = ""
    tags: tuple[Tag, ...] = ()


class CaptionModel(Protocol):
    """`prepare` runs in several threads, `describe` in one. After `close` nothing of the model is left in memory."""

    name: str

    def prepare(self, picture: Image.Image) -> np.ndarray:
        """An RGB picture as the model's input, without the batch."""

    def describe(self, batch: np.ndarray) -> list[Said]:
        """One `Said` for each prepared picture."""

    def close(self) -> None:
        """Give the memory back."""


@dataclass(frozen=True)
class Input:
    """How a model wants its pictures: `fit` is "stretch" to the size, "crop" the middle, or "pad" with white to a square."""

    width: int
    height: int
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD
    fit: str = "stretch"
    resample: int = int(Image.Resampling.BICUBIC)

    def __call__(self, picture: Image.Image) -> np.ndarray:
        """`(3, H, W)` float32, normalized."""
        values_HW3 = np.asarray(self.fitted(picture), dtype=np.float32) / 255
        return np.ascontiguousarray(((values_HW3 - np.float32(self.mean)) / np.float32(self.std)).transpose(2, 0, 1))

    def fitted(self, picture: Image.Image) -> Image.Image:
        size = (self.width, self.height)
        if self.fit == "crop":
            scale = max(self.width / picture.width, self.height / picture.height)
            wide, high = max(self.width, round(picture.width * scale)), max(self.height, round(picture.height * scale))
            picture = picture.resize((wide, high), self.resample, reducing_gap=3.0)
            left, top = (wide - self.width) // 2, (high - self.height) // 2
            return picture.crop((left, top, left + self.width, top + self.height))
        if self.fit == "pad":
            side = max(picture.size)
            square = Image.new("RGB", (side, side), (255, 255, 255))
            square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
            picture = square
        return picture.resize(size, self.resample, reducing_gap=3.0)


def input_from_folder(folder: Path, size: int, fit: str) -> Input:
    """The input that a folder's preprocessor_config.json asks for; `size` and `fit` where it says nothing."""
    asked: dict[str, Any] = {}
    path = folder / "preprocessor_config.json"
    if path.is_file():
        try:
            asked = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is not JSON ({error}); copy it again from where the model is from") from None
    asked = asked.get("image_processor", asked)
    crop = asked.get("crop_size") if asked.get("do_center_crop") else None
    wanted = crop or asked.get("size") or size
    if isinstance(wanted, dict):
        wanted = (wanted.get("width", wanted.get("shortest_edge", size)), wanted.get("height", wanted.get("shortest_edge", size)))
    width, height = wanted if isinstance(wanted, (list, tuple)) else (wanted, wanted)
    return Input(int(width), int(height), tuple(asked.get("image_mean", CLIP_MEAN)), tuple(asked.get("image_std", CLIP_STD)),
                 "crop" if crop else fit if not asked else "stretch" if "do_center_crop" not in asked else fit)


def load_from_folder(kind: str, folder: Path, dtype: torch.dtype) -> tuple[torch.nn.Module, Any]:
    """(model, tokenizer) of a class of transformers from a folder on this machine. ValueError when the folder is not complete or is damaged."""
    import transformers

    try:
        state, where = _pickled(folder), str(folder)
        given = {} if state is None else {"config": transformers.AutoConfig.from_pretrained(where, local_files_only=True), "state_dict": state}
        module = getattr(transformers, kind).from_pretrained(None if given else where, local_files_only=True, torch_dtype=dtype, **given)
        return module, transformers.AutoTokenizer.from_pretrained(where, local_files_only=True)
    except ImportError:
        raise
    except Exception as error:  # safetensors and pickle raise classes of their own without a common base
        reason = (str(error).strip() or type(error).__name__).split("\n")[0][:200]
        raise ValueError(f"the captioning model in {folder} cannot be loaded ({reason}); it needs config.json, the tokenizer's files and "
                         "model.safetensors or pytorch_model.bin, as they are published") from error


def _pickled(folder: Path) -> dict[str, torch.Tensor] | None:
    """Weights that are there as pickles only, read in a way that runs no code, which older transformers do not see to; None for others."""
    parts = sorted(folder.glob("pytorch_model*.bin"))
    if not parts or any(folder.glob("*.safetensors")):
        return None
    return {key: tensor for part in parts for key, tensor in torch.load(str(part), map_location="cpu", weights_only=True).items()}


def choose_device(device: str | torch.device = "auto") -> torch.device:
    if str(device) != "auto":
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps") if getattr(torch.backends, "mps", None) and torch.backends.mps.is_available() else torch.device("cpu")


def choose_dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "cpu" else torch.float16


def give_memory_back(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
