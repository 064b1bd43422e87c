"""Language models on the command line: real processes, real files, and nothing that leaves the machine."""
from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from hotlora.trainer.cli import main
from hotlora.trainer.farm import place, read_jobs
from hotlora.trainer.listeners import versions

ROOT = Path(__file__).resolve().parents[3]
WATCHED = """
import socket, sys
def refuse(*arguments):
    print("NETWORK", arguments, flush=True)
    raise OSError("the network is watched")
socket.socket.connect = socket.socket.connect_ex = socket.socket.sendto = socket.getaddrinfo = socket.create_connection = refuse
sys.path.insert(0, sys.argv[1]); import __init__
from hotlora.trainer.cli import main
sys.exit(main(sys.argv[2:]))
"""


def run(*arguments, code=None, **environment):
    command = [sys.executable, *(["-c", code, str(ROOT)] if code else [str(ROOT / "train.py")]), *map(str, arguments)]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
    return subprocess.run(command, env={**kept, "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1", **environment}, capture_output=True, text=True,
                          encoding="utf-8", timeout=600)


def settings_file(config, **changes):
    path = Path(config.output_dir).parent / "run.yaml"
    path.write_text(replace(config, **changes).to_yaml(), encoding="utf-8")
    return path


def test_train_then_generate_and_nothing_leaves_the_machine(config, base):
    """Sockets are refused and told of; libraries that were told to report, or to look for newer files, do neither."""
    path = settings_file(config, learning_rate=0.02, steps=20, tensorboard=True, preview_steps=10, validation=True, merge=True)
    done = run("--config", path, code=WATCHED, WANDB_PROJECT="x", MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert done.returncode == 0, done.stderr
    lora = Path(config.output_dir) / "facts"
    for expected in ("completed", str(lora), "facts-merged", "python train.py generate --base"):
        assert expected in done.stdout, expected
    for expected in ("22 samples", "chat template: the model's own", "memory: about", "held-out perplexity", "  base: ", "  LoRA: "):
        assert expected in done.stderr, expected
    answered = run("generate", "--base", base, "--lora", lora, "--prompt", "Where does Ana live?", "--max-tokens", "8", "--compare", code=WATCHED)
    assert answered.returncode == 0, answered.stderr
    first, second = answered.stdout.splitlines()
    assert first.startswith("base: ") and second.startswith("LoRA: ") and first[6:] != second[6:]
    assert "NETWORK" not in done.stdout + answered.stdout


def test_generate_finds_the_base_of_a_lora_and_draws_by_the_seed(config, run_of, capsys):
    lora = run_of(replace(config, learning_rate=0.02)).train().lora

    def answer(*options):
        assert main(["generate", "--prompt", "Where does Ana live?", "--max-tokens", "12", "--device", "cpu", *map(str, options)]) == 0
        return capsys.readouterr().out

    assert answer("--lora", lora) == answer("--base", lora) == answer("--base", config.base_model, "--lora", lora)
    assert answer("--lora", lora) != answer("--base", config.base_model)
    assert answer("--lora", lora) != answer("--lora", lora, "--system", "Be brief.")
    hot = ["--lora", lora, "--temperature", "2", "--seed"]
    assert answer(*hot, 1) == answer(*hot, 1) != answer(*hot, 2)


def test_a_base_with_a_relative_path_is_found_from_elsewhere_or_named(config, run_of, tmp_path, monkeypatch, capsys):
    """A LoRA of this program knows where its base lay; one of another program may lie beside it."""
    shutil.copytree(config.base_model, tmp_path / "models" / "base")
    monkeypatch.chdir(tmp_path)
    lora = run_of(replace(config, base_model="models/base", steps=1)).train().lora
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert json.loads((lora / "adapter_config.json").read_text())["base_model_name_or_path"] == "models/base"
    ask = ["generate", "--lora", str(lora), "--prompt", "a", "--max-tokens", "2", "--device", "cpu"]
    assert main(ask) == 0
    (lora / "hotlora.json").unlink()
    capsys.readouterr()
    assert main(ask) == 1
    assert f"the LoRA {lora} was trained on models/base, which is not here; give that model's folder as --base" in capsys.readouterr().err
    shutil.copytree(config.base_model, lora / "models" / "base")
    assert main(ask) == 0


@pytest.mark.parametrize("options, expected", [
    (["--lora", "nowhere"], "--lora is nowhere, which is no adapter folder of a language model .* For pictures, name the LoRA in the prompt"),
    (["--base", "BASE", "--max-tokens", "0"], "--max-tokens is 0 .* the first must be at least 1"),
    (["--base", "BASE", "--temperature", "-1"], "--temperature -1; .*the second at least 0"),
    (["--base", "BASE", "--temperature", "nan"], "--temperature nan; .*the second at least 0"),
    (["--base", "BASE", "--seed", str(2**70)], f"--seed is {2**70} but must be a whole number from 0 to"),
    (["--base", "BASE", "--lora", "wide"], "the LoRA .* does not fit the base .*give the base that it was trained on"),
    (["--base", "BASE", "--lora", "deep"], "it has 8 weights for layers that the model lacks, such as model.layers.2.*give the base that it was trained on"),
    (["--base", "BASE", "--lora", "flat"], "it lacks 4 weights for layers of the model, such as model.layers.1.*give the base that it was trained on"),
])
def test_wrong_requests_are_one_sentence(config, run_of, world, tmp_path, capsys, options, expected):
    import re

    from hotlora.bench.llm_world import random_base

    if options[-1] in (sizes := {"wide": {"width": 64}, "deep": {"layers": 4}, "flat": {"layers": 1}}):
        other = random_base(tmp_path / "other", world, **sizes[options[-1]])
        options = [*options[:-1], run_of(replace(config, base_model=str(other), steps=1)).train().lora]
    capsys.readouterr()
    options = [config.base_model if option == "BASE" else str(option) for option in options]
    assert main(["generate", "--prompt", "a", "--device", "cpu", *options]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and re.search(expected, error), error


def test_dry_run_says_all_and_writes_nothing(config, capsys, tmp_path):
    path = settings_file(config)
    before = sorted(tmp_path.rglob("*"))
    assert main(["--config", str(path), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    for expected in ("24 records in", "24 samples of", "answers only", "base: ", "precision no", "steps: 6 of 4 rows, 1 epochs", "memory: about",
                     "estimated time", "result: ", "nothing was trained or written"):
        assert expected in shown, expected
    assert sorted(tmp_path.rglob("*")) == before


def test_keys_of_records_that_are_not_read_are_a_warning(config, records, capsys, caplog):
    with records.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"prompt": "Who?", "completion": "Ann.", "tools": "[]"}))
    assert main(["--config", str(settings_file(config)), "--dry-run"]) == 0
    assert any(message.startswith("warning: records of train_data_dir have keys that are not read") for message in caplog.messages)


def test_the_example_settings_run_as_they_are(base, records, tmp_path, root):
    done = run("--config", root / "configs" / "my_llm_config.yaml", "--set", f"base_model={base}", "--set", f"train_data_dir={records}",
               "--set", f"output_dir={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(tmp_path / "out" / "my_llm_lora"))
    trained = {name.split(".")[-4] for name, _ in model.named_parameters() if "lora_A" in name}
    assert trained == {"q_proj", "v_proj"} and model.peft_config["default"].r == 16


def test_resume_on_the_command_line(config, run_of, capsys):
    path = settings_file(config)
    assert main(["--config", str(path), "--resume"]) == 1
    assert "nothing to resume" in capsys.readouterr().err


def test_errors_are_one_sentence(config, records, capsys):
    records.write_text("oops\n", encoding="utf-8")
    assert main(["--config", str(settings_file(config))]) == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and "my facts.jsonl, line 1: this is not JSON" in error[0]


def test_a_missing_package_is_named_with_how_to_install_it(config, monkeypatch, capsys):
    from hotlora.trainer import cli_llm

    monkeypatch.setitem(cli_llm.NEEDED, "peft", (99, 0))
    assert main(["--config", str(settings_file(config))]) == 1
    assert "language models need peft 99.0 or newer, and here is" in capsys.readouterr().err
    monkeypatch.setattr(cli_llm, "NEEDED", {"no-such-package": (1, 0)})
    assert main(["--config", str(settings_file(config))]) == 1
    assert "need the package no-such-package, which is not installed; install the packages for language models with" in capsys.readouterr().err


def test_the_log_file_has_the_settings_and_what_was_skipped(config, records, run_of):
    records.write_text(records.read_text(encoding="utf-8") + "oops\n", encoding="utf-8")
    run_of(config).train()
    log = next((Path(config.output_dir) / "logs").glob("*.log")).read_text(encoding="utf-8")
    settings = yaml.safe_load(log.split("settings:\n")[1].split("\n2")[0].strip())
    assert settings["lora_rank"] == 4 and "skipped my facts.jsonl, line 25" in log and "step 6 loss" in log or "step 1 loss" in log
    assert "completed: completed 6 steps" in log and versions() in log and json.dumps(str(config.base_model))[1:-1] in log


WORKER = """
import json, sys; sys.path.insert(0, sys.argv[1]); import __init__
if sys.argv[3] == "killed":
    import os, signal
    from hotlora.trainer.llm import callbacks
    usual = callbacks.Flow.on_step_end
    def on_step_end(self, args, state, control, **others):
        if state.global_step == 4: os.kill(os.getpid(), signal.SIGKILL)
        return usual(self, args, state, control, **others)
    callbacks.Flow.on_step_end = on_step_end
from hotlora.trainer.farm_worker import train
print(json.dumps(train(json.loads(sys.argv[2]))))
"""


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_a_job_of_a_farm_goes_on_after_its_worker_was_killed(config, run_of, tmp_path):
    """What a worker of Ray does with a language job, and how far it is for all who look on."""
    config = replace(config, save_steps=3, log_every=1)
    alone = load_file(run_of(replace(config, output_dir=str(tmp_path / "alone"))).train().lora / "adapter_model.safetensors")
    out = tmp_path / "farm"
    [job] = read_jobs([settings_file(config)], out)
    assert place(job) and job.on_cpu and job.name == "facts"
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # sums of another number of threads are others in their last bits
    killed = run(json.dumps(job.order()), "killed", code=WORKER, **threads)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert (job.told()["status"], job.told()["total_steps"]) == ("running", 6)
    done = run(json.dumps(job.order()), "", code=WORKER, **threads)
    assert done.returncode == 0, done.stderr
    told = job.told()
    lora = out / "loras" / "facts"
    assert (told["status"], told["step"], told["attempts"], told["lora"]) == ("completed", 6, 2, str(lora)) and str(lora) in told["message"] and told["loss"] > 0
    assert "going on from step 3 of 6" in (job.run_folder / "farm.log").read_text(encoding="utf-8")
    found = load_file(lora / "adapter_model.safetensors")
    assert found.keys() == alone.keys() and all(torch.equal(found[key], alone[key]) for key in found)
    assert not place(job), "it is done"
    assert place(read_jobs([settings_file(config, lora_rank=8)], out)[0]), "other settings begin anew"


def test_what_is_wrong_with_a_language_job_is_said_before_the_farm_starts(config, tmp_path, capsys):
    out = tmp_path / "farm"
    for changes, expected in (({"train_data_dir": "/nowhere.jsonl"}, "train_data_dir is /nowhere.jsonl, which does not exist"),
                              ({"base_model": "/nowhere", "task": "llm"}, "base_model is /nowhere, which does not exist")):
        path = settings_file(config, **changes)
        assert main(["farm", str(path), "--out", str(out)]) == 1
        error = capsys.readouterr().err
        assert expected in error and error.count(str(path)) == 1 and not out.exists()


FULL_DISK = """
import pathlib, shutil, subprocess, sys
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", sys.argv[3]], check=True)
sys.path.insert(0, sys.argv[1]); import __init__
from hotlora.trainer.cli import main
from hotlora.trainer.llm.merging import write_merged
from hotlora.trainer.output_files import OutputError
disk = pathlib.Path(sys.argv[3])
assert main(["--config", sys.argv[2]]) == 1
print("complete:", sorted(path.is_file() for path in disk.glob("facts-checkpoints/checkpoint-*/complete.json")), len(list(disk.glob("facts-checkpoints/checkpoint-*"))))
for path in [*disk.glob("facts-0*"), disk / "facts"]:
    shutil.rmtree(path, ignore_errors=True)
assert main(["--config", sys.argv[2], "--resume", "--set", "save_steps=0"]) == 0
(disk / "other").write_bytes(bytes(shutil.disk_usage(disk).free - 40_000))
before = sorted(disk.rglob("*"))
try:
    write_merged(pathlib.Path(sys.argv[4]), disk / "facts", disk / "facts-merged")
except OutputError as error:
    print("merged:", error)
assert sorted(disk.rglob("*")) == before
"""


@pytest.mark.skipif(os.name != "posix", reason="mounts a small disk")
def test_a_disk_that_fills_up_is_named_and_the_run_goes_on_when_there_is_room_again(config, base, tmp_path):
    """Adapters of all steps fill a small disk; what was complete is kept, and nothing half-written stays."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)], capture_output=True).returncode:
        pytest.skip("this system does not let a test mount a small disk")
    path = settings_file(config, output_dir=str(disk), steps=40, save_steps=1)
    done = subprocess.run(["unshare", "-rm", sys.executable, "-c", FULL_DISK, str(ROOT), str(path), str(disk), str(base)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    error = next(line for line in done.stderr.splitlines() if "error: " in line).split("error: ")[1]
    assert error.startswith(str(disk)) and "could not be written: the disk is full" in error and "go on with --resume (from step " in error
    assert "Logging error" not in done.stderr and "complete: [True, True] 2" in done.stdout and "completed 40 steps" in done.stdout
    assert f"merged: {disk / 'facts-merged'} could not be written: the disk is full (0.2 MB are needed" in done.stdout and f"the LoRA itself is {disk / 'facts'}" in done.stdout


@pytest.mark.slow
def test_pictures_and_texts_in_one_farm(config, gallery, tmp_path):
    pytest.importorskip("ray", reason="the farm needs ray: pip install -e .[cluster]")
    pictures = tmp_path / "face.yaml"
    pictures.write_text(f"train_data_dir: '{gallery}'\ntrigger: sks\nsteps: 2\nlora_rank: 2\nresolution: 64\ntensorboard: false\nname: face\n", encoding="utf-8")
    out = tmp_path / "farm"
    done = run("farm", pictures, settings_file(config, merge=True), "--out", out, "--cpus", "1", RAY_memory_monitor_refresh_ms="0")
    assert done.returncode == 0 and "2 completed" in done.stdout, done.stdout + done.stderr
    assert (out / "loras" / "face.safetensors").is_file() and (out / "loras" / "facts" / "adapter_model.safetensors").is_file()
    assert (out / "runs" / "facts" / "facts-merged" / "config.json").is_file()
