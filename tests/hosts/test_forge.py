"""Training inside a real Forge on the CPU, driven through HotLoRA's routes and Forge's own API; what is the same as in the webui by its tests."""
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from hotlora.tests.hosts import test_webui as shared
from hotlora.tests.hosts.forge_server import ForgeServer, write_model, write_vega
from hotlora.tests.hosts.test_webui import assert_same_tensors, choose, command, inside, job_of, pixels, start, tensors, train, wait, wait_for_step, write_gallery

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
def webui(base):
    server = ForgeServer(base, links={"inside_forge": INSIDE}, settings={"sd_model_checkpoint": "random.safetensors"}).start()
    yield server
    server.stop()


def test_a_new_lora_works_in_the_next_request_and_nothing_was_drawn_before(webui):
    status = webui.get("/hotlora/api/status")
    assert status["can_train"] and status["base"] == {"name": "random", "family": "sd15"}, status
    check_new_lora(webui)
    assert "Error loading script: hotlora" not in webui.log.read_text()


def check_new_lora(webui) -> None:
    done = train(webui, "my_face")
    assert done["base"] == "random" and done["tag"] == "<lora:my_face:1>"
    weights = tensors(webui, "my_face")
    assert any(key.endswith("lora_up.weight") and tensor.abs().max() > 0 for key, tensor in weights.items())
    assert all(key.startswith(("lora_unet_down_blocks_", "lora_unet_mid_block_", "lora_unet_up_blocks_")) for key in weights)
    before = pixels(webui)
    assert not np.array_equal(pixels(webui, "a photo of sks <lora:my_face:1>"), before)
    assert np.array_equal(pixels(webui, "a photo of sks <lora:my_face:0>"), before)
    assert np.array_equal(pixels(webui), before)
    assert webui.get("/hotlora/api/loras")["loras"][0]["tag"] == "<lora:my_face:1>"


@pytest.mark.parametrize("settings", [{}, {"dora": True}], ids=str)
def test_a_file_does_in_the_host_what_it_did_in_training(webui, settings):
    train(webui, "alike", conv_rank=2, lora_alpha=2, **settings)
    for weight in (1.0, 0.5):
        found = inside(webui, "alike", name="alike", weight=weight)
        assert found["difference"] < 1e-3 and found["layers"] == found["ours"] == len({key.split(".")[0] for key in tensors(webui, "alike")}), found


def test_what_the_last_prompt_had_merged_comes_back_and_is_not_learned(webui):
    train(webui, "kept")
    prompt = "a photo of sks <lora:kept:0.7>"
    before, bare = pixels(webui, prompt), tensors(webui, "kept")
    train(webui, "other")
    assert_same_tensors(tensors(webui, "other"), bare)
    assert np.array_equal(pixels(webui, prompt), before)


def test_a_lora_in_the_trash_is_no_longer_used(webui):
    train(webui, "gone")
    plain, tagged = pixels(webui), pixels(webui, "a photo of sks <lora:gone:1>")
    assert not np.array_equal(tagged, plain)
    webui.post("/hotlora/api/loras/gone/delete")
    assert np.array_equal(pixels(webui, "a photo of sks <lora:gone:1>"), plain)


def test_requests_are_answered_while_training_goes_on(webui):
    train(webui, "alone", steps=30)
    before = pixels(webui)
    job = start(webui, "shared", steps=30)
    for step in (3, 9, 15):
        wait_for_step(webui, job, step)
        assert np.array_equal(pixels(webui), before)
    assert job_of(webui, job)["status"] == "running", job_of(webui, job)
    assert wait(webui, job)["status"] == "completed"
    assert_same_tensors(tensors(webui, "shared"), tensors(webui, "alone"))


def test_another_checkpoint_ends_the_run_and_the_former_one_resumes_it(webui):
    train(webui, "straight", steps=30)
    job = start(webui, "switched", steps=30)
    wait_for_step(webui, job, 3)
    choose(webui, "second.safetensors")
    try:
        pixels(webui)  # Forge loads it when it draws
        stopped = wait(webui, job)
        assert stopped["status"] == "stopped" and "second" in stopped["message"] and "random" in stopped["message"]
        assert 3 <= stopped["step"] < 30
    finally:
        choose(webui, "random.safetensors")
    command(webui, job, "resume")
    assert wait(webui, job, lambda found: found["status"] == "completed")["step"] == 30
    assert_same_tensors(tensors(webui, "switched"), tensors(webui, "straight"))


@pytest.mark.parametrize("how", [{}, {"checkpointing": True}, {"swapped": True}], ids=str)
def test_gradients_equal_plain_autograd(webui, how):
    result = inside(webui, "gradients", **how)
    print(json.dumps(result))
    assert result["kind"] == "eps" and result["layers"] > 50 and result["gradient_error"] < 1e-3 and result["loss_error"] < 1e-4


def test_gradients_through_weights_in_half_precision(webui):
    result = inside(webui, "gradients", half=True)
    print(json.dumps(result))
    train(webui, "brain", mixed_precision="bf16")
    assert result["weights"] == "torch.float16" and result["loss_error"] < 0.02 and result["gradient_error"] < 0.2


def test_weights_in_8_bits(webui):
    """With "Diffusion in Low Bits" on one of the float8 forms, which Forge takes on when it loads a checkpoint."""
    webui.post("/sdapi/v1/options", {"forge_unet_storage_dtype": "float8-e4m3fn", "sd_model_checkpoint": "second.safetensors"})
    try:
        before, state = pixels(webui), inside(webui, "state")
        result = inside(webui, "gradients")
        print(json.dumps(result))
        assert result["weights"] == "torch.float8_e4m3fn" and result["gradient_error"] < 1e-3 and result["loss_error"] < 1e-4
        train(webui, "eight")
        assert inside(webui, "state") == state
        assert np.array_equal(pixels(webui), before)
        assert not np.array_equal(pixels(webui, "a photo of sks <lora:eight:1>"), before)
    finally:
        webui.post("/sdapi/v1/options", {"forge_unet_storage_dtype": "Automatic", "sd_model_checkpoint": "random.safetensors"})


def test_what_the_checkpoint_predicts_can_be_chosen(webui):
    webui.post("/sdapi/v1/options", {"hotlora_prediction": "auto"})  # what was never chosen is not among the options
    before, state = pixels(webui), inside(webui, "state")
    webui.post("/sdapi/v1/options", {"hotlora_prediction": "v"})
    try:
        result = inside(webui, "gradients")
        assert result["kind"] == "v" and result["gradient_error"] < 1e-3 and result["loss_error"] < 1e-4
        done = train(webui, "velocity", preview_steps=4)
        assert len(done["previews"]) == 1
        with safe_open(str(webui.loras / "velocity.safetensors"), "pt") as file:
            assert "v" in [value for key, value in file.metadata().items() if "prediction" in key]
    finally:
        webui.post("/sdapi/v1/options", {"hotlora_prediction": "auto"})
    assert inside(webui, "state") == state
    assert np.array_equal(pixels(webui), before)


def test_captions_are_encoded_anew_after_another_clip_skip(webui):
    before, former = inside(webui, "text_id"), webui.get("/sdapi/v1/options")["CLIP_stop_at_last_layers"]
    webui.post("/sdapi/v1/options", {"CLIP_stop_at_last_layers": 2})
    try:
        assert inside(webui, "text_id") != before
    finally:
        webui.post("/sdapi/v1/options", {"CLIP_stop_at_last_layers": former})
    assert inside(webui, "text_id") == before


def pages(server: ForgeServer) -> list[str]:
    return [part["props"]["value"] for part in server.get("/config")["components"] if "hotlora_page" in str(part["props"].get("value"))]


def test_a_reload_of_the_ui_leaves_one_page(webui):
    before = pixels(webui)
    assert len(pages(webui)) == 1
    job = start(webui, "reloaded", steps=300)
    wait_for_step(webui, job, 2)
    webui.reload_ui()
    assert len(pages(webui)) == 1
    assert job_of(webui, job)["status"] == "running", job_of(webui, job)
    command(webui, job, "stop")
    assert wait(webui, job)["status"] == "stopped"
    assert np.array_equal(pixels(webui), before)


# after the first test, which wants a server that has drawn nothing yet
test_trained_again_under_the_same_name = shared.test_trained_again_under_the_same_name
test_every_ending_leaves_the_host_as_it_was = shared.test_every_ending_leaves_the_host_as_it_was
test_a_run_whose_memory_is_full_goes_on_with_less_and_the_host_draws_the_same = shared.test_a_run_whose_memory_is_full_goes_on_with_less_and_the_host_draws_the_same
test_drawings_are_the_hosts_own_and_come_between_steps = shared.test_drawings_are_the_hosts_own_and_come_between_steps
test_many_requests_at_once_and_a_paused_run = shared.test_many_requests_at_once_and_a_paused_run


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
