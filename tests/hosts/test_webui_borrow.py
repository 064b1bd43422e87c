"""A full-size SD1.5 in a real webui: training borrows its weights, and the result is there at once."""
from __future__ import annotations

import random
import time

import numpy as np
import pytest

from hotlora.tests.hosts.test_webui import INSIDE, inside, pixels, start, train, wait, wait_for_step
from hotlora.tests.hosts.watching import FileAccess, forget_peak, memory
from hotlora.tests.hosts.webui_server import WebuiServer, write_model
from hotlora.tests.random_models import full_shapes
from hotlora.trainer.demo import drawings

pytestmark = [pytest.mark.host, pytest.mark.slow]
WEIGHTS = 859_520_964 * 4
"""Bytes of SD1.5's denoiser as the webui holds it on a CPU: fp32."""
SIZE = {"width": 256, "height": 256, "steps": 1}


@pytest.fixture(scope="module")
def webui(tmp_path_factory):
    base = tmp_path_factory.mktemp("full")
    write_model(base, shapes=full_shapes("sd15"))
    yield from running(WebuiServer(base, links={"inside_webui": INSIDE}))


def running(server):
    """The server with a small gallery, started, until the tests are over."""
    folder = server.base / "me"
    folder.mkdir()
    for i in range(3):
        drawings.draw_mascot(random.Random(i), "white").resize((256, 256)).save(folder / f"{i}.png")
    yield server.start()
    server.stop()


def test_training_borrows_and_gives_back(webui):
    first = pixels(webui, **SIZE)
    pid = webui.process.pid
    held = memory(pid, "VmRSS")
    forget_peak(pid)
    with FileAccess(webui.base / "models" / "Stable-diffusion" / "random.safetensors") as access:
        train(webui, "full", steps=3, resolution=256, lora_rank=8)
    added = memory(pid, "VmHWM") - held
    print(f"training added {added / 1e9:.2f} GB, {added / WEIGHTS:.0%} of the denoiser's weights")
    assert access.count == 0
    assert added <= 0.35 * WEIGHTS
    print(f"borrowing takes {inside(webui, 'borrowing', times=9)['milliseconds']:.1f} ms")
    assert np.array_equal(pixels(webui, **SIZE), first)
    assert not np.array_equal(pixels(webui, "a photo of sks <lora:full:1>", **SIZE), first)


def test_a_request_during_training_waits_for_two_steps_at_most(webui):
    before = pixels(webui, **SIZE)
    inside(webui, "waiting")
    job = start(webui, "shared", steps=8, resolution=256, lora_rank=8)
    wait_for_step(webui, job, 2)
    began = time.monotonic()
    assert np.array_equal(pixels(webui, **SIZE), before)
    print(f"answered after {time.monotonic() - began:.1f} s")
    assert wait(webui, job)["status"] == "completed"
    assert [begun - asked <= 2 for asked, begun in inside(webui, "waiting") if asked >= 0] == [True]
