"""From the page to another machine and back: export, run by the command line in a fresh folder, import, and the tag works."""
import io
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from hotlora.trainer.bundle_read import read_bundle
from hotlora.trainer.live import Registry
from hotlora.trainer.lora_file import load_lora

ROOT = Path(__file__).resolve().parent.parent.parent.parent
SETTINGS = {"name": "face", "trigger": "sks", "lora_rank": 2, "steps": 4, "batch_size": 2, "save_dtype": "fp32", "resolution": 64}


def until_ended(client, job):
    end = time.monotonic() + 240
    while (found := client.get(f"jobs/{job}"))["status"] in ("queued", "preparing", "running"):
        assert time.monotonic() < end, found
        time.sleep(0.02)
    return found


def send(client, name, data, status=201):
    return client.post("loras/import", None, status, body=data, kind="application/octet-stream", query={"file": name})


@pytest.fixture
def loras(host):
    folder = host.lora_folders()[0]
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def result(client, gallery, loras):
    """A LoRA of this program, as the content of its file; its folder is empty again."""
    until_ended(client, client.post("jobs", {"settings": {"train_data_dir": str(gallery), **SETTINGS, "steps": 1}}, 201)["id"])
    data = (loras / "face.safetensors").read_bytes()
    (loras / "face.safetensors").unlink()
    return data


def zipped(files: dict) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content if isinstance(content, (bytes, str)) else json.dumps(content))
    return data.getvalue()


TOLD = {"format": "hotlora-result", "version": 1, "name": "face", "trigger": "sks", "steps": 1, "base": {"name": "demo", "hash": ""}, "bundle": ""}


def test_out_to_another_machine_and_back(client, gallery, host, tmp_path):
    settings = {"train_data_dir": str(gallery), **SETTINGS}
    job = client.post("jobs", {"settings": settings}, 201)["id"]
    assert until_ended(client, job)["status"] == "completed"
    lora = host.lora_folders()[0] / "face.safetensors"
    straight = lora.read_bytes()
    told = client.post("bundles", {"settings": settings}, 201)
    assert told["file"] == "face.zip" and told["pictures"] == 6 and told["base"]["name"] == "demo" and len(told["base"]["hash"]) == 64
    again = client.post(f"jobs/{job}/bundle", status=201)
    found = client.ask("GET", told["address"])
    assert found.headers["content-type"] == "application/zip" and found.headers["content-disposition"] == "attachment; filename*=UTF-8''face.zip"
    assert found.body.stat().st_size == told["bytes"]
    jobs = [read_bundle(client.ask("GET", one["address"]).body) for one in (told, again)]
    assert jobs[0].files == jobs[1].files and jobs[0].pictures == jobs[1].pictures and jobs[0].name == jobs[1].name == "face"

    there = tmp_path / "another machine"
    there.mkdir()
    shutil.copyfile(found.body, there / "face.zip")
    shutil.rmtree(gallery)
    run = subprocess.run([sys.executable, str(ROOT / "train.py"), "run-bundle", "face.zip"], cwd=there, capture_output=True, text=True, timeout=500,
                         env={**os.environ, "PYTHONUTF8": "1", "OMP_NUM_THREADS": str(torch.get_num_threads())})
    assert run.returncode == 0 and "take back: " in run.stdout, run.stderr
    weights = [load_lora(path)[0] for path in (lora, there / "output" / "face.safetensors")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][key][part], weights[1][key][part]) for key in weights[0] for part in ("up", "down"))

    before = client.api.jobs.events.last
    done = send(client, "face-result.zip", (there / "output" / "face-result.zip").read_bytes())
    assert done == {"name": "face", "tag": "<lora:face:1>", "trigger": "sks", "base": "demo", "kept": "face-v1", "warnings": []}
    assert lora.read_bytes() == (there / "output" / "face.safetensors").read_bytes() and lora.with_name("face-v1.safetensors").read_bytes() == straight
    assert Registry(host.lora_folders()).find("face").path == lora and client.get("loras/face")["base"] == "demo"
    assert client.api.jobs.events.last > before, "open pages hear of it"
    drawing = client.post("drawings", {"prompt": "sks", "names": ["face"], "weights": [1], "steps": 1}, 201)["id"]
    end = time.monotonic() + 120
    while client.api.drawings.get(drawing).status in ("queued", "drawing"):
        assert time.monotonic() < end
        time.sleep(0.02)
    assert client.api.drawings.get(drawing).status == "done"


def test_a_file_alone_comes_back_under_the_name_it_was_trained_with(client, result, loras, host, monkeypatch):
    written = []
    monkeypatch.setattr(host, "lora_written", lambda name, path: written.append((name, path)))
    done = send(client, "face (1).safetensors", result)
    assert done["name"] == "face" and done["kept"] is None and done["warnings"] == [] and (loras / "face.safetensors").read_bytes() == result
    assert written == [("face", loras / "face.safetensors")]
    again = send(client, "face.safetensors", result)
    assert again["kept"] is None and "here already" in again["warnings"][0] and [path.name for path in loras.glob("*.safetensors")] == ["face.safetensors"]
    (loras / "face.safetensors").write_bytes(b"another one")
    assert send(client, "face.safetensors", result)["kept"] == "face-v1" and written[-2:] == [("face-v1", loras / "face-v1.safetensors"), ("face", loras / "face.safetensors")]
    assert (loras / "face-v1.safetensors").read_bytes() == b"another one"
    assert not list((host.home / "imports").iterdir())


def test_a_file_that_was_renamed_keeps_the_name_of_its_user(client, result, loras):
    (loras / "face.safetensors").write_bytes(b"mine")
    [told] = (done := send(client, "C:\\loras\\my face 2.safetensors", result))["warnings"]
    assert (done["name"], done["kept"]) == ("my face 2", None) and told == (
        "my face 2 was trained as face, and is called here as its file is: its tag is <lora:my face 2:1>")
    assert (loras / "my face 2.safetensors").read_bytes() == result and (loras / "face.safetensors").read_bytes() == b"mine"
    assert send(client, "my face 2 (1).safetensors", result)["name"] == "my face 2"
    assert send(client, "fa?ce.safetensors", result)["name"] == "face", "no file can have that name here"


def test_saved_steps_of_a_lora_that_another_one_replaces_are_not_listed_with_that(client, result, gallery, loras):
    settings = {"train_data_dir": str(gallery), **SETTINGS, "save_steps": 2}
    until_ended(client, client.post("jobs", {"settings": settings}, 201)["id"])
    assert send(client, "face.zip", zipped({"result.json": TOLD, "face.safetensors": result}))["kept"] == "face-v1"
    assert {lora["name"]: [step["name"] for step in lora["steps"]] for lora in client.get("loras")["loras"]} == {"face": [], "face-v1": ["face-000002"]}


def test_a_preview_comes_along_and_takes_no_ones_place(client, result, loras):
    picture = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(picture, "PNG")
    send(client, "x.zip", zipped({"result.json": TOLD, "face.safetensors": result, "preview.png": picture.getvalue()}))
    assert (loras / "face.preview.png").read_bytes() == picture.getvalue()
    (loras / "face.preview.png").write_bytes(b"mine")
    send(client, "x.zip", zipped({"result.json": TOLD, "face.safetensors": result, "preview.png": picture.getvalue()}))
    assert (loras / "face.preview.png").read_bytes() == b"mine"
    send(client, "x.zip", zipped({"result.json": {**TOLD, "name": "other"}, "other.safetensors": result, "preview.png": b"no picture"}))
    assert (loras / "other.safetensors").exists() and not (loras / "other.preview.png").exists()


def test_a_file_of_the_same_name_in_another_folder_is_said(client, result, loras):
    (loras / "old").mkdir()
    (loras / "old" / "face.safetensors").write_bytes(result)
    [warning] = send(client, "face.safetensors", result)["warnings"]
    assert warning.startswith(f"face is also the name of {loras / 'old' / 'face.safetensors'}: ") and (loras / "face.safetensors").read_bytes() == result


def test_another_base_than_the_loaded_one_is_said(client, result, host, tmp_path):
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"other weights")
    host._paths, host._loaded = {"other.safetensors": str(other)}, None
    [warning] = send(client, "face.safetensors", result)["warnings"]
    for part in ("face was trained on demo (SHA-256 ", "and other (SHA-256 ", "is loaded here"):
        assert part in warning, warning
    host._paths["demo"] = "demo"
    [_, warning] = reversed(send(client, "face.safetensors", result)["warnings"])
    assert warning.startswith("face was trained on demo"), "several bases are offered and none is loaded"


def test_a_lora_of_another_program(client, loras, tmp_path):
    save_file({"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": torch.ones(2, 4), "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight": torch.ones(4, 2)},
              tmp_path / "x.safetensors")
    done = send(client, "C:\\loras\\my lora?.safetensors", (tmp_path / "x.safetensors").read_bytes())
    assert done["name"] == "my lora_" and (loras / "my lora_.safetensors").exists()
    assert any("does not say which base" in one for one in done["warnings"]) and any("not trained by HotLoRA" in one for one in done["warnings"])


@pytest.mark.parametrize("name, data, expected", [
    ("face.safetensors", b"no LoRA", "face.safetensors is damaged or no safetensors file"), ("face.safetensors", b"", "face.safetensors is damaged"),
    ("face.ckpt", b"\x80\x02pickle", "damaged or no safetensors"),
    ("x.zip", zipped({"bundle.json": "{}"}), "x.zip is an exported job and not its result; run it with"), ("x.zip", zipped({"a.txt": "a"}), "no result of an exported job"),
    ("x.zip", zipped({"result.json": "[]"}), "no result of an exported job"), ("x.zip", zipped({"result.json": "{"}), "x.zip is damaged"),
    ("x.zip", zipped({"result.json": {**TOLD, "version": 9}, "face.safetensors": b""}), "newer HotLoRA"),
    ("x.zip", zipped({"result.json": {**TOLD, "name": "../../evil"}, "../../evil.safetensors": b"x"}), "evil"),
    ("x.zip", zipped({"result.json": {**TOLD, "name": 7}}), "is not text"), ("x.zip", zipped({"result.json": TOLD}), "lacks face.safetensors"),
    ("x.zip", zipped({"result.json": TOLD, "face.safetensors": b"x"}), "x.zip is damaged or no safetensors"), ("x.zip", b"PK\x03\x04 and no more", "x.zip is damaged")])
def test_what_is_no_lora_is_said_and_changes_nothing(client, loras, host, name, data, expected):
    (loras / "face.safetensors").write_bytes(b"mine")
    assert expected in send(client, name, data, 400)["error"]
    assert {path.name: path.read_bytes() for path in loras.iterdir()} == {"face.safetensors": b"mine"}
    assert not (host.home / "imports").exists() or not list((host.home / "imports").iterdir())


def test_exports_name_what_is_wrong(client, gallery, host):
    assert "lora_rank" in client.post("bundles", {"settings": {"train_data_dir": str(gallery), "lora_rank": 0}}, 400)["error"]
    assert "does not exist" in client.post("bundles", {"settings": {"train_data_dir": "/nowhere/at/all"}}, 400)["error"]
    client.post("jobs/none/bundle", status=404)
    client.get("bundles/none.zip", status=404)
    client.get("bundles/..%2Fserver.lock", status=404)
    assert not list((host.home / "bundles").iterdir()) if (host.home / "bundles").exists() else True


def test_a_bounded_server_exports_no_other_folder(client, gallery, host, tmp_path):
    host.gallery_roots = [tmp_path / "allowed"]
    client.post("bundles", {"settings": {"train_data_dir": str(gallery)}}, 403)


def test_old_bundles_go(client, gallery, host):
    for number in range(5):
        last = client.post("bundles", {"settings": {"train_data_dir": str(gallery), "name": f"n{number}"}}, 201)
    assert len(list((host.home / "bundles").iterdir())) == 3 and client.ask("GET", last["address"]).status == 200
