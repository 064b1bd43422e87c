"""`python train.py check` and `caption` as a user calls them."""
from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from hotlora.tests.trainer.captions.small_models import blip_folder
from hotlora.trainer.captions.metadata import read_metadata
from hotlora.trainer.demo import drawings


def call(root: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(root / "train.py"), *arguments], capture_output=True, text=True, timeout=300,
                          env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"})


def test_two_hundred_mixed_pictures(root, tmp_path) -> None:
    """Every planted fault is named with its picture, and the second check gives the same."""
    folder, rng = tmp_path / "mixed", random.Random(3)
    folder.mkdir()
    for i in range(188):
        drawings.draw_mascot(rng, rng.choice(list(drawings.BACKGROUNDS))).resize((256, 256)).save(folder / f"{i:03d}.png")
        (folder / f"{i:03d}.txt").write_text(f"sks, drawing number {i} of the round one")
    for i in range(4):
        shutil.copy(folder / f"{i:03d}.png", folder / f"copy{i}.png")
        Image.new("RGB", (256, 256), (40 * i, 90, 90)).save(folder / f"flat{i}.png")
        Image.effect_noise((1200, 200), 80).convert("RGB").save(folder / f"long{i}.png")
    (folder / "000.txt").write_text("masterpiece, best quality")
    (folder / "001.txt").write_text("sks")
    (folder / "002.txt").write_text("sks, " + ", ".join(f"detail {i}" for i in range(60)))
    (folder / "broken.png").write_bytes(b"no picture")
    arguments = ("check", "--dir", str(folder), "--trigger", "sks", "--purpose", "object", "--resolution", "256", "--cache", str(tmp_path / "cache"))
    told = call(root, *arguments, "--json")
    assert told.returncode == 0, told.stderr
    report = json.loads(told.stdout)
    found = {finding["code"]: set(finding["files"]) for finding in report["findings"]}
    assert report["pictures"] == 200 and found["same_file"] == {f"{i:03d}.png" for i in range(4)} | {f"copy{i}.png" for i in range(4)}
    assert found["uniform"] >= {f"flat{i}.png" for i in range(4)} and found["extreme"] == {f"long{i}.png" for i in range(4)}
    assert found["praise_only"] == {"000.png"} and found["short_caption"] == {"001.png"} and found["too_long"] == {"002.png"} and len(found["no_caption"]) == 12
    assert [skipped["file"] for skipped in report["skipped"]] == ["broken.png"]
    again = json.loads(call(root, *arguments, "--json").stdout)
    assert {**again, "seconds": 0} == {**report, "seconds": 0}
    text = call(root, *arguments, "--language", "zh").stdout
    assert text.startswith(f"图集检查：{report['score']}/100") and "请先处理" in text


def test_captions_from_the_command_line(root, tmp_path) -> None:
    pytest.importorskip("transformers")
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(3):
        Image.effect_noise((64, 64), 60 + i).convert("RGB").save(folder / f"{i}.png")
    model = blip_folder(tmp_path / "models" / "captioners" / "blip-image-captioning-base")
    arguments = ("caption", "--dir", str(folder), "--models-dir", str(tmp_path / "models"))
    told = call(root, *arguments, "--trigger", "sks")
    assert told.returncode == 0 and f"3 captions written by {model.name}" in told.stdout, told.stderr
    assert all(text.startswith("sks") for text in read_metadata(folder / "metadata.csv").values())
    assert "no caption is missing" in call(root, *arguments).stdout
    assert "3 captions taken out" in call(root, *arguments, "--undo").stdout and not (folder / "metadata.csv").exists()
    told = call(root, "caption", "--dir", str(folder), "--models-dir", str(tmp_path / "models"), "--model", "wd")
    assert told.returncode != 0 and "is not on this machine" in told.stderr and "Traceback" not in told.stderr
