"""Jobs of the page inside a real ComfyUI: they take turns with other prompts, and obey its cancel button."""
from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from hotlora.tests.hosts import graphs
from hotlora.tests.hosts.comfy_server import ComfyServer, ended, error_of, write_gallery, write_model
from hotlora.tests.hosts.test_comfyui import draw, pixels

pytestmark = pytest.mark.host
SETTINGS = {"trigger": "sks", "lora_rank": 4, "learning_rate": 1e-3, "resolution": 64, "save_dtype": "fp32", "seed": 1}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    base = tmp_path_factory.mktemp("comfy_jobs")
    write_model(base)
    write_gallery(base)
    return base


@pytest.fixture(scope="module")
def comfy(base):
    server = ComfyServer(base).start()
    yield server
    server.stop()


def start(comfy: ComfyServer, name: str, **settings) -> str:
    values = {**SETTINGS, "train_data_dir": str(comfy.base / "input" / "me"), "name": name, **settings}
    return comfy.post("/hotlora/api/jobs", {"settings": values, "preset": None})["id"]


def until(comfy: ComfyServer, job: str, *statuses: str, step: int = 0, seconds: float = 300) -> dict:
    end = time.monotonic() + seconds
    while True:
        found = comfy.get(f"/hotlora/api/jobs/{job}")
        if found["status"] in statuses and found["step"] >= step:
            return found
        assert time.monotonic() < end and found["status"] not in {"completed", "failed", "stopped"} - set(statuses), (found, comfy.tail())
        time.sleep(0.05)


def weights(comfy: ComfyServer, name: str) -> dict:
    return {key: tensor.numpy() for key, tensor in load_file(comfy.loras / f"{name}.safetensors").items()}


def picture_of(comfy: ComfyServer, job: str, file: str) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{comfy.port}/hotlora/api/jobs/{job}/previews/{file}", timeout=60) as answer:
        return answer.read()


def same(one: dict, two: dict) -> bool:
    return one.keys() == two.keys() and all(np.array_equal(one[key], two[key]) for key in one)


@pytest.fixture(scope="module")
def undisturbed(comfy) -> dict:
    """The weights of eight steps that nobody came between."""
    done = until(comfy, start(comfy, "alone", steps=8), "completed")
    assert done["base"] == "random" and done["message"].startswith("completed 8 steps")
    return weights(comfy, "alone")


def test_the_page_and_its_routes_are_there(comfy):
    told = comfy.get("/hotlora/api/status")
    assert told["host"] == "comfyui" and told["bases"] == ["random.safetensors"] and told["can_train"] and told["gallery_roots"] is None
    assert comfy.get("/api/hotlora/api/status") == told, "the way that ComfyUI's own page asks"
    assert comfy.get("/hotlora/unfinished") == []
    with urllib.request.urlopen(f"http://127.0.0.1:{comfy.port}/hotlora/", timeout=60) as page:
        assert page.headers["content-type"].startswith("text/html")
    assert comfy.get("/object_info/HotLoRAJob")["HotLoRAJob"]["dev_only"]


def test_another_sites_page_is_turned_down(comfy):
    for headers in ({"Origin": "http://evil.example"}, {"Host": "evil.example"}):
        request = urllib.request.Request(f"http://127.0.0.1:{comfy.port}/hotlora/api/galleries", b'{"name": "x"}', {"Content-Type": "application/json", **headers})
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(request, timeout=60)
        assert error.value.code in (403, 421)


def test_events_and_pictures_are_streamed(comfy, undisturbed):
    with urllib.request.urlopen(f"http://127.0.0.1:{comfy.port}/hotlora/api/events?after=0", timeout=60) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        kinds = set()
        while "loras" not in kinds:
            line = answer.readline()
            if line.startswith(b"data: "):
                kinds.add(json.loads(line[6:])["kind"])
    assert {"job", "step", "saved"} <= kinds
    folder = urllib.request.quote(str(comfy.base / "input" / "me"))
    picture = comfy.get(f"/hotlora/api/gallery?folder={folder}")["pictures"][0]["file"]
    for size in ("", "&size=64"):
        with urllib.request.urlopen(f"http://127.0.0.1:{comfy.port}/hotlora/api/gallery/picture?folder={folder}&file={picture}{size}", timeout=60) as answer:
            assert answer.headers["content-type"].startswith("image/") and len(answer.read()) > 100


def test_a_job_leaves_the_model_as_it_was_and_its_lora_is_used(comfy, undisturbed):
    before = draw(comfy)
    until(comfy, start(comfy, "plain", steps=3, learning_rate=0.01, preview_steps=3), "completed")
    assert np.array_equal(draw(comfy), before)
    changed = pixels(comfy, comfy.run({**graphs.loader(), **graphs.prompted("a photo of sks <lora:plain:1>")}))
    assert not np.array_equal(changed, before)
    assert "plain.safetensors" in comfy.get("/object_info/LoraLoader")["LoraLoader"]["input"]["required"]["lora_name"][0]


def test_prompts_come_between_the_steps_and_change_nothing(comfy, undisturbed):
    before = draw(comfy)
    job = start(comfy, "shared", steps=8)
    until(comfy, job, "running", step=2)
    at = []
    for _ in range(2):
        assert np.array_equal(draw(comfy), before)
        at.append(comfy.get(f"/hotlora/api/jobs/{job}")["step"])
    assert at[0] < 8, "a picture was drawn before the training ended"
    until(comfy, job, "completed")
    assert same(weights(comfy, "shared"), undisturbed)


def test_a_saved_step_draws_by_its_tag_while_the_run_goes_on(comfy, undisturbed):
    before = draw(comfy)
    job = start(comfy, "growing", steps=60, learning_rate=0.02, save_steps=2)
    until(comfy, job, "running", step=3)
    changed = pixels(comfy, comfy.run({**graphs.loader(), **graphs.prompted("a photo of sks <lora:growing-000002:1>")}))
    assert comfy.get(f"/hotlora/api/jobs/{job}")["step"] < 60 and not np.array_equal(changed, before)
    comfy.post(f"/hotlora/api/jobs/{job}/stop")
    until(comfy, job, "stopped")
    assert np.array_equal(pixels(comfy, comfy.run({**graphs.loader(), **graphs.prompted("a photo of sks <lora:growing-000002:1>")})), changed)


def test_a_paused_job_leaves_comfyui_free(comfy, undisturbed):
    job = start(comfy, "paused", steps=8)
    until(comfy, job, "running", step=1)
    comfy.post(f"/hotlora/api/jobs/{job}/pause")
    step = until(comfy, job, "paused")["step"]
    draw(comfy)
    assert comfy.get("/queue")["queue_running"] == [] and comfy.get(f"/hotlora/api/jobs/{job}")["step"] == step
    comfy.post(f"/hotlora/api/jobs/{job}/resume")
    until(comfy, job, "completed")
    assert same(weights(comfy, "paused"), undisturbed)


def test_comfyuis_cancel_button_stops_with_the_work_saved(comfy, undisturbed):
    job = start(comfy, "cancelled", steps=8)
    until(comfy, job, "running", step=2)
    comfy.post("/interrupt")
    found = until(comfy, job, "stopped", "completed")
    assert found["status"] == "stopped" and 2 <= found["step"] < 8 and (comfy.loras / "cancelled.safetensors").exists()
    draw(comfy)
    comfy.post(f"/hotlora/api/jobs/{job}/resume")
    until(comfy, job, "completed")
    assert same(weights(comfy, "cancelled"), undisturbed)


def test_one_press_is_enough_while_previews_are_drawn(comfy):
    """Nearly all of the time is spent on drawing here."""
    for number in range(4):
        job = start(comfy, f"drawing{number}", steps=500, preview_steps=1)
        step = until(comfy, job, "running", step=1 + number)["step"]
        comfy.post("/interrupt")
        found = until(comfy, job, "stopped")
        assert found["step"] <= step + 2 and (comfy.loras / f"drawing{number}.safetensors").exists()
        assert all(picture_of(comfy, job, entry["file"]).startswith(b"\x89PNG") for entry in found["previews"])


def test_a_turn_that_is_taken_out_of_the_queue_stops_the_job(comfy):
    """The turn waits behind a long drawing and is deleted there."""
    long = comfy.queue({**graphs.loader(), **graphs.drawing(steps=200, seed=99)})
    job = start(comfy, "unqueued", steps=8)
    end = time.monotonic() + 60
    while not (waiting := comfy.get("/queue")["queue_pending"]):
        assert time.monotonic() < end
        time.sleep(0.05)
    comfy.post("/queue", {"delete": [waiting[0][1]]})
    found = until(comfy, job, "stopped")
    assert "out of ComfyUI's queue" in found["message"]
    comfy.post("/interrupt")
    assert ended(comfy.wait(long)) == "interrupted"


def test_a_checkpoint_that_cannot_be_loaded_is_named_and_the_next_job_runs(comfy):
    (comfy.base / "models" / "checkpoints" / "broken.safetensors").write_bytes(b"\0" * 100)
    failing = start(comfy, "broken", steps=1, base_model="broken.safetensors")
    good = start(comfy, "good", steps=1, base_model="random.safetensors")
    found = until(comfy, failing, "failed")
    assert "broken.safetensors" in found["message"] and "\n" not in found["message"] and "Traceback" in found["details"]
    until(comfy, good, "completed")


def test_the_node_is_of_no_use_in_a_graph(comfy):
    entry = comfy.run({"2": {"class_type": "HotLoRAJob", "inputs": {"lease": "mine"}}})
    assert ended(entry) == "error" and "cannot be used in a graph" in error_of(entry)


def test_a_killed_comfyui_keeps_the_job_and_goes_on(comfy, undisturbed):
    """Last, as the server is another one afterwards."""
    job = start(comfy, "killed", steps=8, save_steps=1)
    waiting = start(comfy, "waiting", steps=1)
    until(comfy, job, "running", step=3)
    comfy.kill()
    comfy.start()
    found = comfy.get(f"/hotlora/api/jobs/{job}")
    assert found["status"] == "interrupted" and found["step"] >= 2
    assert comfy.get("/hotlora/api/jobs")["queue"] == [waiting] and comfy.get("/queue")["queue_running"] == []
    comfy.post(f"/hotlora/api/jobs/{job}/resume")
    until(comfy, job, "completed")
    until(comfy, waiting, "completed")
    assert same(weights(comfy, "killed"), undisturbed)


def test_with_listen_folders_out_of_bounds_are_refused(base):
    (base / "other_user").mkdir()
    server = ComfyServer(base, "--listen", "0.0.0.0", "--user-directory", str(base / "other_user")).start()
    try:
        assert server.get("/hotlora/api/status")["gallery_roots"][0] == str(base / "input")
        assert server.get(f"/hotlora/api/gallery?folder={base / 'input' / 'me'}")["pictures"]
        with pytest.raises(urllib.error.HTTPError) as error:
            server.get(f"/hotlora/api/gallery?folder={base / 'models'}")
        assert error.value.code == 403
    finally:
        server.stop()
