"""Captions and the gallery check in a real stable-diffusion-webui: by its own transformers and open_clip, from its own model folder."""
from __future__ import annotations

import time
from pathlib import Path

import pytest

from hotlora.tests.hosts.test_webui import train, write_gallery
from hotlora.tests.hosts.webui_server import WebuiServer, write_model
from hotlora.tests.trainer.captions.small_models import WORDS, blip_folder, clip_folder
from hotlora.trainer.captions.marks import FILE as MARKS
from hotlora.trainer.captions.metadata import read_metadata
from hotlora.trainer.hosts.parts import tokenizer_files

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def webui(tmp_path_factory):
    base = tmp_path_factory.mktemp("webui_captions")
    write_model(base)
    blip_folder(base / "models" / "captioners" / "blip-image-captioning-base")
    clip = clip_folder(base / "models" / "captioners" / "clip-vit-large-patch14")
    # as it is published: the webui's tokenizers cannot read what the newest ones write
    (clip / "tokenizer.json").unlink(missing_ok=True)
    for name, content in tokenizer_files().items():
        (clip / name).write_text(content, encoding="utf-8")
    server = WebuiServer(base, settings={"sd_model_checkpoint": "random.safetensors"}).start()
    yield server
    server.stop()


@pytest.fixture
def bare(webui, request) -> Path:
    """Four drawings of the mascot, one of them with a person's caption."""
    folder = write_gallery(webui.base / request.node.name)
    for i in range(3):
        (folder / f"{i}.txt").unlink()
    return folder


def captioned(server: WebuiServer, folder: Path, **asked) -> dict:
    server.post("/hotlora/api/gallery/caption", {"folder": str(folder), **asked})
    end = time.monotonic() + 120
    while (state := server.get("/hotlora/api/gallery/captioning"))["works"]:
        assert time.monotonic() < end, state
        time.sleep(0.1)
    return state


def test_captions_are_written_marked_and_undone(webui, bare):
    offered = {one["model"]: one for one in webui.get("/hotlora/api/gallery/captioners")["models"]}
    assert offered["blip-base"]["here"] and offered["clip"]["here"] and not offered["blip-large"]["here"]
    assert Path(offered["blip-large"]["folder"]) == webui.base / "models" / "captioners" / "blip-image-captioning-large"
    for model, into in (("blip-base", "metadata"), ("clip", "auto")):
        told = captioned(webui, bare, model=model, trigger="zzz", into=into)
        assert told["status"] == "done" and told["written"] == 3 and told["left"] == 0, (told, webui.tail())
        found = {path.name: path.read_text() for path in bare.glob("*.txt")} if into == "auto" else read_metadata(bare / "metadata.csv")
        texts = [text for name, text in found.items() if name[0] != "3"]
        assert len(texts) == 3 and all(text.startswith("zzz") for text in texts) and (bare / MARKS).is_file()
        assert into == "auto" or all(set(text[5:].split()) <= set(WORDS) for text in texts)
        assert len(webui.post("/hotlora/api/gallery/caption/undo", {"folder": str(bare)})["files"]) == 3
        assert {path.name for path in bare.iterdir()} == {"0.png", "1.png", "2.png", "3.png", "3.txt"}
    assert (bare / "3.txt").read_text() == "a photo of sks on a beige background"


def test_a_training_writes_captions_first(webui, bare):
    train(webui, "captioned", train_data_dir=str(bare), steps=1, trigger="sks")
    assert {path.name for path in bare.glob("*.txt")} == {"0.txt", "1.txt", "2.txt", "3.txt"}
    assert all((bare / f"{i}.txt").read_text().startswith("sks") for i in range(3))
    # the host draws as before
    assert webui.txt2img("a photo of sks <lora:captioned:1>").size == (64, 64)


def test_the_check_names_a_copy(webui, bare):
    (bare / "copy.png").write_bytes((bare / "0.png").read_bytes())
    end = time.monotonic() + 120
    while (told := webui.get(f"/hotlora/api/gallery/check?folder={bare}&resolution=64"))["report"] is None:
        assert time.monotonic() < end
        time.sleep(0.1)
    report = told["report"]
    assert told["can_compare"] and report["pictures"] == 5 and report["sentence"]["en"].startswith("fix these first: ")
    [copies] = [finding for finding in report["findings"] if finding["code"] == "same_file"]
    assert set(copies["files"]) == {"0.png", "copy.png"} and copies["action"]["kind"] == "leave_out"
