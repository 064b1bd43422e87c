"""Sentences by BLIP (Li et al. 2022, 2201.12086) and BLIP-2 (2301.12597), through transformers, from a folder on this machine."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .models import Said, choose_device, choose_dtype, give_memory_back, input_from_folder, load_from_folder

CLASSES = {"blip": "BlipForConditionalGeneration", "blip-2": "Blip2ForConditionalGeneration"}
GENERATION = {"max_new_tokens": 40, "min_length": 6, "num_beams": 3, "no_repeat_ngram_size": 3, "do_sample": False}


class Blip:
    def __init__(self, folder: Path, model_type: str, device: str | torch.device = "auto", dtype: torch.dtype | None = None) -> None:
        """ValueError when the folder is not complete."""
        self.name, self.device = folder.name, choose_device(device)
        module, self.tokenizer = load_from_folder(CLASSES[model_type], folder, dtype or choose_dtype(self.device))
        self.module = module.to(self.device).eval().requires_grad_(False)
        self.input = input_from_folder(folder, self.module.config.vision_config.image_size, "stretch")

    def prepare(self, picture: Image.Image) -> np.ndarray:
        return self.input(picture)

    @torch.no_grad()
    def describe(self, batch: np.ndarray) -> list[Said]:
        x_B3HW = torch.from_numpy(batch).to(self.device, self.module.dtype)
        ids_BL = self.module.generate(pixel_values=x_B3HW, **GENERATION)
        return [Said(clean_sentence(text)) for text in self.tokenizer.batch_decode(ids_BL, skip_special_tokens=True)]

    def close(self) -> None:
        self.module = None
        give_memory_back(self.device)


def clean_sentence(text: str) -> str:
    """One line without the marks that models put around and into their sentences."""
    for mark in ("<image>", "<start_of_text>", "<end_of_text>", "[unused0]", "arafed ", "araffe ", "there is ", "there are "):
        text = text.replace(mark, "" if mark[0] in "<[at" else " ")
    return " ".join(text.split()).strip(" .,")
