"""Several real processes train one LoRA over gloo: the gradients and the file of one process, one cache, one writer, and what happens when one is lost."""
import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from hotlora.trainer.lora_file import load_lora, read_safetensors
from hotlora.trainer.state import find_states

from .several import Group, relative_error, run

pytestmark = pytest.mark.skipif(not torch.distributed.is_available() or not torch.distributed.is_gloo_available(), reason="this torch has no gloo")
PICTURES = 6


@pytest.fixture
def settings(config, tmp_path):
    """The settings of a run, with changes; its files go to a folder of its own."""
    def make(folder: str, **changes) -> dict:
        place = {"output_dir": str(tmp_path / folder / "out"), "cache_dir": str(tmp_path / folder / "cache")}
        return {**config.to_dict(), "batch_size": 4, "steps": 4, **place, **changes}

    return make


def lora(settings: dict) -> dict[str, torch.Tensor]:
    return read_safetensors(Path(settings["output_dir"]) / "mascot.safetensors")[0]


def furthest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(relative_error(one[key], other[key]) for key in one if other[key].any())


def samples_of(seen: list[dict]) -> list[tuple[int, int, int]]:
    return sorted(sample for one in seen for sample in one["samples"])


def written_in(seen: dict, folder: str) -> list[str]:
    return [path for path in seen["written"] if Path(folder) in Path(path).parents]


def check_shared(seen: list[dict], alone: dict, settings: dict) -> None:
    """That processes did together what one does alone."""
    world = len(seen)
    for one in seen:
        assert len(one["gradients"]) == len(alone["gradients"])
        assert relative_error(one["gradients"][0], alone["gradients"][0]) < 1e-6
        assert all(torch.equal(mine, first) for mine, first in zip(one["gradients"], seen[0]["gradients"])), "all of them take the same step"
    assert samples_of(seen) == samples_of([alone]), "each sample is seen by one process, and by one only"
    counts = [len(one["samples"]) for one in seen]
    assert max(counts) - min(counts) <= len(alone["gradients"]), counts
    assert sum(one["encoded"] for one in seen) == alone["encoded"] == PICTURES, "each picture is encoded once"
    assert max(one["encoded"] for one in seen) == -(-PICTURES // world), "the encoding is shared"
    assert written_in(seen[0], settings["output_dir"]) and not any(written_in(one, settings["output_dir"]) for one in seen[1:]), "one of them writes"


def two_and_one(settings, tmp_path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The file of two processes and that of one, whose batches are theirs."""
    alone, shared = (settings(name, batch_size=2, gradient_accumulation_steps=2, save_steps=2) for name in ("alone", "shared"))
    groups = Group(tmp_path / "alone", 1, alone), Group(tmp_path / "shared", 2, shared)
    [one], two = (group.completed() for group in groups)
    check_shared(two, one, shared)
    told, there = (load_lora(Path(one["output_dir"]) / "mascot.safetensors")[1] for one in (shared, alone))
    differs = {key for key in told.keys() | there.keys() if told.get(key) != there.get(key)}
    assert differs <= {"modelspec.date", "ss_training_started_at", "ss_training_finished_at", "sshs_model_hash", "sshs_legacy_hash"}
    return lora(shared), lora(alone)


def test_two_processes_are_as_one(settings, tmp_path):
    assert furthest(*two_and_one(settings, tmp_path)) < 1e-4


@pytest.mark.slow
def test_the_file_has_the_same_bits(settings, tmp_path, monkeypatch):
    """Matrices are multiplied in the same way then, wherever in memory they lie, which MKL does not promise without being asked."""
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    found, expected = two_and_one(settings, tmp_path)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_a_batch_that_is_cut_gives_the_gradients_of_the_whole(settings, tmp_path, world):
    alone, shared = settings("alone"), settings("shared")
    [one], several = run(tmp_path / "alone", 1, alone), run(tmp_path / "shared", world, shared)
    check_shared(several, one, shared)
    # Adam divides by the size of a gradient, so that rounding is a larger part where this is next to nothing
    assert furthest(lora(shared), lora(alone)) < 1e-3


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(settings, tmp_path):
    """Four processes until one of them is asked to stop, then one, then two: each step has the samples that it would have had."""
    straight, changing = settings("straight", steps=9), settings("changing", steps=9)
    [one] = run(tmp_path / "straight", 1, straight)
    first = run(tmp_path / "changing", 4, changing, stop_after=3, stopper=2)
    assert [len(seen["gradients"]) for seen in first] == [3] * 4
    second = run(tmp_path / "changing", 1, changing, stop_after=6, resume=True)
    third = run(tmp_path / "changing", 2, changing, resume=True)
    assert samples_of([*first, *second, *third]) == samples_of([one])
    assert sum(seen["encoded"] for seen in first) == PICTURES and not any(seen["encoded"] for seen in [*second, *third]), "the cache serves all"
    for step, gradients in enumerate([*first[0]["gradients"], *second[0]["gradients"], *third[0]["gradients"]]):
        assert relative_error(gradients, one["gradients"][step]) < (1e-6 if step == 0 else 1e-3), step
    assert furthest(lora(changing), lora(straight)) < 1e-2


def until_all_train(group: Group) -> None:
    end = time.monotonic() + 300
    while not all((group.folder / f"began-{rank}").exists() for rank in range(group.world)):
        assert time.monotonic() < end and all(process.poll() is None for process in group.processes), group.end().errors
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kills as POSIX does")
@pytest.mark.parametrize("killed", [0, 1, 2])
def test_a_killed_process_ends_all_and_is_named(settings, tmp_path, killed):
    shared = settings("shared", steps=100_000, batch_size=3, save_steps=1000)
    group = Group(tmp_path / "shared", 3, shared)
    until_all_train(group)
    process = group.processes[killed]
    process.send_signal(signal.SIGKILL)
    began = time.monotonic()
    ended = group.end()
    # silence is noticed after 60 s; what is killed must not take so long
    assert time.monotonic() - began < 45
    assert all(code != 0 for code in ended.codes)
    errors = ended.said.splitlines()
    assert len(errors) == 1, "one of the living says it, once"
    assert f"process {killed} of 3" in errors[0] and "lost" in errors[0], errors
    if killed:
        assert f"pid {process.pid}" in errors[0]
    assert find_states(Path(shared["output_dir"]), "mascot"), "what was learned is kept"


@pytest.mark.slow
def test_a_process_that_fails_is_told_of_once(settings, tmp_path):
    shared = settings("shared", steps=100_000)
    ended = Group(tmp_path / "shared", 2, shared, fail=1).end()
    assert all(code == 1 for code in ended.codes)
    assert ended.said.count("this process was told to fail") == 1 and "process 1 of 2" in ended.said, ended.errors
    assert find_states(Path(shared["output_dir"]), "mascot")


@pytest.mark.slow
def test_processes_that_were_told_different_things(settings, tmp_path):
    ended = Group(tmp_path / "shared", 2, settings("shared"), of_rank={"1": {"learning_rate": 0.5}}).end()
    assert ended.codes == [1, 1] and len(ended.said.splitlines()) == 1 and "the settings of process 1 of 2" in ended.said and "differ" in ended.said, ended.errors
    ended = Group(tmp_path / "small", 2, settings("small", batch_size=1)).end()
    assert ended.codes == [1, 1] and len(ended.said.splitlines()) == 1 and "which 2 processes cannot share" in ended.said, ended.errors


@pytest.mark.slow
def test_machines_with_disks_of_their_own(settings, tmp_path):
    """Each has its own cache then, and the first one's folder gets the files."""
    elsewhere = {"output_dir": str(tmp_path / "other" / "out"), "cache_dir": str(tmp_path / "other" / "cache")}
    shared = settings("shared")
    seen = run(tmp_path / "shared", 2, shared, of_rank={"1": elsewhere})
    assert [one["encoded"] for one in seen] == [PICTURES, PICTURES]
    assert Counter(len(one["samples"]) for one in seen) == {8: 2}
    assert not written_in(seen[1], elsewhere["output_dir"]) and (Path(shared["output_dir"]) / "mascot.safetensors").exists()


@pytest.mark.slow
def test_nothing_to_resume_is_said_once_and_nobody_is_lost(settings, tmp_path):
    """The first process alone reads the state; the other one, which learns that it cannot, stays until all know why."""
    ended = Group(tmp_path / "shared", 2, settings("shared"), resume=True).end()
    assert ended.codes == [1, 1] and len(ended.said.splitlines()) == 1 and "there is nothing to resume" in ended.said, ended.errors
