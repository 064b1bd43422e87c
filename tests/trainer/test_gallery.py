"""A folder as people have it becomes examples; what cannot be used is named, and nothing in it is touched."""
from __future__ import annotations

import os
import struct
import sys
import unicodedata
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hotlora.trainer.captions.at_start import planned_captions
from hotlora.trainer.config import TrainConfig
from hotlora.trainer.galleries import describe_gallery
from hotlora.trainer.gallery import Example, Gallery, add_trigger, read_gallery
from hotlora.trainer.left_out import mark_results
from hotlora.trainer.run import read_material


def picture(path: Path, width: int = 24, height: int = 16, colour: object = "red", **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(options.pop("mode", "RGB"), (width, height), colour).save(path, **options)
    return path


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def captions(gallery: Gallery) -> dict[str, str]:
    return {example.path.relative_to(gallery.root).as_posix(): example.caption for example in gallery.examples}


def reasons(gallery: Gallery) -> dict[str, str]:
    return {item.path.relative_to(gallery.root).as_posix(): item.reason for item in gallery.skipped}


def test_sorted_with_sub_folders(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "sub/deep er/c.webp", "Z.bmp"):
        picture(tmp_path / name)
    write(tmp_path / "notes.md", "no picture")
    gallery = read_gallery(tmp_path, trigger="sks")
    assert list(captions(gallery)) == ["Z.bmp", "a.JPG", "b.png", "sub/deep er/c.webp"]
    first = gallery.examples[0]
    assert first == Example(tmp_path / "Z.bmp", "sks", 24, 16, 1, first.content_hash)
    assert gallery.skipped == [] and gallery.warnings == [] and gallery.caption_sources == {"the trigger": 4}


def test_size_is_that_after_rotation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    picture(tmp_path / "a.jpg", 40, 20, exif=exif)
    example = read_gallery(tmp_path, trigger="sks").examples[0]
    assert (example.width, example.height) == (20, 40)


def test_hash_follows_the_content(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    picture(tmp_path / "c.png", colour="blue")
    a, b, c = read_gallery(tmp_path, trigger="sks").examples
    assert a.content_hash == b.content_hash != c.content_hash


def test_unreadable_pictures_are_named(tmp_path: Path) -> None:
    picture(tmp_path / "good.png")
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    noise.save(tmp_path / "whole.jpg")
    data = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "whole.jpg").unlink()
    (tmp_path / "truncated.jpg").write_bytes(data[:len(data) // 2])
    (tmp_path / "empty.png").write_bytes(b"")
    write(tmp_path / "page.webp", "<html>not found</html>")
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\0IEND\xaeB`\x82")
    write(tmp_path / "phone.heic", "")
    gallery = read_gallery(tmp_path, trigger="sks")
    assert list(captions(gallery)) == ["good.png"]
    found = reasons(gallery)
    assert list(found) == sorted(found) and set(found) == {"truncated.jpg", "empty.png", "page.webp", "bomb.png", "phone.heic"}
    assert "truncated" in found["truncated.jpg"] and found["empty.png"] == "the file is empty"
    assert "pixels" in found["bomb.png"] and "save it as png or jpg" in found["phone.heic"]
    report = gallery.report()
    assert "1 picture" in report and "skipped: 5" in report and all(f"{name}: {reason}" in report for name, reason in found.items())


def test_oversized(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "large.png", 300, 200)
    gallery = read_gallery(tmp_path, trigger="sks", max_megapixels=0.05)
    assert "300x200" in reasons(gallery)["large.png"] and "max_megapixels is 0.05" in reasons(gallery)["large.png"]


def test_folders_called_as_pictures(tmp_path: Path) -> None:
    picture(tmp_path / "folder.png" / "a.png")
    assert captions(read_gallery(tmp_path, trigger="sks")) == {"folder.png/a.png": "sks"}


def test_hidden_files_are_passed_over(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    write(tmp_path / "._a.png", "macOS")
    picture(tmp_path / ".trash" / "b.png")
    picture(tmp_path / "@eaDir" / "a.png")
    gallery = read_gallery(tmp_path, trigger="sks")
    assert list(captions(gallery)) == ["a.png"] and gallery.skipped == []


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights that users of Windows lack")
def test_links(tmp_path: Path) -> None:
    picture(tmp_path / "outside" / "b.png")
    root = tmp_path / "gallery"
    picture(root / "sub" / "a.png")
    (root / "sub" / "again").symlink_to(root, target_is_directory=True)
    (root / "other").symlink_to(tmp_path / "outside", target_is_directory=True)
    (root / "loop.png").symlink_to(root / "loop.png")
    (root / "gone.png").symlink_to(root / "nowhere.png")
    gallery = read_gallery(root, trigger="sks")
    assert list(captions(gallery)) == ["other/b.png", "sub/a.png"]
    assert set(reasons(gallery)) == {"loop.png", "gone.png"}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_does_not_hang(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert reasons(read_gallery(tmp_path, trigger="sks")) == {"pipe.png": "it is not a file"}


def test_nothing_is_written_or_moved(tmp_path: Path) -> None:
    picture(tmp_path / "10_x" / "a.png")
    write(tmp_path / "10_x" / "a.txt", "a cat")
    write(tmp_path / "metadata.csv", "file_name,text\nb.png,x\n")
    (tmp_path / "bad.png").write_bytes(b"bad")

    def snapshot() -> dict:
        return {path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None) for path in tmp_path.rglob("*")}
    before = snapshot()
    read_gallery(tmp_path, trigger="sks", masks=True)
    assert snapshot() == before


@pytest.mark.parametrize("name", ["trailing/", "with space ", "图片 画廊", "a.b.c", "photo.png"])
def test_names_of_the_folder(tmp_path: Path, name: str) -> None:
    if sys.platform == "win32" and name.endswith(" "):
        pytest.skip("no such name on Windows")
    picture(tmp_path / name.rstrip("/") / "1.png")
    assert len(read_gallery(os.path.join(str(tmp_path), name) + os.sep, trigger="sks").examples) == 1


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="set train_data_dir"):
        read_gallery("")
    with pytest.raises(ValueError, match="nowhere does not exist"):
        read_gallery(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is a file"):
        read_gallery(write(tmp_path / "file", ""))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no pictures; it needs files of type avif, bmp, gif"):
        read_gallery(tmp_path / "empty")
    (tmp_path / "bad").mkdir()
    for number in range(12):
        (tmp_path / "bad" / f"{number:02d}.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no usable picture, 12 skipped \(00.png: the file is empty; .*; and 2 more\)"):
        read_gallery(tmp_path / "bad")
    picture(tmp_path / "masks" / "a_mask.png")
    with pytest.raises(ValueError, match="no pictures"):
        read_gallery(tmp_path / "masks", masks=True)


def test_repeats(tmp_path: Path) -> None:
    for name in ("a.png", "10_sks dog/b.png", "10_sks dog/close/c.png", "3_cat/d.png", "0_no/e.png", "2024_holiday/f.png"):
        picture(tmp_path / name)
    gallery = read_gallery(tmp_path, trigger="sks", repeats=2)
    assert {example.path.name: example.repeats for example in gallery.examples} == {
        "a.png": 2, "b.png": 20, "c.png": 20, "d.png": 6, "f.png": 2}
    assert "0 repeats" in reasons(gallery)["0_no/e.png"]
    assert "5 pictures, 50 with repeats" in gallery.report()


def test_name_of_a_kohya_folder_is_the_last_resort(tmp_path: Path) -> None:
    picture(tmp_path / "10_sks dog" / "a.png")
    picture(tmp_path / "10_sks dog" / "b.png")
    write(tmp_path / "10_sks dog" / "b.txt", "a dog on grass")
    assert captions(read_gallery(tmp_path)) == {"10_sks dog/a.png": "sks dog", "10_sks dog/b.png": "a dog on grass"}
    assert captions(read_gallery(tmp_path, trigger="rex"))["10_sks dog/a.png"] == "rex"


def test_order_of_the_sources(tmp_path: Path) -> None:
    for letter in "abcd":
        picture(tmp_path / f"{letter}.png")
    write(tmp_path / "metadata.csv", "file_name,text\na.png,from metadata\nb.png,\n")
    write(tmp_path / "a.txt", "from txt")
    write(tmp_path / "b.txt", "from txt")
    write(tmp_path / "b.caption", "from caption")
    write(tmp_path / "c.txt", " \n")
    write(tmp_path / "c.caption", "from caption")
    gallery = read_gallery(tmp_path, trigger="sks")
    assert captions(gallery) == {"a.png": "sks, from metadata", "b.png": "sks, from txt", "c.png": "sks, from caption", "d.png": "sks"}
    assert gallery.caption_sources == {"metadata": 1, ".txt files": 1, ".caption files": 1, "the trigger": 1}
    assert gallery.warnings == []
    bare = read_gallery(tmp_path)
    assert captions(bare)["d.png"] == "" and bare.caption_sources["none"] == 1
    assert any("1 picture without a caption; set a trigger" in warning for warning in bare.warnings)


def test_sidecar_names_and_encodings(tmp_path: Path) -> None:
    texts = {"a": ("一个女孩站在窗边", "gb18030"), "b": ("一個女孩站在窗邊", "big5"), "c": ("une élève très douée", "cp1252"),
             "d": ("一个女孩", "utf-16"), "e": ("一个女孩", "utf-8-sig")}
    for stem, (text, encoding) in texts.items():
        picture(tmp_path / f"{stem}.v1.png")
        write(tmp_path / f"{stem}.v1.txt", text, encoding)
    picture(tmp_path / "f.jpg")
    write(tmp_path / "f.jpg.TXT", "by its whole name")
    gallery = read_gallery(tmp_path)
    assert list(captions(gallery).values()) == [text for text, _ in texts.values()] + ["by its whole name"]


def test_unreadable_sidecar_is_a_warning(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(bytes(range(256)))
    write(tmp_path / "a.caption", "a cat")
    gallery = read_gallery(tmp_path)
    assert captions(gallery) == {"a.png": "a cat"}
    assert len(gallery.warnings) == 1 and "a.txt cannot be read" in gallery.warnings[0] and "a.txt" in gallery.report()


@pytest.mark.parametrize("name", ["x/a.png", "x/a", "./x/a.png", "x\\a.png", "a.png", "a", "A.PNG", "gallery/x/a.png", "C:\\old\\a.png", "/old/a.png"])
def test_how_metadata_may_name_a_picture(tmp_path: Path, name: str) -> None:
    picture(tmp_path / "gallery" / "x" / "a.png")
    picture(tmp_path / "gallery" / "b.png")
    table = write(tmp_path / "metadata.csv", f"file_name,text\n{name},a cat\nb.png,a dog\n")
    gallery = read_gallery(tmp_path / "gallery", metadata_path=table)
    assert captions(gallery) == {"b.png": "a dog", "x/a.png": "a cat"} and gallery.warnings == []


@pytest.mark.parametrize("place", ["metadata.csv", "x/metadata.csv", "x/Metadata.CSV"])
def test_metadata_is_found_in_the_gallery(tmp_path: Path, place: str) -> None:
    picture(tmp_path / "x" / "a.png")
    picture(tmp_path / "y" / "b.png")
    write(tmp_path / place, "file_name,text\na.png,a cat\n")
    write(tmp_path / "y" / "metadata.jsonl", '{"image": "b.png", "prompt": "a dog"}\n')
    assert captions(read_gallery(tmp_path)) == {"x/a.png": "a cat", "y/b.png": "a dog"}


def test_given_metadata_is_the_only_one(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    write(tmp_path / "metadata.csv", "file_name,text\na.png,found\n")
    write(tmp_path / "other.jsonl", '{"file_name": "a.png", "text": "given"}')
    assert captions(read_gallery(tmp_path, metadata_path=tmp_path / "other.jsonl")) == {"a.png": "given"}
    assert captions(read_gallery(tmp_path, metadata_path="other.jsonl")) == {"a.png": "given"}
    with pytest.raises(ValueError, match="gone.csv does not exist"):
        read_gallery(tmp_path, metadata_path="gone.csv")


def test_absolute_paths_in_metadata(tmp_path: Path) -> None:
    for name in ("x/a.png", "y/a.png"):
        picture(tmp_path / name)
    write(tmp_path / "metadata.csv", f'file_name,text\n"{tmp_path / "x" / "a.png"}",a cat\n"{tmp_path / "y" / "a.png"}",a dog\n')
    assert captions(read_gallery(tmp_path)) == {"x/a.png": "a cat", "y/a.png": "a dog"}


def test_names_that_fit_several_are_not_guessed(tmp_path: Path) -> None:
    for name in ("x/a.png", "y/a.png", "b.png"):
        picture(tmp_path / name)
    write(tmp_path / "metadata.csv", "file_name,text\na.png,a cat\nb.png,a dog\ngone.png,a bird\n")
    gallery = read_gallery(tmp_path, trigger="sks")
    assert captions(gallery) == {"b.png": "sks, a dog", "x/a.png": "sks", "y/a.png": "sks"}
    assert gallery.warnings == ["Several pictures or metadata rows are called a.png; write the sub-folder into the metadata.",
                                "1 metadata row without a picture in the gallery: gone.png."]


def test_same_stem_in_two_formats(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "a.jpg")
    write(tmp_path / "metadata.csv", "file_name,text\na.png,a cat\na.jpg,a dog\n")
    assert captions(read_gallery(tmp_path)) == {"a.png": "a cat", "a.jpg": "a dog"}


def test_row_of_a_skipped_picture_is_no_mistake(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"")
    write(tmp_path / "metadata.csv", "file_name,text\na.png,a cat\nb.png,a dog\n")
    assert read_gallery(tmp_path).warnings == []


@pytest.mark.parametrize("on_disk, in_table", [("NFC", "NFD"), ("NFD", "NFC")])
def test_composed_and_decomposed_names(tmp_path: Path, on_disk: str, in_table: str) -> None:
    names = ("été", "카페", "ばら")
    for name in names:
        picture(tmp_path / (unicodedata.normalize(on_disk, name) + ".png"))
    write(tmp_path / "metadata.csv", "file_name,text\n" + unicodedata.normalize(in_table, "été") + ".png,summer\n")
    write(tmp_path / (unicodedata.normalize(in_table, "카페") + ".txt"), "coffee")
    picture(tmp_path / (unicodedata.normalize(in_table, "ばら") + "_mask.png"), mode="L", colour=255)
    gallery = read_gallery(tmp_path, masks=True, trigger="sks")
    assert sorted(example.caption for example in gallery.examples) == ["sks", "sks, coffee", "sks, summer"]
    assert [example.caption for example in gallery.examples if example.mask_path] == ["sks"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_names_that_are_no_text(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    odd = os.path.join(os.fsencode(tmp_path), b"\xb0\xa1.png")
    os.link(tmp_path / "a.png", odd)
    with open(os.path.join(os.fsencode(tmp_path), b"\xff.png"), "wb"):
        pass
    gallery = read_gallery(tmp_path, trigger="sks")
    assert len(gallery.examples) == 2 and len(gallery.skipped) == 1
    assert gallery.report().encode("utf-8")


def test_masks(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.png", "c.png"):
        picture(tmp_path / name)
    picture(tmp_path / "a_mask.png", mode="L", colour=255)
    write(tmp_path / "b_mask.png", "damaged")
    picture(tmp_path / "gone_MASK.png", mode="L", colour=255)
    gallery = read_gallery(tmp_path, trigger="sks", masks=True)
    assert {example.path.name: example.mask_path for example in gallery.examples} == {"a.jpg": tmp_path / "a_mask.png", "c.png": None}
    assert "its mask b_mask.png cannot be used" in reasons(gallery)["b.png"]
    assert gallery.warnings == ["These masks belong to no picture: gone_MASK.png."] and "masks: 1" in gallery.report()
    without = read_gallery(tmp_path, trigger="sks")
    assert [example.path.name for example in without.examples] == ["a.jpg", "b.png", "c.png", "gone_MASK.png"]
    assert all(example.mask_path is None for example in without.examples) and not without.warnings


def test_a_picture_called_as_a_mask_is_a_picture_where_no_masks_are_wanted(tmp_path: Path) -> None:
    for name in ("a.png", "catwoman_mask.png", "b.jpg", "b_mask.png"):
        picture(tmp_path / name)
    write(tmp_path / "catwoman_mask.txt", "a cat")
    write(tmp_path / "c.heic", "of a phone")
    picture(tmp_path / "c_mask.png")
    gallery = read_gallery(tmp_path, trigger="sks")
    assert captions(gallery) == {"a.png": "sks", "b.jpg": "sks", "catwoman_mask.png": "sks, a cat"} and not gallery.warnings
    masked = read_gallery(tmp_path, trigger="sks", masks=True)
    assert captions(masked).keys() == {"a.png", "b.jpg"} and masked.warnings == ["These masks belong to no picture: catwoman_mask.png."]


def test_masks_from_nowhere_are_a_warning(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    assert read_gallery(tmp_path, trigger="sks", masks=True).warnings == ["masks is on, but no picture has a *_mask.png or transparency."]
    picture(tmp_path / "b.png", mode="RGBA", colour=(0, 0, 0, 0))
    assert read_gallery(tmp_path, trigger="sks", masks=True).warnings == []


def test_prior(tmp_path: Path) -> None:
    picture(tmp_path / "1_dog" / "a.png")
    example = read_gallery(tmp_path, is_prior=True).examples[0]
    assert example.is_prior and example.caption == "dog" and example.repeats == 1


@pytest.mark.parametrize("caption, trigger, wanted", [
    ("a cat", "sks", "sks, a cat"), ("a SKS cat", "sks", "a SKS cat"), ("he asks", "ask", "ask, he asks"), ("sks2 cat", "sks", "sks, sks2 cat"),
    ("一张sks的照片", "sks", "一张sks的照片"), ("一张小红的照片", "小红", "一张小红的照片"), ("", "sks", "sks"), ("a cat", "", "a cat"), ("", "", ""),
    ("a (c) cat", "(c)", "a (c) cat"), ("photo of sks man, x", "sks man", "photo of sks man, x")])
def test_trigger(caption: str, trigger: str, wanted: str) -> None:
    assert add_trigger(caption, trigger) == wanted


def test_results_and_prior_pictures_inside_the_gallery_are_not_trained_as_its_own(tmp_path: Path) -> None:
    """A layout as kohya's sd-scripts has it, with the folders for prior pictures and for results beside the pictures."""
    picture(tmp_path / "10_sks dog" / "a.png")
    picture(tmp_path / "reg" / "1_dog" / "r.png", colour="blue")
    for number in range(2):
        picture(tmp_path / "model" / "previews" / f"dog-00000{number}-0.png", colour="green")
    config = TrainConfig(train_data_dir=str(tmp_path), reg_data_dir=str(tmp_path / "reg"), output_dir=str(tmp_path / "model"), auto_caption=True,
                         caption_model="mine", trigger="sks")
    material = read_material(config, make_captions=False)
    assert captions(material.gallery) == {"10_sks dog/a.png": "sks"} and captions(material.prior) == {"1_dog/r.png": "dog"}
    assert sorted(material.gallery.left_out) == ["model/previews/dog-000000-0.png", "model/previews/dog-000001-0.png", "reg/1_dog/r.png"]
    assert material.gallery.warnings == ["3 pictures in model, reg are left out: results of HotLoRA and prior pictures (reg_data_dir) are not trained as your own."]
    assert "left out: 3 (model/previews/dog-000000-0.png" in material.gallery.report()
    assert planned_captions(config, ()).names == ("10_sks dog/a.png",)
    with pytest.raises(ValueError, match=r"no picture to use: 2 pictures in previews are left out: .* set train_data_dir to the folder with your pictures"):
        read_material(replace(config, train_data_dir=str(tmp_path / "model")), make_captions=False)


def test_prior_pictures_around_the_gallery_do_not_hold_it(tmp_path: Path) -> None:
    picture(tmp_path / "mine" / "a.png")
    picture(tmp_path / "r.png", colour="blue")
    material = read_material(TrainConfig(train_data_dir=str(tmp_path / "mine"), reg_data_dir=str(tmp_path), trigger="sks"), make_captions=False)
    assert list(captions(material.gallery)) == ["a.png"] and list(captions(material.prior)) == ["r.png"]


def test_results_of_other_runs_are_known_by_their_mark(tmp_path: Path) -> None:
    """For who knows no settings: the page, the node and `train.py check`."""
    picture(tmp_path / "a.png")
    picture(tmp_path / "old run" / "previews" / "dog.png", colour="green")
    picture(tmp_path / "old run" / "b.png", colour="blue")
    mark_results(tmp_path / "old run" / "previews")
    assert list(captions(read_gallery(tmp_path, trigger="sks"))) == ["a.png", "old run/b.png"]
    told = describe_gallery(str(tmp_path))
    assert [one["file"] for one in told["pictures"]] == ["a.png", "old run/b.png"]
    assert told["warnings"] == ["1 picture in old run/previews is left out: results of HotLoRA and prior pictures (reg_data_dir) are not trained as your own"]
    assert list(captions(read_gallery(tmp_path / "old run" / "previews", trigger="sks"))) == ["dog.png"], "chosen itself, it is a gallery as any other"


def test_masks_without_a_white_part(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        picture(tmp_path / f"{name}.png", colour=["red", "green", "blue"]["abc".index(name)])
    picture(tmp_path / "a_mask.png", mode="L", colour=0)
    picture(tmp_path / "b_mask.png", mode="L", colour=1)  # of 0 and 1 instead of 0 and 255
    told = read_gallery(tmp_path, trigger="sks", masks=True)
    assert told.warnings == ["These masks have no white part, so that nothing of their pictures is trained: a_mask.png, b_mask.png; paint white what is to be "
                             "trained, or remove them."]
    picture(tmp_path / "c_mask.png", mode="RGBA", colour=(255, 255, 255, 0))
    with pytest.raises(ValueError, match="no mask has a white part, so that nothing would be trained: a_mask.png, b_mask.png, c_mask.png; paint white"):
        read_gallery(tmp_path, trigger="sks", masks=True)
    assert len(read_gallery(tmp_path, trigger="sks").examples) == 3
