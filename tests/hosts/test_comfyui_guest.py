"""A good guest: what HotLoRA does to ComfyUI's start, to its other nodes, and to models that cannot be trained."""
from __future__ import annotations

import json
import re
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from hotlora.tests.hosts import graphs
from hotlora.tests.hosts.comfy_server import ROOT, ComfyServer, ended, error_of, is_cached, write_gallery, write_model, write_video_model
from hotlora.tests.hosts.watching import FileAccess

pytestmark = pytest.mark.host
EXTRAS = ("diffusers", "peft", "accelerate", "tensorboard", "open_clip", "bitsandbytes", "prodigyopt", "lion_pytorch", "schedulefree", "hypothesis", "pytest")
WATCH = '''"""Runs at the start of Python: the packages of extras are not found, and what is imported of HotLoRA is written down."""
import sys
from importlib.machinery import PathFinder

class Watch(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.split(".")[0] in {extras}:
            return None
        if name.startswith("hotlora."):
            with open({notes}, "a") as stream:
                stream.write(name + "\\n")
        return super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Watch
'''


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    base = tmp_path_factory.mktemp("guest")
    write_model(base)
    write_gallery(base)
    (base / "start").mkdir()
    (base / "start" / "sitecustomize.py").write_text(WATCH.format(extras=EXTRAS, notes=repr(str(base / "imported.txt"))))
    return base


@pytest.fixture(scope="module")
def comfy(base):
    """Started without any of the packages that extras bring."""
    server = ComfyServer(base, environment={"PYTHONPATH": str(base / "start")}).start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def imported_at_start(base, comfy) -> list[str]:
    return (base / "imported.txt").read_text().split()


def pixels(server: ComfyServer, graph: dict) -> np.ndarray:
    entry = server.run({**graphs.loader(), **graph})
    assert ended(entry) == "success", error_of(entry)
    assert not is_cached(entry, "53"), "the picture was not drawn"
    return np.asarray(server.picture(entry, "56"))


def model_loads(server: ComfyServer) -> int:
    """How often ComfyUI has put a denoiser or a VAE on the device, by its own log; a text encoder is put there by the loader node."""
    return len(re.findall(r"Requested to load (?!SD1ClipModel)", server.log.read_text(errors="replace")))


def test_nothing_of_the_core_is_imported_at_the_start(comfy, imported_at_start):
    """What takes time at a start is torch's and the core's imports: the nodes bring neither."""
    assert "hotlora.nodes.train" in imported_at_start
    heavy = [name for name in imported_at_start if re.search(r"\.(session|run|adapter|frozen|gallery|hosts\.comfy|demo|captions)\b", name) and ".nodes." not in name]
    assert not heavy
    [seconds] = re.findall(r"([\d.]+) seconds.*: .*custom_nodes/hotlora", comfy.log.read_text(errors="replace"))
    print(f"ComfyUI's log: the pack took {seconds} s of its start")


def test_it_trains_with_every_extra_missing_and_without_touching_the_checkpoint(comfy, base):
    before = pixels(comfy, graphs.drawing())
    with FileAccess(base / "models" / "checkpoints" / "random.safetensors") as access:
        entry = comfy.run({**graphs.loader(), **graphs.training("me", name="bare", steps=2)})
    assert ended(entry) == "success", error_of(entry)
    assert access.count == 0
    assert (comfy.loras / "bare.safetensors").is_file()
    assert np.array_equal(pixels(comfy, graphs.drawing()), before)


def native_training(bypass: bool) -> dict:
    """Nodes 70 to 74: ComfyUI's own training of one step on an empty latent, and its LoRA saved."""
    return {
        "70": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "71": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": "a photo of sks"}},
        "72": {"class_type": "TrainLoraNode", "inputs": {
            "model": ["1", 0], "latents": ["70", 0], "positive": ["71", 0], "batch_size": 1, "grad_accumulation_steps": 1, "steps": 1,
            "learning_rate": 0.001, "rank": 2, "optimizer": "AdamW", "loss_function": "MSE", "seed": 0, "training_dtype": "fp32",
            "lora_dtype": "fp32", "quantized_backward": False, "algorithm": "LoRA", "gradient_checkpointing": True, "checkpoint_depth": 1,
            "offloading": False, "existing_lora": "[None]", "bucket_mode": False, "bypass_mode": bypass}},
        "73": {"class_type": "SaveLoRA", "inputs": {"lora": ["72", 0], "prefix": "loras/native"}},
    }


@pytest.mark.parametrize("bypass", [False, True], ids=["default", "bypass"])
def test_comfyui_s_own_training_node_runs_beside_ours_in_one_graph(comfy, bypass):
    before = pixels(comfy, graphs.drawing(seed=11))
    names = [f"beside_{number}_{bypass}".lower() for number in (0, 1)]
    entry = comfy.run({**graphs.loader(), **graphs.training("me", name=names[0], steps=2), **native_training(bypass)})
    assert ended(entry) == "success", error_of(entry)
    assert np.array_equal(pixels(comfy, graphs.drawing(seed=11)), before)
    entry = comfy.run({**graphs.loader(), **graphs.training("me", name=names[1], steps=2)})
    assert ended(entry) == "success", error_of(entry)
    first, second = (load_file(comfy.loras / f"{name}.safetensors") for name in names)
    assert all((first[key] == second[key]).all() for key in first)


def upstream(change: str) -> tuple[dict, str]:
    """A model that cannot be trained, as node 2, and what the error says of it."""
    if change in ("lcm", "x0", "img_to_img"):
        node = {"class_type": "ModelSamplingDiscrete", "inputs": {"model": ["1", 0], "sampling": change, "zsnr": False}}
        return node, {"lcm": "distilled", "x0": "X0", "img_to_img": "IMG_TO_IMG"}[change]
    if change == "edm":
        return {"class_type": "ModelSamplingContinuousEDM", "inputs": {"model": ["1", 0], "sampling": "edm", "sigma_max": 120.0, "sigma_min": 0.002}}, "EDM"
    return {"class_type": "UNETLoader", "inputs": {"unet_name": "video.safetensors", "weight_dtype": "default"}}, "video"


@pytest.mark.parametrize("change", ["lcm", "x0", "img_to_img", "edm", "video"])
def test_a_model_that_cannot_be_trained_is_one_sentence_before_anything_is_loaded(comfy, base, change):
    write_video_model(base)
    node, sentence = upstream(change)
    loads = model_loads(comfy)
    entry = comfy.run({**graphs.loader(), "2": node, **graphs.training("me", name="no", model=("2", 0))})
    assert ended(entry) == "error" and sentence in error_of(entry), error_of(entry)
    assert len(error_of(entry).splitlines()) == 1
    assert model_loads(comfy) == loads and not (comfy.loras / "no.safetensors").exists()


@pytest.mark.parametrize("part, sentence", [("first_stage_model.", "VAE"), ("cond_stage_model.", "CLIP")])
def test_a_checkpoint_without_vae_or_text_encoder_is_one_sentence(comfy, base, part, sentence):
    weights = load_file(base / "models" / "checkpoints" / "random.safetensors")
    name = f"without_{sentence.lower()}.safetensors"
    save_file({key: x for key, x in weights.items() if not key.startswith(part)}, str(base / "models" / "checkpoints" / name))
    loads = model_loads(comfy)
    entry = comfy.run({**graphs.loader(name), **graphs.training("me", name="no")})
    assert ended(entry) == "error" and f"the {sentence} is missing" in error_of(entry), error_of(entry)
    assert len(error_of(entry).splitlines()) == 1 and model_loads(comfy) == loads


@pytest.mark.parametrize("pictures, sentence", [(None, "there is no folder"), ([], "no picture"), (["broken.png"], "no usable picture"), ("", "folder is empty")],
                         ids=["no folder", "no picture", "no usable picture", "no name"])
def test_a_gallery_that_is_of_no_use_is_one_sentence_before_the_checkpoint_is_read(comfy, base, tmp_path, pictures, sentence):
    checkpoint = base / "models" / "checkpoints" / "unread.safetensors"
    if not checkpoint.exists():
        checkpoint.write_bytes((base / "models" / "checkpoints" / "random.safetensors").read_bytes())
    folder = tmp_path / "pictures"
    if pictures is not None:
        folder.mkdir()
        for name in pictures:
            (folder / name).write_bytes(b"this is no picture")
    graph = {**graphs.loader(checkpoint.name), **graphs.training("" if pictures == "" else str(folder), name="no")}
    with FileAccess(checkpoint) as access:
        try:
            told = error_of(comfy.run(graph))
        except ValueError as refused:
            [(node, faults)] = json.loads(str(refused))["node_errors"].items()
            assert node == "10", "the error is shown on the gallery"
            told = faults["errors"][0]["details"]
    assert sentence in told and len(told.splitlines()) == 1, told
    assert access.count == 0


def test_name_and_folder_may_come_from_other_nodes(comfy, base):
    """Their values are not known when a prompt is checked."""
    graph = {**graphs.loader(), **graphs.training("me", steps=1),
             "20": {"class_type": "PrimitiveString", "inputs": {"value": "by_wire"}},
             "21": {"class_type": "PrimitiveString", "inputs": {"value": str(base / "input" / "me")}}}
    graph["12"]["inputs"]["name"], graph["10"]["inputs"]["folder"] = ["20", 0], ["21", 0]
    entry = comfy.run(graph)
    assert ended(entry) == "success", error_of(entry)
    assert (comfy.loras / "by_wire.safetensors").is_file()


def test_an_input_that_is_not_connected_is_turned_down_by_the_page(comfy):
    graph = {**graphs.loader(), **graphs.training("me", name="no")}
    del graph["12"]["inputs"]["vae"]
    with pytest.raises(ValueError, match="vae"):
        comfy.queue(graph)


def test_a_saved_step_of_a_run_that_goes_on_is_there_by_its_tag(comfy, base):
    """The step is listed and readable while the run goes on; the prompt that was queued meanwhile draws with it."""
    run = comfy.queue({**graphs.loader(), **graphs.training("me", name="long", steps=5000, learning_rate=0.02, settings={"save_steps": 2})})
    until = time.monotonic() + 120
    while not (comfy.loras / "long-000002.safetensors").is_file():
        assert time.monotonic() < until, comfy.tail()
        time.sleep(0.05)
    assert run in str(comfy.get("/queue")["queue_running"])
    assert "long-000002.safetensors" in comfy.get("/object_info/LoraLoader")["LoraLoader"]["input"]["required"]["lora_name"][0]
    drawn = comfy.queue({**graphs.loader(), **graphs.prompted("a photo of sks <lora:long-000002:1>", seed=12)})
    comfy.post("/interrupt")
    assert ended(comfy.wait(run)) == "interrupted"
    entry = comfy.wait(drawn)
    assert ended(entry) == "success", error_of(entry)
    assert not np.array_equal(np.asarray(comfy.picture(entry, "56")), pixels(comfy, graphs.drawing(seed=12)))


def test_the_cancel_button_ends_a_preview_and_keeps_what_was_learned(comfy, base):
    prompts = [f"a photo of sks {number}" for number in range(40)]
    run = comfy.queue({**graphs.loader(), **graphs.training("me", name="previewed", steps=5, settings={
        "save_steps": 1, "preview_steps": 1, "preview_prompts": str(prompts)})})
    until = time.monotonic() + 120
    while not (comfy.loras / "previewed-000001.safetensors").is_file():
        assert time.monotonic() < until, comfy.tail()
        time.sleep(0.05)
    comfy.post("/interrupt")
    assert ended(comfy.wait(run)) == "interrupted"
    assert (comfy.loras / "previewed.safetensors").is_file()
    assert len(list((base / "output" / "hotlora" / "previewed" / "previews").glob("*.png"))) < len(prompts)


def test_the_page_loads_from_a_folder_with_any_name(tmp_path):
    comfy = ComfyServer(tmp_path, extensions=False, links={"热 LoRA (new)": ROOT}).start()
    try:
        [script] = [path for path in comfy.get("/extensions") if path.endswith("/hotlora.js")]
        for path in (script, "/hotlora/"):
            with urllib.request.urlopen(f"http://127.0.0.1:{comfy.port}{path}", timeout=60) as answer:
                assert answer.status == 200
        assert "HotLoRATrain" in comfy.get("/object_info/HotLoRATrain")
    finally:
        comfy.stop()
