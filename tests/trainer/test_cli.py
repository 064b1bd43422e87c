"""The command line as a person uses it: real processes, real files."""
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from PIL import Image

from hotlora.trainer.cli import main
from hotlora.trainer.lora_file import load_lora, save_lora
from hotlora.trainer.session import Session
from hotlora.trainer.state import find_states

ROOT = Path(__file__).resolve().parent.parent.parent
needs_base = pytest.mark.skipif(find_spec("diffusers") is None, reason="the embedded base needs diffusers, which hosts may lack")


def run(*arguments, cwd=ROOT, **options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}
    return subprocess.run([sys.executable, str(ROOT / "train.py"), *map(str, arguments)], cwd=cwd, env=environment, capture_output=True,
                          text=True, encoding="utf-8", timeout=600, **options)


@pytest.fixture
def yaml(gallery, tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text(f"train_data_dir: '{gallery}'\nname: face\ntrigger: sks\nsteps: 12\nbatch_size: 2\nlora_rank: 4\nsave_steps: 3\n"
                    f"save_dtype: fp32\nlearning_rate: 1e-3\noutput_dir: '{tmp_path / 'out'}'\n", encoding="utf-8")
    return path


@needs_base
def test_the_example_settings_run_as_they_are(tmp_path):
    done = run("--config", "configs/my_lora_config.yaml", "--set", f"output_dir={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    weights, metadata = load_lora(tmp_path / "out" / "my_lora.safetensors")
    assert all(key.endswith(("to_q", "to_v")) for key in weights) and metadata["ss_network_dim"] == "16"
    assert (tmp_path / "out" / "my_lora-000100.safetensors").exists() and "<lora:my_lora:0.8>" in done.stdout


@needs_base
def test_train_then_generate_then_inspect(yaml, tmp_path):
    assert run("--config", yaml).returncode == 0
    out = tmp_path / "out"
    pictures = {}
    for weight in (0, 0.7):
        done = run("generate", "--base", "demo", "--lora-dir", out, "--prompt", f"a photo of sks <lora:face:{weight}>", "--seed", "1",
                   "--steps", "4", "--out", tmp_path / f"{weight}.png")
        assert done.returncode == 0, done.stderr
        pictures[weight] = Image.open(tmp_path / f"{weight}.png").tobytes()
    assert pictures[0] != pictures[0.7]
    shown = json.loads(run("inspect", out / "face.safetensors", "--json").stdout)
    assert shown["trigger"] == "sks"
    assert "rank 4" in run("inspect", out / "face.safetensors").stdout


@pytest.mark.skipif(os.name != "posix", reason="a pipe whose reader is gone is told otherwise there")
@pytest.mark.parametrize("arguments, status", [(["inspect", "{lora}"], 0), (["inspect", "{lora}", "--json"], 141), (["train", "--help"], 0)])
def test_a_reader_that_has_seen_enough_is_no_error(tmp_path, arguments, status):
    """What is short is cut when it is flushed at the end, what is long (more than a pipe's buffer in Python) while it is printed."""
    lora = tmp_path / "a.safetensors"
    layer = {"down": torch.ones(2, 4), "up": torch.ones(4, 2), "alpha": 2.0}
    save_lora(lora, {f"lora_unet_{i}": layer for i in range(3)}, {"ss_comment": "x" * 100_000})
    reads, writes = os.pipe()
    os.close(reads)
    try:
        done = subprocess.run([sys.executable, str(ROOT / "train.py"), *(one.format(lora=lora) for one in arguments)], stdout=writes, stderr=subprocess.PIPE, text=True,
                              timeout=300, env={**os.environ, "PYTHONUNBUFFERED": ""})
    finally:
        os.close(writes)
    assert (done.returncode, done.stderr) == (status, "")


@needs_base
def test_kill_at_any_moment_and_resume_is_bit_identical(yaml, tmp_path):
    """SIGKILL at several random moments, then resume until done; no file that a reader finds is ever damaged."""
    assert run("--config", yaml, "--set", f"output_dir={tmp_path / 'straight'}").returncode == 0
    straight = load_lora(tmp_path / "straight" / "face.safetensors")[0]
    out, rng = tmp_path / "out", random.Random(4)
    killed, resume = 0, []
    for _ in range(6):
        process = subprocess.Popen([sys.executable, str(ROOT / "train.py"), "--config", str(yaml), *resume], cwd=ROOT,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
        began, seen = time.monotonic(), len(list(out.glob("*.state")))
        while process.poll() is None and time.monotonic() - began < 300 and len(list(out.glob("*.state"))) <= min(seen, 1):
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.5))
        if process.poll() is None:
            process.kill()
            killed += 1
        process.wait()
        for file in out.glob("*.safetensors"):
            load_lora(file)
        if (out / "face.safetensors").exists():
            break
        resume = ["--resume"]
    assert killed >= 1
    if not (out / "face.safetensors").exists():
        done = run("--config", yaml, "--resume")
        assert done.returncode == 0, done.stderr
    resumed = load_lora(out / "face.safetensors")[0]
    assert resumed.keys() == straight.keys()
    for key in straight:
        assert torch.equal(resumed[key]["up"], straight[key]["up"]) and torch.equal(resumed[key]["down"], straight[key]["down"])


@needs_base
@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT as a terminal does")
def test_ctrl_c_stops_saves_and_says_how_to_go_on(yaml, tmp_path):
    process = subprocess.Popen([sys.executable, str(ROOT / "train.py"), "--config", str(yaml), "--set", "steps=100000"], cwd=ROOT,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    began = time.monotonic()
    while not list((tmp_path / "out").glob("*.state")) and time.monotonic() - began < 300:
        time.sleep(0.05)
    second = run("--config", yaml, "--set", "steps=100000", "--resume")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 3 and "--resume" in output and "stopped after step" in output
    load_lora(tmp_path / "out" / "face.safetensors")
    # the states of the first run would have been taken over, and deleted, by the second
    assert second.returncode == 1 and f"error: another process is training face in {tmp_path / 'out'}; wait for it" in second.stderr
    assert not list((tmp_path / "out").glob(".*"))


@needs_base
def test_a_new_run_under_an_old_name_keeps_the_states_of_both(yaml, tmp_path, capsys, caplog, monkeypatch):
    """The former one's lie further on, and would be taken for those to go on from."""
    caplog.set_level("INFO")
    step, last = Session.train_step, []

    def stopping(self):
        report = step(self)
        if self.step == last[0]:
            self.stop()
        return report

    monkeypatch.setattr(Session, "train_step", stopping)
    given, out = ["--config", str(yaml), "--set", f"output_dir={tmp_path / 'a folder'}"], tmp_path / "a folder"
    last[:] = [9]
    assert main(given) == 3 and "stopped after step 9" in capsys.readouterr().out
    last[:] = [4]
    other = [*given, "--set", "learning_rate=5e-4"]
    assert main(other) == 3 and f"the states of that one are kept in {out / 'earlier-1'}" in caplog.text
    assert [path.name for path in find_states(out / "earlier-1", "face")][0] == "face-000009.state"
    command = re.search("go on: python train.py (.+)", capsys.readouterr().out)[1]
    last[:] = [0]
    assert main(shlex.split(command)) == 0 and shlex.split(command) == [*other, "--resume"]
    assert "going on from step 4 of 12" in caplog.text and "unlike the saved run" not in caplog.text


@needs_base
def test_dry_run_says_all_and_writes_nothing(yaml, gallery, tmp_path):
    (gallery / "broken.jpg").write_bytes(b"not a picture")
    (gallery / "0.txt").write_text("a photo of sks, " + 9 * "a red star, ")
    before = sorted(p for p in tmp_path.rglob("*"))
    done = run("--config", yaml, "--dry-run")
    assert done.returncode == 0, done.stderr
    for expected in ("broken.jpg", "64x64 (6)", "steps: 12", "estimated time", "memory: ", "it fits", "<lora:face:1>", "nothing was trained",
                     "gallery check: ", " of 100, ", "1 picture whose caption is longer than 30 tokens"):
        assert expected in done.stdout, expected
    assert sorted(p for p in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("arguments, expected", [
    (["--config", "{yaml}", "--set", "lora_rnak=8"], "lora_rank"),
    (["--config", "{yaml}", "--set", "lora_rank=0"], "lora_rank is '0'"),
    (["--config", "{yaml}", "--set", "train_data_dir=/nowhere/at/all"], "nowhere"),
    (["--config", "{yaml}", "--set", "base_model=missing.safetensors"], "missing.safetensors"),
    (["--config", "{yaml}", "--set", "base_model=old.ckpt"], "pickle"),
    pytest.param(["--config", "{yaml}", "--set", "unet_target_modules=[nonsense]"], "nonsense", marks=needs_base),
    (["--config", "no-such.yaml"], "no-such.yaml"),
    (["generate", "--prompt", "x <lora:facce:1>", "--lora-dir", "{out}"], "facce"),
    (["generate", "--prompt", "x <lora:face:much>"], "much"),
    *((["generate", "--prompt", "x", "--out", "{out}/out/x.png", option, value], f"{option} is {value} but must be {allowed}") for option, value, allowed in (
        ("--seed", str(2**70), f"a whole number from 0 to {2**63 - 1}; change it, or remove it to get the default (0)"), ("--seed", "-1", "a whole number"),
        ("--steps", "0", "a whole number from 1 to 1000;"), ("--steps", "5000", "a whole number"), ("--guidance", "nan", "a number from 0 to 100;"),
        ("--guidance", "-3.0", "a number"),
        ("--width", "0", "a whole number from 16 to 8192 (pixels); change it, or remove it to get the default (the base's own)"),
        ("--height", "100000", "a whole number"))),
    *((["check", "--dir", "{gallery}", "--no-cache", "--resolution", value], f"--resolution is {value} but must be a whole number from 32 to 4096 (pixels); "
       "change it, or remove it to get the default (512)") for value in ("0", "-5", "5000")),
    (["demo", "--out", "{yaml}"], "my.yaml, which is a file; give a folder"),
    (["demo", "--out", "{yaml}/x"], "--out {yaml}/x cannot be written to ("),
    (["inspect", "{yaml}"], "my.yaml"),
    ([], "--config"),
])
def test_an_error_is_one_sentence(arguments, expected, yaml, gallery, tmp_path, capsys):
    arguments, expected = [a.format(yaml=yaml, out=tmp_path, gallery=gallery) for a in arguments], expected.format(yaml=yaml)
    assert main(arguments) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and expected in error
    assert not (tmp_path / "out").exists()


@needs_base
def test_memory_that_is_full_is_one_sentence_with_what_would_fit(yaml, tmp_path, capsys):
    mine = tmp_path / "mine.py"
    mine.write_text("import torch\ndef fail(out, target, t, batch):\n    raise torch.cuda.OutOfMemoryError('CUDA out of memory, on purpose')\n")
    assert main(["--config", str(yaml), "--set", f"loss_term={mine}:fail"]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: the memory is full (CUDA out of memory, on purpose)") and "resolution lower than" in error
