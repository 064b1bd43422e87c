"""A full-size SD1.5 in a real ComfyUI: training borrows its weights, and the result is there at once."""
from __future__ import annotations

import random
import shutil
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from hotlora.tests.hosts import graphs
from hotlora.tests.hosts.comfy_server import ComfyServer, ended, error_of, is_cached, write_model
from hotlora.tests.hosts.places import on_gpu
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
    first = comfy.run({**graphs.loader(), **graphs.drawing(size=256, steps=1)})
    assert ended(first) == "success", error_of(first)
    pid = comfy.process.pid
    held = memory(pid, "VmRSS")
    forget_peak(pid)
    with FileAccess(comfy.base / "models" / "checkpoints" / "random.safetensors") as access:
        trained = comfy.run({**graphs.loader(), **graphs.training("me", name="full", steps=3, resolution=256, rank=8)}, timeout=900)
    assert ended(trained) == "success", error_of(trained)
    added = memory(pid, "VmHWM") - held
    print(f"training added {added / 1e9:.2f} GB, {added / WEIGHTS:.0%} of the denoiser's weights")
    if not on_gpu():
        # there ComfyUI itself reads a layer from the file when it is first used, and pages of the file count as the process's
        assert access.count == 0
        assert added <= 0.35 * WEIGHTS

    again = comfy.run({**graphs.loader(), **graphs.drawing(size=256, steps=1, seed=6)})
    assert ended(again) == "success"
    back = comfy.run({**graphs.loader(), **graphs.drawing(size=256, steps=1)})
    assert not is_cached(back, "53") and is_cached(back, "1")
    assert np.array_equal(np.asarray(comfy.picture(back, "56")), np.asarray(comfy.picture(first, "56")))


def moment(entry: dict, kind: str) -> float:
    """When a prompt began ("execution_start") or ended well ("execution_success"), in seconds since 1970."""
    return next(message["timestamp"] for one, message in entry["status"]["messages"] if one == kind) / 1000


def seconds_of(entry: dict) -> float:
    assert ended(entry) == "success", error_of(entry)
    return moment(entry, "execution_success") - moment(entry, "execution_start")


def last_step(log: Path) -> float:
    """When the last step of a run was done, by its log."""
    line = [line for line in log.read_text(encoding="utf-8").splitlines() if " INFO step " in line][-1]
    return datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f").timestamp()


def test_a_new_lora_is_there_within_a_second(comfy):
    """From the end of the last step to a queued prompt that has drawn with the LoRA, beyond what the host's own loader needs to draw the same."""
    request = {"size": 256, "steps": 1}
    training = comfy.queue({**graphs.loader(), **graphs.training("me", name="at_once", steps=2, resolution=256, rank=8)})
    waiting = comfy.queue({**graphs.loader(), **graphs.prompted("a photo <lora:at_once:1>", seed=22, **request)})
    assert ended(comfy.wait(training, 900)) == "success"
    first = comfy.wait(waiting)
    assert seconds_of(first) > 0
    [log] = (comfy.base / "output" / "hotlora" / "at_once" / "logs").glob("*.log")
    whole = moment(first, "execution_success") - last_step(log)

    shutil.copy(comfy.loras / "at_once.safetensors", comfy.loras / "by_stock.safetensors")
    bare = seconds_of(comfy.run({**graphs.loader(), **graphs.prompted("a photo", seed=22, **request)}))
    by_stock = comfy.run({**graphs.loader(), **graphs.drawing(model=("30", 0), clip=("30", 1), text="a photo", seed=22, **request),
                          "30": {"class_type": "LoraLoader", "inputs": {"model": ["1", 0], "clip": ["1", 1], "lora_name": "by_stock.safetensors",
                                                                        "strength_model": 1.0, "strength_clip": 1.0}}})
    stock = seconds_of(by_stock)
    print(f"from the last step to the picture {whole:.2f} s; the same picture without a LoRA {bare:.2f} s, by the stock loader {stock:.2f} s")
    assert np.array_equal(np.asarray(comfy.picture(first, "56")), np.asarray(comfy.picture(by_stock, "56")))
    assert whole <= stock + 1
