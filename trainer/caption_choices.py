"""What can be chosen for captions. Apart from the package that makes them, so that forms are there before anything of it is loaded."""
from __future__ import annotations

from dataclasses import dataclass

PURPOSES = ("any", "object", "person", "character", "style")
FORMS = ("auto", "metadata", "sidecars")
"""Where captions go: as the folder does already, metadata.csv, or text files beside the pictures."""


@dataclass(frozen=True)
class Known:
    """A model that is offered by a short name. `gigabytes` is what its download takes."""

    repo: str
    gigabytes: float
    what: str
    package: str = "transformers"
    files: str = r"[^/]+\.(json|txt|model|safetensors|bin|onnx|csv)"


KNOWN = {
    "blip-base": Known("Salesforce/blip-image-captioning-base", 0.99, "sentences, quick"),
    "blip-large": Known("Salesforce/blip-image-captioning-large", 1.88, "sentences"),
    "blip2": Known("Salesforce/blip2-opt-2.7b", 15.5, "sentences, for large graphics cards"),
    "coca": Known("laion/mscoco_finetuned_CoCa-ViT-L-14-laion2B-s13B-b90k", 2.55, "sentences and tags, through open_clip", "open_clip"),
    "clip": Known("openai/clip-vit-large-patch14", 1.71, "tags against a list",
                  files=r"(config|preprocessor_config|tokenizer\w*|vocab|special_tokens_map)\.json|merges\.txt|model\.safetensors"),
    "wd": Known("SmilingWolf/wd-vit-tagger-v3", 0.38, "tags for drawn pictures, through onnxruntime", "onnxruntime", r"model\.onnx|selected_tags\.csv|config\.json"),
}
