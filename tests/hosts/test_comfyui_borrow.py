"""A full-size SD1.5 in a real ComfyUI: training borrows its weights, and the result is there at once."""
from __future__ import annotations

import random
import shutil
import time

import numpy as np
import pytest

from hotlora.tests.hosts import graphs
from hotlora.tests.hosts.comfy_server import ComfyServer, ended, error_of, write_model
from hotlora.tests.hosts.watching import FileAccess, forget_peak, memory
from hotlora.tests.random_models import full_shapes
from hotlora.trainer.demo import drawings

pytestmark = [pytest.mark.host, pytest.mark.slow]
WEIGHTS = 859_520_964 * 4
"""Bytes of SD1.5's denoiser as ComfyUI holds it on a CPU: fp32."""


@pytest.fixture(scope="module")
def comfy(tmp_path_factory):
    base = tmp_path_factory.mktemp("full")
    write_model(base, shapes=full_shapes("sd15"))
    folder = base / "input" / "me"
    folder.mkdir(parents=True)
    for i in range(3):
        drawings.draw_mascot(random.Random(i), "white").resize((256, 256)).save(folder / f"{i}.png")
    server = ComfyServer(base).start()
    yield server
    server.stop()


def test_training_borrows_and_gives_back(comfy):
    draw = {**graphs.loader(), **graphs.drawing(size=256, steps=1)}
    first = comfy.run(draw)
    assert ended(first) == "success", error_of(first)
    pid = comfy.process.pid
    held = memory(pid, "VmRSS")
    forget_peak(pid)
    with FileAccess(comfy.base / "models" / "checkpoints" / "random.safetensors") as access:
        trained = comfy.run({**graphs.loader(), **graphs.training("me", name="full", steps=3, resolution=256, rank=8)}, timeout=900)
    assert ended(trained) == "success", error_of(trained)
    added = memory(pid, "VmHWM") - held
    print(f"training added {added / 1e9:.2f} GB, {added / WEIGHTS:.0%} of the denoiser's weights")
    assert access.count == 0
    assert added <= 0.35 * WEIGHTS

    again = comfy.run({**graphs.loader(), **graphs.drawing(size=256, steps=1, seed=6)})
    assert ended(again) == "success"
    back = comfy.run(draw | {"56": {"class_type": "SaveImage", "inputs": {"images": ["54", 0], "filename_prefix": "again"}}})
    assert np.array_equal(np.asarray(comfy.picture(back, "56")), np.asarray(comfy.picture(first, "56")))


def test_a_new_lora_is_timed_next_to_the_stock_loader(comfy):
    assert ended(comfy.run({**graphs.loader(), **graphs.training("me", name="at_once", steps=1, resolution=256, rank=8)}, timeout=900)) == "success"

    def timed(graph: dict) -> float:
        began = time.monotonic()
        entry = comfy.run({**graphs.loader(), **graph})
        assert ended(entry) == "success", error_of(entry)
        return time.monotonic() - began

    shutil.copy(comfy.loras / "at_once.safetensors", comfy.loras / "by_stock.safetensors")
    stock = {"30": {"class_type": "LoraLoader", "inputs": {"model": ["1", 0], "clip": ["1", 1], "lora_name": "by_stock.safetensors",
                                                           "strength_model": 1.0, "strength_clip": 1.0}}}
    request = {"size": 256, "steps": 1}
    timed(graphs.prompted("a photo", seed=20, **request))
    bare = timed(graphs.prompted("another photo", seed=21, **request))
    ours = timed(graphs.prompted("another photo <lora:at_once:1>", seed=22, **request))
    timed(graphs.prompted("one more photo", seed=23, **request))
    theirs = timed({**stock, **graphs.drawing(model=("30", 0), clip=("30", 1), text="the last photo", seed=24, **request)})
    print(f"seconds of a prompt: {bare:.2f} without a LoRA, {ours:.2f} with a new one by its tag, {theirs:.2f} with the stock loader")
