"""Jobs: the queue, its commands, and what is left of them when the process is killed."""
import errno
import json
import os
import shutil
import threading
import time
from pathlib import Path

import pytest
import torch

from hotlora.tests.trainer.ui_server import UiServer
from hotlora.trainer.config import TrainConfig
from hotlora.trainer.hosts.standalone_host import SharedBackend, StandaloneHost
from hotlora.trainer.job_settings import placed
from hotlora.trainer.jobs import JobQueue, NoSuchJob, NotNow
from hotlora.trainer.lora_file import load_lora
from hotlora.trainer.output_files import OutputError


class Host(StandaloneHost):
    """The standalone host with the tests' backend, which notes what it is told."""

    def __init__(self, home, backend):
        super().__init__(home, ["demo"], "cpu")
        self._loaded = "demo", SharedBackend(backend)
        self.written, self.reason = [], ""

    def can_train(self):
        return self.reason

    def lora_written(self, name, path):
        assert path.is_file()
        self.written.append(name)


@pytest.fixture
def host(tmp_path, backend):
    return Host(tmp_path / "home", backend)


@pytest.fixture
def jobs(host):
    queue = JobQueue(host)
    yield queue
    queue.close()


@pytest.fixture
def settings(gallery):
    return {"train_data_dir": str(gallery), "name": "face", "trigger": "sks", "steps": 4, "lora_rank": 4, "learning_rate": 1e-3, "save_dtype": "fp32"}


def until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.01)


def ended(jobs, job):
    until(lambda: job.status in ("completed", "stopped", "failed", "interrupted", "cancelled"))
    with jobs.lock:  # what belongs to the change is told by now
        return job


def long(settings, **changes):
    return {**settings, "steps": 100_000, **changes}


def running(jobs, settings, step=1):
    job = jobs.submit(settings, None)
    until(lambda: job.status == "running" and job.step >= step)
    return job


def test_a_job_trains_and_tells(jobs, host, settings):
    job = ended(jobs, jobs.submit({**settings, "save_steps": 2, "preview_steps": 4}, None))
    assert (job.status, job.step, job.total_steps, job.pictures, job.base) == ("completed", 4, 4, 6, "demo"), job.message + job.details
    assert host.written == ["face-000002", "face"] and job.lora == "face"
    assert [entry["name"] for entry in job.saved] == host.written
    assert [entry["step"] for entry in job.previews] == [4]
    assert (jobs.store.run_folder(job) / "previews" / job.previews[0]["file"]).is_file()
    assert [step for step, _ in jobs.losses(job, 100)] == [1, 2, 3, 4]
    events = jobs.events.since(0)
    assert [event["id"] for event in events] == list(range(1, len(events) + 1))
    assert [name for event in events if event["kind"] == "loras" for name in event["names"]] == host.written
    told = [step for event in events if event["kind"] == "step" for step, _ in event["losses"]]
    assert told == [1, 2, 3, 4]
    assert [event["state"]["status"] for event in events if event["kind"] == "job"][-1] == "completed"


@pytest.mark.parametrize("changes, sentence", [
    ({"optimizer_args": {"bogus": 1}}, "unexpected keyword argument 'bogus'"), ({"mixed_precision": "fp16"}, "needs a CUDA or ROCm GPU"),
    ({"init_lora": "nowhere.safetensors"}, r"there is no file nowhere\.safetensors"), ({"reg_data_dir": "/nowhere"}, "/nowhere does not exist"),
    ({"optimizer": "prodigy", "lora_plus_ratio": 16}, "optimizer prodigy|optimizer is prodigy, which needs the package prodigyopt")])
def test_what_would_end_a_job_is_said_by_its_plan_and_at_its_submission(jobs, settings, changes, sentence):
    for ask in (jobs.plan, jobs.submit):
        with pytest.raises(ValueError, match=sentence):
            ask({**settings, **changes}, None)
    assert not jobs.snapshot()["jobs"]


def test_what_has_become_wrong_since_its_submission_ends_a_job_before_its_pictures_are_read(jobs, host, settings, monkeypatch, tmp_path):
    first = ended(jobs, jobs.submit(settings, None))
    other = tmp_path / "other.safetensors"
    other.write_bytes((host.lora_folders()[0] / f"{first.lora}.safetensors").read_bytes())
    busy = running(jobs, long({**settings, "name": "busy"}))
    job = jobs.submit({**settings, "name": "next", "init_lora": str(other)}, None)
    other.unlink()
    monkeypatch.setattr("hotlora.trainer.job_run.read_material", lambda *_, **__: pytest.fail("a picture was read"))
    jobs.command(busy.id, "stop")
    job = ended(jobs, job)
    assert (job.status, job.message) == ("failed", f"there is no file {other}; check the path")


def test_what_a_job_will_need_is_told_before_its_first_step(jobs, settings):
    job = ended(jobs, jobs.submit(settings, None))
    memory = job.memory
    assert memory["verdict"] == "fits" and memory["given_up"] == [] and memory["peak"] > memory["more"] > 0 and memory["free"] > memory["more"]
    events = jobs.events.since(0)
    log = next(event for event in events if event["kind"] == "log" and event["text"].startswith("memory: "))
    first_step = next(event for event in events if event["kind"] == "step")
    assert log["text"].endswith("it fits") and log["id"] < first_step["id"]
    assert any(event["kind"] == "job" and event["state"]["memory"] == memory for event in events)


def test_what_is_given_up_before_the_first_step_is_told(jobs, settings, monkeypatch):
    monkeypatch.setattr("hotlora.trainer.footprint.free_of", lambda device: 1000)
    job = ended(jobs, jobs.submit(settings, None))
    assert job.status == "completed" and job.memory["verdict"] == "hardly" and job.memory["given_up"][0].startswith("gradient checkpointing")


def test_a_plan_for_more_than_there_is_warns(jobs, settings, monkeypatch):
    assert not any("GB are needed" in warning for warning in jobs.plan(settings, None)["warnings"])
    monkeypatch.setattr("hotlora.trainer.needs.memory_of", lambda device: 100_000_000)
    [warning] = [warning for warning in jobs.plan(settings, None)["warnings"] if "GB are needed" in warning]
    assert "0.1 are there" in warning


def test_the_form_for_diffusers_comes_with_a_file_that_the_tag_finds(jobs, host, settings):
    settings = {**settings, "save_format": "peft"}
    [warning] = jobs.plan(settings, None)["warnings"]
    assert warning.startswith("save_format is peft, and no tag finds")
    job = ended(jobs, jobs.submit(settings, None))
    assert job.status == "completed" and job.tag == "<lora:face:1>" and job.lora == "face" and host.written == ["face"] and job.warnings == [warning]
    folder = host.lora_folders()[0]
    assert load_lora(folder / "face.safetensors") and load_lora(folder / "face-peft" / "pytorch_lora_weights.safetensors")
    jobs.drawings.submit({"prompt": job.tag, "negative": "", "seed": 0, "steps": 1, "guidance": None, "width": 64, "height": 64, "names": ["face"], "weights": [1]})


def test_a_run_of_an_earlier_version_that_goes_on_gets_such_a_file_too(host):
    assert placed(TrainConfig(train_data_dir="x", save_format="peft"), host, host.home).save_format == "both"


def test_a_plan_counts_no_prior_picture_and_no_picture_of_the_server_itself(jobs, host, settings):
    root = host.home.parent
    for name, place in (("0.png", root / "my pictures" / "reg"), ("1.png", host.home / "thumbnails"), ("2.png", root / "reg")):
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / "my pictures" / name, place)
    told = jobs.plan({**settings, "train_data_dir": str(root), "reg_data_dir": str(root / "reg")}, None)
    assert told["pictures"] == 7 and f"2 pictures in {host.home.name}, reg are left out" in told["warnings"][0]


def test_a_plan_writes_nothing_where_a_host_looks_for_loras(jobs, host, settings):
    folder = host.lora_folders()[0]
    folder.mkdir(parents=True, exist_ok=True)
    os.utime(folder, (1, 1))
    jobs.plan(settings, None)
    assert folder.stat().st_mtime == 1, "a host that sees its folder changed reads all of it again"


def test_a_plan_tells_of_a_file_that_has_the_name_already(jobs, host, settings):
    folder = host.lora_folders()[0]
    (folder / "old").mkdir(parents=True)
    (folder / "face.safetensors").write_bytes(b"is kept as face-v1")
    assert jobs.plan(settings, None)["warnings"] == []
    (folder / "old" / "face.safetensors").write_bytes(b"another program's")
    [warning] = jobs.plan(settings, None)["warnings"]
    assert warning.startswith(f"face is also the name of {folder / 'old' / 'face.safetensors'}: ")


def test_a_preset_fills_in_what_was_not_said(jobs, settings):
    told = jobs.plan({**settings, "steps": None, "learning_rate": None}, "quick")
    # the embedded base has presets of its own
    assert told["steps"] == 100 and told["lora_rank"] == 4 and told["learning_rate"] == 4e-3 and told["sentence"].startswith("6 pictures, 100 steps, about ")
    assert told["filled"] == {"learning_rate": 4e-3, "lr_scheduler": "inverse_sqrt", "lr_warmup_steps": 5, "conv_rank": 16, "ema_decay": 0.95, "weight_decay": 1.0,
                              "min_snr_gamma": 0.0, "batch_size": 4}
    assert not (jobs.host.home / "loras").exists()


def test_stop_keeps_the_work_and_resume_goes_on(jobs, host, settings):
    job = running(jobs, long(settings))
    jobs.command(job.id, "stop")
    assert ended(jobs, job).status == "stopped" and job.step >= 1 and host.written == ["face"]
    assert "--resume" not in job.message
    stopped_at = job.step
    jobs.command(job.id, "resume")
    until(lambda: job.status == "running" and job.step > stopped_at)
    assert jobs.losses(job, 10**6)[0][0] == 1
    jobs.command(job.id, "stop")
    ended(jobs, job)


def test_pause_save_and_sample(jobs, host, settings):
    job = running(jobs, long(settings))
    jobs.command(job.id, "pause")
    until(lambda: job.status == "paused")
    step = job.step
    jobs.command(job.id, "save")
    until(lambda: f"face-{step:06d}" in host.written)
    jobs.command(job.id, "sample")
    until(lambda: job.previews)
    assert job.step == step and job.previews[0]["step"] == step
    jobs.command(job.id, "resume")
    until(lambda: job.status == "running" and job.step > step)
    jobs.command(job.id, "stop")
    ended(jobs, job)


def test_the_queue_is_reordered_and_cancelled(jobs, settings):
    first = running(jobs, long(settings))
    second, third, fourth = (jobs.submit({**settings, "name": name}, None) for name in ("b", "c", "d"))
    jobs.command(fourth.id, "move", second.id)
    jobs.command(second.id, "move")
    assert jobs.snapshot()["queue"] == [fourth.id, third.id, second.id]
    assert [fourth.position, third.position, second.position] == [0, 1, 2]
    jobs.command(third.id, "cancel")
    assert third.status == "cancelled" and jobs.snapshot()["queue"] == [fourth.id, second.id]
    with pytest.raises(NotNow, match="cancelled"):
        jobs.command(third.id, "move")
    with pytest.raises(NotNow, match="running"):
        jobs.command(first.id, "cancel")
    with pytest.raises(NotNow):
        jobs.command(fourth.id, "move", first.id)
    with pytest.raises(NoSuchJob):
        jobs.command("../../x", "stop")
    jobs.command(first.id, "stop")
    assert ended(jobs, second).status == "completed" and fourth.ended < second.started


def test_a_job_that_does_not_fit_says_what_would_and_keeps_its_work(jobs, settings, backend, monkeypatch, host):
    predict, calls = backend.predict, []

    def full(*args):
        calls.append(1)
        if len(calls) > 3:  # the first is the plan's
            raise RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9999 bytes.")
        return predict(*args)

    monkeypatch.setattr(backend, "predict", full)
    job = ended(jobs, jobs.submit({**settings, "batch_size": 1}, None))
    assert job.status == "failed" and "failed at step 3: the memory is full" in job.message and "resolution lower than 64" in job.message, job.message
    assert "\n" not in job.message and "you tried to allocate" in job.details and host.written[-1] == "face"
    monkeypatch.undo()
    jobs.command(job.id, "resume")
    assert ended(jobs, job).status == "completed"


def test_a_job_whose_result_cannot_be_written_is_ended_by_resume(jobs, settings, host, backend, monkeypatch):
    loras, predict = host.lora_folders()[0], backend.predict

    def losing(*args):
        if loras.is_dir():
            loras.rmdir()
            loras.write_text("a file in the way", encoding="utf-8")
        return predict(*args)

    monkeypatch.setattr(backend, "predict", losing)
    job = ended(jobs, jobs.submit(settings, None))
    assert job.status == "failed" and job.message.startswith("failed while it ended: "), job.message
    assert job.message.endswith("what was learned is kept, and Resume goes on from there")
    monkeypatch.undo()
    loras.unlink()
    jobs.command(job.id, "resume")
    assert ended(jobs, job).status == "completed" and host.written[-1] == "face"


def test_a_job_whose_base_does_not_fit_says_so(jobs, settings, host, monkeypatch):
    def full(config, work):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr(host, "with_backend", full)
    job = ended(jobs, jobs.submit(settings, None))
    assert job.status == "failed" and job.message.startswith("the memory is full (CUDA out of memory") and "free memory" in job.message


def test_a_failing_job_says_why_and_the_next_one_starts(jobs, settings, gallery):
    failing = jobs.submit({**settings, "name": "burnt", "learning_rate": 10, "weight_decay": 100, "steps": 4000}, None)
    bad_layers = jobs.submit({**settings, "name": "layers", "unet_target_modules": ["nonsense"]}, None)
    good = jobs.submit(settings, None)
    assert ended(jobs, good).status == "completed"
    assert bad_layers.status == "failed" and "nonsense" in bad_layers.message and "\n" not in bad_layers.message
    assert "Traceback" in bad_layers.details and "Traceback" not in bad_layers.message
    assert failing.status == "failed" and "not a number" in failing.message and "Resume" in failing.message, failing.message


def test_stop_while_pictures_are_prepared(jobs, settings, monkeypatch):
    from hotlora.trainer import job_run

    seen, make = threading.Event(), job_run.make_session

    def slow(material, backend, listeners, progress):
        seen.set()
        until(lambda: jobs._run.stop_asked)
        return make(material, backend, listeners, progress)

    monkeypatch.setattr(job_run, "make_session", slow)
    job = jobs.submit(settings, None)
    assert seen.wait(60)
    jobs.command(job.id, "stop")
    assert ended(jobs, job).status == "stopped" and job.step == 0


def test_the_hosts_own_cancel_button_while_pictures_are_prepared(jobs, host, settings, backend, monkeypatch):
    monkeypatch.setattr(backend, "interrupted", lambda: True)
    job = ended(jobs, jobs.submit(settings, None))
    assert job.status == "stopped" and "before the first step" in job.message
    assert host.written == [], "a LoRA that has learned nothing takes nobody's name"


@pytest.mark.parametrize("changes, expected", [
    ({"lora_rnak": 8}, "lora_rank"), ({"lora_rank": 0}, "lora_rank"), ({"train_data_dir": "/nowhere/at/all"}, "nowhere"), ({"name": "a/b"}, "a_b"),
    ({"augmentation": "os:system"}, "command line"), ({"loss_term": "/tmp/x.py:f"}, "command line"), ({"optimizer": "subprocess.Popen"}, "command line"),
    ({"base_model": "/etc/passwd"}, "must be one of demo")])
def test_a_wrong_setting_is_named_before_anything_is_queued(jobs, settings, changes, expected):
    with pytest.raises(ValueError, match=expected):
        jobs.submit({**settings, **changes}, None)
    assert jobs.snapshot()["jobs"] == []


def test_folders_of_a_settings_file_are_passed_over(jobs, settings, tmp_path):
    job = ended(jobs, jobs.submit({**settings, "output_dir": str(tmp_path / "elsewhere"), "lora_dir": str(tmp_path / "more"), "steps": 1}, None))
    assert job.status == "completed" and not (tmp_path / "elsewhere").exists() and not (tmp_path / "more").exists()
    assert any("output_dir" in warning for warning in job.warnings)


def test_a_lora_goes_into_the_first_of_the_hosts_folders_that_can_be_written_to(jobs, host, settings, tmp_path):
    closed, second = tmp_path / "a file", tmp_path / "second"
    closed.write_text("where the first folder would be")
    host.lora_folders = lambda: [closed / "loras", second]
    job = ended(jobs, jobs.submit({**settings, "steps": 1}, None))
    assert job.status == "completed" and (second / "face.safetensors").is_file(), job.message
    host.lora_folders = lambda: [closed / "loras", closed / "more"]
    job = ended(jobs, jobs.submit({**settings, "name": "other", "steps": 1}, None))
    assert job.status == "failed" and f"lora_dir {closed / 'loras'} cannot be written to" in job.message
    assert "extra_model_paths.yaml" in job.message and "--lora-dir" in job.message, "what can be done in a host"


def test_nothing_starts_when_the_host_cannot_train(jobs, host, settings):
    host.reason = "no checkpoint is loaded; choose one first"
    with pytest.raises(NotNow, match="no checkpoint"):
        jobs.submit(settings, None)


def test_a_host_that_cannot_load_the_lora_does_not_end_the_run(jobs, host, settings, monkeypatch):
    def broken(name, path):
        raise RuntimeError("the extension is gone")

    monkeypatch.setattr(host, "lora_written", broken)
    job = ended(jobs, jobs.submit(settings, None))
    assert job.status == "completed"
    assert any("the extension is gone" in event.get("text", "") for event in jobs.events.since(0))


@pytest.fixture
def full_disk(monkeypatch):
    """While it is set no job can be written down, and no event."""
    from hotlora.trainer import job_events, job_store

    full = threading.Event()

    def failing_when_full(write, fault):
        def maybe(path, *data):
            if full.is_set():
                error = fault(f"{path} could not be written: the disk is full")
                error.errno = errno.ENOSPC
                raise error
            return write(path, *data)

        return maybe

    monkeypatch.setattr(job_store, "write_atomically", failing_when_full(job_store.write_atomically, OutputError))
    for module in (job_events, job_store):
        monkeypatch.setattr(module, "append_line", failing_when_full(module.append_line, OSError))
    return full


def test_jobs_that_a_full_disk_ends_are_failed_and_the_next_one_trains_when_there_is_space(jobs, settings, full_disk):
    first, second = running(jobs, long(settings)), jobs.submit({**settings, "name": "second"}, None)
    before = jobs.events.last
    full_disk.set()
    assert ended(jobs, first).status == ended(jobs, second).status == "failed"
    until(lambda: jobs._run is None)
    assert "the disk is full" in first.message and "the disk is full" in second.message and "Traceback" in second.details and second.ended
    told = [(event["job"], event["state"]["status"]) for event in jobs.events.since(before) if event["kind"] == "job"]
    assert (first.id, "failed") in told and (second.id, "failed") in told
    full_disk.clear()
    third = jobs.submit({**settings, "name": "third"}, None)
    jobs.command(second.id, "resume")
    assert ended(jobs, third).status == ended(jobs, second).status == "completed", third.message + second.message


def test_what_a_full_disk_refuses_has_not_happened(jobs, settings, full_disk):
    first = running(jobs, long(settings))
    second, third = (jobs.submit({**settings, "name": name}, None) for name in ("second", "third"))
    jobs.command(first.id, "pause")
    until(lambda: first.status == "paused")
    before, files = jobs.snapshot(), sorted(jobs.store.folder.iterdir())
    full_disk.set()
    for refused in (lambda: jobs.submit({**settings, "name": "fourth"}, None), lambda: jobs.command(second.id, "move"),
                    lambda: jobs.command(third.id, "cancel"), lambda: jobs.command(third.id, "move", second.id)):
        with pytest.raises(OutputError, match="the disk is full"):
            refused()
    assert jobs.snapshot()["queue"] == before["queue"] and jobs.snapshot()["jobs"] == before["jobs"] and sorted(jobs.store.folder.iterdir()) == files
    full_disk.clear()
    jobs.command(third.id, "move", second.id)
    assert json.loads((jobs.store.folder / second.id / "job.json").read_bytes())["position"] == 1
    for job in (second, third):
        jobs.command(job.id, "cancel")
    jobs.command(first.id, "stop")
    ended(jobs, first)


def test_a_server_starts_on_a_full_disk(host, settings, full_disk):
    first = JobQueue(host)
    job = ended(first, first.submit({**settings, "steps": 1}, None))
    first.change(job, "running")
    first.close()
    full_disk.set()
    second = JobQueue(host)
    assert second.get(job.id).status == "interrupted" and "Resume" in second.get(job.id).message
    second.close()


def test_jobs_are_removed_and_restored(jobs, settings):
    job = ended(jobs, jobs.submit({**settings, "steps": 1}, None))
    jobs.command(job.id, "remove")
    assert jobs.snapshot()["jobs"] == []
    with pytest.raises(NoSuchJob):
        jobs.get(job.id)
    back = jobs.restore(job.id)
    assert back.status == "completed" and jobs.get(job.id) is back and jobs.losses(back, 10)
    for wrong in ("../jobs", job.id, "20990101-000000-abcdef"):
        with pytest.raises(NoSuchJob):
            jobs.restore(wrong)


def test_two_servers_do_not_share_a_home(jobs, host):
    with pytest.raises(ValueError, match="another HotLoRA server"):
        JobQueue(host)


def test_closing_saves_what_runs_and_a_new_queue_takes_it_up(host, settings):
    first = JobQueue(host)
    job = running(first, long(settings))
    waiting = first.submit({**settings, "name": "next", "steps": 1}, None)
    first.close()
    assert job.status == "interrupted" and job.step >= 1
    second = JobQueue(host)
    try:
        found, queued = second.get(job.id), second.get(waiting.id)
        assert found.status == "interrupted" and found.step == job.step and queued.status == "queued"
        assert second.waiting and second._run is None, "nothing trains by itself"
        second.command(queued.id, "resume")
        assert ended(second, queued).status == "completed"
        assert second.events.last > first.events.last
    finally:
        second.close()


def test_a_damaged_job_file_hides_no_other(host, settings):
    first = JobQueue(host)
    job = ended(first, first.submit({**settings, "steps": 1}, None))
    first.close()
    for name, content in (("20260101-000000-aaaaaa", b"{"), ("20260101-000000-bbbbbb", b"[]"), ("20260101-000000-cccccc", b'{"id": "x"}')):
        folder = host.home / "jobs" / name
        folder.mkdir()
        (folder / "job.json").write_bytes(content)
        (folder / "events.jsonl").write_bytes(b'{"id": 1')
    second = JobQueue(host)
    try:
        assert [found["id"] for found in second.snapshot()["jobs"]] == [job.id]
    finally:
        second.close()


def test_a_killed_server_keeps_queue_job_and_events_and_resumes_bit_identically(gallery, tmp_path):
    settings = {"train_data_dir": str(gallery), "name": "face", "trigger": "sks", "steps": 40, "lora_rank": 4, "learning_rate": 1e-3, "save_dtype": "fp32",
                "save_steps": 5, "seed": 3}
    with UiServer(tmp_path / "straight") as server:
        server.until(server.post("jobs", {"settings": settings})["id"], "completed")
    server = UiServer(tmp_path / "killed").start()
    job = server.post("jobs", {"settings": settings})["id"]
    queued = server.post("jobs", {"settings": {**settings, "name": "other", "steps": 2}})["id"]
    server.until(job, "running", step=12)
    seen = server.get("jobs")["last_event"]
    server.kill()
    server.start()
    try:
        listing = server.get("jobs")
        found = {entry["id"]: entry for entry in listing["jobs"]}
        assert found[job]["status"] == "interrupted" and found[job]["step"] >= 10 and "Resume" in found[job]["message"]
        assert found[queued]["status"] == "queued" and listing["queue"] == [queued] and listing["waiting"]
        replayed = []
        for event in server.events(after=0):
            replayed.append(event)
            if event["id"] >= listing["last_event"]:
                break
        ids = [event["id"] for event in replayed]
        assert ids == list(range(1, listing["last_event"] + 1)) and listing["last_event"] > seen
        at_resume = found[job]["step"]
        server.post(f"jobs/{job}/resume")
        done = server.until(job, "completed", "failed")
        assert done["status"] == "completed", done
        server.until(queued, "completed")
        steps = [step for step, _ in server.get(f"jobs/{job}/losses")["losses"]]
        assert steps == list(range(1, 41))
        again = [event for event in server_events(server, listing["last_event"]) if event["kind"] == "step" and event["job"] == job]
        assert again[0]["losses"][0][0] == at_resume + 1, "it went on from the saved step"
    finally:
        server.stop()
    one, two = (load_lora(tmp_path / name / "loras" / "face.safetensors")[0] for name in ("straight", "killed"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key][part], two[key][part]) for key in one for part in ("up", "down"))


def test_a_server_that_is_ended_while_it_draws_and_trains_is_soon_gone_and_keeps_the_run(gallery, tmp_path):
    settings = {"train_data_dir": str(gallery), "name": "face", "steps": 10_000, "lora_rank": 4}
    server = UiServer(tmp_path / "out").start()
    try:
        job = server.post("jobs", {"settings": settings})["id"]
        server.until(job, "running", step=2)
        drawing = server.post("drawings", {"prompt": "a red circle", "names": [], "weights": [0], "steps": 150, "width": 768, "height": 768})["id"]
        until(lambda: {entry["id"]: entry["status"] for entry in server.get("drawings")["drawings"]}[drawing] == "drawing")
        server.process.terminate()
        server.process.wait(90)  # the picture alone takes many minutes
        assert server.process.returncode == 0 and "closing; what runs is saved first" in server.process.stdout.read()
        server.stop()
        server.start()
        kept = server.get(f"jobs/{job}")
        assert kept["status"] == "interrupted" and kept["step"] >= 2 and "resume" in kept["commands"], kept
        assert (tmp_path / "out" / "loras" / "face.safetensors").is_file()
        server.post(f"jobs/{job}/resume")
        server.until(job, "running", step=kept["step"] + 1)
    finally:
        server.stop()


def server_events(server, after):
    last = server.get("jobs")["last_event"]
    for event in server.events(after=after):
        yield event
        if event["id"] >= last:
            return


def test_two_clients_see_the_same_and_a_lost_connection_loses_and_doubles_nothing(gallery, tmp_path):
    settings = {"train_data_dir": str(gallery), "name": "face", "steps": 60, "lora_rank": 4, "save_steps": 20}
    with UiServer(tmp_path / "out") as server:
        first, second, ready = [], [], threading.Barrier(3)

        def follow(found, breaks):
            """Read on; with `breaks` hang up after every third event and come back with the last id."""
            ready.wait()
            seen = 0
            while not (found and found[-1]["kind"] == "job" and found[-1]["state"]["status"] == "completed"):
                for event in server.events(after=0, seen=seen if seen else None):
                    found.append(event)
                    seen = event["id"]
                    if (breaks and seen % 3 == 0) or (event["kind"] == "job" and event["state"]["status"] == "completed"):
                        break

        threads = [threading.Thread(target=follow, args=(found, breaks)) for found, breaks in ((first, False), (second, True))]
        for thread in threads:
            thread.start()
        ready.wait()
        job = server.post("jobs", {"settings": settings})["id"]
        server.until(job, "completed")
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        assert first == second
        assert [event["id"] for event in first] == list(range(1, len(first) + 1))
        assert [step for event in first if event["kind"] == "step" for step, _ in event["losses"]] == list(range(1, 61))


def test_the_job_file_is_plain_json(jobs, settings):
    job = ended(jobs, jobs.submit({**settings, "steps": 1}, None))
    values = json.loads(Path(jobs.store.folder / job.id / "job.json").read_bytes())
    assert values["status"] == "completed" and values["config"]["steps"] == 1


def test_a_measurement_that_is_no_number_hides_no_job(jobs, settings, host):
    from hotlora.trainer.api import Api, Request

    job = ended(jobs, jobs.submit({**settings, "steps": 1}, None))
    job.measured = [{"step": 1, "held_out": float("nan"), "drift": float("inf")}]
    api, path = Api(host, jobs), jobs.store.folder / job.id / "job.json"
    for _ in range(2):
        answer = api.handle(Request("GET", "/hotlora/api/jobs"))
        assert answer.status == 200 and json.loads(answer.body)["jobs"][0]["measured"] == [{"step": 1, "held_out": None, "drift": None}]
        jobs.store.save(job)
        assert "NaN" not in path.read_text(encoding="utf-8")
        path.write_text(json.dumps({**json.loads(path.read_bytes()), "measured": job.measured}), encoding="utf-8")
        job = jobs._jobs[job.id] = jobs.store.load(path)  # as an earlier version wrote it


def test_a_host_without_a_choice_of_bases_has_the_usual_presets(jobs, host, settings):
    """What it trains on is its own, whatever base_model says by default."""
    host.bases = lambda: []
    told = jobs.plan({**settings, "lora_rank": None, "learning_rate": None}, "balanced")
    assert told["filled"] == {"lora_rank": 16, "learning_rate": 1e-4}
