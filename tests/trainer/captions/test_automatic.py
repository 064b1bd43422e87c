"""Captions are written where they are missing, marked, kept when something ends the work, and taken out again."""
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hotlora.trainer.captions import at_start, automatic, read_metadata, read_sidecar
from hotlora.trainer.captions.automatic import CaptionWishes, caption_folder, undo
from hotlora.trainer.captions.given import write_given
from hotlora.trainer.captions.marks import FILE, Marks
from hotlora.trainer.captions.models import Said, Tag
from hotlora.trainer.captions.writing import with_rows
from hotlora.trainer.config import TrainConfig
from hotlora.trainer.galleries import describe_gallery
from hotlora.trainer.gallery import read_gallery
from hotlora.trainer.gallery_edit import write_captions

COLOURS = ("red", "green", "blue")


class ColourModel:
    """Says of a picture what its mean colour is: a model small enough to be right."""

    name = "colours"

    def __init__(self, largest_batch: int = 100) -> None:
        self.batches, self.largest, self.closed = [], largest_batch, False

    def prepare(self, picture: Image.Image) -> np.ndarray:
        return np.asarray(picture.resize((4, 4)), dtype=np.float32)

    def describe(self, batch: np.ndarray) -> list[Said]:
        if len(batch) > self.largest:
            raise RuntimeError("CUDA out of memory")
        self.batches.append(len(batch))
        return [Said(f"a {COLOURS[int(values.mean((0, 1)).argmax())]} wall on a street", (Tag("outdoors", "place", 0.9),)) for values in batch]

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(7):
        (tmp_path / "sub").mkdir(exist_ok=True)
        Image.new("RGB", (40, 30), COLOURS[i % 3]).save(tmp_path / ("sub" if i > 4 else ".") / f"{i}.png")
    return tmp_path


def test_metadata_in_the_form_of_lora_scripts(folder: Path) -> None:
    report = caption_folder(folder, ColourModel(), CaptionWishes(trigger="sks", batch_size=3))
    text = (folder / "metadata.csv").read_text(encoding="utf-8").splitlines()
    assert text[0] == "file_name,text" and len(text) == 8 and text[1] == '0.png,"sks, a red wall on a street, outdoors"'
    assert read_metadata(folder / "metadata.csv")["sub/5.png"] == "sks, a blue wall on a street, outdoors"
    assert len(report.captions) == 7 and report.left == report.kept == 0 and 0 < report.model_seconds < report.seconds
    assert caption_folder(folder, ColourModel()).to_dict()["sentence"] == "no caption is missing, 7 kept"


def test_what_a_person_wrote_is_never_touched(folder: Path) -> None:
    (folder / "metadata.csv").write_bytes("file_name;text\r\n0.png;mein Hund\r\n1.png;\r\n".encode("cp1252"))
    (folder / "2.txt").write_text("a person's words")
    report = caption_folder(folder, ColourModel(), CaptionWishes(again=True))
    captions = read_metadata(folder / "metadata.csv")
    assert captions["0.png"] == "mein Hund" and captions["1.png"].startswith("a green wall") and "2.png" not in captions
    assert read_sidecar(folder / "2.txt") == "a person's words" and report.kept == 2 and set(report.captions) == {"1.png", "3.png", "4.png", "sub/5.png", "sub/6.png"}
    assert b"0.png;mein Hund\r\n" in (folder / "metadata.csv").read_bytes()


def test_again_replaces_what_a_machine_wrote_but_not_what_was_edited_since(folder: Path) -> None:
    caption_folder(folder, ColourModel(), CaptionWishes(into="sidecars"))
    assert (folder / "0.txt").read_text() == "a red wall on a street, outdoors"
    (folder / "3.txt").write_text("a red wall, by hand")
    report = caption_folder(folder, ColourModel(), CaptionWishes(trigger="sks", again=True))
    assert (folder / "0.txt").read_text().startswith("sks, ") and (folder / "3.txt").read_text() == "a red wall, by hand" and report.kept == 1


def test_undo_puts_everything_back(folder: Path) -> None:
    (folder / "0.txt").write_text("")
    (folder / "1.txt").write_text("mine")

    def snapshot() -> dict:
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    before = snapshot()
    for wishes in (CaptionWishes(), CaptionWishes(into="metadata"), CaptionWishes(into="sidecars")):
        assert len(caption_folder(folder, ColourModel(), wishes).captions) == 6 and (folder / FILE).exists()
        assert len(undo(folder)) == 6
        assert snapshot() == before
    caption_folder(folder, ColourModel(), CaptionWishes(into="metadata"))
    table = folder / "metadata.csv"
    table.write_text(table.read_text().replace("a blue wall on a street, outdoors", "an edited caption", 1))
    assert len(undo(folder)) == 5 and list(filter(None, read_metadata(table).values())) == ["an edited caption"]


def test_interrupted_work_is_kept_and_the_rest_is_done_later(folder: Path) -> None:
    asked = []
    report = caption_folder(folder, ColourModel(), CaptionWishes(batch_size=2), cancelled=lambda: bool(asked) or asked.append(1))
    assert len(report.captions) == 4 and report.left == 3 and "3 still missing" in report.text()

    class Interrupted(Exception):
        pass

    def progress(done: int, total: int) -> None:
        assert (done, total) == (2, 3)
        raise Interrupted

    with pytest.raises(Interrupted):
        caption_folder(folder, ColourModel(), CaptionWishes(batch_size=2), progress=progress)
    last = ColourModel()
    assert list(caption_folder(folder, last, CaptionWishes(batch_size=2)).captions) == ["sub/6.png"] and last.batches == [1]


def test_a_batch_that_does_not_fit_is_halved(folder: Path) -> None:
    model = ColourModel(largest_batch=2)
    assert len(caption_folder(folder, model, CaptionWishes(batch_size=7)).captions) == 7
    assert sorted(model.batches) == [1, 2, 2, 2]
    (folder / "metadata.csv").unlink()
    model = ColourModel(largest_batch=0)
    with pytest.raises(RuntimeError, match="memory"):
        caption_folder(folder, model)


def test_a_model_that_was_merely_found_and_does_not_fit_beside_the_base_is_no_end_of_a_run(folder: Path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(at_start, "first_local", lambda folders: "found")
    monkeypatch.setattr(at_start, "caption_folder", lambda folder, *_: caption_folder(folder, ColourModel(largest_batch=0)))
    config = TrainConfig(train_data_dir=str(folder))
    assert at_start.caption_before_training(config, ()) is None
    assert "no captions were made (CUDA out of memory)" in caplog.text
    with pytest.raises(RuntimeError, match="memory"):
        at_start.caption_before_training(TrainConfig(train_data_dir=str(folder), caption_model="mine"), ())


def test_a_caption_that_a_person_writes_meanwhile_stays(folder: Path) -> None:
    def progress(done: int, total: int) -> None:
        (folder / "0.txt").write_text("by hand, meanwhile")

    report = caption_folder(folder, ColourModel(), CaptionWishes(into="metadata", batch_size=7), progress=progress)
    assert "0.png" not in report.captions and "0.png" not in read_metadata(folder / "metadata.csv") and len(report.captions) == 6


def test_pictures_that_share_a_stem_get_a_text_file_each(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    Image.new("RGB", (8, 8), "blue").save(tmp_path / "a.bmp")
    caption_folder(tmp_path, ColourModel(), CaptionWishes(into="sidecars"))
    assert (tmp_path / "a.png.txt").read_text().startswith("a red") and (tmp_path / "a.bmp.txt").read_text().startswith("a blue")


def test_broken_pictures_are_named_and_passed_over(folder: Path) -> None:
    (folder / "0.png").write_bytes(b"broken")
    report = caption_folder(folder, ColourModel(), CaptionWishes(batch_size=3))
    assert list(report.skipped) == ["0.png"] and len(report.captions) == 6 and report.left == 0


def test_damaged_marks_make_every_caption_a_persons(folder: Path) -> None:
    caption_folder(folder, ColourModel())
    (folder / FILE).write_text("{")
    assert undo(folder) == [] and Marks(folder).captions == {}
    assert caption_folder(folder, ColourModel(), CaptionWishes(again=True)).captions == {}


@pytest.mark.parametrize("name, before", [
    ("metadata.csv", b""), ("metadata.csv", b"file_name,text\na.png,x"), ("metadata.csv", "\ufeffid,text,image\r\n1,猫,a.png\r\n".encode()),
    ("metadata.csv", b"file\tprompt\na.png\tx\n"), ("metadata.jsonl", b""), ("metadata.jsonl", b'{"image": "a.png", "caption": "x"}')])
def test_rows_are_added_to_any_table(name: str, before: bytes) -> None:
    rows = {"b c.png": 'a "quoted", text', "d.png": "一只猫；ok"}
    after = with_rows(Path(name), before, rows)
    assert after.startswith(before) or not before


def test_wishes_are_checked(folder: Path) -> None:
    for wrong, words in (({"purpose": "cat"}, "any, object, person, character, style"), ({"into": "x"}, "auto, metadata, sidecars"), ({"batch_size": 0}, "from 1 to 256")):
        with pytest.raises(ValueError, match=words):
            CaptionWishes(**wrong)
    with pytest.raises(ValueError, match="there is no picture nowhere.png"):
        caption_folder(folder, ColourModel(), CaptionWishes(only=("nowhere.png",)))
    with pytest.raises(ValueError, match="does not exist"):
        caption_folder(folder / "gone", ColourModel())
    assert json.dumps(caption_folder(folder, ColourModel(), CaptionWishes(only=("0.png",))).to_dict())


@pytest.mark.parametrize("captioned", [[], ["3.png"]])
def test_captions_of_another_program_go_to_the_pictures_that_it_has_seen(folder: Path, captioned: list[str]) -> None:
    """A file that cannot be read and a folder with no repeats have none among them, which must not shift those of the others."""
    (folder / "1.png").write_bytes(b"torn")
    (folder / "sub").rename(folder / "0_later")
    for name in captioned:
        (folder / name).with_suffix(".txt").write_text("by hand")
    write_given(folder, [f"shows {i}" for i in (0, 2, 3, 4)], CaptionWishes(into="sidecars"))
    expected = {"0.txt": "shows 0", "2.txt": "shows 2", "3.txt": "by hand" if captioned else "shows 3", "4.txt": "shows 4"}
    assert {path.name: path.read_text() for path in folder.rglob("*.txt")} == expected


@pytest.mark.parametrize("name", [" lead.png", "\u3000封面.png", "two\nlines.png"])
@pytest.mark.parametrize("into", ["auto", "metadata"])
def test_a_name_that_a_table_cannot_hold_gets_a_text_file(folder: Path, name: str, into: str) -> None:
    try:
        (folder / "0.png").rename(folder / name)
    except OSError:
        pytest.skip("this system has no such names")
    report = caption_folder(folder, ColourModel(), CaptionWishes(into=into))
    assert len(report.captions) == 7 and (folder / name).with_suffix(".txt").read_text().startswith("a red wall")
    assert len(read_metadata(folder / "metadata.csv")) == 6 and caption_folder(folder, ColourModel()).kept == 7
    assert len(undo(folder)) == 7 and not list(folder.glob("*.txt"))


def test_no_model_is_loaded_for_pictures_that_cannot_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    loads = []
    monkeypatch.setattr(automatic, "load_model", lambda choice: loads.append(choice) or ColourModel())
    for name in ("0.png", "3.png"):
        (folder / name).write_bytes((folder / name).read_bytes()[:-20])
    config = TrainConfig(train_data_dir=str(folder), trigger="sks", caption_model="mine")
    assert len(at_start.caption_before_training(config, ()).captions) == 5 and len(loads) == 1
    with caplog.at_level("INFO"):
        again = at_start.caption_before_training(config, ())
    assert len(loads) == 1 and list(again.skipped) == ["0.png", "3.png"] and again.left == 0
    assert "no caption written, 5 kept, 2 pictures skipped (0.png: the file is truncated; 3.png: the file is truncated)" in caplog.text
    Image.new("RGB", (40, 30), "red").save(folder / "3.png")
    assert list(at_start.caption_before_training(config, ()).captions) == ["3.png"] and len(loads) == 2


@pytest.mark.parametrize("into", ["metadata", "sidecars"])
def test_the_trigger_of_an_earlier_run_is_not_trained_again(folder: Path, into: str, tmp_path_factory) -> None:
    caption_folder(folder, ColourModel(), CaptionWishes(trigger="sks", into=into))
    write_captions(tmp_path_factory.mktemp("home"), folder, {"1.png": "sks, a wall that somebody knows"})
    captions = {example.path.name: example.caption for example in read_gallery(folder, trigger="zwx").examples}
    assert captions["0.png"] == "zwx, a red wall on a street, outdoors" and captions["1.png"] == "zwx, sks, a wall that somebody knows", "a person's stays"
    assert sum("sks" in caption for caption in captions.values()) == 1
    assert "trigger sks of an earlier run taken out of 6 captions that a machine wrote" in read_gallery(folder, trigger="zwx").report()
    assert all(example.written == example.caption for example in read_gallery(folder, trigger="SKS").examples)
    assert read_gallery(folder).examples[0].caption == "sks, a red wall on a street, outdoors", "a run without a trigger keeps what it was asked to write"
    assert [one.get("trigger") for one in describe_gallery(str(folder))["pictures"]] == ["sks", None, *["sks"] * 5]
