"""Tags by an ONNX tagger of the WD family: `model.onnx` beside `selected_tags.csv`, run by onnxruntime."""
from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image

from .models import Input, Said, Tag

GENERAL, CHARACTER = 0.35, 0.85
KINDS = {0: "general", 4: "character", 9: "rating"}
TAG_FILE = "selected_tags.csv"


class OnnxTagger:
    def __init__(self, model: Path, device: str = "auto", general: float = GENERAL, character: float = CHARACTER) -> None:
        """ValueError when onnxruntime or the list of tags is missing, or when the two files do not belong together."""
        try:
            import onnxruntime
        except ImportError:
            raise ValueError(f"{model} needs the package onnxruntime; install it with `pip install onnxruntime`, or choose a BLIP or CLIP model") from None
        self.name, self.limits = model.parent.name, {"general": general, "character": character}
        self.tags = _read_tags(model.parent / TAG_FILE)
        providers = onnxruntime.get_available_providers()
        if str(device) == "cpu":
            providers = ["CPUExecutionProvider"]
        try:
            self.session = onnxruntime.InferenceSession(str(model), providers=providers)
        except Exception as error:  # onnxruntime raises classes of its own without a common base
            raise ValueError(f"{model} cannot be loaded ({str(error).strip()[:200]}); copy it again from where it is from") from error
        taken = self.session.get_inputs()[0]
        self.input_name = taken.name
        side = next((n for n in (taken.shape[1], taken.shape[2]) if isinstance(n, int) and n > 3), 448)
        self.channels_first = taken.shape[1] == 3
        self.input = Input(side, side, fit="pad")
        outputs = self.session.get_outputs()[0].shape[-1]
        if isinstance(outputs, int) and outputs != len(self.tags):
            raise ValueError(f"{model} has {outputs} tags and {TAG_FILE} has {len(self.tags)}; both must be from the same release")

    def prepare(self, picture: Image.Image) -> np.ndarray:
        # these taggers were trained on BGR values from 0 to 255
        values_HW3 = np.asarray(self.input.fitted(picture), dtype=np.float32)[..., ::-1]
        return np.ascontiguousarray(values_HW3.transpose(2, 0, 1) if self.channels_first else values_HW3)

    def describe(self, batch: np.ndarray) -> list[Said]:
        scores_BN = np.asarray(self.session.run(None, {self.input_name: batch})[0], dtype=np.float32)
        said = []
        for scores_N in scores_BN:
            chosen = [Tag(text, kind, float(score)) for (text, kind), score in zip(self.tags, scores_N) if score >= self.limits.get(kind, 2.0)]
            said.append(Said(tags=tuple(sorted(chosen, key=lambda tag: -tag.confidence))))
        return said

    def close(self) -> None:
        self.session = None


def _read_tags(path: Path) -> list[tuple[str, str]]:
    """(tag as people write it, kind) in the order of the model's outputs."""
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines()))
        tags = [(readable(row["name"]), KINDS.get(int(row.get("category") or 0), "general")) for row in rows]
    except OSError as error:
        raise ValueError(f"the list of tags {path} cannot be opened ({error.strerror or error}); it must lie beside the model") from error
    except (KeyError, ValueError, TypeError):
        raise ValueError(f"{path} is no list of tags; it needs the columns tag_id, name and category") from None
    if not tags:
        raise ValueError(f"{path} has no tags; copy it again from where the model is from")
    return tags


def readable(tag: str) -> str:
    """With spaces for underscores, except in faces such as >_<."""
    return tag if len(tag) <= 3 or not any(char.isalpha() for char in tag) else tag.replace("_", " ")
