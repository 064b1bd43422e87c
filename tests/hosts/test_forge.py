"""Training inside a real Forge on the CPU, driven through HotLoRA's routes and Forge's own API."""
from __future__ import annotations

import io
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hotlora.tests.hosts.forge_server import ForgeServer, write_model, write_vega
from hotlora.tests.hosts.test_webui import (assert_same_tensors, choose, command, inside, job_of, pixels, start, tensors, train, wait, wait_for_step,
                                            write_gallery)

pytestmark = pytest.mark.host
INSIDE = Path(__file__).resolve().parent / "inside_forge"


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """Forge's data folder with checkpoints of random weights and a gallery."""
    base = tmp_path_factory.mktemp("forge")
    write_model(base)
    write_model(base, "second.safetensors", seed=1)
    write_gallery(base / "me")
    return base


@pytest.fixture(scope="module")
def forge(base):
    server = ForgeServer(base, links={"inside_forge": INSIDE}, settings={"sd_model_checkpoint": "random.safetensors"}).start()
    yield server
    server.stop()


def test_a_new_lora_works_in_the_next_request_and_nothing_was_drawn_before(forge):
    status = forge.get("/hotlora/api/status")
    assert status["can_train"] and status["base"] == {"name": "random", "family": "sd15"}, status
    check_new_lora(forge)
    assert "Error loading script: hotlora" not in forge.log.read_text()


def check_new_lora(forge) -> None:
    done = train(forge, "my_face")
    assert done["base"] == "random" and done["tag"] == "<lora:my_face:1>"
    weights = tensors(forge, "my_face")
    assert any(key.endswith("lora_up.weight") and tensor.abs().max() > 0 for key, tensor in weights.items())
    assert all(key.startswith(("lora_unet_down_blocks_", "lora_unet_mid_block_", "lora_unet_up_blocks_")) for key in weights)
    before = pixels(forge)
    assert not np.array_equal(pixels(forge, "a photo of sks <lora:my_face:1>"), before)
    assert np.array_equal(pixels(forge, "a photo of sks <lora:my_face:0>"), before)
    assert np.array_equal(pixels(forge), before)
    assert forge.get("/hotlora/api/loras")["loras"][0]["tag"] == "<lora:my_face:1>"


@pytest.mark.parametrize("settings", [{}, {"dora": True}], ids=str)
def test_a_file_does_in_the_host_what_it_did_in_training(forge, settings):
    train(forge, "alike", conv_rank=2, lora_alpha=2, **settings)
    for weight in (1.0, 0.5):
        found = inside(forge, "alike", name="alike", weight=weight)
        assert found["difference"] < 1e-3 and found["layers"] == found["ours"] == len({key.split(".")[0] for key in tensors(forge, "alike")}), found


def test_trained_again_under_the_same_name(forge):
    prompt = "a photo of sks <lora:again:1>"
    train(forge, "again")
    first = pixels(forge, prompt)
    assert np.array_equal(pixels(forge, prompt), first)
    train(forge, "again", seed=9, learning_rate=0.05)
    second = pixels(forge, prompt)
    assert not np.array_equal(second, first)
    shutil.copy(forge.loras / "again.safetensors", forge.loras / "fresh.safetensors")
    forge.post("/sdapi/v1/refresh-loras")
    assert np.array_equal(pixels(forge, "a photo of sks <lora:fresh:1>"), second)


def test_what_the_last_prompt_had_merged_comes_back_and_is_not_learned(forge):
    train(forge, "kept")
    prompt = "a photo of sks <lora:kept:0.7>"
    before, bare = pixels(forge, prompt), tensors(forge, "kept")
    train(forge, "other")
    assert_same_tensors(tensors(forge, "other"), bare)
    assert np.array_equal(pixels(forge, prompt), before)


def test_a_lora_in_the_trash_is_no_longer_used(forge):
    train(forge, "gone")
    plain, tagged = pixels(forge), pixels(forge, "a photo of sks <lora:gone:1>")
    assert not np.array_equal(tagged, plain)
    forge.post("/hotlora/api/loras/gone/delete")
    assert np.array_equal(pixels(forge, "a photo of sks <lora:gone:1>"), plain)


@pytest.mark.parametrize("ending", ["completed", "stopped", "failed", "memory", "previews"])
def test_every_ending_leaves_the_host_as_it_was(forge, ending):
    before, state = pixels(forge), inside(forge, "state")
    if ending in ("failed", "memory"):
        inside(forge, "failing", error="other" if ending == "failed" else "memory", after=2)
    try:
        job = start(forge, f"ending_{ending}", steps=4 if ending != "stopped" else 10_000, preview_steps=2 if ending == "previews" else 0)
        if ending == "stopped":
            wait_for_step(forge, job, 2)
            command(forge, job, "stop")
        done = wait(forge, job)
    finally:
        inside(forge, "failing", error="")
    assert done["status"] == ("failed" if ending == "memory" else "completed" if ending == "previews" else ending), done
    if ending == "previews":
        assert len(done["previews"]) == 2 and not list((forge.base / "outputs").rglob("*.*"))
    assert inside(forge, "state") == state
    assert np.array_equal(pixels(forge), before)


def test_a_run_whose_memory_is_full_goes_on_with_less_and_the_host_draws_the_same(forge):
    train(forge, "planned_with_less", batch_size=2, gradient_checkpointing=True)
    before, state = pixels(forge), inside(forge, "state")
    inside(forge, "failing", error="memory", after=3, times=2)
    try:
        done = train(forge, "full_at_first", batch_size=2)
    finally:
        inside(forge, "failing", error="")
    assert [rung.split(",")[0] for rung in done["memory"]["given_up"]] == ["gradient checkpointing is on", "a batch is done in parts of 1"], done["memory"]
    assert inside(forge, "state") == state
    assert np.array_equal(pixels(forge), before)
    full, planned = tensors(forge, "full_at_first"), tensors(forge, "planned_with_less")
    assert full.keys() == planned.keys()
    for key, x in planned.items():
        assert np.linalg.norm(np.asarray(full[key], np.float64) - np.asarray(x, np.float64)) <= 1e-3 * np.linalg.norm(np.asarray(x, np.float64)) + 1e-9, key


def test_requests_are_answered_while_training_goes_on(forge):
    train(forge, "alone", steps=30)
    before = pixels(forge)
    job = start(forge, "shared", steps=30)
    for step in (3, 9, 15):
        wait_for_step(forge, job, step)
        assert np.array_equal(pixels(forge), before)
    assert job_of(forge, job)["status"] == "running", job_of(forge, job)
    assert wait(forge, job)["status"] == "completed"
    assert_same_tensors(tensors(forge, "shared"), tensors(forge, "alone"))


def test_drawings_are_the_hosts_own_and_come_between_steps(forge):
    train(forge, "drawn")
    tagged, bare = pixels(forge, "a photo of sks <lora:drawn:1>"), pixels(forge)
    state = inside(forge, "state")
    job = start(forge, "meanwhile", steps=200)
    wait_for_step(forge, job, 2)
    asked = {"prompt": "a photo of sks", "names": ["drawn"], "weights": [0, 1], "seed": 5, "steps": 2, "guidance": 7.0, "width": 64, "height": 64}
    drawing = forge.post("/hotlora/api/drawings", asked)["id"]
    end = time.monotonic() + 120
    while (found := next(one for one in forge.get("/hotlora/api/drawings")["drawings"] if one["id"] == drawing))["status"] in ("queued", "drawing"):
        assert time.monotonic() < end, found
        time.sleep(0.05)
    assert found["status"] == "done" and len(found["pictures"]) == 2, found
    assert job_of(forge, job)["status"] == "running", job_of(forge, job)
    command(forge, job, "stop")
    assert wait(forge, job)["status"] == "stopped"
    ours = [np.asarray(Image.open(io.BytesIO(forge.request("GET", f"/hotlora/api/drawings/{drawing}/{picture['file']}")[2])).convert("RGB"))
            for picture in found["pictures"]]
    for mine, theirs in zip(ours, (bare, tagged)):
        assert np.abs(mine.astype(int) - theirs).mean() < 1
    assert np.abs(bare.astype(int) - tagged).mean() > 5
    assert inside(forge, "state") == state
    assert np.array_equal(pixels(forge), bare)


def test_another_checkpoint_ends_the_run_and_the_former_one_resumes_it(forge):
    train(forge, "straight", steps=30)
    job = start(forge, "switched", steps=30)
    wait_for_step(forge, job, 3)
    choose(forge, "second.safetensors")
    try:
        pixels(forge)  # Forge loads it when it draws
        stopped = wait(forge, job)
        assert stopped["status"] == "stopped" and "second" in stopped["message"] and "random" in stopped["message"]
        assert 3 <= stopped["step"] < 30
    finally:
        choose(forge, "random.safetensors")
    command(forge, job, "resume")
    assert wait(forge, job, lambda found: found["status"] == "completed")["step"] == 30
    assert_same_tensors(tensors(forge, "switched"), tensors(forge, "straight"))


@pytest.mark.parametrize("how", [{}, {"checkpointing": True}, {"swapped": True}], ids=str)
def test_gradients_equal_plain_autograd(forge, how):
    result = inside(forge, "gradients", **how)
    print(json.dumps(result))
    assert result["kind"] == "eps" and result["layers"] > 50 and result["gradient_error"] < 1e-3 and result["loss_error"] < 1e-4


def test_gradients_through_weights_in_half_precision(forge):
    result = inside(forge, "gradients", half=True)
    print(json.dumps(result))
    train(forge, "brain", mixed_precision="bf16")
    assert result["weights"] == "torch.float16" and result["loss_error"] < 0.02 and result["gradient_error"] < 0.2


def test_captions_are_encoded_anew_after_another_clip_skip(forge):
    before, former = inside(forge, "text_id"), forge.get("/sdapi/v1/options")["CLIP_stop_at_last_layers"]
    forge.post("/sdapi/v1/options", {"CLIP_stop_at_last_layers": 2})
    try:
        assert inside(forge, "text_id") != before
    finally:
        forge.post("/sdapi/v1/options", {"CLIP_stop_at_last_layers": former})
    assert inside(forge, "text_id") == before


def pages(server: ForgeServer) -> list[str]:
    return [part["props"]["value"] for part in server.get("/config")["components"] if "hotlora_page" in str(part["props"].get("value"))]


def test_a_reload_of_the_ui_leaves_one_page(forge):
    before = pixels(forge)
    assert len(pages(forge)) == 1
    job = start(forge, "reloaded", steps=300)
    wait_for_step(forge, job, 2)
    forge.reload_ui()
    assert len(pages(forge)) == 1
    assert job_of(forge, job)["status"] == "running", job_of(forge, job)
    command(forge, job, "stop")
    assert wait(forge, job)["status"] == "stopped"
    assert np.array_equal(pixels(forge), before)


@pytest.mark.slow
def test_sdxl(tmp_path):
    """Segmind-Vega's shape, the smallest SDXL that Forge knows, with text encoders in full size."""
    write_vega(tmp_path)
    check_sdxl(ForgeServer(tmp_path, links={"inside_forge": INSIDE}))


def check_sdxl(server) -> None:
    write_gallery(server.base / "me")
    server.start()
    try:
        before, state = pixels(server), inside(server, "state")
        result = inside(server, "gradients")
        print(json.dumps(result))
        assert result["family"] == "sdxl" and result["gradient_error"] < 1e-3 and result["loss_error"] < 1e-4
        train(server, "xl", preview_steps=4)
        assert inside(server, "state") == state
        assert all(key.startswith(("lora_unet_input_blocks_", "lora_unet_middle_block_", "lora_unet_output_blocks_")) for key in tensors(server, "xl"))
        found = inside(server, "alike", name="xl", weight=1.0)
        assert found["difference"] < 1e-3 and found["layers"] == found["ours"], found
        assert np.array_equal(pixels(server), before)
        assert not np.array_equal(pixels(server, "a photo of sks <lora:xl:1>"), before)
    finally:
        server.stop()
