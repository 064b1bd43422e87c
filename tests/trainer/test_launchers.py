"""torchrun and accelerate launch as README.md has them, on this machine and on two that are network namespaces with addresses of their own."""
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
import torch

from hotlora.trainer.lora_file import read_safetensors
from hotlora.trainer.process_lock import hold
from hotlora.trainer.state import find_states

from .several import PATIENCE, free_port, plain_environment, relative_error

ROOT = Path(__file__).resolve().parent.parent.parent
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
                                                   reason="this torch has no gloo")]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch"]


@pytest.fixture
def yaml(gallery, tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(f"train_data_dir: '{gallery}'\nbase_model: demo\nname: x\ntrigger: sks\nsteps: 4\nbatch_size: 4\nlora_rank: 4\nresolution: 64\n"
                    "save_dtype: fp32\ntensorboard: false\n", encoding="utf-8")
    return path


def command(launcher: list, yaml: Path, out: Path, *settings: str) -> list[str]:
    pairs = [f"output_dir={out}", *settings]
    return [*map(str, launcher), str(ROOT / "train.py"), "--config", str(yaml), *(part for pair in pairs for part in ("--set", pair))]


def begin(arguments: list[str]) -> subprocess.Popen:
    return subprocess.Popen(arguments, env=plain_environment(), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8",
                            start_new_session=True)


def ended(process: subprocess.Popen) -> str:
    try:
        output, _ = process.communicate(timeout=PATIENCE)
        return output
    finally:
        stop_all(process)


def stop_all(process: subprocess.Popen) -> None:
    """A launcher and what it has started, which are in sessions of their own."""
    table = [tuple(map(int, line.split())) for line in subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True).stdout.splitlines()]
    family = {process.pid}
    while more := {pid for pid, parent in table if parent in family} - family:
        family |= more
    for pid in family if process.poll() is None else ():
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def run(arguments: list[str], code: int = 0) -> str:
    process = begin(arguments)
    output = ended(process)
    assert process.returncode == code, output
    return output


def weights(out: Path) -> dict[str, torch.Tensor]:
    return read_safetensors(out / "x.safetensors")[0]


def furthest(one: dict, other: dict) -> float:
    assert one.keys() == other.keys()
    return max(relative_error(one[key], other[key]) for key in one if other[key].any())


def test_torchrun_and_accelerate_launch_train_what_one_process_trains(yaml, tmp_path):
    run(command([sys.executable], yaml, tmp_path / "alone"))
    launchers = {"torchrun": [*TORCHRUN, "--nproc_per_node", "2", "--master_port", free_port()]}
    if importlib.util.find_spec("accelerate"):
        launchers["accelerate"] = [*ACCELERATE, "--multi_gpu", "--num_processes", "2", "--main_process_port", free_port()]
    for name, launcher in launchers.items():
        output = run(command(launcher, yaml, tmp_path / name))
        assert output.count("completed 4 steps") == 1 and output.count("6 encoded, 0 from the cache") == 1, output
        assert furthest(weights(tmp_path / name), weights(tmp_path / "alone")) < 1e-3, name


def test_an_error_of_the_user_s_is_said_once(yaml, tmp_path):
    launcher = [*TORCHRUN, "--nproc_per_node", "2", "--master_port", free_port()]
    output = run(command(launcher, yaml, tmp_path / "out", "train_data_dir=/nowhere"), code=1)
    assert sum(line.startswith("error: ") for line in output.splitlines()) == 1 and "/nowhere" in output, output


def test_a_second_launch_of_the_same_run_is_refused(yaml, tmp_path):
    out = tmp_path / "out"
    with hold(out / ".x.lock"):
        launcher = [*TORCHRUN, "--nproc_per_node", "2", "--master_port", free_port()]
        output = run(command(launcher, yaml, out), code=1)
    said = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and "another process is training x in" in said[0], output
    assert not list(out.glob("*.safetensors"))


def test_ctrl_c_saves_once_and_the_run_goes_on_alone(yaml, tmp_path):
    out = tmp_path / "out"
    launcher = [*TORCHRUN, "--nproc_per_node", "2", "--master_port", free_port()]
    process = begin(command(launcher, yaml, out, "steps=100000", "save_steps=3"))
    until(lambda: find_states(out, "x"), process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    output = ended(process)
    assert output.count("stopped after step") == 1, output
    step = int(output.split("stopped after step ")[1].split()[0])
    output = run(command([sys.executable], yaml, out, f"steps={step + 2}") + ["--resume"])
    assert f"going on from step {step} of {step + 2}" in output and f"completed {step + 2} steps" in output, output


def until(condition, process: subprocess.Popen) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        if process.poll() is not None or time.monotonic() > end:
            pytest.fail(ended(process))
        time.sleep(0.05)


class Machines:
    """Two network namespaces with a cable between them, and names that no server knows."""

    def __init__(self) -> None:
        tag = uuid.uuid4().hex[:6]
        self.spaces, self.addresses, self.cable = [f"hl{tag}0", f"hl{tag}1"], ["10.77.0.1", "10.77.0.2"], [f"v{tag}0", f"v{tag}1"]

    def connect(self) -> None:
        for space in self.spaces:
            _ip("netns", "add", space)
        _ip("link", "add", self.cable[0], "type", "veth", "peer", "name", self.cable[1])
        for space, end, address in zip(self.spaces, self.cable, self.addresses):
            _ip("link", "set", end, "netns", space)
            _ip("-n", space, "addr", "add", f"{address}/24", "dev", end)
            _ip("-n", space, "link", "set", end, "up")
            _ip("-n", space, "link", "set", "lo", "up")

    def remove(self) -> None:
        for space in self.spaces:
            subprocess.run(["ip", "netns", "del", space], capture_output=True)

    def on(self, number: int, arguments: list[str]) -> list[str]:
        return ["ip", "netns", "exec", self.spaces[number], "unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', f"machine-{number}", *arguments]


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@pytest.fixture
def machines():
    if not (shutil.which("ip") and shutil.which("unshare")):
        pytest.skip("two machines need `ip` and `unshare`, which this one lacks")
    found = Machines()
    try:
        found.connect()
        subprocess.run(found.on(0, ["true"]), check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        found.remove()
        pytest.skip(f"network namespaces are not permitted here: {getattr(error, 'stderr', '') or error}")
    yield found
    found.remove()


def on_both(machines: Machines, yaml: Path, tmp_path: Path, *settings: str) -> list[subprocess.Popen]:
    """A process on each machine, whose disk is its own."""
    return [begin(machines.on(number, command([*TORCHRUN, "--nnodes", "2", "--node_rank", number, "--nproc_per_node", "1", "--master_addr", machines.addresses[0],
                                               "--master_port", "29511"], yaml, tmp_path / f"disk{number}", *settings))) for number in (0, 1)]


def test_two_machines_train_what_one_trains(machines, yaml, tmp_path):
    run(command([sys.executable], yaml, tmp_path / "alone"))
    both = on_both(machines, yaml, tmp_path)
    outputs = [ended(process) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert "completed 4 steps" in outputs[0] and "completed" not in outputs[1]
    assert furthest(weights(tmp_path / "disk0"), weights(tmp_path / "alone")) < 1e-3
    assert not list((tmp_path / "disk1").glob("*.safetensors")) and not list((tmp_path / "disk1").glob("*.state")), "the first machine gets the files"


def test_a_machine_that_dies_is_named_on_the_other(machines, yaml, tmp_path):
    both = on_both(machines, yaml, tmp_path, "steps=100000", "save_steps=3")
    try:
        until(lambda: find_states(tmp_path / "disk0", "x"), both[0])
        stop_all(both[1])
        output = ended(both[0])
    finally:
        for process in both:
            stop_all(process)
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert both[0].returncode and len(errors) == 1 and "process 1 of 2" in errors[0] and "machine-1" in errors[0] and "lost" in errors[0], output
    assert find_states(tmp_path / "disk0", "x"), "what was learned is kept"
