"""How a process finds its place among several, how the samples of a step are shared, and what is refused; no process group is needed."""
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hotlora.trainer.cli import main
from hotlora.trainer.distributed import ALONE, PeerFailed, Place, check_image_launch, device_for, joined, place_of, tell_launcher, told_once
from hotlora.trainer.samples import SampleOrder
from hotlora.trainer.shared_session import check_share

MEETING = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize("environment, expected", [
    ({}, None), ({"WORLD_SIZE": "1", "RANK": "0"}, None), (MEETING, None),
    ({**MEETING, "WORLD_SIZE": "2", "RANK": "1"}, Place(1, 2, 1, 2)),
    ({**MEETING, "WORLD_SIZE": "16", "RANK": "11", "LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "8"}, Place(11, 16, 3, 8))])
def test_the_place_is_what_the_launcher_says(environment, expected):
    assert place_of(environment) == expected


@pytest.mark.parametrize("environment, expected", [
    ({**MEETING, "WORLD_SIZE": "2"}, "RANK is ''"), ({**MEETING, "WORLD_SIZE": "two", "RANK": "0"}, "WORLD_SIZE is 'two'"),
    ({**MEETING, "WORLD_SIZE": "2", "RANK": "2"}, "RANK is 2 of 2"), ({**MEETING, "WORLD_SIZE": "4", "RANK": "1", "LOCAL_RANK": "2", "LOCAL_WORLD_SIZE": "2"}, "LOCAL_RANK 2 of 2"),
    ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": "1"}, "MASTER_ADDR is not set"), ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "x"}, "MASTER_PORT is not set"),
    ({"OMPI_COMM_WORLD_SIZE": "2"}, "mpirun"), ({"PMI_SIZE": "4"}, "mpirun")])
def test_what_contradicts_itself_is_named(environment, expected):
    with pytest.raises(ValueError, match=expected) as told:
        place_of(environment)
    assert "torchrun" in str(told.value)


def test_one_process_where_several_were_asked_for(caplog):
    """accelerate launch on a machine without GPUs starts one process only, unless it is told --multi_gpu."""
    assert place_of({"ACCELERATE_USE_CPU": "True", "ACCELERATE_MIXED_PRECISION": "no", **MEETING}) is None
    assert "--multi_gpu" in caplog.text


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM"])
def test_image_models_are_not_cut_into_pieces(variable):
    check_image_launch({variable: "false"})
    with pytest.raises(ValueError, match="--multi_gpu"):
        check_image_launch({variable: "true"})


def test_only_training_is_shared(monkeypatch, capsys):
    for key, value in {**MEETING, "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(key, value)
    assert main(["inspect", "nothing.safetensors"]) == 1
    assert "start `python train.py inspect ...` without a launcher" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert main(["inspect", "nothing.safetensors"]) == 1
    assert not capsys.readouterr().err, "the first one of the machine has said it"


def test_an_error_before_the_processes_meet_is_told_once_on_each_machine():
    def fails(environment):
        with told_once(environment):
            raise ValueError("no such setting")

    for local in ("0", "1"):
        with pytest.raises(ValueError) as told:
            fails({"WORLD_SIZE": "4", "RANK": "2", "LOCAL_RANK": local})
        assert str(told.value) == "no such setting" and (isinstance(told.value, PeerFailed) and told.value.quiet) == (local == "1")
    with pytest.raises(ValueError) as told:
        fails({})
    assert not isinstance(told.value, PeerFailed)


def test_the_launcher_is_told_why(tmp_path, monkeypatch):
    path = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(path))
    tell_launcher("the memory is full")
    assert json.loads(path.read_text())["message"] == "the memory is full"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "no folder" / "error.json"))
    tell_launcher("and nobody listens")


def test_every_process_gets_a_device_of_its_own(monkeypatch):
    of_two = [Place(0, 4, 0, 2), Place(3, 4, 1, 2)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [device_for("auto", place) for place in (None, *of_two)] == ["auto", "cuda:0", "cuda:1"]
    assert [device_for("cpu", place) for place in of_two] == ["cpu", "cpu"] and device_for("cuda:1", None) == "cuda:1"
    with pytest.raises(ValueError, match="cuda:0, but each of the 2 processes of this machine needs a GPU of its own; set device: auto"):
        device_for("cuda:0", of_two[0])
    assert device_for("cuda:1", Place(1, 2, 0, 1)) == "cuda:0", "alone on its machine"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_for("auto", of_two[1]) == "auto"


def test_without_a_launcher_nothing_of_process_groups_is_touched(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined() as ranks:
        assert ranks is ALONE and ranks.is_writer and not torch.distributed.is_initialized()


@pytest.mark.parametrize("batch, accumulation, world, allowed", [(1, 1, 1, True), (2, 2, 4, True), (2, 1, 3, False), (1, 4, 8, False)])
def test_a_step_must_have_a_sample_for_each(batch, accumulation, world, allowed):
    if allowed:
        return check_share(batch, accumulation, world)
    with pytest.raises(ValueError, match=f"which {world} processes cannot share; set batch_size to .* or start {batch * accumulation} processes at most"):
        check_share(batch, accumulation, world)


@settings(max_examples=150, deadline=None)
@given(sizes=st.lists(st.sampled_from([(64, 64), (96, 48), (48, 96)]), min_size=1, max_size=12), batch=st.integers(1, 4), accumulation=st.integers(1, 3),
       world=st.integers(1, 6), step=st.integers(0, 40), seed=st.integers(0, 3))
def test_the_parts_are_the_whole(sizes, batch, accumulation, world, step, seed):
    """Every sample of a step is in one part, batches are of one size, and no process has two more samples than another."""
    order = SampleOrder(sizes, [1] * len(sizes), batch * accumulation, seed)
    whole = [pair for part in order.batches(step, batch) for pair in part]
    parts = [order.batches(step, batch, (rank, world)) for rank in range(world)]
    assert sorted(pair for part in parts for one in part for pair in one) == sorted(whole)
    counts = [sum(map(len, part)) for part in parts]
    assert max(counts) - min(counts) <= 1
    for part in parts:
        for one in part:
            assert len(one) <= batch and len({sizes[index] for _, index in one}) == 1
