"""Training inside a real stable-diffusion-webui on the CPU, driven through HotLoRA's routes and the webui's own API."""
from __future__ import annotations

import io
import json
import random
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from hotlora.tests.hosts.webui_server import WebuiServer, small_shapes, write_model
from hotlora.trainer.demo import drawings

pytestmark = pytest.mark.host
INSIDE = Path(__file__).resolve().parent / "inside_webui"
ENDED = ("completed", "stopped", "failed", "interrupted", "cancelled")


def write_gallery(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(1)
    for i, background in enumerate(("white", "gray", "black", "beige")):
        drawings.draw_mascot(rng, background).resize((96, 64 if i % 2 else 96)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a photo of sks on a {background} background")
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """The webui's data folder with checkpoints of random weights and a gallery."""
    base = tmp_path_factory.mktemp("webui")
    write_model(base)
    write_model(base, "second.safetensors", seed=1)
    write_model(base, "velocity.safetensors", prediction="v")
    write_model(base, "two.safetensors", shapes=small_shapes("sd2"), prediction="v")
    write_gallery(base / "me")
    return base


@pytest.fixture(scope="module")
def webui(base):
    server = WebuiServer(base, links={"inside_webui": INSIDE}, settings={"sd_model_checkpoint": "random.safetensors"}).start()
    yield server
    server.stop()


def pixels(server: WebuiServer, prompt: str = "a photo of sks", **more) -> np.ndarray:
    return np.asarray(server.txt2img(prompt, **more))


def start(server: WebuiServer, name: str, **settings) -> str:
    asked = {"train_data_dir": str(server.base / "me"), "name": name, "steps": 4, "resolution": 64, "lora_rank": 4, "learning_rate": 0.02,
             "mixed_precision": "no", "save_dtype": "fp32", **settings}
    return server.post("/hotlora/api/jobs", {"settings": asked})["id"]


def job_of(server: WebuiServer, job: str) -> dict:
    return server.get(f"/hotlora/api/jobs/{job}")


def wait(server: WebuiServer, job: str, until=lambda job: job["status"] in ENDED, timeout: float = 240) -> dict:
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        found = job_of(server, job)
        if until(found):
            return found
        assert found["status"] not in ENDED, found
        time.sleep(0.05)
    raise AssertionError(f"{job_of(server, job)}\n{server.tail()}")


def train(server: WebuiServer, name: str, **settings) -> dict:
    done = wait(server, start(server, name, **settings))
    assert done["status"] == "completed", done["details"] or done
    return done


def wait_for_step(server: WebuiServer, job: str, step: int) -> None:
    wait(server, job, lambda found: found["step"] >= step)


def command(server: WebuiServer, job: str, what: str) -> None:
    server.post(f"/hotlora/api/jobs/{job}/{what}")


def tensors(server: WebuiServer, name: str) -> dict:
    return load_file(server.loras / f"{name}.safetensors")


def assert_same_tensors(first: dict, second: dict) -> None:
    assert first.keys() == second.keys() and all((first[key] == second[key]).all() for key in first)


def choose(server: WebuiServer, name: str) -> None:
    server.post("/sdapi/v1/options", {"sd_model_checkpoint": name})


def inside(server: WebuiServer, what: str, **asked):
    return server.post(f"/inside/{what}", asked)


def test_a_new_lora_works_in_the_next_request(webui):
    before = pixels(webui)
    done = train(webui, "my_face")
    assert done["base"] == "random" and done["tag"] == "<lora:my_face:1>"
    weights = tensors(webui, "my_face")
    assert any(key.endswith("lora_up.weight") and tensor.abs().max() > 0 for key, tensor in weights.items())
    assert all(key.startswith(("lora_unet_down_blocks_", "lora_unet_mid_block_", "lora_unet_up_blocks_")) for key in weights)
    assert not np.array_equal(pixels(webui, "a photo of sks <lora:my_face:1>"), before)
    assert np.array_equal(pixels(webui, "a photo of sks <lora:my_face:0>"), before)
    assert np.array_equal(pixels(webui), before)
    assert "my_face" in [lora["name"] for lora in webui.get("/sdapi/v1/loras")]
    assert webui.get("/hotlora/api/loras")["loras"][0]["tag"] == "<lora:my_face:1>"


def test_a_proxys_name_in_the_settings_counts_at_once(webui):
    def status(host: str) -> int:
        return webui.request("GET", "/hotlora/api/status", headers={"Host": host})[0]

    assert status("lora.example") == 421
    webui.post("/sdapi/v1/options", {"hotlora_server_names": "https://lora.example:8443"})
    try:
        assert status("lora.example") == 200 and status("evil.example") == 421
    finally:
        webui.post("/sdapi/v1/options", {"hotlora_server_names": ""})
    assert status("lora.example") == 421


def test_every_layer_of_the_file_is_used_and_its_weight_is_linear(webui):
    train(webui, "linear", conv_rank=2)
    one = inside(webui, "baked", tags=[["linear", 1.0]])["changes"]
    half = inside(webui, "baked", tags=[["linear", 0.5]])["changes"]
    layers = {key.split(".")[0] for key in tensors(webui, "linear")}
    assert len(one) == len(half) == len(layers)
    for name, change in one.items():
        np.testing.assert_allclose(np.array(half[name]) * 2, change, rtol=1e-3, atol=2e-6)
    assert inside(webui, "baked", tags=[["linear", 0.0]])["changes"] == {}


@pytest.mark.parametrize("option, value", [("CLIP_stop_at_last_layers", 2), ("sdxl_clip_l_skip", True), ("comma_padding_backtrack", 0)])
def test_captions_are_encoded_anew_when_an_option_makes_something_else_of_them(webui, option, value):
    before, former = inside(webui, "text_id"), webui.get("/sdapi/v1/options")[option]
    webui.post("/sdapi/v1/options", {option: value})
    try:
        assert inside(webui, "text_id") != before
    finally:
        webui.post("/sdapi/v1/options", {option: former})
    assert inside(webui, "text_id") == before


@pytest.mark.parametrize("settings", [{}, {"dora": True}], ids=str)
def test_a_file_does_in_the_host_what_it_did_in_training(webui, settings):
    train(webui, "alike", conv_rank=2, lora_alpha=2, **settings)
    webui.post("/sdapi/v1/refresh-loras")
    for weight in (1.0, 0.5):
        assert inside(webui, "alike", name="alike", weight=weight)["difference"] < 1e-3


def test_trained_again_under_the_same_name(webui):
    prompt = "a photo of sks <lora:again:1>"
    train(webui, "again")
    first = pixels(webui, prompt)
    assert np.array_equal(pixels(webui, prompt), first)
    train(webui, "again", seed=9, learning_rate=0.05)
    second = pixels(webui, prompt)
    assert not np.array_equal(second, first)
    shutil.copy(webui.loras / "again.safetensors", webui.loras / "fresh.safetensors")
    webui.post("/sdapi/v1/refresh-loras")
    assert np.array_equal(pixels(webui, "a photo of sks <lora:fresh:1>"), second)


def test_what_the_last_prompt_had_baked_in_comes_back(webui):
    train(webui, "kept")
    prompt = "a photo of sks <lora:kept:0.7>"
    before = pixels(webui, prompt)
    bare = tensors(webui, "kept")
    train(webui, "other")
    assert np.array_equal(pixels(webui, prompt), before)
    train(webui, "kept2")
    pixels(webui, prompt)
    train(webui, "kept")
    assert_same_tensors(tensors(webui, "kept"), bare)


@pytest.mark.parametrize("ending", ["completed", "stopped", "failed", "memory", "previews"])
def test_every_ending_leaves_the_host_as_it_was(webui, ending):
    before, state = pixels(webui), inside(webui, "state")
    if ending in ("failed", "memory"):
        inside(webui, "failing", error="other" if ending == "failed" else "memory", after=2)
    try:
        job = start(webui, f"ending_{ending}", steps=4 if ending != "stopped" else 10_000, preview_steps=2 if ending == "previews" else 0)
        if ending == "stopped":
            wait_for_step(webui, job, 2)
            command(webui, job, "stop")
        done = wait(webui, job)
    finally:
        inside(webui, "failing", error="")
    assert done["status"] == ("failed" if ending == "memory" else "completed" if ending == "previews" else ending), done
    if ending == "memory":
        assert "the memory is full" in done["message"] and "resolution lower than 64" in done["message"] and "\n" not in done["message"] and "not enough memory" in done["details"]
    if ending == "previews":
        assert len(done["previews"]) == 2 and not list((webui.base / "outputs").rglob("*.*")) and not (webui.base / "params.txt").is_dir()
    assert inside(webui, "state") == state
    assert np.array_equal(pixels(webui), before)


def test_a_run_whose_memory_is_full_goes_on_with_less_and_the_host_draws_the_same(webui):
    train(webui, "planned_with_less", batch_size=2, gradient_checkpointing=True)
    before, state = pixels(webui), inside(webui, "state")
    inside(webui, "failing", error="memory", after=3, times=2)
    try:
        done = train(webui, "full_at_first", batch_size=2)
    finally:
        inside(webui, "failing", error="")
    assert [rung.split(",")[0] for rung in done["memory"]["given_up"]] == ["gradient checkpointing is on", "a batch is done in parts of 1"], done["memory"]
    assert inside(webui, "state") == state
    assert np.array_equal(pixels(webui), before)
    full, planned = tensors(webui, "full_at_first"), tensors(webui, "planned_with_less")
    assert full.keys() == planned.keys()
    for key, x in planned.items():
        assert np.linalg.norm(np.asarray(full[key], np.float64) - np.asarray(x, np.float64)) <= 1e-3 * np.linalg.norm(np.asarray(x, np.float64)) + 1e-9, key


def test_choices_that_make_training_wrong_are_set_aside_and_come_back(webui):
    chosen = {"cross_attention_optimization": "sub-quadratic", "token_merging_ratio": 0.5, "hypertile_enable_unet": True, "CLIP_stop_at_last_layers": 2}
    options = webui.get("/sdapi/v1/options")
    assert {key for key in chosen if key not in options} == set()
    webui.post("/sdapi/v1/options", chosen)
    try:
        before, state = pixels(webui), inside(webui, "state")
        assert state["attention"][0] == "sub_quad_attention_forward"
        train(webui, "chosen")
        assert inside(webui, "state") == state
        assert np.array_equal(pixels(webui), before)
        assert inside(webui, "gradients")["gradient_error"] < 1e-3
    finally:
        webui.post("/sdapi/v1/options", {key: options[key] for key in chosen})


def test_a_request_is_answered_while_training_goes_on(webui):
    train(webui, "alone", steps=40)
    before = pixels(webui)
    inside(webui, "waiting")
    job = start(webui, "shared", steps=40)
    for step in (3, 9, 15):
        wait_for_step(webui, job, step)
        assert np.array_equal(pixels(webui), before)
    assert job_of(webui, job)["status"] == "running", job_of(webui, job)
    assert wait(webui, job)["status"] == "completed"
    waited = [(asked, begun) for asked, begun in inside(webui, "waiting") if asked >= 0]
    assert len(waited) >= 3 and all(begun - asked <= 2 for asked, begun in waited)
    assert_same_tensors(tensors(webui, "shared"), tensors(webui, "alone"))


def test_many_requests_at_once_and_a_paused_run(webui):
    before = pixels(webui)
    job = start(webui, "crowd", steps=60)
    wait_for_step(webui, job, 2)
    pictures: list = []
    crowd = [threading.Thread(target=lambda: pictures.append(pixels(webui))) for _ in range(4)]
    for one in crowd:
        one.start()
    for one in crowd:
        one.join(120)
    assert len(pictures) == 4 and all(np.array_equal(picture, before) for picture in pictures)
    command(webui, job, "pause")
    paused = wait(webui, job, lambda found: found["status"] == "paused")
    assert np.array_equal(pixels(webui), before)
    assert job_of(webui, job)["step"] == paused["step"]
    command(webui, job, "resume")
    assert wait(webui, job)["status"] == "completed"


def test_drawings_are_the_hosts_own_and_come_between_steps(webui):
    train(webui, "drawn")
    tagged, bare = pixels(webui, "a photo of sks <lora:drawn:1>"), pixels(webui)
    state = inside(webui, "state")
    job = start(webui, "meanwhile", steps=200)
    wait_for_step(webui, job, 2)
    asked = {"prompt": "a photo of sks", "names": ["drawn"], "weights": [0, 1], "seed": 5, "steps": 2, "guidance": 7.0, "width": 64, "height": 64}
    drawing = webui.post("/hotlora/api/drawings", asked)["id"]
    end = time.monotonic() + 120
    while (found := next(one for one in webui.get("/hotlora/api/drawings")["drawings"] if one["id"] == drawing))["status"] in ("queued", "drawing"):
        assert time.monotonic() < end, found
        time.sleep(0.05)
    assert found["status"] == "done" and len(found["pictures"]) == 2, found
    assert job_of(webui, job)["status"] == "running", job_of(webui, job)
    command(webui, job, "stop")
    assert wait(webui, job)["status"] == "stopped"
    ours = [np.asarray(Image.open(io.BytesIO(webui.request("GET", f"/hotlora/api/drawings/{drawing}/{picture['file']}")[2])).convert("RGB"))
            for picture in found["pictures"]]
    for mine, theirs in zip(ours, (bare, tagged)):
        assert np.abs(mine.astype(int) - theirs).mean() < 1
    assert np.abs(bare.astype(int) - tagged).mean() > 5
    assert inside(webui, "state") == state
    assert np.array_equal(pixels(webui), bare)


def test_another_checkpoint_ends_the_run_and_the_former_one_resumes_it(webui):
    train(webui, "straight", steps=30)
    job = start(webui, "switched", steps=30)
    wait_for_step(webui, job, 3)
    choose(webui, "second.safetensors")
    try:
        stopped = wait(webui, job)
        assert stopped["status"] == "stopped" and "second" in stopped["message"] and "random" in stopped["message"]
        assert 3 <= stopped["step"] < 30
    finally:
        choose(webui, "random.safetensors")
    command(webui, job, "resume")
    assert wait(webui, job, lambda found: found["status"] == "completed")["step"] == 30
    assert_same_tensors(tensors(webui, "switched"), tensors(webui, "straight"))


def test_gradients_equal_plain_autograd(webui):
    result = inside(webui, "gradients")
    print(json.dumps(result))
    assert result["kind"] == "eps" and result["layers"] > 50 and result["gradient_error"] < 1e-3 and result["loss_error"] < 1e-4


def test_gradients_through_weights_in_half_precision(webui):
    result = inside(webui, "gradients", half=True)
    print(json.dumps(result))
    train(webui, "brain", mixed_precision="bf16")
    assert result["weights"] == "torch.float16" and result["loss_error"] < 0.02 and result["gradient_error"] < 0.2


def test_sd2(webui):
    choose(webui, "two.safetensors")
    try:
        before = pixels(webui)
        result = inside(webui, "gradients")
        assert result["family"] == "sd2" and result["kind"] == "v" and result["gradient_error"] < 1e-3 and result["loss_error"] < 1e-4
        train(webui, "two", preview_steps=4)
        layers = {key.split(".")[0] for key in tensors(webui, "two")}
        assert len(inside(webui, "baked", tags=[["two", 1.0]])["changes"]) == len(layers)
        assert np.array_equal(pixels(webui), before)
        assert not np.array_equal(pixels(webui, "a photo of sks <lora:two:1>"), before)
    finally:
        choose(webui, "random.safetensors")


def test_v_prediction_is_recognised_and_can_be_chosen(webui):
    try:
        choose(webui, "velocity.safetensors")
        result = inside(webui, "gradients")
        assert result["kind"] == "v" and result["gradient_error"] < 1e-3 and result["loss_error"] < 1e-4
        train(webui, "velocity", zero_terminal_snr=True)
        with safe_open(str(webui.loras / "velocity.safetensors"), "pt") as file:
            assert "v" in [value for key, value in file.metadata().items() if "prediction" in key]
        choose(webui, "random.safetensors")
        webui.post("/sdapi/v1/options", {"hotlora_prediction": "v"})
        assert inside(webui, "gradients")["kind"] == "v"
    finally:
        webui.post("/sdapi/v1/options", {"hotlora_prediction": "auto"})
        choose(webui, "random.safetensors")


def test_weights_in_8_bits(webui):
    webui.post("/sdapi/v1/options", {"fp8_storage": "Enable"})
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
        webui.post("/sdapi/v1/options", {"fp8_storage": "Disable"})


def test_a_reload_of_the_ui_leaves_one_of_each(webui):
    before, first = pixels(webui), inside(webui, "callbacks")
    assert first["tabs"].count("HotLoRA") == 1 and first["routes"] == 1
    job = start(webui, "reloaded", steps=300)
    wait_for_step(webui, job, 2)
    webui.reload_ui()
    assert inside(webui, "callbacks") == first
    assert job_of(webui, job)["status"] == "running", job_of(webui, job)
    command(webui, job, "stop")
    assert wait(webui, job)["status"] == "stopped"
    assert np.array_equal(pixels(webui), before)


def test_without_a_ui(tmp_path):
    write_model(tmp_path)
    write_gallery(tmp_path / "me")
    server = WebuiServer(tmp_path, "--nowebui").start()
    try:
        before = pixels(server)
        train(server, "headless")
        assert np.array_equal(pixels(server), before)
        assert not np.array_equal(pixels(server, "a photo of sks <lora:headless:1>"), before)
    finally:
        server.stop()


def test_sdxl(tmp_path):
    write_model(tmp_path, shapes=small_shapes("sdxl"))
    write_gallery(tmp_path / "me")
    server = WebuiServer(tmp_path, links={"inside_webui": INSIDE}).start()
    try:
        before, state = pixels(server), inside(server, "state")
        result = inside(server, "gradients")
        print(json.dumps(result))
        assert result["family"] == "sdxl" and result["gradient_error"] < 1e-3 and result["loss_error"] < 1e-4
        train(server, "xl", preview_steps=4)
        assert inside(server, "state") == state
        layers = {key.split(".")[0] for key in tensors(server, "xl")}
        assert all(name.startswith(("lora_unet_input_blocks_", "lora_unet_middle_block_", "lora_unet_output_blocks_")) for name in layers)
        assert len(inside(server, "baked", tags=[["xl", 1.0]])["changes"]) == len(layers)
        assert np.array_equal(pixels(server), before)
        assert not np.array_equal(pixels(server, "a photo of sks <lora:xl:1>"), before)
    finally:
        server.stop()


def test_medvram_trains_and_lowvram_is_refused(tmp_path):
    write_model(tmp_path)
    write_gallery(tmp_path / "me")
    server = WebuiServer(tmp_path, "--medvram").start()
    try:
        before = pixels(server)
        train(server, "medium", preview_steps=4)
        assert np.array_equal(pixels(server), before)
        assert not np.array_equal(pixels(server, "a photo of sks <lora:medium:1>"), before)
    finally:
        server.stop()
    server = WebuiServer(tmp_path, "--lowvram").start()
    try:
        pixels(server)
        status = server.get("/hotlora/api/status")
        assert not status["can_train"] and "--medvram" in status["reason"]
        with pytest.raises(ValueError, match="409.*--lowvram.*--medvram"):
            start(server, "never")
    finally:
        server.stop()
