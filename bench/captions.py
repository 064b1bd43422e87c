"""How much of captioning is the model itself: `python bench/captions.py [--json]`.

A BLIP in the shape of blip-image-captioning-base with random weights writes captions for drawn JPEG files of 1024 pixels, eight at a time.
What is not spent in the model is decoding, preparing and writing that its own time did not hide.
"""
from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import __init__  # noqa: F401, E402  registers the package

import torch  # noqa: E402

from hotlora.tests.trainer.captions.small_models import _bert_tokenizer, _preprocessor  # noqa: E402
from hotlora.trainer.captions.automatic import CaptionWishes, caption_folder  # noqa: E402
from hotlora.trainer.captions.library import ModelChoice, load_model  # noqa: E402
from hotlora.trainer.demo import drawings  # noqa: E402


def write_blip(folder: Path) -> Path:
    """The published shape, 224 M parameters, with a short list of words."""
    from transformers import BlipConfig, BlipForConditionalGeneration

    tokenizer = _bert_tokenizer(folder)
    text = {"vocab_size": len(tokenizer), "bos_token_id": tokenizer.convert_tokens_to_ids("[DEC]"), "eos_token_id": tokenizer.sep_token_id,
            "sep_token_id": tokenizer.sep_token_id, "pad_token_id": tokenizer.pad_token_id}
    torch.manual_seed(0)
    BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config={"image_size": 384})).save_pretrained(folder)
    _preprocessor(folder, 384, "BlipImageProcessor")
    return folder


def write_pictures(folder: Path, count: int) -> Path:
    rng = random.Random(0)
    folder.mkdir()
    for i in range(count):
        drawings.draw_mascot(rng, rng.choice(list(drawings.BACKGROUNDS))).resize((1024, 768)).save(folder / f"{i:03d}.jpg", quality=92)
    return folder


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--pictures", type=int, default=24)
    options.add_argument("--device", default="auto")
    options.add_argument("--json", action="store_true")
    asked = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = load_model(ModelChoice(str(write_blip(Path(folder) / "blip")), device=asked.device))
        report = caption_folder(write_pictures(Path(folder) / "pictures", asked.pictures), model, CaptionWishes(batch_size=8))
    outside = 1 - report.model_seconds / report.seconds
    found = {"pictures": asked.pictures, "seconds_per_picture": round(report.seconds / asked.pictures, 3), "outside_model": round(outside, 4)}
    print(json.dumps(found) if asked.json else f"{found['seconds_per_picture']} s per picture at batch 8, {100 * outside:.1f} % of it outside the model")


if __name__ == "__main__":
    main()
