"""Many LoRAs: what is refused before anything starts, how devices are shared, what is gone on with; and, slow, on a real Ray with killed workers."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from hotlora.trainer.cli import main
from hotlora.trainer.config_files import load_config
from hotlora.trainer.farm import LOCK, Farm, place, read_jobs, shares
from hotlora.trainer.farm_table import Table, rows, summary
from hotlora.trainer.farm_worker import _collect
from hotlora.trainer.lora_file import load_lora
from hotlora.trainer.process_lock import hold
from hotlora.trainer.progress_file import ProgressFile, read_progress, write_progress
from hotlora.trainer.run import make_session, read_material

ROOT = Path(__file__).resolve().parent.parent.parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1", "RAY_memory_monitor_refresh_ms": "0"}


@pytest.fixture
def settings(gallery, tmp_path):
    """Write a settings file of a short run, with changes, and return its path."""
    def write(file: str, **changes) -> Path:
        values = {"train_data_dir": f"'{gallery}'", "trigger": "sks", "steps": 12, "batch_size": 2, "lora_rank": 4, "save_steps": 3, "resolution": 64,
                  "save_dtype": "fp32", "learning_rate": 1e-3, "tensorboard": "false", "name": Path(file).stem, **changes}
        path = tmp_path / "jobs" / file
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(f"{key}: {value}\n" for key, value in values.items() if value is not None), encoding="utf-8")
        return path

    return write


def test_every_fault_is_named_before_anything_starts(settings, tmp_path, capsys):
    good, bad, gone = settings("a.yaml"), settings("b.yaml", lora_rnak=4), settings("c.yaml", train_data_dir="/nowhere/at/all")
    out = tmp_path / "out"
    assert main(["farm", *map(str, (good, bad, gone)), "--out", str(out)]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert str(bad) in error and "lora_rank" in error and str(gone) in error and "/nowhere/at/all" in error and "nothing has been started" in error
    assert str(good) not in error and not out.exists()


@pytest.mark.parametrize("changes, sentence", [
    ({"optimizer": "torch.optim.AdamV"}, "has no AdamV"), ({"optimizer_args": "{bogus: 1}"}, "unexpected keyword argument 'bogus'"),
    ({"mixed_precision": "fp16", "device": "cpu"}, "needs a CUDA or ROCm GPU"), ({"loss_term": "nowhere.py:f"}, "there is no file nowhere.py"),
    ({"init_lora": "nowhere.safetensors"}, "there is no file nowhere.safetensors"), ({"reg_data_dir": "/nowhere"}, "/nowhere does not exist"),
    ({"metadata_path": "nowhere.csv"}, "nowhere.csv does not exist"), ({"base_model": "nowhere.safetensors"}, "base_model nowhere.safetensors does not exist"),
    ({"base_model": "."}, "no diffusers model")])
def test_a_job_that_would_not_begin_is_named_with_its_file_before_anything_starts(settings, tmp_path, capsys, changes, sentence):
    good, bad, out = settings("a.yaml"), settings("b.yaml", **changes), tmp_path / "out"
    assert main(["farm", str(good), str(bad), "--out", str(out)]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"error: {bad}: ") and sentence in error and error.endswith("Nothing has been started") and not out.exists()


def test_the_packages_and_the_device_of_a_cluster_are_not_those_of_this_machine(settings, tmp_path):
    elsewhere = settings("a.yaml", optimizer="no_such_package_x.Best", mixed_precision="fp16")
    assert read_jobs([elsewhere], tmp_path, here=False)
    with pytest.raises(ValueError, match="/nowhere does not exist"):
        read_jobs([settings("b.yaml", reg_data_dir="/nowhere")], tmp_path, here=False)


def test_a_relative_name_of_a_file_is_told_once(settings, monkeypatch, capsys):
    folder = settings("bad.yaml", lora_rnak=4).parent
    settings("gone.yaml", train_data_dir="/nowhere/at/all")
    monkeypatch.chdir(folder)
    assert main(["farm", "bad.yaml", "gone.yaml", "--out", "out"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: bad.yaml: lora_rnak is not") and str(folder) not in error and ".. " not in error


@pytest.mark.parametrize("first, second", [("face", "face"), ("face", "Face")])
def test_two_jobs_of_one_name_are_refused(settings, tmp_path, first, second):
    files = [settings("a.yaml", name=first), settings("b.yaml", name=second)]
    with pytest.raises(ValueError, match=r"b\.yaml and .*a\.yaml would both write the LoRA .*; set another name in one of them"):
        read_jobs(files, tmp_path / "out")


def test_without_a_name_it_is_the_folder_s(settings, tmp_path):
    assert read_jobs([settings("a.yaml", name=None)], tmp_path)[0].name == "my pictures"


@pytest.mark.parametrize("arguments, expected", [(["{yaml}", "--retries", "-1"], "--retries is -1"), (["{yaml}", "--cpus", "0"], "--cpus is 0"),
                                                 (["no such/*.yaml"], "no such/*.yaml"), (["missing.yaml"], "missing.yaml")])
def test_wrong_options_are_one_sentence(settings, arguments, expected, tmp_path, capsys):
    arguments = [one.format(yaml=settings("a.yaml")) for one in arguments]
    assert main(["farm", *arguments, "--out", str(tmp_path / "out")]) == 1
    assert expected in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_pattern_is_read_as_a_shell_would_and_a_file_counts_once(settings, tmp_path, capsys):
    settings("b.yaml", lora_rnak=1)
    settings("a.yaml", lora_rnak=1)
    folder = tmp_path / "jobs"
    assert main(["farm", str(folder / "*.yaml"), str(folder / "a.yaml"), "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.index("a.yaml") < error.index("b.yaml") and "2 faults" in error


def test_two_farms_in_one_folder(settings, tmp_path, capsys):
    out = tmp_path / "out"
    with hold(out / LOCK):
        assert main(["farm", str(settings("a.yaml")), "--out", str(out)]) == 1
    assert "another farm is at work" in capsys.readouterr().err


def node(cpus, gpus=0, alive=True):
    return {"Alive": alive, "Resources": {"CPU": cpus, **({"GPU": gpus} if gpus else {})}}


@pytest.mark.parametrize("nodes, jobs, cpus, expected", [
    ([node(8)], 2, None, (False, 4, 1)), ([node(8)], 20, None, (False, 1, 1)), ([node(8)], 1, None, (False, 8, 1)), ([node(8)], 3, 2, (False, 2, 1)),
    ([node(4), node(4)], 1, None, (False, 4, 1)), ([node(64, 8)], 3, None, (True, 21, 8)), ([node(64, 8)], 3, 2, (True, 2, 2)),
    ([node(4, 8)], 3, None, (True, 1, 1)), ([node(4), node(64, alive=False)], 2, None, (False, 2, 1))])
def test_devices_are_shared(nodes, jobs, cpus, expected):
    found = shares(nodes, jobs, cpus)
    assert (found.gpus, found.cpus, found.beside_gpu) == expected


def test_more_cores_than_any_machine_has():
    with pytest.raises(ValueError, match="--cpus is 9, but the largest machine has 8"):
        shares([node(8), node(4)], 2, 9)


def test_what_is_done_is_done_and_other_settings_begin_anew(settings, tmp_path):
    out = tmp_path / "out"
    [job] = read_jobs([settings("a.yaml")], out)
    assert place(job)
    lora = tmp_path / "a.safetensors"
    lora.write_bytes(b"x")
    write_progress(job.progress, status="completed", lora=str(lora))
    assert not place(job)
    assert not place(read_jobs([settings("a.yaml", save_steps=1, preview_steps=5)], out)[0]), "what does not change the result"
    other = read_jobs([settings("a.yaml", lora_rank=8)], out)[0]
    assert place(other) and other.told()["status"] == "queued"
    assert read_progress(out / "runs" / "a-v1" / "progress.json")["status"] == "completed"


def test_what_is_done_is_not_done_again_when_its_lora_has_been_moved_away(settings, tmp_path, caplog):
    [job] = read_jobs([settings("a.yaml")], tmp_path / "out")
    place(job)
    lora = tmp_path / "out" / "loras" / "a.safetensors"
    write_progress(job.progress, status="completed", lora=str(lora), message=f"completed 12 steps; the LoRA is {lora}")
    sentence = f"its LoRA is no longer at {lora}; to train it again, delete {job.run_folder}"
    assert not place(job) and f"a: {sentence}" in caplog.text
    assert (job.told()["status"], job.told()["message"]) == ("completed", sentence)
    lora.parent.mkdir()
    lora.write_bytes(b"x")
    assert job.told()["message"] == f"completed 12 steps; the LoRA is {lora}", "it has been brought back"
    lora.unlink()
    shutil.rmtree(job.run_folder)
    assert job.told()["status"] == "queued", "deleted while the farm is at work on others"
    [job] = read_jobs([settings("a.yaml")], tmp_path / "out")
    assert place(job) and job.told()["status"] == "queued"


def test_a_run_tells_how_far_it_is(config, backend, tmp_path, monkeypatch):
    from hotlora.trainer.listeners import usual_listeners

    path = tmp_path / "deep" / "progress.json"
    monkeypatch.setenv("HOTLORA_PROGRESS", str(path))
    listeners = usual_listeners(config)
    assert any(isinstance(one, ProgressFile) for one in listeners)
    seen = []
    session = make_session(read_material(config), backend, listeners)
    step = session.train_step
    session.train_step = lambda: (seen.append(read_progress(path)), step())[1]
    outcome = session.train()
    assert seen[0]["status"] == "running" and seen[0]["total_steps"] == 4
    told = read_progress(path)
    assert (told["status"], told["step"], told["lora"], told["message"]) == ("completed", 4, str(outcome.lora), outcome.message) and told["loss"] > 0


def test_progress_survives_what_is_damaged(tmp_path):
    path = tmp_path / "progress.json"
    path.write_bytes(b"\xff{")
    assert read_progress(path) == {}
    write_progress(path, step=3)
    write_progress(path, loss=0.5)
    assert (read_progress(path)["step"], read_progress(path)["loss"]) == (3, 0.5)


def test_a_lora_that_is_collected_is_told_at_its_new_place_and_the_whole_model_where_it_is(tmp_path):
    progress, run_folder, loras = tmp_path / "progress.json", tmp_path / "runs" / "facts", tmp_path / "loras"
    (run_folder / "facts").mkdir(parents=True)
    told = "completed 6 steps; the LoRA is {}, the whole model {}"
    write_progress(progress, lora=str(run_folder / "facts"), message=told.format(run_folder / "facts", run_folder / "facts-merged"))
    _collect(progress, loras)
    assert read_progress(progress)["lora"] == str(loras / "facts") and (loras / "facts").is_dir()
    assert read_progress(progress)["message"] == told.format(loras / "facts", run_folder / "facts-merged")


class Screen:
    def __init__(self, terminal: bool) -> None:
        self.text, self.isatty = "", lambda: terminal

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None: ...


def test_the_table():
    jobs = [{"name": "face", "status": "running", "step": 12, "total_steps": 400, "loss": 0.12345, "seconds_left": 70, "attempts": 2, "node": "here", "device": "GPU 1"},
            {"name": "cat", "status": "failed", "step": 0, "total_steps": 0, "message": "no pictures"}, {"name": "dog", "status": "queued", "step": 0, "total_steps": 0}]
    lines = rows(jobs)
    assert lines[0].split() == ["name", "status", "step", "loss", "left", "tries", "on"]
    assert all(part in lines[1] for part in ("face", "running", "12/400", "0.1235", "here (GPU 1)")) and "no pictures" in lines[3]
    assert summary(jobs) == "1 running, 1 failed, 1 queued"
    screen = Screen(True)
    table = Table(screen)
    table.show(jobs)
    table.show(jobs)
    assert screen.text.count("face") == 2 and "\x1b[5A\x1b[J" in screen.text
    plain = Screen(False)
    table = Table(plain)
    for _ in range(2):
        table.show(jobs)
    assert plain.text == "face: running\ncat: failed: no pictures\n"


def farm(*arguments, out: Path, **options) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "train.py"), "farm", *map(str, arguments), "--out", str(out), "--cpus", "1"]
    return subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)


def until(condition, process: subprocess.Popen, seconds: float = 400) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end and process.poll() is None, process.communicate(timeout=60)[0]
        time.sleep(0.02)


def trained_alone(file: Path, out: Path) -> dict:
    """The LoRA of `train.py --config`, in a process of its own."""
    done = subprocess.run([sys.executable, str(ROOT / "train.py"), "--config", str(file), "--set", f"output_dir={out}"], cwd=ROOT, env=ENVIRONMENT,
                          capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    return load_lora(out / f"{file.stem}.safetensors")[0]


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key][part], other[key][part]) for key in one for part in ("up", "down"))


def of_farm(out: Path, name: str) -> dict:
    return next(job for job in json.loads((out / "farm.json").read_text(encoding="utf-8"))["jobs"] if job["name"] == name)


def remains(out: Path) -> list[str]:
    """Processes that still have to do with a farm."""
    found = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True).stdout.splitlines()
    return [line for line in found if str(out) in line]


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kills as POSIX does")
def test_a_killed_worker_and_ctrl_c_change_nothing_of_the_result(settings, tmp_path):
    """One worker is killed in the middle, then the farm is stopped and started again; each LoRA is bit for bit that of a run alone."""
    pytest.importorskip("ray", reason="the farm needs ray: pip install -e .[cluster]")
    files = [settings("one.yaml", steps=60), settings("two.yaml", steps=60, seed=1), settings("bad.yaml", init_lora="nothing.safetensors")]
    alone = {file.stem: trained_alone(file, tmp_path / "alone" / file.stem) for file in files[:2]}
    out = tmp_path / "out"
    process = farm(*files, out=out)
    until(lambda: (out / "farm.json").exists() and list((out / "runs" / "one").glob("*.state")) and of_farm(out, "one")["status"] == "running", process)
    killed = of_farm(out, "one")["pid"]
    os.kill(killed, signal.SIGKILL)
    until(lambda: of_farm(out, "one").get("attempts") == 2 and of_farm(out, "one")["step"] < 60 and of_farm(out, "one")["status"] == "running", process)
    assert of_farm(out, "one")["pid"] != killed and of_farm(out, "one")["step"] >= 3, "it goes on and does not begin anew"
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1 and "the same command goes on" in output, output
    assert of_farm(out, "one")["status"] in ("stopped", "completed") and "nothing.safetensors" in of_farm(out, "bad")["message"]

    process = farm(*files, out=out)
    output, _ = process.communicate(timeout=500)
    assert process.returncode == 1 and "2 completed, 1 failed" in output, output
    state = json.loads((out / "farm.json").read_text(encoding="utf-8"))
    assert state["finished"] and [job["status"] for job in state["jobs"]] == ["completed", "completed", "failed"]
    for name, expected in alone.items():
        assert same(load_lora(out / "loras" / f"{name}.safetensors")[0], expected), name
    assert not remains(out) and not list((out / "runs").glob("*/*.state"))
    begun = (out / "runs" / "one" / "farm.log").read_text()
    assert begun.count("going on from step") >= 1


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kills as POSIX does")
def test_a_machine_that_dies(settings, tmp_path):
    """Three raylets stand for machines: the first has no cores, one of the others is killed with all that runs there."""
    pytest.importorskip("ray", reason="the farm needs ray: pip install -e .[cluster]")
    from ray.cluster_utils import Cluster

    file = settings("one.yaml", steps=60)
    expected, out = trained_alone(file, tmp_path / "alone"), tmp_path / "out"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": 10**8})
    try:
        machines = [cluster.add_node(num_cpus=1, object_store_memory=10**8) for _ in range(2)]
        process = farm(file, "--address", cluster.address, out=out)
        until(lambda: (out / "farm.json").exists() and list((out / "runs" / "one").glob("*.state")) and of_farm(out, "one")["status"] == "running", process)
        worker = of_farm(out, "one")["pid"]
        parent = int(subprocess.run(["ps", "-o", "ppid=", "-p", str(worker)], capture_output=True, text=True).stdout)
        dying = next(machine for machine in machines if any(one.process.pid == parent for one in machine.all_processes["raylet"]))
        cluster.remove_node(dying, allow_graceful=False)
        output, _ = process.communicate(timeout=400)
    finally:
        cluster.shutdown()
    assert process.returncode == 0 and of_farm(out, "one")["attempts"] == 2, output
    assert "going on from step" in (out / "runs" / "one" / "farm.log").read_text()
    assert same(load_lora(out / "loras" / "one.safetensors")[0], expected)


def test_no_cluster_at_the_address_is_one_sentence(settings, tmp_path, capsys, monkeypatch):
    ray = pytest.importorskip("ray", reason="the farm needs ray: pip install -e .[cluster]")

    def fails(**options):
        raise ConnectionError("nobody is there\nand more")

    monkeypatch.setattr(ray, "init", fails)
    assert main(["farm", str(settings("a.yaml")), "--out", str(tmp_path / "out"), "--address", "127.0.0.1:1"]) == 1
    assert "no Ray cluster answers at 127.0.0.1:1 (nobody is there)" in capsys.readouterr().err


def test_without_ray_it_says_what_to_install(settings, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["farm", str(settings("a.yaml")), "--out", str(tmp_path / "out")]) == 1
    assert "pip install ray" in capsys.readouterr().err


def test_settings_of_a_job_are_those_of_its_file(settings, tmp_path):
    """What the farm adds decides only where things lie."""
    file = settings("a.yaml")
    [job] = read_jobs([file], tmp_path / "out")
    config, _ = load_config(file, job.settings)
    before, _ = load_config(file)
    changed = {key for key in config.to_dict() if config.to_dict()[key] != before.to_dict()[key]}
    assert changed == {"output_dir", "lora_dir", "cache_dir"}
    assert Farm([job], tmp_path).retries == 3


def test_farms_are_listed_with_their_jobs(settings, tmp_path):
    from hotlora.trainer.farms import list_farms

    home = tmp_path / "home"
    jobs = read_jobs([settings("a.yaml")], home / "night")
    assert place(jobs[0])
    Farm(jobs, home / "night").tell(lambda told: None)
    for name, content in (("damaged", "{"), ("odd", '{"updated": 1, "finished": true, "jobs": [{"status": "x"}]}'), ("none", '{"updated": 1, "finished": true, "jobs": null}')):
        (home / name).mkdir()
        (home / name / "farm.json").write_text(content)
    [found] = list_farms(home)
    assert found["name"] == "night" and found["going"] and not found["finished"] and found["jobs"] == [{"name": "a", "status": "queued", "step": 0, "total_steps": 0, "message": "", "attempts": 0}]
    assert list_farms(tmp_path / "nowhere") == []
