"""Runs in ComfyUI's Python without its server: what the nodes give when they are called as ComfyUI calls them. Prints one JSON object.

    python tests/nodes/inside_nodes.py COMFYUI_DIR BASE      BASE holds models/checkpoints/random.safetensors and input/me
"""
from __future__ import annotations

import asyncio
import importlib.util
import json
import logging
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def main() -> None:
    spec = importlib.util.spec_from_file_location("hotlora_bootstrap", ROOT / "__init__.py")
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    from hotlora.bench.comfy_host import enter, load

    base = Path(sys.argv[2])
    enter(Path(sys.argv[1]), "--cpu", "--base-directory", str(base))
    logging.disable(logging.WARNING)
    import server
    import torch

    server.PromptServer(asyncio.new_event_loop())
    with torch.inference_mode():
        model, clip, vae = load(base / "models" / "checkpoints" / "random.safetensors")
        found = {"settings": settings(), "gallery": gallery(base)}
        found["train"] = train(base, model, clip, vae)
        found["prompt"] = prompt(model, clip)
        found["compare"] = compare(model, clip, vae)
        found["unfinished"] = unfinished(base)
    print(json.dumps(found))


def called(node):
    """The node as ComfyUI prepares it for a call, as number 7 of a graph."""
    from comfy_api.latest import io

    return node.PREPARE_CLASS_CLONE({"hidden_inputs": {io.Hidden.unique_id: "7", io.Hidden.prompt: {}}})


def told(work, *args, **kwargs) -> str:
    try:
        work(*args, **kwargs)
    except ValueError as error:
        return str(error)
    return ""


def settings() -> dict:
    from hotlora.nodes.settings import HotLoRASettings

    schema = HotLoRASettings.define_schema()
    defaults = {one.id: one.as_dict().get("default") for one in schema.inputs}
    return {"defaults": HotLoRASettings.execute(**defaults)[0], "changed": HotLoRASettings.execute(**{
        **defaults, "save_steps": 50, "optimizer": "prodigy", "unet_target_modules": "[q_proj, v_proj]", "optimizer_args": "{beta3: 0.9}"})[0],
        "bad": told(HotLoRASettings.execute, **{**defaults, "lr_scheduler": "l3"}), "bad list": told(HotLoRASettings.execute, unet_target_modules="{a: 1}")}


def gallery(base: Path) -> dict:
    from hotlora.nodes.gallery import HotLoRAGallery

    (base / "input" / "me" / "torn.png").write_bytes(b"no picture")
    out = called(HotLoRAGallery).execute("me", 2)
    (base / "input" / "me" / "torn.png").unlink()
    return {"value": out[0], "report": out[1], "shown": len(out.ui["images"]), "validated": [
        HotLoRAGallery.validate_inputs(folder) for folder in (None, "me", str(base / "input" / "me"), "nowhere", "")]}


def train(base: Path, model, clip, vae) -> dict:
    from hotlora.nodes.train import HotLoRATrain

    values = {"model": model, "clip": clip, "vae": vae, "gallery": {"train_data_dir": str(base / "input" / "me"), "repeats": 1}, "trigger": "sks",
              "preset": "quick", "steps": 4, "rank": 2, "learning_rate": 0.01, "resolution": 64, "seed": 0}
    node = called(HotLoRATrain)
    with_previews = node.execute(name="seen", settings={"preview_steps": 2, "preview_prompts": ["one", "two"]}, **values)
    plain = node.execute(name="plain", **values)
    return {"tag": with_previews[2], "patched": [len(one.patches) for one in (model, with_previews[0], plain[0])], "plot": describe(with_previews[3]),
            "previews": describe(with_previews[4]), "no previews": describe(plain[4]), "same weights": with_previews[0].model is model.model,
            "told": plain.ui["text"], "names": [HotLoRATrain.validate_inputs(name, None) for name in (None, "my face", "a/b")],
            "presets": [HotLoRATrain.validate_inputs("me", preset) for preset in (None, "best", "thorough", "longest")]}


def describe(images) -> dict:
    return {"shape": list(images.shape), "dtype": str(images.dtype), "low": images.min().item(), "high": images.max().item()}


def prompt(model, clip) -> dict:
    from hotlora.nodes.prompt import HotLoRAPrompt

    text = "a photo <lora:seen:0.5> of sks <lora:plain:unet=0.2>"
    applied, applied_clip, conditioning, plain = HotLoRAPrompt.execute(model, clip, text).args
    alone = HotLoRAPrompt.execute(model, clip, "a photo of sks").args[2]
    strengths = sorted({patch[0] for patches in applied.patches.values() for patch in patches})
    return {"plain": plain, "strengths": strengths, "untouched": len(model.patches), "same text": bool((conditioning[0][0] == alone[0][0]).all()),
            "fingerprint": HotLoRAPrompt.fingerprint_inputs(text) == HotLoRAPrompt.fingerprint_inputs(text),
            "missing": HotLoRAPrompt.fingerprint_inputs("<lora:nobody:1>") == HotLoRAPrompt.fingerprint_inputs("<lora:nobody:1>"),
            "unknown": told(HotLoRAPrompt.execute, model, clip, "<lora:sen:1>")}


def compare(model, clip, vae) -> dict:
    from hotlora.nodes.compare import HotLoRACompare
    from hotlora.nodes.grids import evenly, read_weights

    request = {"model": model, "clip": clip, "vae": vae, "prompt": "a photo", "negative": "", "max_rows": 2, "seed": 0, "steps": 1, "cfg": 2.0,
               "sampler_name": "euler", "scheduler": "normal", "width": 64, "height": 64}
    grid = called(HotLoRACompare).execute(name="seen", weights="0.5; 1", **request)[0]
    return {"grid": describe(grid), "bad weight": told(HotLoRACompare.execute, name="seen", weights="a lot", **request), "weights": read_weights("0.4, -1;2"),
            "rows": [list(evenly(dict.fromkeys(range(7)), count)) for count in (1, 3, 7, 9)]}


def unfinished(base: Path) -> list:
    from hotlora.nodes.unfinished import unfinished_runs

    before = unfinished_runs()
    for name, steps in (("one", (20, 40)), ("two [x]", (5,)), ("over", ())):
        folder = base / "output" / "hotlora" / name
        folder.mkdir(parents=True)
        for step in steps:
            (folder / f"{name}-{step:06d}.state").touch()
    return [before, sorted((run["name"], run["step"]) for run in unfinished_runs())]


if __name__ == "__main__":
    main()
