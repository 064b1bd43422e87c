import json
import os
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hotlora.trainer.live import LoraTag, Registry, parse_prompt
from hotlora.trainer.lora_file import save_lora

LAYER = "lora_unet_mid_block_attentions_0_proj_in"


def lora(value: float = 1.0) -> dict:
    return {LAYER: {"down": torch.full((2, 3), value), "up": torch.full((4, 2), value), "alpha": 2.0}}


@pytest.mark.parametrize(
    "text, clean, tags",
    [
        ("a photo of sks <lora:my_face:0.7>", "a photo of sks", [LoraTag("my_face", 0.7, 0.7)]),
        ("<lora:my_face>", "", [LoraTag("my_face")]),
        ("a <lora:x:0.5:0.9> b", "a b", [LoraTag("x", 0.5, 0.9)]),
        ("a <lora:x:te=0>", "a", [LoraTag("x", 0.0, 0.0)]),
        ("a <lora:x:unet=0.3>", "a", [LoraTag("x", 1.0, 0.3)]),
        ("a <lora:x:te=0.1:unet=-2>", "a", [LoraTag("x", 0.1, -2.0)]),
        ("a <lora:x:0.6:unet=.5>", "a", [LoraTag("x", 0.6, 0.5)]),
        ("a, <lora:x:1>, b", "a, b", [LoraTag("x")]),
        ("<lora:x:1>, a", "a", [LoraTag("x")]),
        ("a, <lora:x:1>", "a", [LoraTag("x")]),
        ("a, <lora:x:1><lora:y:2>, b", "a, b", [LoraTag("x"), LoraTag("y", 2.0, 2.0)]),
        ("a <lora:x:1> <lora:x:.2>, b", "a, b", [LoraTag("x"), LoraTag("x", 0.2, 0.2)]),
        ("a\n<lora:x:1>\nb", "a\n\nb", [LoraTag("x")]),
        ("<LoRA: 我的 脸 : 0.5 >脸", "脸", [LoraTag("我的 脸", 0.5, 0.5)]),
        ("wa<lora:x:1>ter", "water", [LoraTag("x")]),
        ("<lora:faces/anna:1> (a:1.2), <hypernet:b:1>", "(a:1.2), <hypernet:b:1>", [LoraTag("faces/anna")]),
        ("two  spaces , and, a comma,", "two  spaces , and, a comma,", []),
        ("two  spaces <lora:x:1> stay  here", "two  spaces stay  here", [LoraTag("x")]),
        ("", "", []),
    ],
)
def test_tags_leave_the_prompt(text, clean, tags):
    assert parse_prompt(text) == (clean, tags)


@pytest.mark.parametrize(
    "text, reason",
    [
        ("<lora:x:high>", "'high' in <lora:x:high> is not a weight"),
        ("<lora:x:>", "not a weight"),
        ("<lora:x:nan>", "not a weight"),
        ("<lora:x:inf>", "not a weight"),
        ("<lora::1>", "no name"),
        ("<lora:>", "no name"),
        ("<lora:x:1:1:1>", "3 weights"),
        ("<lora:x:dyn=3>", "'dyn=3'"),
        ("<lora:x:te=1:te=2>", "'te=2'"),
        ("a <lora:x:0.5 b", "not closed"),
        ("<lora:x:unet=a>", "not a weight"),
    ],
)
def test_a_tag_that_cannot_be_read_is_an_error_that_names_it(text, reason):
    with pytest.raises(ValueError) as error:
        parse_prompt(text)
    assert reason in str(error.value)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from(["<lora:", "x", ":", "1", "te=", "unet=", ">", "<", " ", ",", "\n", ".5", "脸", "e"]), max_size=14
    ).map("".join)
)
def test_any_prompt_is_read_or_refused(text):
    try:
        clean, tags = parse_prompt(text)
    except ValueError:
        return
    assert "<lora:" not in clean
    assert tags or clean == text
    assert parse_prompt(clean) == (clean, [])


@pytest.fixture
def folder(tmp_path):
    save_lora(tmp_path / "my_face.safetensors", lora(), {"a": "b"})
    save_lora(tmp_path / "people" / "anna.safetensors", lora(2.0), {})
    return tmp_path


def test_a_name_without_its_folder_is_enough(folder):
    registry = Registry([folder])
    assert registry.names() == ["anna", "my_face"]
    assert registry.files() == [folder / "my_face.safetensors", folder / "people" / "anna.safetensors"]
    found = registry.find("anna")
    assert found.path == folder / "people" / "anna.safetensors"
    assert found.weights[LAYER]["down"].tolist() == [[2.0] * 3] * 2
    assert registry.find("people/anna") is found
    assert registry.find("my_face").metadata["a"] == "b"


def test_memory_comes_before_files_and_a_session_is_asked_each_time(folder):
    registry = Registry([folder])
    registry.register("my_face", lora(5.0))
    assert registry.find("my_face").path is None
    assert registry.find("my_face").weights[LAYER]["up"][0, 0] == 5.0
    steps = iter([1.0, 2.0])
    registry.register("my_face", lambda: lora(next(steps)))
    assert [registry.find("my_face").weights[LAYER]["up"][0, 0].item() for _ in range(2)] == [1.0, 2.0]
    registry.unregister("my_face")
    assert registry.find("my_face").path == folder / "my_face.safetensors"
    with pytest.raises(ValueError, match="instead"):
        registry.register("a/b", lora())


def test_an_unknown_name_lists_the_closest(folder):
    with pytest.raises(ValueError, match="no LoRA 'my_fase'; the closest names are my_face"):
        Registry([folder]).find("my_fase")
    with pytest.raises(ValueError, match="no LoRA 'zzz' among 2 in"):
        Registry([folder]).find("zzz")
    with pytest.raises(ValueError, match="among 0 in no folder"):
        Registry().find("zzz")


def test_a_pickle_is_named_and_not_opened(folder):
    (folder / "old.pt").write_bytes(b"cos\nsystem\n")
    with pytest.raises(ValueError, match=r"only .*old\.pt, a pickle"):
        Registry([folder]).find("old")


def test_two_files_of_one_name_are_an_error_until_the_folder_is_given(folder):
    save_lora(folder / "anna.safetensors", lora(3.0), {})
    save_lora(folder / "pets" / "anna.safetensors", lora(4.0), {})
    registry = Registry([folder])
    with pytest.raises(ValueError, match="3 files") as error:
        registry.find("anna")
    assert all(str(folder / place / "anna.safetensors") in str(error.value) for place in ("", "people", "pets"))
    assert registry.find("pets/anna").weights[LAYER]["up"][0, 0] == 4.0


def test_the_form_for_diffusers_goes_by_its_name_where_it_is_all_there_is(folder):
    for place in ("mine-peft", "faces/ben-peft"):
        save_lora(folder / place / "pytorch_lora_weights.safetensors", lora(), {})
    registry = Registry([folder])
    assert registry.path("mine").parent.name == "mine-peft" and registry.path("faces/ben") == registry.path("ben") != registry.path("mine")
    assert {"mine", "ben"} <= set(registry.names()) and "pytorch_lora_weights" not in registry.names()
    save_lora(folder / "mine.safetensors", lora(), {})
    assert registry.path("mine") == folder / "mine.safetensors"


def test_folders_inside_each_other_and_links_in_a_circle_count_once(folder):
    os.symlink(folder, folder / "people" / "again", target_is_directory=True)
    registry = Registry([folder, folder / "people", folder / "missing"])
    assert registry.find("anna").path.name == "anna.safetensors"
    assert registry.names() == ["anna", "my_face"]


def test_links_to_other_places_are_followed(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    save_lora(elsewhere / "tom.safetensors", lora(9.0), {})
    os.symlink(elsewhere, folder / "link", target_is_directory=True)
    assert Registry([folder]).find("tom").weights[LAYER]["up"][0, 0] == 9.0


def test_an_overwritten_file_is_read_again_and_an_unchanged_one_is_not(folder):
    registry = Registry([folder])
    first = registry.find("my_face")
    assert registry.find("my_face") is first
    save_lora(folder / "my_face.safetensors", lora(7.0), {}, keep_old=False)
    assert registry.find("my_face").weights[LAYER]["up"][0, 0] == 7.0


def test_a_damaged_file_says_so_and_recovers(folder):
    registry = Registry([folder])
    (folder / "my_face.safetensors").write_bytes(b"not a file")
    with pytest.raises(ValueError, match="damaged"):
        registry.find("my_face")
    save_lora(folder / "my_face.safetensors", lora(), {}, keep_old=False)
    assert registry.find("my_face").weights[LAYER]["up"][0, 0] == 1.0


def test_accents_are_found_however_the_system_writes_them(folder):
    save_lora(folder / "Ame\u0301lie.safetensors", lora(), {})
    assert Registry([folder]).find("Amélie").path.exists()


def test_a_name_is_found_at_any_moment_while_its_file_is_overwritten(folder):
    registry, stop, seen = Registry([folder]), threading.Event(), []

    def write():
        value = 1.0
        while not stop.is_set():
            value += 1.0
            save_lora(folder / "my_face.safetensors", lora(value), {"step": str(value)}, keep_old=False)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(60):
            found = registry.find("my_face")
            seen.append(found.weights[LAYER]["up"][0, 0].item())
            assert found.metadata.get("step", str(seen[-1])) == str(seen[-1])
    finally:
        stop.set()
        writer.join()
    assert seen == sorted(seen)


def test_path_names_the_file_alone(tmp_path):
    (tmp_path / "faces").mkdir()
    for path in ("faces/anna.safetensors", "ben.safetensors"):
        (tmp_path / path).write_bytes(b"not read")
    registry = Registry([tmp_path])
    assert registry.path("anna") == registry.path("faces/anna") == tmp_path / "faces" / "anna.safetensors"
    with pytest.raises(ValueError, match="closest names are ben"):
        registry.path("bem")


def test_saved_steps_come_in_order_with_the_finished_one_last(tmp_path):
    for stem in ("me-000100", "me-000020", "me-1000000", "me", "me-v1", "other-000001"):
        (tmp_path / f"{stem}.safetensors").write_bytes(b"not read")
    registry = Registry([tmp_path])
    assert list(registry.saved_steps("me")) == ["me-000020", "me-000100", "me-1000000", "me"]
    assert list(registry.saved_steps("other")) == ["other-000001"]
    with pytest.raises(ValueError, match="there is no LoRA 'nobody'"):
        registry.saved_steps("nobody")


def test_another_lora_whose_name_ends_in_a_date_is_no_saved_step(tmp_path):
    for stem, name, steps in (("me-000100", "me", "100"), ("me", "me", "500"), ("me-20240101", "me-20240101", "500"), ("me-20240101-000100", "me-20240101", "100")):
        save_lora(tmp_path / f"{stem}.safetensors", lora(1.0), {"hotlora.version": "1", "hotlora.config": json.dumps({"name": name}), "ss_steps": steps})
    registry = Registry([tmp_path])
    assert list(registry.saved_steps("me")) == ["me-000100", "me"]
    assert list(registry.saved_steps("me-20240101")) == ["me-20240101-000100", "me-20240101"]
