"""The webui and ComfyUI with the same checkpoint: each uses what was trained in the other, and their pictures agree."""
from __future__ import annotations

import os

import numpy as np
import pytest

from hotlora.tests.hosts import graphs
from hotlora.tests.hosts.comfy_server import ComfyServer, ended, error_of
from hotlora.tests.hosts.test_webui import pixels, train, write_gallery
from hotlora.tests.hosts.webui_server import WebuiServer, shapes_of_both_hosts, write_model

pytestmark = [pytest.mark.host, pytest.mark.slow]
PROMPT = "a photo of sks"


def with_lora(name: str) -> dict:
    return {"30": {"class_type": "LoraLoader", "inputs": {"model": ["1", 0], "clip": ["1", 1], "lora_name": f"{name}.safetensors",
                                                          "strength_model": 1.0, "strength_clip": 1.0}},
            **graphs.drawing(model=("30", 0), clip=("30", 1), text=PROMPT)}


def in_webui(base, train_first: str, tags: list[str]) -> list[np.ndarray]:
    """Pictures without a LoRA and with each, after a training."""
    server = WebuiServer(base, settings={"randn_source": "CPU"}).start()
    try:
        if train_first:
            train(server, train_first, learning_rate=0.005)
        return [pixels(server, f"{PROMPT}{f' <lora:{tag}:1>' if tag else ''}", cfg_scale=5.0) for tag in tags]
    finally:
        server.stop()


def in_comfyui(base, train_first: str, tags: list[str]) -> list[np.ndarray]:
    server = ComfyServer(base).start()
    found = []
    try:
        trained = server.run({**graphs.loader(), **graphs.training("me", name=train_first, steps=4, learning_rate=0.005)})
        assert ended(trained) == "success", error_of(trained)
        for tag in tags:
            entry = server.run({**graphs.loader(), **(with_lora(tag) if tag else graphs.drawing(text=PROMPT))})
            assert ended(entry) == "success", error_of(entry)
            found.append(np.asarray(server.picture(entry, "56").convert("RGB")))
        return found
    finally:
        server.stop()


def test_each_uses_what_the_other_trained(tmp_path):
    webui, comfyui = tmp_path / "webui", tmp_path / "comfyui"
    checkpoint = webui / "models" / "Stable-diffusion" / write_model(webui, shapes=shapes_of_both_hosts())
    write_gallery(webui / "me")
    write_gallery(comfyui / "input" / "me")
    (comfyui / "models" / "checkpoints").mkdir(parents=True)
    os.link(checkpoint, comfyui / "models" / "checkpoints" / "random.safetensors")

    bare_there, ours_there = in_webui(webui, "from_webui", ["", "from_webui"])
    (comfyui / "models" / "loras").mkdir(parents=True, exist_ok=True)
    os.link(webui / "models" / "Lora" / "from_webui.safetensors", comfyui / "models" / "loras" / "from_webui.safetensors")
    bare, ours, theirs = in_comfyui(comfyui, "from_comfyui", ["", "from_webui", "from_comfyui"])
    os.link(comfyui / "models" / "loras" / "from_comfyui.safetensors", webui / "models" / "Lora" / "from_comfyui.safetensors")
    [theirs_there] = in_webui(webui, "", ["from_comfyui"])

    apart = difference(bare, bare_there)
    moved = [difference(bare, ours), difference(bare, theirs)]
    between = [difference(ours, ours_there), difference(theirs, theirs_there)]
    print(f"without a LoRA the hosts differ by {apart:.3f} of 255; LoRAs move a picture by {moved}; with them the hosts differ by {between}")
    assert max(between) <= 2 * apart + 0.5
    assert min(moved) > 5 * max(between)


def difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(float) - b.astype(float)).mean())
