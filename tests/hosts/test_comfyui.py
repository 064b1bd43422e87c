"""Training inside a real ComfyUI on the CPU, driven through its own HTTP API."""
from __future__ import annotations

import json
import random
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hotlora.tests.hosts import graphs
from hotlora.tests.hosts.places import host
from hotlora.tests.hosts.comfy_server import ComfyServer, ended, error_of, is_cached, small_shapes, write_gallery, write_model, write_quantized, write_smoothed, write_vega
from hotlora.tests.hosts.watching import memory_limit
from hotlora.trainer.demo import drawings
from hotlora.trainer.lora_file import load_lora

pytestmark = pytest.mark.host
INSIDE = Path(__file__).parent / "inside_comfyui"


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """ComfyUI's folders with a checkpoint of random weights and a gallery `input/me`."""
    base = tmp_path_factory.mktemp("comfy")
    write_model(base)
    write_gallery(base)
    return base


@pytest.fixture(scope="module")
def comfy(base):
    server = ComfyServer(base, links={"inside": INSIDE}).start()
    yield server
    server.stop()


def pixels(server: ComfyServer, entry: dict) -> np.ndarray:
    assert ended(entry) == "success", error_of(entry)
    assert not is_cached(entry, "53"), "the picture was not drawn"
    return np.asarray(server.picture(entry, "56"))


def draw(server: ComfyServer, **request) -> np.ndarray:
    return pixels(server, server.run({**graphs.loader(), **graphs.drawing(**request)}))


def train(server: ComfyServer, folder: str = "me", **widgets) -> dict:
    return server.run({**graphs.loader(), **graphs.training(folder, **widgets)})


def wait_for_step(server: ComfyServer, name: str, step: int = 1) -> None:
    """Until a state of this step or a later one is there: older states are deleted as the run goes on."""
    until = time.monotonic() + 120
    while not any(int(path.stem[-6:]) >= step for path in (server.base / "output" / "hotlora" / name).glob(f"{name}-*.state")):
        assert time.monotonic() < until, server.tail()
        time.sleep(0.05)


def test_the_nodes_are_there_with_tooltips_and_no_extra_package_is_needed(comfy):
    for node in ("HotLoRAGallery", "HotLoRACaption", "HotLoRATrain", "HotLoRASettings", "HotLoRAPrompt", "HotLoRACompare"):
        info = comfy.get(f"/object_info/{node}")[node]
        inputs = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
        assert inputs and all(options[1].get("tooltip") for options in inputs.values())
        assert all(info["output_tooltips"])


def test_training_gives_a_lora_that_the_prompt_and_the_stock_loader_use_alike(comfy):
    before = draw(comfy)
    entry = comfy.run({**graphs.loader(), **graphs.training("me", name="my_face", steps=4, learning_rate=0.01),
                       **graphs.drawing(model=("12", 0), clip=("12", 1), seed=7)})
    at_once = pixels(comfy, entry)
    tensors = load_file(comfy.loras / "my_face.safetensors")
    assert any(key.endswith("lora_up.weight") and tensor.abs().max() > 0 for key, tensor in tensors.items())
    assert "my_face.safetensors" in comfy.get("/object_info/LoraLoader")["LoraLoader"]["input"]["required"]["lora_name"][0]
    assert np.array_equal(draw(comfy), before)

    prompt = pixels(comfy, comfy.run({**graphs.loader(), **graphs.prompted("a photo of sks <lora:my_face:0.8>", seed=7)}))
    stock = pixels(comfy, comfy.run({
        **graphs.loader(), **graphs.drawing(model=("30", 0), clip=("30", 1), seed=7),
        "30": {"class_type": "LoraLoader", "inputs": {"model": ["1", 0], "clip": ["1", 1], "lora_name": "my_face.safetensors",
                                                      "strength_model": 0.8, "strength_clip": 0.8}}}))
    bare = draw(comfy, seed=7)
    assert np.array_equal(prompt, stock) and not np.array_equal(prompt, bare)
    full = pixels(comfy, comfy.run({**graphs.loader(), **graphs.prompted("a photo of sks <lora:my_face:1>", seed=7)}))
    assert np.array_equal(at_once, full)


def test_a_batch_takes_captions_of_different_lengths(comfy, base):
    shutil.copytree(base / "input" / "me", base / "input" / "talkative")
    (base / "input" / "talkative" / "0.txt").write_text("a photo of sks, " + "round and red, " * 60)
    entry = train(comfy, "talkative", name="talkative", steps=3, settings={"batch_size": 4, "caption_dropout": 0.0})
    assert ended(entry) == "success", error_of(entry)
    assert (comfy.loras / "talkative.safetensors").is_file()


@pytest.mark.parametrize("ending", ["completed", "cancelled", "failed", "out of memory"])
def test_the_host_draws_the_same_picture_after_every_ending(comfy, ending, tmp_path):
    before, state = draw(comfy), comfy.get("/inside/state")
    assert any(facts["parts"] > 100 for facts in state["models"].values()), state
    name = "ending_" + ending.replace(" ", "_")
    if ending in ("completed", "cancelled"):
        prompt = comfy.queue({**graphs.loader(), **graphs.training("me", name=name, steps=3 if ending == "completed" else 5000, settings={"save_steps": 1})})
        if ending == "cancelled":
            wait_for_step(comfy, name, 2)
            comfy.post("/interrupt")
        assert ended(comfy.wait(prompt)) == {"completed": "success", "cancelled": "interrupted"}[ending]
    else:
        mine = tmp_path / "mine.py"
        error = "RuntimeError('on purpose')" if ending == "failed" else "torch.cuda.OutOfMemoryError('on purpose')"
        mine.write_text(f"import torch\ndef fail(out, target, t, batch):\n    if batch['step'] == 2:\n        raise {error}\n    return 0.0 * out.sum()\n")
        entry = train(comfy, name=name, steps=5, settings={"loss_term": f"{mine}:fail"})
        assert ended(entry) == "error" and "on purpose" in error_of(entry)
        if ending == "out of memory":
            assert "the memory is full" in error_of(entry) and "resolution lower than 64" in error_of(entry), error_of(entry)
    assert (comfy.loras / f"{name}.safetensors").is_file()
    left = comfy.get("/inside/state")
    assert left["switches"] == state["switches"] and left["every op"] == state["every op"] and left["grad"] == state["grad"]
    assert np.array_equal(draw(comfy), before)
    assert comfy.get("/inside/state")["models"] == state["models"]
    used = pixels(comfy, comfy.run({**graphs.loader(), **graphs.prompted(f"a photo of sks <lora:{name}:1>")}))
    assert used.shape == before.shape


@pytest.mark.slow
def test_a_run_whose_memory_is_full_goes_on_with_less_and_the_host_draws_the_same(comfy):
    """The allocator of the real process refuses more than 800 MB."""
    resolution, settings = 512, {"batch_size": 4, "upscale": True}
    # prepares the pictures, which takes more memory than a step
    assert ended(train(comfy, name="prepared", steps=1, resolution=resolution, settings={**settings, "batch_size": 1, "gradient_checkpointing": True})) == "success"
    before, state = draw(comfy), comfy.get("/inside/state")
    told = len(comfy.log.read_text(errors="replace"))
    with memory_limit(comfy.process.pid, 800 << 20):
        entry = train(comfy, name="full", steps=2, resolution=resolution, settings=settings)
    assert ended(entry) == "success", error_of(entry)
    assert "the memory is full" in comfy.log.read_text(errors="replace")[told:]
    assert np.array_equal(draw(comfy), before)
    left = comfy.get("/inside/state")
    assert left["models"] == state["models"] and left["switches"] == state["switches"]


def test_a_cancelled_run_goes_on_and_ends_as_one_that_was_not(comfy):
    whole = train(comfy, name="whole", steps=6, settings={"save_dtype": "fp32"})
    assert ended(whole) == "success", error_of(whole)
    graph = {**graphs.loader(), **graphs.training("me", name="halved", steps=6, settings={"save_dtype": "fp32", "save_steps": 1})}
    prompt = comfy.queue(graph)
    wait_for_step(comfy, "halved", 2)
    comfy.post("/interrupt")
    assert ended(comfy.wait(prompt)) in ("interrupted", "success")
    assert ended(comfy.run(graph)) == "success"
    whole, halved = load_file(comfy.loras / "whole.safetensors"), load_file(comfy.loras / "halved.safetensors")
    assert whole.keys() == halved.keys() and all((whole[key] == halved[key]).all() for key in whole)


def test_a_run_on_another_checkpoint_does_not_go_on_from_what_is_there(comfy, base):
    inputs = {"name": "moved", "steps": 6, "settings": {"save_steps": 1}}
    prompt = comfy.queue({**graphs.loader(), **graphs.training("me", **inputs)})
    wait_for_step(comfy, "moved", 2)
    comfy.post("/interrupt")
    assert ended(comfy.wait(prompt)) == "interrupted"
    assert ended(comfy.run({**graphs.loader(write_model(base, "another.safetensors", seed=1)), **graphs.training("me", **inputs)})) == "success"
    assert list((base / "output" / "hotlora" / "moved" / "earlier-1").glob("moved-*.state"))
    metadata = load_lora(comfy.loras / "moved.safetensors")[1]
    assert metadata["ss_sd_model_name"] == "another" and not metadata.get("ss_new_sd_model_hash")


def test_training_again_under_the_same_name_is_used_by_the_very_next_prompt(comfy):
    prompt = {**graphs.loader(), **graphs.prompted("a photo of sks <lora:again:1>", seed=9)}
    assert ended(train(comfy, name="again", steps=3, learning_rate=0.01)) == "success"
    first = pixels(comfy, comfy.run(prompt))
    assert ended(train(comfy, name="again", steps=3, learning_rate=0.01, seed=2)) == "success"
    second = pixels(comfy, comfy.run(prompt))
    assert not np.array_equal(first, second)
    older = pixels(comfy, comfy.run({**graphs.loader(), **graphs.prompted("a photo of sks <lora:again-v1:1>", seed=9)}))
    assert np.array_equal(older, first)


def test_the_same_inputs_are_not_run_again_and_a_changed_picture_is(comfy, base):
    folder = base / "input" / "changing"
    shutil.copytree(base / "input" / "me", folder)
    assert ended(train(comfy, "changing", name="cached")) == "success"
    stamp = (comfy.loras / "cached.safetensors").stat().st_mtime_ns
    assert ended(train(comfy, "changing", name="cached")) == "success"
    assert (comfy.loras / "cached.safetensors").stat().st_mtime_ns == stamp
    drawings.draw_mascot(random.Random(9), "gray").save(folder / "0.png")
    assert ended(train(comfy, "changing", name="cached")) == "success"
    assert (comfy.loras / "cached.safetensors").stat().st_mtime_ns > stamp


def test_a_lora_that_was_removed_is_made_again(comfy):
    file = comfy.loras / "removed.safetensors"
    assert ended(train(comfy, name="removed")) == "success"
    for _ in range(2):
        file.unlink()
        assert ended(train(comfy, name="removed")) == "success"
        stamp = file.stat().st_mtime_ns
        assert ended(train(comfy, name="removed")) == "success"
        assert file.stat().st_mtime_ns == stamp


def test_a_folder_from_another_node_is_trained_on_once_until_its_pictures_or_the_lora_change(comfy, base):
    """ComfyUI cannot know beforehand what the other node gives, so it runs ours each time."""
    folder = base / "input" / "linked"
    shutil.copytree(base / "input" / "me", folder)
    graph = {**graphs.loader(), **graphs.training("linked", name="linked", learning_rate=0.02, settings={"save_steps": 1}),
             "9": {"class_type": "PrimitiveString", "inputs": {"value": "linked"}}, **graphs.drawing(model=("12", 0), seed=3)}
    graph["10"]["inputs"]["folder"] = ["9", 0]
    file = comfy.loras / "linked.safetensors"

    def ran() -> tuple[int, np.ndarray]:
        entry = comfy.run(graph)
        assert ended(entry) == "success", error_of(entry)
        assert entry["outputs"]["12"]["text"] and entry["outputs"]["14"]["images"]
        return file.stat().st_mtime_ns, pixels(comfy, comfy.run({**graphs.loader(), **graphs.prompted("a photo of sks <lora:linked:1>", seed=3)}))

    stamp, drawn = ran()
    again, entry = ran(), comfy.run(graph)
    assert again[0] == stamp and np.array_equal(again[1], drawn)
    assert np.array_equal(np.asarray(comfy.picture(entry, "56")), drawn), "the model that is handed on has the LoRA"
    drawings.draw_mascot(random.Random(9), "gray").save(folder / "0.png")
    changed, _ = ran()
    assert changed > stamp
    file.unlink()
    made_again, _ = ran()
    assert made_again > changed
    graph["12"]["inputs"]["seed"] = 2
    assert ran()[0] > made_again

    # a picture that comes during a run is in the next one
    graph["12"]["inputs"].update(seed=3, steps=40)
    prompt = comfy.queue(graph)
    wait_for_step(comfy, "linked", 1)
    drawings.draw_mascot(random.Random(10), "gray").save(folder / "1.png")
    assert ended(comfy.wait(prompt)) == "success"
    stamp = file.stat().st_mtime_ns
    assert ran()[0] > stamp


def test_a_file_that_a_setting_names_is_looked_at(comfy, base):
    table = base / "words.csv"
    table.write_text("file_name,caption\n" + "".join(f"{i}.png,a red hat\n" for i in range(6)))
    settings = {"metadata_path": str(table)}
    assert ended(train(comfy, name="words", settings=settings)) == "success"
    stamp = (comfy.loras / "words.safetensors").stat().st_mtime_ns
    assert ended(train(comfy, name="words", settings=settings)) == "success"
    assert (comfy.loras / "words.safetensors").stat().st_mtime_ns == stamp
    table.write_text(table.read_text().replace("red", "large blue"))
    assert ended(train(comfy, name="words", settings=settings)) == "success"
    assert (comfy.loras / "words.safetensors").stat().st_mtime_ns > stamp


def test_a_lora_upstream_is_honoured_and_stays(comfy):
    assert ended(train(comfy, name="upstream", steps=3, learning_rate=0.02)) == "success"
    upstream = {"40": {"class_type": "LoraLoader", "inputs": {
        "model": ["1", 0], "clip": ["1", 1], "lora_name": "upstream.safetensors", "strength_model": 1.0, "strength_clip": 1.0}}}
    entry = comfy.run({**graphs.loader(), **upstream, **graphs.training("me", name="on_top", steps=3, learning_rate=0.02, model=("40", 0)),
                       **graphs.drawing(model=("12", 0), seed=3)})
    both = pixels(comfy, entry)
    by_tags = pixels(comfy, comfy.run({**graphs.loader(), **graphs.prompted("a photo of sks <lora:upstream:1> <lora:on_top:1>", seed=3)}))
    assert np.array_equal(both, by_tags)
    plain = train(comfy, name="on_plain", steps=3, learning_rate=0.02)
    assert ended(plain) == "success"
    on_top, on_plain = (load_file(comfy.loras / f"{name}.safetensors") for name in ("on_top", "on_plain"))
    assert any((on_top[key] != on_plain[key]).any() for key in on_top)


def test_compare_draws_weights_across_and_saved_steps_down(comfy):
    assert ended(train(comfy, name="steps", steps=4, settings={"save_steps": 2})) == "success"
    entry = comfy.run({**graphs.loader(), "60": {"class_type": "HotLoRACompare", "inputs": {
        "model": ["1", 0], "clip": ["1", 1], "vae": ["1", 2], "name": "steps", "prompt": "a photo of sks", "negative": "", "weights": "0.5, 1",
        "max_rows": 6, "seed": 1, "steps": 2, "cfg": 5.0, "sampler_name": "euler", "scheduler": "normal", "width": 64, "height": 64}}})
    assert ended(entry) == "success", error_of(entry)
    saved = comfy.run({**graphs.loader(), **graphs.prompted("a photo of sks <lora:steps-000002:1>")})
    assert ended(saved) == "success", error_of(saved)
    grid = comfy.picture(entry, "60")
    assert grid.width > 3 * 64 and grid.height > 2 * 64


def test_other_loras_in_the_prompt_of_a_comparison_are_on_every_picture(comfy):
    for seed, name in enumerate(("compared", "other")):
        assert ended(train(comfy, name=name, steps=3, learning_rate=0.02, seed=seed)) == "success"
    node = {"class_type": "HotLoRACompare", "inputs": {
        "model": ["1", 0], "clip": ["1", 1], "vae": ["1", 2], "name": "compared", "prompt": "a photo of sks <lora:other:0.9>", "negative": "",
        "weights": "0.5", "max_rows": 6, "seed": 4, "steps": 2, "cfg": 5.0, "sampler_name": "euler", "scheduler": "normal", "width": 64, "height": 64}}
    entry = comfy.run({**graphs.loader(), "60": node})
    assert ended(entry) == "success", error_of(entry)
    grid = np.asarray(comfy.picture(entry, "60").convert("RGB")).astype(int)

    def is_in_grid(text: str) -> bool:
        """Whether a picture of HotLoRA Prompt is in the grid; ComfyUI cuts the fraction off where the grid rounds it."""
        cell = pixels(comfy, comfy.run({**graphs.loader(), **graphs.prompted(text, seed=4)})).astype(int)
        places = np.lib.stride_tricks.sliding_window_view(grid, (64, 64, 3))[:, :, 0]
        return any(np.abs(row - cell).max(axis=(1, 2, 3)).min() <= 1 for row in places)

    assert is_in_grid("a photo of sks <lora:other:0.9>") and is_in_grid("a photo of sks <lora:other:0.9> <lora:compared:0.5>")
    assert not is_in_grid("a photo of sks") and not is_in_grid("a photo of sks <lora:compared:0.5>")
    node["inputs"]["prompt"] = "a photo of sks <lora:compared:1>"
    entry = comfy.run({**graphs.loader(), "60": node})
    assert ended(entry) == "error" and "take it out" in error_of(entry)


@pytest.mark.parametrize("change, sentence", [
    ({"folder": "nowhere"}, "there is no folder"),
    ({"folder": "empty"}, "no picture"),
    ({"name": "a/b"}, "name"),
    ({"settings": {"optimizer": "adamm"}}, "did you mean adamw"),
])
def test_bad_input_is_one_sentence_on_the_node(comfy, base, change, sentence):
    (base / "input" / "empty").mkdir(exist_ok=True)
    try:
        entry = train(comfy, **{"folder": "me", "name": "bad", **change})
        message = error_of(entry)
    except ValueError as refused:
        message = str(refused)
    assert sentence in message
    assert not (comfy.loras / "bad.safetensors").exists()


def test_loras_of_anybody_are_found_in_sub_folders_and_several_tags_add_up(comfy):
    for seed, name in enumerate(("moved", "unmoved")):
        assert ended(train(comfy, name=name, steps=3, learning_rate=0.02, seed=seed)) == "success"
    (comfy.loras / "faces" / "of people").mkdir(parents=True)
    (comfy.loras / "moved.safetensors").rename(comfy.loras / "faces" / "of people" / "moved.safetensors")

    def by_tags(text: str) -> np.ndarray:
        return pixels(comfy, comfy.run({**graphs.loader(), **graphs.prompted(text, seed=21)}))

    def stock(node: str, source: str, name: str, weight: float) -> dict:
        return {node: {"class_type": "LoraLoader", "inputs": {"model": [source, 0], "clip": [source, 1], "lora_name": name, "strength_model": weight,
                                                              "strength_clip": weight}}}

    both = by_tags("a photo of sks <lora:moved:0.7> <lora:unmoved:-0.4>")
    by_stock = pixels(comfy, comfy.run({**graphs.loader(), **stock("30", "1", "faces/of people/moved.safetensors", 0.7),
                                        **stock("31", "30", "unmoved.safetensors", -0.4), **graphs.drawing(model=("31", 0), clip=("31", 1), seed=21)}))
    assert np.array_equal(both, by_stock) and not np.array_equal(both, by_tags("a photo of sks"))


def test_an_unknown_lora_is_named_with_the_nearest(comfy):
    assert ended(train(comfy, name="anna", steps=1)) == "success"
    entry = comfy.run({**graphs.loader(), **graphs.prompted("<lora:ana:1> a photo")})
    assert ended(entry) == "error" and "anna" in error_of(entry)


def test_a_run_survives_a_killed_server(base):
    server = ComfyServer(base).start()
    graph = {**graphs.loader(), **graphs.training("me", name="killed", steps=8, settings={"save_dtype": "fp32", "save_steps": 1})}
    try:
        server.queue(graph)
        wait_for_step(server, "killed", 3)
        server.kill()
        server.start()
        assert any(run["name"] == "killed" for run in server.get("/hotlora/unfinished"))
        assert ended(server.run(graph)) == "success"
        assert not any(run["name"] == "killed" for run in server.get("/hotlora/unfinished"))
        whole = server.run({**graphs.loader(), **graphs.training("me", name="not_killed", steps=8, settings={"save_dtype": "fp32", "save_steps": 1})})
        assert ended(whole) == "success"
    finally:
        server.stop()
    killed, whole = load_file(server.loras / "killed.safetensors"), load_file(server.loras / "not_killed.safetensors")
    assert all((killed[key] == whole[key]).all() for key in whole)


def test_the_translations_name_every_node_input_and_output(comfy, root):
    for language in ("en", "zh"):
        told = json.loads((root / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
        for node, texts in told.items():
            info = comfy.get(f"/object_info/{node}")[node]
            inputs = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
            assert texts["inputs"].keys() == inputs.keys() and len(texts["outputs"]) == len(info["output"])
            if language == "en":
                assert texts["description"] == info["description"] and texts["display_name"] == info["display_name"]
                assert all(texts["inputs"][name]["tooltip"] == options[1]["tooltip"] for name, options in inputs.items())
        assert len(told) == 6


@pytest.mark.slow
def test_gradients_of_sdxl_with_sizes_and_crops(tmp_path, root):
    """Segmind-Vega's shape, the smallest SDXL that ComfyUI knows; eps from the host's model_sampling."""
    write_vega(tmp_path)
    found = inside(root, tmp_path, [])
    assert found["family"] == "sdxl" and found["restored"]
    assert found["gradient_error"] < 1e-4 and found["loss_error"] < 1e-4, found


def inside(root: Path, base: Path, arguments: list[str], checkpoint: str = "random.safetensors") -> dict:
    folder, python = host("COMFYUI")
    done = subprocess.run([str(python), str(root / "tests" / "hosts" / "inside_comfy.py"), str(folder), str(base / "models/checkpoints" / checkpoint),
                           *arguments], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("arguments", [
    [], ["v"], ["flow"], ["--fp8_e4m3fn-unet"], ["--bf16-unet"], ["--fp16-unet"], ["upstream"], ["streamed"], ["upstream", "streamed"],
    ["upstream", "evicted"], ["upstream", "streamed", "--fp16-unet"], ["--fp16-unet", "half"]], ids=" ".join)
def test_gradients_equal_plain_autograd_picture_by_picture(base, root, arguments):
    found = inside(root, base, arguments)
    assert found["restored"] and found["layers"] > 20
    assert found["redrawn"] and found["same_hash"] and found["name"] == "random"
    assert ("streamed" in arguments) == (found["calls"]["streamed"] > 100) and ("evicted" in arguments) == (found["calls"]["evicted"] > 1)
    assert found["gradient_error"] < 1e-4 and found["loss_error"] < 1e-4, found
    assert found["kind"] == next((kind for kind in ("v", "flow") if kind in arguments), "eps")
    assert "half" not in arguments or found["computed"] == ["torch.float32"] * 2


@pytest.mark.slow
@pytest.mark.parametrize("arguments, side", [([], 512), (["v"], 768)], ids=str)
def test_sd2_is_trained_at_the_side_it_was_made_for(base, root, arguments, side):
    found = inside(root, base, arguments, write_model(base, "two.safetensors", shapes=small_shapes("sd2")))
    assert (found["family"], found["resolution"], found["kind"]) == ("sd2", side, "v" if arguments else "eps")
    assert found["restored"] and found["gradient_error"] < 1e-4 and found["loss_error"] < 1e-4, found


def test_a_dora_does_through_the_stock_loader_what_it_did_in_training(base, root):
    found = inside(root, base, ["dora"])
    assert len(found) == 2 and max(found.values()) < 1e-3, found


def test_captions_are_encoded_as_they_are_written(base, root):
    found = inside(root, base, ["captions"])
    assert len(found) == 5 and max(found.values()) == 0, found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_gradients_on_files_in_other_precisions(base, root, dtype):
    name = write_model(base, f"{str(dtype).removeprefix('torch.')}.safetensors", dtype=dtype)
    found = inside(root, base, [], name)
    assert found["restored"] and found["redrawn"] and found["gradient_error"] < 1e-4 and found["loss_error"] < 1e-4, found


@pytest.mark.parametrize("form", ["float8_e4m3fn", "int8_tensorwise"])
def test_gradients_through_quantized_layers_equal_plain_autograd(base, root, form):
    found = inside(root, base, [], write_quantized(base, form, f"{form}.safetensors"))
    assert found["restored"] and found["redrawn"] and found["layers"] > 20
    assert found["gradient_error"] < 1e-4 and found["loss_error"] < 1e-4, found


def test_a_quantized_model_that_cannot_be_trained_is_turned_down_in_one_sentence(comfy, base):
    entry = comfy.run({**graphs.loader(write_smoothed(base)), **graphs.training("me", name="smoothed")})
    assert ended(entry) == "error" and "pre_quant_scale" in error_of(entry) and len(error_of(entry).splitlines()) == 1
