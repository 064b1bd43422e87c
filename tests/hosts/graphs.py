"""ComfyUI graphs as its API takes them."""
from __future__ import annotations

from itertools import count

_drawings = count(1)


def loader(model: str = "random.safetensors") -> dict:
    return {"1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": model}}}


def drawing(model=("1", 0), clip=("1", 1), vae=("1", 2), text: str = "a photo of sks", conditioning=None, size: int = 64, steps: int = 2, seed: int = 5) -> dict:
    """Nodes 50 to 56: sample one picture and save it (node 56).

    ComfyUI keeps what nodes gave for as long as it has memory. The negative prompt has one space more each time, which CLIP does
    not see, so that the picture is drawn each time.
    """
    model, clip, vae = list(model), list(clip), list(vae)
    graph = {
        "51": {"class_type": "CLIPTextEncode", "inputs": {"clip": clip, "text": " " * next(_drawings)}},
        "52": {"class_type": "EmptyLatentImage", "inputs": {"width": size, "height": size, "batch_size": 1}},
        "53": {"class_type": "KSampler", "inputs": {
            "model": model, "seed": seed, "steps": steps, "cfg": 5.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0,
            "positive": list(conditioning) if conditioning else ["50", 0], "negative": ["51", 0], "latent_image": ["52", 0]}},
        "54": {"class_type": "VAEDecode", "inputs": {"samples": ["53", 0], "vae": vae}},
        "56": {"class_type": "SaveImage", "inputs": {"images": ["54", 0], "filename_prefix": "drawn"}},
    }
    if not conditioning:
        graph["50"] = {"class_type": "CLIPTextEncode", "inputs": {"clip": clip, "text": text}}
    return graph


def training(folder: str, name: str = "my_face", steps: int = 3, settings: dict | None = None, model=("1", 0), **widgets) -> dict:
    """Nodes 10 to 14: gallery, settings, training, and its plot saved (node 14)."""
    graph = {
        "10": {"class_type": "HotLoRAGallery", "inputs": {"folder": folder, "repeats": 1}},
        "12": {"class_type": "HotLoRATrain", "inputs": {
            "model": list(model), "clip": ["1", 1], "vae": ["1", 2], "gallery": ["10", 0], "name": name, "trigger": "sks", "preset": "balanced",
            "steps": steps, "rank": 4, "learning_rate": 1e-3, "resolution": 64, "seed": 1, **widgets}},
        "14": {"class_type": "SaveImage", "inputs": {"images": ["12", 3], "filename_prefix": "loss"}},
    }
    if settings is not None:
        graph["11"] = {"class_type": "HotLoRASettings", "inputs": settings}
        graph["12"]["inputs"]["settings"] = ["11", 0]
    return graph


def prompted(text: str, model=("1", 0), clip=("1", 1), **request) -> dict:
    """Node 20: HotLoRA Prompt, and a drawing with what it gives."""
    return {"20": {"class_type": "HotLoRAPrompt", "inputs": {"model": list(model), "clip": list(clip), "text": text}},
            **drawing(model=("20", 0), clip=("20", 1), conditioning=("20", 2), **request)}
