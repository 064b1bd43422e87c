"""A captioning model comes from a server that answers as the hub does: announced before, kept where a network ends, checked, and used."""
from __future__ import annotations

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from hotlora.tests.trainer.captions.small_models import blip_folder
from hotlora.trainer.captions.automatic import CaptionWishes, caption_folder
from hotlora.trainer.captions.download import download, find_local, offered
from hotlora.trainer.captions.library import ModelChoice, load_model

pytest.importorskip("transformers")
REPO = "Salesforce/blip-image-captioning-base"


class Hub:
    """Serves a folder as the repository; `most` bytes of an answer and the connection ends, `ranges` are what was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.most, self.ranges, self.damaged = folder, None, [], False
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == f"/api/models/{REPO}/tree/main":
                    return self.answer(json.dumps(hub.listed()).encode())
                found = re.fullmatch(rf"/{REPO}/resolve/main/([\w.]+)", self.path)
                if not found:
                    return self.send_error(404)
                data, asked = (hub.folder / found[1]).read_bytes(), self.headers.get("Range")
                if hub.damaged and found[1] == "model.safetensors":
                    data = data[:-1] + bytes([data[-1] ^ 255])
                hub.ranges.append((found[1], asked))
                start = int(asked[6:-1]) if asked else 0
                self.answer(data[start:], 206 if asked else 200, hub.most if found[1] == "model.safetensors" else None)

            def answer(self, data: bytes, status: int = 200, most: int | None = None) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[:most])

            def log_message(self, *_) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def listed(self) -> list[dict]:
        files = [{"type": "file", "path": path.name, "size": path.stat().st_size} for path in self.folder.iterdir()]
        for entry in files:
            if entry["path"] == "model.safetensors":
                entry["lfs"] = {"oid": hashlib.sha256((self.folder / "model.safetensors").read_bytes()).hexdigest()}
        # the same weights in another form, and what no captioner needs
        return files + [{"type": "file", "path": "pytorch_model.bin", "size": 1 << 40}, {"type": "file", "path": "README.md", "size": 9}, {"type": "directory", "path": "x"}]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    hub = Hub(blip_folder(tmp_path / "published"))
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{hub.server.server_port}")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "no hub"))
    yield hub
    hub.server.shutdown()
    hub.server.server_close()


def test_the_size_is_said_before_and_the_model_writes_captions(hub, tmp_path: Path) -> None:
    gallery, models, heard = tmp_path / "gallery", tmp_path / "models", []
    gallery.mkdir()
    Image.effect_noise((60, 50), 90).convert("RGB").save(gallery / "a.png")
    choice = ModelChoice("blip-base", (models,), "cpu", may_download=True, announce=heard.append, progress=lambda done, total: heard.append((done, total)))
    with pytest.raises(ValueError, match=re.escape("(0.99 GB) is not on this machine; let it be downloaded") + ".*" + re.escape(str(models / "captioners"))):
        caption_folder(gallery, ModelChoice("blip-base", (models,), "cpu"))
    assert not models.exists() and not hub.ranges
    assert len(caption_folder(gallery, choice, CaptionWishes()).captions) == 1
    total = sum(entry["size"] for entry in hub.listed() if entry["path"] != "README.md" and entry.get("size", 1 << 40) < 1 << 40)
    target = models / "captioners" / "blip-image-captioning-base"
    assert heard[0] == f"downloading {REPO}, {total / 1e6:.1f} MB, from 127.0.0.1:{hub.server.server_port} to {target}"
    assert heard[-1] == (total, total) and heard[1:] == sorted(heard[1:])
    assert {path.name for path in target.iterdir()} == {path.name for path in hub.folder.iterdir()}
    # found from now on, without the network
    hub.ranges.clear()
    assert load_model(ModelChoice("blip-base", (models,), "cpu", may_download=True)).name == target.name and not hub.ranges
    assert next(one for one in offered([models]) if one["model"] == "blip-base")["here"]


def test_what_arrived_is_kept_and_the_next_try_goes_on(hub, tmp_path: Path) -> None:
    hub.most = 5000
    target = tmp_path / "captioners" / "blip-image-captioning-base"
    with pytest.raises(ValueError, match="could not be downloaded .*what arrived is kept and the next try goes on.*" + re.escape(str(target))):
        download("blip-base", [tmp_path], lambda text: None)
    # half a model is none
    assert (target / "model.safetensors.part").stat().st_size == 5000 and find_local("blip-base", [tmp_path]) is None
    hub.most, hub.ranges = None, []
    assert download("blip-base", [tmp_path], lambda text: None) == target
    assert ("model.safetensors", "bytes=5000-") in hub.ranges
    assert (target / "model.safetensors").read_bytes() == (hub.folder / "model.safetensors").read_bytes() and find_local("blip-base", [tmp_path]) == target


def test_a_damaged_file_is_not_kept(hub, tmp_path: Path) -> None:
    hub.damaged = True
    with pytest.raises(ValueError, match="model.safetensors arrived damaged"):
        download("blip-base", [tmp_path], lambda text: None)
    target = tmp_path / "captioners" / "blip-image-captioning-base"
    assert not (target / "model.safetensors").exists() and not (target / "model.safetensors.part").exists() and find_local("blip-base", [tmp_path]) is None


def test_no_network_and_no_such_model_are_one_sentence_with_the_folder(hub, tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(ValueError, match="somebody/else could not be downloaded .*put the model's files into " + re.escape(str(tmp_path / "captioners" / "else"))):
        download("somebody/else", [tmp_path], lambda text: None)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ValueError, match="could not be downloaded .*without a network, put the model's files into .* by hand"):
        download("blip-base", [tmp_path], lambda text: None)
    with pytest.raises(ValueError, match="neither a file or folder on this machine nor a known model"):
        download("nothing", [tmp_path], lambda text: None)
    assert not (tmp_path / "captioners").exists()
