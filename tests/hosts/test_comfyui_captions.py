"""HotLoRA Caption and the check on HotLoRA Gallery in a real ComfyUI, with models as a user puts them into its model folder."""
from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from PIL import Image

from hotlora.tests.hosts import graphs
from hotlora.tests.hosts.comfy_server import ComfyServer, ended, error_of, write_gallery, write_model
from hotlora.tests.trainer.captions.small_models import WORDS, blip_folder, clip_folder
from hotlora.trainer.captions.marks import FILE as MARKS
from hotlora.trainer.captions.metadata import read_metadata

pytestmark = pytest.mark.host
CAPTIONER = '''
class ColourCaptioner:
    """A captioner of another pack, of the old kind: a picture in, a text out."""
    CATEGORY, FUNCTION, RETURN_TYPES = "other", "describe", ("STRING",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("IMAGE",)}}

    def describe(self, image):
        return (f"a {['red', 'green', 'blue'][int(image.mean((0, 1, 2)).argmax())]} wall of {image.shape[2]}x{image.shape[1]}",)


NODE_CLASS_MAPPINGS = {"ColourCaptioner": ColourCaptioner}
'''


@pytest.fixture(scope="module")
def comfy(tmp_path_factory):
    base = tmp_path_factory.mktemp("comfy_captions")
    write_model(base)
    write_gallery(base)
    blip_folder(base / "models" / "captioners" / "blip-image-captioning-base")
    clip_folder(base / "models" / "captioners" / "clip-vit-large-patch14")
    pack = base / "custom_nodes" / "other_captioner"
    pack.mkdir(parents=True)
    (pack / "__init__.py").write_text(CAPTIONER)
    server = ComfyServer(base).start()
    yield server
    server.stop()


@pytest.fixture
def folder(comfy, request) -> Path:
    """Six pictures of plain colours with some noise, without captions."""
    # a name that ends with a blank would lose it on its way through ComfyUI
    folder = comfy.base / "input" / re.sub(r"\W+", "_", request.node.name)
    folder.mkdir()
    for i in range(6):
        noise = Image.effect_noise((640 + 16 * i, 512), 60).convert("RGB")
        Image.blend(noise, Image.new("RGB", noise.size, ("red", "lime", "blue")[i % 3]), 0.5).save(folder / f"{i}.png")
    return folder


def graph(folder: Path, captions=None, gallery: dict | None = None, **widgets) -> dict:
    """Nodes 10 and 15: HotLoRA Gallery and HotLoRA Caption; 16 and 17 keep what it gives."""
    inputs = {"gallery": ["10", 0], "model": "the one that is here", "trigger": "", "subject": "", "into": "auto", "again": False, "download": False, "undo": False,
              **widgets, **({"captions": list(captions)} if captions else {})}
    return {"10": {"class_type": "HotLoRAGallery", "inputs": {"folder": str(folder), "repeats": 1, **(gallery or {})}},
            "15": {"class_type": "HotLoRACaption", "inputs": inputs},
            "16": {"class_type": "PreviewAny", "inputs": {"source": ["15", 2]}}}


def text_of(entry: dict, node: str) -> str:
    assert ended(entry) == "success", error_of(entry)
    return entry["outputs"][node]["text"][0]


def test_a_model_captions_what_is_missing_and_it_can_be_undone(comfy, folder):
    (folder / "1.txt").write_text("a person's own words")
    told = text_of(comfy.run(graph(folder, model="blip-base", trigger="sks", into="metadata")), "15")
    assert told.startswith("5 captions written by blip-image-captioning-base, 1 kept")
    written = read_metadata(folder / "metadata.csv")
    assert set(written) == {"0.png", "2.png", "3.png", "4.png", "5.png"} and (folder / MARKS).is_file()
    assert all(text.startswith("sks, ") and set(text[5:].split()) <= set(WORDS) for text in written.values())
    assert (folder / "1.txt").read_text() == "a person's own words"
    assert text_of(comfy.run(graph(folder, model="clip", trigger="zzz", again=True)), "15").startswith("5 captions written by clip-vit-large-patch14")
    assert text_of(comfy.run(graph(folder, undo=True)), "15") == "5 captions taken out"
    assert not (folder / "metadata.csv").exists() and (folder / "1.txt").read_text() == "a person's own words"


def test_captions_of_another_pack_picture_by_picture(comfy, folder):
    """HotLoRA Gallery hands out the pictures, and the other node's list comes back in their order."""
    (folder / "4.txt").write_text("mine")
    entry = comfy.run({**graph(folder, captions=("20", 0), trigger="sks", into="sidecars"), "20": {"class_type": "ColourCaptioner", "inputs": {"image": ["10", 3]}}})
    assert text_of(entry, "15").startswith("5 captions written by another captioner, 1 kept")
    assert [(folder / f"{i}.txt").read_text() for i in range(6)] == [
        "sks, a red wall of 640x512", "sks, a green wall of 656x512", "sks, a blue wall of 672x512", "sks, a red wall of 688x512", "mine",
        "sks, a blue wall of 720x512"]
    assert json.loads((folder / MARKS).read_text(encoding="utf-8"))["captions"]["0.png"]["model"] == "another captioner"


def test_one_text_with_a_line_for_each(comfy, folder):
    lines = {"20": {"class_type": "PrimitiveStringMultiline", "inputs": {"value": "\n".join(f"line {i}" for i in range(6))}}}
    text_of(comfy.run({**graph(folder, captions=("20", 0)), **lines}), "15")
    assert read_metadata(folder / "metadata.csv") == {f"{i}.png": f"line {i}" for i in range(6)}
    lines["20"]["inputs"]["value"] = "one\ntwo"
    entry = comfy.run({**graph(folder, captions=("20", 0), again=True), **lines})
    assert ended(entry) == "error" and "there are 2 captions for 6 pictures" in error_of(entry)


def test_the_gallery_shows_what_the_check_found_and_a_score(comfy, folder):
    (folder / "copy.png").write_bytes((folder / "0.png").read_bytes())
    entry = comfy.run({**graph(folder, gallery={"purpose": "object", "check_resolution": 256}, undo=True),
                       "18": {"class_type": "PreviewAny", "inputs": {"source": ["10", 2]}}})
    told = text_of(entry, "10")
    assert "gallery check: " in told and "1 copy of a file that is there already" in told and "leave the copies out" in told and "7 pictures" in told
    score = int(text_of(entry, "18"))
    assert 0 < score < 100 and f"gallery check: {score} of 100" in told


def test_training_with_captions_made_here_is_not_done_twice(comfy, folder):
    """Captions that HotLoRA writes do not count as a change of the gallery; those of a person do."""
    training = graphs.training(str(folder), name="captioned", steps=1)
    training["12"]["inputs"]["gallery"] = ["15", 0]
    whole = {**graphs.loader(), **training, **graph(folder, model="blip-base")}
    assert ended(entry := comfy.run(whole)) == "success", error_of(entry)
    stamp = (comfy.loras / "captioned.safetensors").stat().st_mtime_ns
    assert len(read_metadata(folder / "metadata.csv")) == 6
    assert ended(comfy.run(whole)) == "success"
    assert (comfy.loras / "captioned.safetensors").stat().st_mtime_ns == stamp
    (folder / "0.txt").write_text("by hand")
    table = folder / "metadata.csv"
    table.write_text("\n".join(line for line in table.read_text().splitlines() if not line.startswith("0.png")) + "\n")
    assert ended(comfy.run(whole)) == "success"
    assert (comfy.loras / "captioned.safetensors").stat().st_mtime_ns > stamp


def test_training_alone_writes_captions_first(comfy, folder):
    entry = comfy.run({**graphs.loader(), **graphs.training(str(folder), name="by_itself", steps=1)})
    assert ended(entry) == "success", error_of(entry)
    assert len(read_metadata(folder / "metadata.csv")) == 6 and (folder / MARKS).is_file()
    assert "auto_caption: false turns this off" in comfy.log.read_text()
    text_of(comfy.run(graph(folder, undo=True)), "15")
    entry = comfy.run({**graphs.loader(), **graphs.training(str(folder), name="without", steps=1, settings={"auto_caption": False})})
    assert ended(entry) == "success" and not (folder / "metadata.csv").exists()


def test_cancel_keeps_what_is_done(comfy, folder):
    for i in range(6, 400):
        Image.effect_noise((64, 64), 60 + i % 60).convert("RGB").save(folder / f"{i}.png")
    plain = graph(folder, model="blip-base")
    prompt = comfy.queue(plain)
    end = time.monotonic() + 120
    while not (folder / "metadata.csv").exists():
        assert time.monotonic() < end, comfy.tail()
        time.sleep(0.05)
    comfy.post("/interrupt")
    assert ended(comfy.wait(prompt)) == "interrupted"
    done = read_metadata(folder / "metadata.csv")
    assert 0 < len(done) < 400
    told = text_of(comfy.run(plain), "15")
    assert told.startswith(f"{400 - len(done)} captions written") and f"{len(done)} kept" in told


@pytest.mark.parametrize("widgets, words", [
    ({"model": "blip-large"}, "1.88 GB) is not on this machine; let it be downloaded"),
    ({"model": "wd"}, "is not on this machine")], ids=["blip-large", "wd"])
def test_a_model_that_is_not_here_is_one_sentence(comfy, folder, widgets, words):
    entry = comfy.run(graph(folder, **widgets))
    assert ended(entry) == "error" and words in error_of(entry) and str(comfy.base / "models" / "captioners") in error_of(entry)


def test_a_picture_that_is_left_out_is_not_captioned_by_the_training(comfy, folder):
    (folder / ".hotlora-left-out.json").write_text('{"files": ["0.png"]}')
    entry = comfy.run({**graphs.loader(), **graphs.training(str(folder), name="five", steps=1)})
    assert ended(entry) == "success", error_of(entry)
    assert set(read_metadata(folder / "metadata.csv")) == {f"{i}.png" for i in range(1, 6)}
    assert "left out: 1 (0.png)" in entry["outputs"]["10"]["text"][0]
