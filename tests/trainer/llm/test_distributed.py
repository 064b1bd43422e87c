"""Several processes train one LoRA of a language model: torchrun and accelerate launch with gloo on the CPU."""
from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hotlora.trainer.process_lock import hold

pytestmark = pytest.mark.skipif(not torch.distributed.is_available() or not torch.distributed.is_gloo_available(), reason="torch has no gloo")
HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]


def launch(launcher, config, *arguments, gradients="", killed=(-1, -1), check=True, **environment):
    """Start `launcher` (a command up to the script) on a run; the finished process."""
    file = Path(config.output_dir).parent / f"{Path(config.output_dir).name}.yaml"
    file.write_text(config.to_yaml(), encoding="utf-8")
    done = subprocess.run([*launcher, str(HERE / "several.py"), str(gradients), *map(str, killed), "--config", str(file), *arguments],
                          env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1", **environment}, capture_output=True, text=True, encoding="utf-8",
                          timeout=600)
    assert not check or done.returncode == 0, done.stderr[-5000:]
    return done


def torchrun(processes):
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]


def difference(one, other):
    """The largest relative difference of two tensors of one name."""
    assert one.keys() == other.keys() and one
    return max(float((one[name] - other[name]).norm() / one[name].norm().clamp_min(1e-12)) for name in one)


def lora(config):
    return load_file(str(Path(config.output_dir) / "facts" / "adapter_model.safetensors"))


@pytest.fixture
def one(config, tmp_path):
    """A run of one process with 4 rows in a step, 3 in the last one of an epoch: its settings, gradients of the first step, and LoRA."""
    records = Path(config.train_data_dir)
    records.write_text("".join(records.read_text(encoding="utf-8").splitlines(keepends=True)[:23]), encoding="utf-8")
    config = replace(config, steps=9, save_steps=4, target_modules="all-linear", output_dir=str(tmp_path / "one"))
    launch([sys.executable], config, gradients=tmp_path / "one.pt")
    return config, torch.load(tmp_path / "one.pt")["gradients"], lora(config)


@pytest.mark.slow
def test_a_second_launch_of_the_same_run_is_refused(config, tmp_path):
    config = replace(config, output_dir=str(tmp_path / "out"))
    with hold(tmp_path / "out" / ".facts.lock"):
        done = launch(torchrun(2), config, check=False)
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode and len(said) == 1 and "another process is training facts in" in said[0], done.stderr[-5000:]
    assert not (tmp_path / "out" / "facts").exists()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_several_processes_give_the_gradients_and_the_lora_of_one(one, tmp_path, processes):
    config, gradients, alone = one
    config = replace(config, batch_size=4 // processes, output_dir=str(tmp_path / "several"))
    done = launch(torchrun(processes), config, gradients=tmp_path / "several.pt")
    assert difference(gradients, torch.load(tmp_path / "several.pt")["gradients"]) < 1e-6
    assert difference(alone, lora(config)) < 1e-5
    assert done.stdout.count("completed 9 steps") == 1 and len(list((Path(config.output_dir) / "logs").iterdir())) == 1, "one tells and writes"


@pytest.mark.slow
def test_a_killed_process_ends_all_and_the_run_goes_on_with_another_number(one, tmp_path):
    config, _, alone = one
    several = replace(config, batch_size=2, output_dir=str(tmp_path / "several"))
    done = launch(torchrun(2), several, killed=(1, 6), check=False)
    assert done.returncode
    told = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(told) == 1 and "process 1 of 2 (pid" in told[0] and "was lost: it was killed" in told[0] and "--resume to go on from step 4" in told[0]
    resumed = launch([sys.executable], replace(several, batch_size=4), "--resume")
    assert "going on from step 4 of 9" in resumed.stderr and "unlike" not in resumed.stderr
    assert difference(alone, lora(several)) < 1e-5, "each row is seen as it would have been"


@pytest.mark.slow
def test_a_process_that_fails_is_named_once(one, tmp_path):
    config, _, _ = one
    several = replace(config, batch_size=2, output_dir=str(tmp_path / "several"), learning_rate=10, max_grad_norm=0, optimizer="adamw", target_modules="nowhere")
    done = launch(torchrun(2), several, check=False)
    assert done.returncode and done.stderr.count("error: target_modules names nowhere") == 1


@pytest.mark.slow
def test_accelerate_launch(one, tmp_path):
    config, _, alone = one
    several = replace(config, batch_size=2, output_dir=str(tmp_path / "several"))
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no",
                  "--dynamo_backend", "no", "--main_process_port", "0"]
    launch(accelerate, several)
    assert difference(alone, lora(several)) < 1e-5


@pytest.mark.slow
def test_a_base_in_pieces_gives_the_same_gradients_and_lora(one, tmp_path):
    """FSDP2: each process keeps a part of every weight, and what is written is whole; it is stopped by a kill and gone on with, and answers previews."""
    config, gradients, alone = one
    several = replace(config, batch_size=2, device="auto", output_dir=str(tmp_path / "several"), preview_steps=5, preview_max_tokens=2)
    environment = {"HOTLORA_TEST_FSDP": "1", "CUDA_VISIBLE_DEVICES": ""}
    launch(torchrun(2), several, gradients=tmp_path / "several.pt", killed=(1, 6), check=False, **environment)
    found = torch.load(tmp_path / "several.pt")
    assert found["sharded"] > 40 and difference(gradients, found["gradients"]) < 1e-6
    launch(torchrun(2), several, "--resume", **environment)
    assert difference(alone, lora(several)) < 1e-5
    assert [file.name for file in sorted((tmp_path / "several" / "previews").iterdir())] == ["facts-000005.md", "facts-000009.md"]
