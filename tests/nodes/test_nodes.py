"""The nodes in ComfyUI's own Python, without its server: what each gives and says."""
from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from hotlora.tests.hosts.comfy_server import write_gallery, write_model
from hotlora.tests.hosts.places import host

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict:
    base = tmp_path_factory.mktemp("nodes")
    write_model(base)
    write_gallery(base)
    folder, python = host("COMFYUI")
    done = subprocess.run([str(python), str(Path(__file__).with_name("inside_nodes.py")), str(folder), str(base)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_settings_give_what_differs_from_the_defaults_and_name_what_is_wrong(found):
    told = found["settings"]
    assert told["defaults"] == {}
    assert told["changed"] == {"save_steps": 50, "optimizer": "prodigy", "unet_target_modules": ["q_proj", "v_proj"], "optimizer_args": {"beta3": 0.9}}
    assert "l3" in told["bad"] and "lr_scheduler" in told["bad"] and "unet_target_modules" in told["bad list"]
    assert "optimizer_args is '{beta3: ' but must be a mapping" in told["bad mapping"]
    assert told["prompts"] == [["one", "two"], ["@sks, smiling"], ["a sign: open"], ["[sks|dog], {red}"], ["quoted"]]


def test_the_gallery_is_looked_at_and_reported(found):
    told = found["gallery"]
    assert told["value"]["repeats"] == 2 and told["value"]["train_data_dir"].endswith("me")
    assert "4 pictures" in told["report"] and "torn.png" in told["report"] and told["shown"] == 4
    good, bad = told["validated"][:3], told["validated"][3:]
    assert good == [True] * 3 and "there is no folder" in bad[0] and "folder is empty" in bad[1] and "there is no folder" in bad[2]
    assert not told["from another node"], "its pictures are looked at each time"


def test_training_gives_a_patched_model_the_tag_and_pictures(found):
    told = found["train"]
    assert told["tag"] == "<lora:seen:1>" and "completed 4 steps" in told["told"][0] and "memory: " in told["told"][0] and "it fits" in told["told"][0]
    bare, first, second = told["patched"]
    assert bare == 0 and first == second > 20 and told["same weights"]
    assert told["same as by its tag"], "what the node hands on is what its file holds, here the average"
    for name, count in (("plot", 1), ("previews", 4), ("no previews", 1)):
        picture = told[name]
        assert picture["shape"][0] == count and picture["shape"][3] == 3 and picture["dtype"] == "torch.float32", name
        assert 0 <= picture["low"] < picture["high"] <= 1, name
    assert told["names"][:2] == [True, True] and "has '/'" in told["names"][2]
    assert told["presets"][:3] == [True] * 3 and "must be one of quick, balanced, best" in told["presets"][3]


def test_a_cancelled_run_goes_on_whatever_else_has_its_name(found):
    told = found["cancel"]
    assert told["first"] == {"steps": [1, 2, 3], "gave": False, "pressed": False, "last text": told["first"]["last text"], "listed": []}
    assert told["left"] == ["cancelled-000002.state", "cancelled-000003.state"] == told["aside"]
    assert told["other"]["steps"] == [1] and not told["other"]["gave"] and told["own"] == ["cancelled-000001.state"]
    assert told["again"]["steps"] == [2, 3, 4] and told["again"]["gave"] and told["over"] == []


def test_what_a_cancelled_run_kept_is_said_in_the_words_of_a_graph(found):
    text = found["cancel"]["first"]["last text"]
    assert "stopped after step 3 of 4" in text and "cancelled.safetensors" in text and text.endswith("run again to go on")


def test_the_button_in_the_last_step_keeps_the_result_and_cancels_the_rest_of_the_graph(found):
    told = found["cancel"]["last"]
    assert told["gave"] and told["steps"] == [1, 2, 3, 4] and told["pressed"]
    assert found["cancel"]["again"]["gave"] and not found["cancel"]["again"]["pressed"]


def test_a_step_is_not_cancelled_in_its_middle_and_patches_are_told_the_noise(found):
    told = found["backend"]
    assert told["pressed"] == [True, True], "whoever looks after the step finds the button pressed"
    assert told["sigma"] == pytest.approx(told["expected"], rel=1e-5)


def test_a_missing_vae_is_said_before_pictures_are_read(found):
    assert "the VAE is missing" in found["backend"]["no vae"]


def test_an_inpainting_model_is_trained_as_the_host_draws_with_it(found):
    assert found["inpainting"] < 1e-4


def test_the_prompt_applies_its_tags_and_encodes_the_rest(found):
    told = found["prompt"]
    assert "<" not in told["plain"] and told["same text"] and told["untouched"] == 0
    assert told["strengths"] == [0.2, 0.5]
    assert told["fingerprint"] and not told["missing"], "a LoRA that is missing is looked for each time"
    assert told["linked"] and told["files"] > 5, "a text that is not known yet may mean any file"
    assert "seen" in told["unknown"] and "the CLIP is missing" in told["no clip"]


def test_the_comparison_is_a_grid(found):
    told = found["compare"]
    _, height, width, channels = told["grid"]["shape"]
    assert height > 64 and width > 3 * 64 and channels == 3
    assert told["weights"] == [0.4, -1, 2] and "a lot" in told["bad weight"]
    assert told["names"][:2] == ["seen"] * 2 and "has no name" in told["names"][2] and "a<b" in told["names"][3]
    one, *linked = told["linked"]
    assert one == 1 and min(linked) > 5, "a name that is not known yet may mean any file"
    assert told["rows"] == [[6], [0, 3, 6], list(range(7)), list(range(7))]


def test_unfinished_runs_are_listed_by_their_newest_state(found):
    before, after = found["unfinished"]
    assert before == [] and after == [["one", 40], ["two [x]", 5]]
