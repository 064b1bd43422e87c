"""Changes to a gallery: nothing else changes, nothing is overwritten, nothing is lost."""
import errno
import io
import json
import os
import shutil
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from hotlora.trainer.captions.metadata import parse_metadata
from hotlora.trainer.captions.editing import edited_metadata
from hotlora.trainer.captions.sidecar import tidy
from hotlora.trainer.captions.automatic import pictures_without
from hotlora.trainer.captions.writing import write_new
from hotlora.trainer.galleries import describe_gallery, inside
from hotlora.trainer.gallery import read_gallery
from hotlora.trainer.gallery_edit import History, Occupied, move_file, remove, restore, safe_file, upload, write_captions


def png(colour="red", size=(16, 16)):
    data = io.BytesIO()
    Image.new("RGB", size, colour).save(data, "PNG")
    return data.getvalue()


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "pictures"
    root.mkdir()
    for name, colour in (("a", "red"), ("b", "green"), ("c", "blue")):
        (root / f"{name}.png").write_bytes(png(colour))
    return root


def captions(root):
    return {picture["file"]: (picture["caption"], picture["caption_from"]) for picture in describe_gallery(str(root))["pictures"]}


def test_a_caption_goes_to_a_new_text_file(home, root):
    written = write_captions(home, root, {"a.png": "a cat,\n sitting "})
    assert (root / "a.txt").read_text() == "a cat, sitting" and written == {"a.png": {"caption": "a cat, sitting", "caption_from": "a.txt", "automatic": False}}
    assert captions(root) == {"a.png": ("a cat, sitting", "a.txt"), "b.png": ("", ""), "c.png": ("", "")}


def test_a_caption_goes_to_the_text_file_that_it_came_from(home, root):
    (root / "a.caption").write_bytes("\ufeffein Hündchen\r\n".encode())
    write_captions(home, root, {"a.png": "eine Katze"})
    assert (root / "a.caption").read_bytes() == "\ufeffeine Katze\r\n".encode() and not (root / "a.txt").exists()


def test_a_text_file_in_another_encoding_becomes_utf8(home, root):
    (root / "a.txt").write_bytes("一只可爱的小猫坐在窗户上".encode("gb18030"))
    write_captions(home, root, {"a.png": "一只小狗"})
    assert (root / "a.txt").read_text(encoding="utf-8") == "一只小狗"
    assert History(home, root).of("a.png")[0]["before"] == "一只可爱的小猫坐在窗户上"


def test_only_the_cell_of_the_picture_changes(home, root):
    before = b'\xef\xbb\xbffile_name;note;text\r\n"a.png";"x ""y""";first\r\n\r\nb;  spaces ;"two\r\nlines"\r\nC.PNG;;third\r\nother.png;1;kept'
    (root / "metadata.csv").write_bytes(before)
    assert captions(root)["b.png"] == ("two, lines", "metadata.csv")
    write_captions(home, root, {"b.png": 'say "hi"; now', "c.png": "new"})
    assert (root / "metadata.csv").read_bytes() == (
        b'\xef\xbb\xbffile_name;note;text\r\n"a.png";"x ""y""";first\r\n\r\nb;  spaces ;"say ""hi""; now"\r\nC.PNG;;new\r\nother.png;1;kept')
    kept = [path for path in (home / "history").rglob("*metadata.csv")]
    assert len(kept) == 1 and kept[0].read_bytes() == before


def test_jsonl_rows_keep_their_other_fields(home, root):
    (root / "metadata.jsonl").write_text('{"extra": [1, 2], "file_name": "a.png", "text": "old"}\n\n{"file_name": "b.png", "text": "b", "z": null}\n')
    write_captions(home, root, {"a.png": "新"})
    assert (root / "metadata.jsonl").read_text(encoding="utf-8") == (
        '{"extra": [1, 2], "file_name": "a.png", "text": "新"}\n\n{"file_name": "b.png", "text": "b", "z": null}\n')


def test_a_caption_with_commas_and_no_quotes(home, root):
    (root / "metadata.csv").write_text("file_name,text\na.png,one, two, three\nb.png,x, y\n")
    write_captions(home, root, {"a.png": "four, five"})
    assert (root / "metadata.csv").read_text() == 'file_name,text\na.png,"four, five"\nb.png,x, y\n'


def test_an_emptied_row_does_not_bring_up_a_hidden_text_file(home, root):
    (root / "metadata.csv").write_text("file_name,text\na.png,row\n")
    (root / "a.txt").write_text("hidden")
    assert captions(root)["a.png"] == ("row", "metadata.csv")
    write_captions(home, root, {"a.png": ""})
    assert captions(root)["a.png"] == ("", "")
    write_captions(home, root, {"a.png": "again"})
    assert captions(root)["a.png"][0] == "again"
    assert [entry["before"] for entry in History(home, root).of("a.png")] == ["", "row"]


def test_metadata_that_cannot_be_edited_safely_is_left_alone(home, root):
    (root / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "x"}\n{"file_name": "a.png", "text": "y"}\nnot json\n')
    with pytest.raises(ValueError, match="line 3"):
        write_captions(home, root, {"b.png": "x"})
    assert not (root / "b.txt").exists()


def test_an_unknown_picture_changes_nothing(home, root):
    with pytest.raises(ValueError, match="there is no picture"):
        write_captions(home, root, {"a.png": "x", "../../etc/passwd": "y"})
    assert not (root / "a.txt").exists()


def test_two_tabs_the_last_one_wins_and_both_texts_are_kept(home, root):
    threads = [threading.Thread(target=write_captions, args=(home, root, {"a.png": f"text {i}", f"{'bc'[i % 2]}.png": f"other {i}"})) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    history = History(home, root).of("a.png")
    assert captions(root)["a.png"][0] == history[0]["after"]
    assert {entry["after"] for entry in history} == {f"text {i}" for i in range(8)}
    assert [entry["before"] for entry in history[:-1]] == [entry["after"] for entry in history[1:]], "a chain without a gap"


words = st.text(st.characters(blacklist_categories=("Cs",)), max_size=30)


@given(rows=st.lists(st.tuples(st.sampled_from(["a.png", "b.png", "sub/c.png", "名.jpg"]), words), min_size=1, max_size=5), new=words,
       delimiter=st.sampled_from(",;\t"), end=st.sampled_from(["\n", "\r\n"]), mark=st.booleans())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_table_is_edited_exactly_or_not_at_all(tmp_path, rows, new, delimiter, end, mark):
    import csv

    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, lineterminator=end).writerows([("file_name", "text"), *rows])
    for path, data in ((tmp_path / "metadata.csv", (b"\xef\xbb\xbf" if mark else b"") + text.getvalue().encode()),
                       (tmp_path / "metadata.jsonl", "".join(json.dumps({"file_name": name, "text": caption}) + end for name, caption in rows).encode())):
        try:
            before = parse_metadata(path, data)
            after = edited_metadata(path, data, {rows[0][0]: tidy(new)})
        except ValueError:
            continue
        assert parse_metadata(path, after) == {**before, rows[0][0]: tidy(new)}


@pytest.mark.parametrize("file, expected", [
    ("photo.png", "photo.png"), ("faces/photo.png", "faces/photo.png"), ("faces\\photo.png", "faces/photo.png"), ("a:b?.png", "a_b_.png"),
    ("CON.png", "_CON.png"), (".hidden.png", "hidden.png"), ("/abs/x.png", "abs/x.png"), ("е́.png", "е́.png")])
def test_names_of_uploads(file, expected):
    assert safe_file(file) == expected


def test_long_names_that_differ_at_their_end_stay_apart_and_together_with_what_is_theirs():
    one, two = (safe_file("一只可爱的小猫" * 10 + end + ".png") for end in "甲乙")
    assert one != two and one[:40] == two[:40] and len(one.encode()) <= 154
    assert safe_file("一只可爱的小猫" * 10 + "甲.txt") == one[:-4] + ".txt" and safe_file("一只可爱的小猫" * 10 + "甲_mask.png") == one[:-4] + "_mask.png"
    assert safe_file("x" * 150 + ".png") == "x" * 150 + ".png"


@pytest.mark.parametrize("length", [1, 100, 134, 135, 136, 145, 148, 150, 151, 200])
def test_what_belongs_to_a_picture_stays_with_it_at_any_length_of_its_name(root, length):
    for colour in ("red", "green"):
        stem = upload(root, "x" * length + ".png", png(colour))[:-len(".png")]
        assert [safe_file(stem + end) for end in (".txt", ".png.txt", "_mask.png")] == [stem + end for end in (".txt", ".png.txt", "_mask.png")]
    first = safe_file("x" * length + ".png")[:-len(".png")]
    assert [safe_file("x" * length + end) for end in (".txt", ".png.txt", "_mask.png")] == [first + end for end in (".txt", ".png.txt", "_mask.png")]


@pytest.mark.parametrize("text", ["рыжий кот".encode("koi8-r") + b"\x98\xff\x81", b"a word " * 200_000], ids=["no known encoding", "too long"])
def test_a_text_that_cannot_be_read_is_no_missing_caption(home, root, text):
    (root / "a.txt").write_bytes(text)
    assert "a.txt cannot be read" in str(describe_gallery(str(root))["warnings"]) or "a.txt is larger" in str(describe_gallery(str(root))["warnings"])
    assert [path.name for path in pictures_without(root)[1]] == ["b.png", "c.png"]
    assert list(write_new(root, {root / f"{name}.png": "made" for name in "ab"}, "m", "any")) == [root / "b.png"]
    assert (root / "a.txt").read_bytes() == text
    write_captions(home, root, {"a.png": "typed"})
    assert captions(root)["a.png"] == ("typed", "a.txt")
    assert [path.read_bytes() for path in (home / "history").rglob("*a.txt")] == [text]


def test_pictures_of_one_stem_have_captions_of_their_own(home, root):
    (root / "a.jpg").write_bytes(png("white"))
    (root / "a.txt").write_text("in common")
    assert captions(root)["a.jpg"][0] == captions(root)["a.png"][0] == "in common"
    write_captions(home, root, {"a.jpg": "the white one"})
    assert (captions(root)["a.jpg"], captions(root)["a.png"]) == (("the white one", "a.jpg.txt"), ("in common", "a.png.txt"))
    write_captions(home, root, {"a.jpg": "white", "a.png": "red", "b.png": "green"})
    assert {file: text for file, (text, _) in captions(root).items()} == {"a.jpg": "white", "a.png": "red", "b.png": "green", "c.png": ""}
    write_captions(home, root, {"a.jpg": ""})
    assert {file: text for file, (text, _) in captions(root).items()} == {"a.jpg": "", "a.png": "red", "b.png": "green", "c.png": ""}


def kept_texts(home):
    return sorted(path.read_bytes() for path in (home / "history").rglob("*.txt"))


def test_every_text_that_cannot_be_read_is_kept_also_the_second_of_a_day(home, root):
    texts = [word.encode("koi8-r") + b"\x98\xff\x81" for word in ("рыжий кот", "серый кот", "белый кот")]
    for text in texts[:2]:
        (root / "a.txt").write_bytes(text)
        (root / "a.png.txt").write_bytes(texts[2])
        write_captions(home, root, {"a.png": f"typed over {len(text)}"})
    assert kept_texts(home) == sorted(texts[:2]) and (root / "a.png.txt").read_bytes() == texts[2]


def test_a_long_name_does_not_keep_a_text_from_being_kept(home, root):
    name, text = "я" * 120, "рыжий кот".encode("koi8-r") + b"\x98\xff\x81"
    (root / f"{name}.png").write_bytes(png("white"))
    (root / f"{name}.txt").write_bytes(text)
    write_captions(home, root, {f"{name}.png": "typed"})
    assert kept_texts(home) == [text]


def test_a_text_that_another_hid_is_kept_when_both_are_emptied(home, root):
    (root / "a.txt").write_text("shown")
    (root / "a.png.txt").write_text("hidden")
    write_captions(home, root, {"a.png": ""})
    assert captions(root)["a.png"][0] == "" and kept_texts(home) == [b"hidden"] and History(home, root).of("a.png")[0]["before"] == "shown"


@pytest.mark.parametrize("files", [("a.png", "a.jpg"), ("a.jpg", "a.png")])
def test_of_two_pictures_of_one_stem_one_is_emptied_while_the_other_is_edited(home, root, files):
    (root / "a.jpg").write_bytes(png("white"))
    (root / "a.txt").write_text("in common")
    write_captions(home, root, dict(zip(files, ("typed", ""))))
    assert [captions(root)[file][0] for file in files] == ["typed", ""]


def test_a_machine_writes_for_one_picture_and_not_for_the_other_of_its_stem(home, root):
    (root / "a.jpg").write_bytes(png("white"))
    (root / "a.txt").write_text("in common")
    write_captions(home, root, {"a.png": "by hand", "a.jpg": ""})
    write_new(root, {root / "a.jpg": "made"}, "m", "any")
    assert captions(root)["a.jpg"] == ("made", "a.jpg.txt") and captions(root)["a.png"] == ("by hand", "a.png.txt")
    write_new(root, {root / "a.jpg": "made again"}, "m", "any", replace=True)
    assert captions(root)["a.jpg"] == ("made again", "a.jpg.txt") and captions(root)["a.png"] == ("by hand", "a.png.txt")


def test_a_machine_that_goes_on_with_text_files_replaces_its_row_and_not_a_text_beside_it(root):
    write_new(root, {root / "a.png": "made"}, "m", "any")
    (root / "a.txt").write_text("by hand, hidden by the row")
    write_new(root, {root / "a.png": "made again"}, "m", "any", "sidecars", replace=True)
    assert captions(root)["a.png"] == ("made again", "metadata.csv") and (root / "a.txt").read_text() == "by hand, hidden by the row"


def test_emptying_the_caption_of_one_picture_leaves_the_other_of_its_stem_what_they_had_in_common(home, root):
    (root / "a.jpg").write_bytes(png("white"))
    (root / "a.txt").write_text("in common")
    write_captions(home, root, {"a.png": ""})
    assert captions(root)["a.png"][0] == "" and captions(root)["a.jpg"] == ("in common", "a.jpg.txt")


def test_a_second_mask_of_a_picture_is_turned_down_as_under_a_number_it_would_be_a_picture(home, root):
    assert upload(root, "a_mask.png", png("white")) == "a_mask.png" == upload(root, "a_mask.png", png("white"))
    with pytest.raises(Occupied, match="a_mask.png is in the gallery already as another mask; remove its picture first"):
        upload(root, "a_mask.png", png("black"))
    remove(home, root, ["a.png"])
    assert upload(root, "a.png", png("red")) == "a.png" and upload(root, "a_mask.png", png("black")) == "a_mask.png"
    assert set(captions(root)) == {"a.png", "b.png", "c.png"}


def test_of_pictures_that_are_called_masks_and_are_none_both_stay(root):
    assert [upload(root, "catwoman_mask.png", png(colour)) for colour in ("white", "black")] == ["catwoman_mask.png", "catwoman (2)_mask.png"]
    assert {"catwoman_mask.png", "catwoman (2)_mask.png"} < set(captions(root))


def test_a_picture_beside_another_of_its_stem_gets_another_name_where_they_are_to_stay_apart(root):
    assert upload(root, "a.jpg", png("white"), apart=True) == "a (2).jpg" == upload(root, "a.jpg", png("white"), apart=True)
    assert upload(root, "a.jpg", png("white")) == "a.jpg" and upload(root, "a.png", png("red"), apart=True) == "a.png"
    assert upload(root, "a.txt", b"a caption", apart=True) == "a.txt" and upload(root, "a_mask.png", png("black"), apart=True) == "a_mask.png"
    assert upload(root, "new/a.jpg", png("white"), apart=True) == "new/a.jpg"


def test_of_two_removed_pictures_of_one_stem_only_the_one_that_was_asked_for_comes_back(home, root):
    (root / "a.jpg").write_bytes(png("white"))
    remove(home, root, ["a.jpg", "a.png"])
    restore(home, root, ["a.jpg"])
    assert (root / "a.jpg").exists() and not (root / "a.png").exists()
    restore(home, root, ["a.png"])
    assert (root / "a.png").read_bytes() == png("red")


def test_a_removed_picture_takes_the_caption_along_that_is_its_own_among_two_of_its_stem(home, root):
    (root / "a.jpg").write_bytes(png("white"))
    write_captions(home, root, {"a.jpg": "white", "a.png": "red"})
    remove(home, root, ["a.jpg"])
    assert not (root / "a.jpg.txt").exists() and captions(root)["a.png"] == ("red", "a.png.txt")
    restore(home, root, ["a.jpg"])
    assert captions(root)["a.jpg"] == ("white", "a.jpg.txt")


@pytest.mark.parametrize("order", [("a.jpg", "a.png"), ("a.png", "a.jpg")])
def test_what_two_pictures_have_in_common_leaves_with_the_last_of_them_and_comes_back_with_the_first(home, root, order):
    (root / "a.jpg").write_bytes(png("white"))
    (root / "a.txt").write_text("in common")
    (root / "a_mask.png").write_bytes(png("black"))
    remove(home, root, list(order))
    assert sorted(path.name for path in root.iterdir()) == ["b.png", "c.png"]
    for file in order:
        restore(home, root, [file])
        assert captions(root)[file] == ("in common", "a.txt") and (root / "a_mask.png").read_bytes() == png("black")


def test_a_caption_and_a_mask_come_back_however_their_names_are_written(home, root):
    (root / "e\u0301.png").write_bytes(png("white"))
    (root / "\u00e9.txt").write_text("composed")
    (root / "\u00e9_MASK.png").write_bytes(png("black"))
    before = sorted(path.name for path in root.iterdir())
    remove(home, root, ["e\u0301.png"])
    assert len(list(root.iterdir())) == len(before) - 3
    restore(home, root, ["e\u0301.png"])
    assert sorted(path.name for path in root.iterdir()) == before


@pytest.mark.skipif(os.name == "nt", reason="links need a right there")
def test_a_removed_link_comes_back_as_the_link_that_it_was(home, root, tmp_path):
    (tmp_path / "elsewhere.png").write_bytes(png("white"))
    (root / "link.png").symlink_to("../elsewhere.png")
    remove(home, root, ["link.png"])
    assert not (root / "link.png").is_symlink()
    restore(home, root, ["link.png"])
    assert os.readlink(root / "link.png") == "../elsewhere.png" and (root / "link.png").read_bytes() == png("white")


def test_a_full_disk_leaves_no_half_of_what_was_to_be_moved(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(png())

    def fails(error):
        def call(*_):
            raise OSError(error, os.strerror(error))
        return call

    monkeypatch.setattr(os, "rename", fails(errno.EXDEV))
    monkeypatch.setattr(shutil, "copy2", fails(errno.ENOSPC))
    with pytest.raises(OSError, match="No space"):
        move_file(tmp_path / "a.png", tmp_path / "other" / "a.png")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["a.png"]


@pytest.mark.parametrize("file", ["../x.png", "a/../../x.png", "..\\x.png", "", "/", "a/..", "a/ /b.png", "/".join("a" * 20)])
def test_names_of_uploads_that_lead_elsewhere(file, home, root):
    with pytest.raises(ValueError, match="inside the gallery"):
        upload(root, file, png())
    assert sorted(path.name for path in root.iterdir()) == ["a.png", "b.png", "c.png"]


def test_an_upload_never_overwrites(home, root):
    assert upload(root, "a.png", png("red")) == "a.png"
    assert upload(root, "a.png", png("white")) == "a (2).png" and upload(root, "a.png", png("white")) == "a (2).png"
    assert upload(root, "a.png", png("black")) == "a (3).png"
    assert (root / "a.png").read_bytes() == png("red")
    assert upload(root, "a.txt", b"a cat") == "a.txt" and upload(root, "a.txt", b"a cat") == "a.txt"
    with pytest.raises(Occupied, match="another text"):
        upload(root, "a.txt", b"a dog")
    assert (root / "a.txt").read_bytes() == b"a cat"


@pytest.mark.parametrize("file, data, expected", [
    ("x.png", b"not a picture", "x.png cannot be used"), ("x.png", b"", "x.png cannot be used"), ("x.exe", b"MZ", "neither a picture"),
    ("x.png", png()[:60], "cannot be used"), ("x.txt", b"a" * 1_000_001, "megabyte"), ("metadata.csv", b"nonsense\n1,2", "columns"),
    ("metadata.jsonl", b"{", "not JSON"), ("x.txt", bytes(range(256)), "none of UTF-8"), ("x", b"", "neither"), ("x.svg", b"<svg/>", "neither")])
def test_what_is_not_what_its_name_says_is_turned_down(root, file, data, expected):
    with pytest.raises(ValueError, match=expected):
        upload(root, file, data)
    assert sorted(path.name for path in root.iterdir()) == ["a.png", "b.png", "c.png"]


def test_remove_and_restore(home, root):
    (root / "a.txt").write_text("a cat")
    (root / "a_mask.png").write_bytes(png("white"))
    before = {path.name: path.read_bytes() for path in root.iterdir()}
    assert remove(home, root, ["a.png", "c.png"]) == ["a.png", "c.png"]
    assert sorted(path.name for path in root.iterdir()) == ["b.png"]
    with pytest.raises(ValueError, match="no picture a.png"):
        remove(home, root, ["b.png", "a.png"])
    assert (root / "b.png").exists()
    assert restore(home, root, ["c.png", "a.png"]) == ["c.png", "a.png"]
    assert {path.name: path.read_bytes() for path in root.iterdir()} == before
    with pytest.raises(ValueError, match="not among the removed"):
        restore(home, root, ["a.png"])


def test_restore_does_not_overwrite(home, root):
    remove(home, root, ["a.png"])
    (root / "a.png").write_bytes(png("white"))
    with pytest.raises(Occupied):
        restore(home, root, ["a.png"])
    assert (root / "a.png").read_bytes() == png("white")
    remove(home, root, ["a.png"])
    assert restore(home, root, ["a.png"]) and (root / "a.png").read_bytes() == png("white"), "the one removed last"


def test_the_gallery_as_a_page_sees_it(root):
    (root / "10_sks dog").mkdir()
    (root / "10_sks dog" / "d.png").write_bytes(png("red"))
    (root / "e.png").write_bytes(b"broken")
    (root / "f.heic").write_bytes(b"x")
    found = describe_gallery(str(root), resolution=64)
    assert {picture["file"]: picture["repeats"] for picture in found["pictures"]} == {"a.png": 1, "b.png": 1, "c.png": 1, "10_sks dog/d.png": 10}
    assert {entry["file"] for entry in found["skipped"]} == {"e.png", "f.heic"}
    warned = {picture["file"]: picture["warnings"] for picture in found["pictures"]}
    assert any("2 times" in text for text in warned["a.png"]) and not any("times" in text for text in warned["b.png"])
    quick = describe_gallery(str(root), quick=True)
    assert [picture["file"] for picture in quick["pictures"]] == [picture["file"] for picture in found["pictures"]]


def test_the_shown_cut_is_the_one_that_is_trained(root):
    (root / "wide.png").write_bytes(png(size=(300, 128)))
    (root / "tall.jpg").write_bytes(jpeg_turned())
    found = {picture["file"]: picture for picture in describe_gallery(str(root), resolution=128)["pictures"]}
    assert (found["tall.jpg"]["width"], found["tall.jpg"]["height"]) == (100, 200)
    for picture in found.values():
        left, top, right, bottom = picture["crop"]
        width, height = picture["bucket"]
        assert 0 <= left < right <= picture["width"] and 0 <= top < bottom <= picture["height"]
        assert abs((right - left) / (bottom - top) / (width / height) - 1) < 0.05
        assert (right - left == picture["width"]) or (bottom - top == picture["height"])


def jpeg_turned():
    picture = Image.new("RGB", (200, 100), "red")
    exif = picture.getexif()
    exif[0x0112] = 6
    data = io.BytesIO()
    picture.save(data, "JPEG", exif=exif)
    return data.getvalue()


def test_captions_are_those_that_training_reads(home, root):
    (root / "metadata.csv").write_text("file_name,text\na,from the row\n")
    (root / "b.png.txt").write_text("from the file")
    shown = {file: caption for file, (caption, _) in captions(root).items()}
    assert shown == {example.path.name: example.caption for example in read_gallery(root).examples}


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "", ".", "a//b", "a\0b"])
def test_names_that_lead_out_of_a_gallery(root, name):
    with pytest.raises(ValueError):
        inside(root, name)
