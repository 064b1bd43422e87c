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
        found["cancel"] = cancel(base, model, clip, vae)
        found["backend"] = backend(model, clip, vae)
        found["inpainting"] = inpainting(base / "models" / "checkpoints" / "random.safetensors")
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
        "bad": told(HotLoRASettings.execute, **{**defaults, "lr_scheduler": "l3"}), "bad list": told(HotLoRASettings.execute, unet_target_modules="{a: 1}"),
        "bad mapping": told(HotLoRASettings.execute, optimizer_args="{beta3: "), "prompts": [HotLoRASettings.execute(preview_prompts=text)[0]["preview_prompts"] for text in (
            "[one, two]", "@sks, smiling", "a sign: open", "[sks|dog], {red}", "'quoted'")]}


def gallery(base: Path) -> dict:
    from hotlora.nodes.gallery import HotLoRAGallery

    (base / "input" / "me" / "torn.png").write_bytes(b"no picture")
    out = called(HotLoRAGallery).execute("me", 2)
    (base / "input" / "me" / "torn.png").unlink()
    return {"value": out[0], "report": out[1], "shown": len(out.ui["images"]), "validated": [
        HotLoRAGallery.validate_inputs(folder) for folder in (None, "me", str(base / "input" / "me"), "nowhere", "", "long" * 100)],
        "from another node": HotLoRAGallery.fingerprint_inputs(None) == HotLoRAGallery.fingerprint_inputs(None)}


def train(base: Path, model, clip, vae) -> dict:
    from hotlora.nodes.prompt import HotLoRAPrompt
    from hotlora.nodes.train import HotLoRATrain

    values = widgets(base, model, clip, vae)
    node = called(HotLoRATrain)
    with_previews = node.execute(name="seen", settings={"preview_steps": 2, "preview_prompts": ["one", "two"]}, **values)
    plain = node.execute(name="plain", **values)
    averaged = node.execute(name="averaged", settings={"ema_decay": 0.9}, **values)
    by_tag = HotLoRAPrompt.execute(model, clip, averaged[2])[0]
    return {"tag": with_previews[2], "patched": [len(one.patches) for one in (model, with_previews[0], plain[0])], "plot": describe(with_previews[3]),
            "previews": describe(with_previews[4]), "no previews": describe(plain[4]), "same weights": with_previews[0].model is model.model,
            "told": plain.ui["text"], "same as by its tag": tensors(averaged[0]) == tensors(by_tag), "names": [HotLoRATrain.validate_inputs(name, None) for name in (None, "my face", "a/b")],
            "presets": [HotLoRATrain.validate_inputs("me", preset) for preset in (None, "best", "thorough", "longest")]}


def widgets(base: Path, model, clip, vae) -> dict:
    return {"model": model, "clip": clip, "vae": vae, "gallery": {"train_data_dir": str(base / "input" / "me"), "repeats": 1}, "trigger": "sks",
            "preset": "quick", "steps": 4, "rank": 2, "learning_rate": 0.01, "resolution": 64, "seed": 0}


def tensors(model) -> dict:
    """What the LoRAs on a model would add to it, as data."""
    return {str(key): [[patch[0], *(x.tolist() for x in patch[1].weights if hasattr(x, "tolist"))] for patch in patches] for key, patches in model.patches.items()}


def cancel(base: Path, model, clip, vae) -> dict:
    """A run that is cancelled, one of that name with another seed that is too and then goes on, and one that is cancelled in its last step."""
    values = {**widgets(base, model, clip, vae), "name": "cancelled"}
    folder = base / "output" / "hotlora" / "cancelled"

    def states(place: Path) -> list[str]:
        return sorted(path.name for path in place.glob("*.state"))

    return {"first": watched(values, press_at=3), "left": states(folder), "other": watched({**values, "seed": 1}, press_at=1), "own": states(folder),
            "aside": states(folder / "earlier-1"), "again": watched({**values, "seed": 1}), "over": states(folder),
            "last": watched({**values, "name": "late"}, press_at=4)}


def watched(values: dict, press_at: int = 0) -> dict:
    """HotLoRA Train, with the cancel button pressed in a step: the steps it did, whether it gave something, and whether the rest of the graph is cancelled."""
    import comfy.model_management as mm
    import comfy.utils
    from server import PromptServer

    from hotlora.nodes import run
    from hotlora.nodes.train import HotLoRATrain
    from hotlora.nodes.unfinished import unfinished_runs

    steps, texts, listed, stepped, send = [], [], [], run.NodeProgress.stepped, PromptServer.instance.send_progress_text

    def watching(self, session, report):
        steps.append(report.step)
        listed.extend(run["name"] for run in unfinished_runs())
        if report.step == press_at:
            mm.interrupt_current_processing(True)
        stepped(self, session, report)

    run.NodeProgress.stepped, PromptServer.instance.send_progress_text = watching, lambda text, node_id: texts.append(text)
    comfy.utils.set_progress_bar_global_hook(lambda *_, **__: mm.throw_exception_if_processing_interrupted())  # as the server's
    try:
        gave = called(HotLoRATrain).execute(settings={"save_steps": 1}, **values) is not None
    except mm.InterruptProcessingException:
        gave = False
    finally:
        run.NodeProgress.stepped, PromptServer.instance.send_progress_text = stepped, send
        comfy.utils.set_progress_bar_global_hook(None)
        pressed = mm.processing_interrupted()
        mm.interrupt_current_processing(False)
    return {"steps": steps, "gave": gave, "pressed": pressed, "last text": texts[-1], "listed": listed}


def backend(model, clip, vae) -> dict:
    """The button is not for the encoders in the middle of a step; patches of nodes upstream are told the noise; and what is asked for before pictures are read."""
    import comfy.model_management as mm
    import torch

    from hotlora.nodes.train import HotLoRATrain
    from hotlora.trainer.hosts.comfy import ComfyBackend

    sigmas, patched = [], model.clone()
    patched.set_model_input_block_patch(lambda h, options: sigmas.extend(options["sigmas"].tolist()) or h)
    ours, pressed = ComfyBackend(patched, clip, vae), []
    with ours.borrow():
        for encode in (lambda: ours.encode_text(["a photo"]), lambda: ours.encode_image(torch.zeros(1, 3, 64, 64))):
            mm.interrupt_current_processing(True)
            try:
                encode()
            except mm.InterruptProcessingException:
                pass
            pressed.append(ours.interrupted())
        mm.interrupt_current_processing(False)
        cond = ours.encode_text(["a photo"])
        ours.predict(torch.zeros(1, 4, 8, 8), torch.tensor([700]), cond, torch.tensor([[64, 64, 0, 0, 64, 64.]]))
    return {"pressed": pressed, "sigma": sigmas[0], "expected": model.get_model_object("model_sampling").sigmas[700].item(),
            "no vae": told(called(HotLoRATrain).execute, name="no", **{**widgets(Path("nowhere"), model, clip, None)})}


def inpainting(checkpoint: Path) -> float:
    """Relative distance of our prediction to the host's own with a model that is also told a mask and what is around it: here all is to be drawn."""
    import comfy.sd
    import comfy.utils
    import torch

    from hotlora.trainer.hosts.comfy import ComfyBackend

    weights, first = comfy.utils.load_torch_file(str(checkpoint)), "model.diffusion_model.input_blocks.0.0.weight"
    generator = torch.Generator().manual_seed(0)
    weights[first] = torch.cat([weights[first], torch.randn(320, 5, 3, 3, generator=generator).to(weights[first]) / 9], 1)
    model, clip, vae = comfy.sd.load_state_dict_guess_config(weights)[:3]
    ours, z_BCHW = ComfyBackend(model, clip, vae), torch.randn(2, 4, 8, 8, generator=generator)
    t_B = torch.tensor([700, 120])
    sigma_B = model.get_model_object("model_sampling").sigmas[t_B]
    with ours.borrow():
        cond = ours.batch_text([{key: x[0] for key, x in ours.encode_text([text]).items()} for text in ("a photo", "a red star, " * 40)])
        out_BCHW = ours.predict(z_BCHW, t_B, cond, torch.tensor([[64, 64, 0, 0, 64, 64.]] * 2))
    x_BCHW = z_BCHW * (sigma_B.view(-1, 1, 1, 1) ** 2 + 1).sqrt()
    around_BCHW = torch.cat([torch.ones(2, 1, 8, 8), model.model.blank_inpaint_image_like(z_BCHW)], 1)
    x0_BCHW = model.model.apply_model(x_BCHW, sigma_B, c_concat=around_BCHW, c_crossattn=cond["hidden_BLD"])
    expected_BCHW = (x_BCHW - x0_BCHW) / sigma_B.view(-1, 1, 1, 1)
    return ((out_BCHW - expected_BCHW).norm() / expected_BCHW.norm()).item()


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
            "linked": HotLoRAPrompt.fingerprint_inputs(None) == HotLoRAPrompt.fingerprint_inputs(None), "files": len(HotLoRAPrompt.fingerprint_inputs(None)),
            "unknown": told(HotLoRAPrompt.execute, model, clip, "<lora:sen:1>"), "no clip": told(HotLoRAPrompt.execute, model, None, "a photo")}


def compare(model, clip, vae) -> dict:
    from hotlora.nodes.compare import HotLoRACompare
    from hotlora.nodes.grids import evenly, read_weights
    from hotlora.nodes.loras import name_of

    request = {"model": model, "clip": clip, "vae": vae, "prompt": "a photo", "negative": "", "max_rows": 2, "seed": 0, "steps": 1, "cfg": 2.0,
               "sampler_name": "euler", "scheduler": "normal", "width": 64, "height": 64}
    grid = called(HotLoRACompare).execute(name="seen", weights="0.5; 1", **request)[0]
    return {"grid": describe(grid), "bad weight": told(HotLoRACompare.execute, name="seen", weights="a lot", **request), "weights": read_weights("0.4, -1;2"),
            "names": [name_of("seen"), name_of("<lora:seen:0.5>"), told(name_of, ""), told(name_of, "a<b")],
            "linked": [len(HotLoRACompare.fingerprint_inputs(**names)) for names in ({"name": "seen"}, {"name": None}, {"name": "seen", "negative": None})],
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
