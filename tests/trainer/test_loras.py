"""The list of LoRAs that were trained here: what belongs together, what a file is called, and what goes to the trash with it."""
import json
import os

import pytest
import torch

from hotlora.trainer.live import Registry
from hotlora.trainer.lora_file import save_lora, write_safetensors
from hotlora.trainer.loras import list_loras, metadata_of, namesakes, remove_lora, restore_lora
from hotlora.trainer.peft_format import to_peft

WEIGHTS = {"lora_unet_conv_in": {"down": torch.ones(1, 4), "up": torch.ones(4, 1), "alpha": 1.0}}


@pytest.fixture
def loras(tmp_path):
    return tmp_path / "loras"


def put(folder, stem, steps=500, trained_as=None, **metadata):
    """A LoRA as a run of `trained_as` writes it; without that name, as a run of the command line that had none wrote it formerly."""
    told = {"hotlora.version": "1", "hotlora.config": json.dumps({"name": trained_as}), "ss_steps": str(steps), **metadata}
    folder.mkdir(parents=True, exist_ok=True)
    save_lora(folder / f"{stem}.safetensors", WEIGHTS, told)
    return folder / f"{stem}.safetensors"


def put_peft(folder, stem):
    write_safetensors(folder / f"{stem}-peft" / "pytorch_lora_weights.safetensors", to_peft(WEIGHTS), {"hotlora.version": "1", "ss_steps": "500"})


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_name_that_ends_in_a_date_is_no_saved_step(loras, tmp_path):
    for name in ("me", "me-20240101", "me-000500"):
        put(loras, name, trained_as=name)
    put(loras, "me-000100", 100, "me")
    put(loras, "me-20240101-000100", 100, "me-20240101")
    listed = {lora["name"]: [step["name"] for step in lora["steps"]] for lora in list_loras([loras])}
    assert listed == {"me": ["me-000100"], "me-20240101": ["me-20240101-000100"], "me-000500": []}
    remove_lora(tmp_path, [loras], "me")
    assert names(loras) == ["me-000500.safetensors", "me-20240101-000100.safetensors", "me-20240101.safetensors"]


def test_steps_of_a_run_without_a_name_and_of_a_renamed_one_are_known(loras):
    put(loras, "face", 300)
    put(loras, "face-000100", 100)
    put(loras, "other-000200", 200, "face")
    listed = {lora["name"]: (lora["finished"], [step["step"] for step in lora["steps"]]) for lora in list_loras([loras])}
    assert listed == {"face": (True, [100]), "other": (False, [200])}


def test_saved_steps_that_a_later_run_put_aside_stand_with_the_lora_that_it_put_aside(loras, tmp_path):
    for _ in range(2):
        put(loras, "dbl", 6, "dbl")
        put(loras, "dbl-000004", 4, "dbl")
        put(loras, "me-000500", 500, "me-000500")
    put(loras, "own-v1", 6, "own-v1")
    put(loras, "own-v1-000004", 4, "own-v1")
    listed = {lora["name"]: [step["name"] for step in lora["steps"]] for lora in list_loras([loras])}
    assert listed == {"dbl": ["dbl-000004"], "dbl-v1": ["dbl-000004-v1"], "me-000500": [], "me-000500-v1": [], "own-v1": ["own-v1-000004"]}
    assert {path.stem for path in remove_lora(tmp_path, [loras], "dbl-v1")} == {"dbl-v1", "dbl-000004-v1"}
    assert {path.stem for path in restore_lora(tmp_path, "dbl-v1")} == {"dbl-v1", "dbl-000004-v1"}


def put_run(folder, run, *stems):
    """Files as one run writes them: `me`, or `me-000100` for a saved step."""
    for stem in stems:
        step = stem.partition("-")[2]
        put(folder, stem, int(step or 500), "me", ss_training_started_at=run)


def shown(folder):
    return {lora["name"]: [step["name"] for step in lora["steps"]] for lora in list_loras([folder])}


def test_saved_steps_of_an_earlier_run_of_the_name_stand_with_what_is_kept_of_it(loras, tmp_path):
    put_run(loras, "1700000000.5", "me-000100", "me-000200", "me")
    put_run(loras, "1700000009.5", "me-000100", "me-000150")
    assert shown(loras) == {"me": ["me-000100-v1", "me-000200"], "me-000150": ["me-000100", "me-000150"]}, "the second one still runs"
    put_run(loras, "1700000009.5", "me")
    assert shown(loras) == {"me": ["me-000100", "me-000150"], "me-v1": ["me-000100-v1", "me-000200"]}
    registry = Registry([loras])
    assert list(registry.saved_steps("me")) == ["me-000100", "me-000150", "me"] and list(registry.saved_steps("me-v1")) == ["me-000100-v1", "me-000200", "me-v1"]
    assert {path.stem for path in remove_lora(tmp_path, [loras], "me")} == {"me-000100", "me-000150", "me"}
    assert shown(loras) == {"me-v1": ["me-000100-v1", "me-000200"]}
    restore_lora(tmp_path, "me")
    put_run(loras, "1700000010.5", "me")
    assert shown(loras) == {"me": [], "me-v1": ["me-000100-v1", "me-000200"], "me-v2": ["me-000100", "me-000150"]}


def test_saved_steps_of_a_run_that_went_on_stand_with_its_last_file(loras):
    put_run(loras, "1700000000.5", "me-000100", "me", "me-000200", "me")
    assert shown(loras) == {"me": ["me-000100", "me-000200"], "me-v1": []}
    put_run(loras, "1700000009.5", "me")
    assert shown(loras) == {"me": [], "me-v1": [], "me-v2": ["me-000100", "me-000200"]}


def test_saved_steps_of_runs_without_a_finished_file_are_not_mixed(loras):
    put_run(loras, "1700000000.5", "me-000100", "me-000200")
    assert shown(loras) == {"me": ["me-000100", "me-000200"]}
    put_run(loras, "1700000009.5", "me-000100")
    assert shown(loras) == {"me": ["me-000100"], "me-000200": ["me-000100-v1", "me-000200"]}
    assert {lora["name"]: lora["tag"] for lora in list_loras([loras])} == {"me": "<lora:me-000100:1>", "me-000200": "<lora:me-000200:1>"}


def test_files_of_other_programs_are_never_ours(loras, tmp_path):
    put(loras, "face", trained_as="face")
    save_lora(loras / "face-000100.safetensors", WEIGHTS, {"ss_steps": "100"})
    (loras / "odd.safetensors").write_bytes((10).to_bytes(8, "little") + b"[" * 10)
    assert [(lora["name"], lora["steps"]) for lora in list_loras([loras])] == [("face", [])]
    remove_lora(tmp_path, [loras], "face")
    assert names(loras) == ["face-000100.safetensors", "odd.safetensors"]


def test_one_name_in_two_folders_is_two_loras(loras, tmp_path):
    put(loras / "faces", "anna", 7, "anna")
    put(loras / "faces", "anna-000003", 3, "anna")
    assert [lora["name"] for lora in list_loras([loras])] == ["anna"], "alone it needs no folder"
    put(loras, "anna", 9, "anna")
    put(loras, "anna-000003", 3, "anna")
    listed = {lora["name"]: lora for lora in list_loras([loras, loras / "faces"])}
    assert {name: (lora["path"], lora["trained"], lora["tag"], [step["name"] for step in lora["steps"]]) for name, lora in listed.items()} == {
        "anna": ("anna.safetensors", "9", "<lora:anna:1>", ["anna-000003"]),
        "faces/anna": ("faces/anna.safetensors", "7", "<lora:faces/anna:1>", ["faces/anna-000003"])}
    assert Registry([loras]).path("faces/anna-000003") == loras / "faces" / "anna-000003.safetensors"
    before = names(loras)
    remove_lora(tmp_path, [loras], "anna")
    assert names(loras) == ["faces/anna-000003.safetensors", "faces/anna.safetensors"]
    restore_lora(tmp_path, "anna")
    assert names(loras) == before
    remove_lora(tmp_path, [loras], "faces/anna")
    assert names(loras) == ["anna-000003.safetensors", "anna.safetensors"]
    restore_lora(tmp_path, "faces/anna")
    assert names(loras) == before
    with pytest.raises(FileNotFoundError):
        remove_lora(tmp_path, [loras], "../loras/anna")


def test_of_one_path_in_two_lora_folders_the_first_is_meant(loras, tmp_path):
    put(loras, "anna", 9, "anna")
    put(tmp_path / "more", "anna", 7, "anna")
    folders = [loras, tmp_path / "more"]
    assert [(lora["name"], lora["trained"]) for lora in list_loras(folders)] == [("anna", "9")]
    assert remove_lora(tmp_path, folders, "anna") == [loras / "anna.safetensors"]
    assert [(lora["name"], lora["trained"]) for lora in list_loras(folders)] == [("anna", "7")]


def test_linked_folders_are_listed_once_and_may_lead_in_circles(loras, tmp_path):
    far = tmp_path / "other disk"
    put(far / "people", "anna", trained_as="anna")
    put(loras, "bert", trained_as="bert")
    (loras / "linked").symlink_to(far, target_is_directory=True)
    (far / "back").symlink_to(loras, target_is_directory=True)
    listed = {lora["name"]: lora["path"] for lora in list_loras([loras, far])}
    assert listed == {"anna": "linked/people/anna.safetensors", "bert": "bert.safetensors"}
    assert [path.name for path in remove_lora(tmp_path, [loras], "anna")] == ["anna.safetensors"] and not list(far.glob("people/*"))
    restore_lora(tmp_path, "anna")
    assert (far / "people" / "anna.safetensors").is_file()


def test_a_file_elsewhere_that_has_the_name_is_told(loras):
    put(loras, "anna")
    assert namesakes([loras], "anna") == [] == namesakes([loras], "bert")
    (loras / "faces").mkdir()
    save_lora(loras / "faces" / "anna.safetensors", WEIGHTS, {})
    [told] = namesakes([loras], "anna")
    assert str(loras / "faces" / "anna.safetensors") in told and "<lora:anna:1>" in told and "rename" in told


def test_the_form_for_diffusers_goes_with_its_lora(loras, tmp_path):
    put(loras, "face", trained_as="face")
    put(loras, "face-000100", 100, "face")
    for stem in ("face", "face-000100", "other"):
        put_peft(loras, stem)
    (loras / "face-peft" / "mine.txt").write_text("a note")
    before = names(loras)
    assert [lora["name"] for lora in list_loras([loras])] == ["face"]
    assert [path.stem for path in remove_lora(tmp_path, [loras], "face")] == ["face-000100", "face"]
    assert names(loras) == ["face-peft/mine.txt", "other-peft/pytorch_lora_weights.safetensors"] and not (loras / "face-000100-peft").exists()
    assert [path.stem for path in restore_lora(tmp_path, "face")] == ["face-000100", "face"]
    assert names(loras) == before


def test_little_is_kept_of_ours_and_nothing_of_others(loras):
    ours = put(loras, "face", ss_tag_frequency="x" * 100_000, ss_sd_model_name="demo")
    assert metadata_of(ours)["ss_sd_model_name"] == "demo" and sum(map(len, metadata_of(ours).values())) < 100
    save_lora(loras / "theirs.safetensors", WEIGHTS, {"ss_tag_frequency": "x"})
    assert metadata_of(loras / "theirs.safetensors") == {}


def test_a_file_that_is_written_anew_is_read_anew(loras):
    path = put(loras, "face", 1)
    assert metadata_of(path)["ss_steps"] == "1"
    save_lora(path, WEIGHTS, {"hotlora.version": "1", "ss_steps": "2"}, keep_old=False)
    os.utime(path, (1, 1))
    assert metadata_of(path)["ss_steps"] == "2"
