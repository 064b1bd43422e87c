"""What the gallery check says of copies, amounts, variety, sizes and captions, each planted in pictures that are fine otherwise."""
from __future__ import annotations

import io
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageOps

from hotlora.tests.trainer.gallery_checks import faults
from hotlora.trainer.captions.tokens import LIMIT
from hotlora.trainer.galleries import describe_gallery
from hotlora.trainer.gallery import read_gallery
from hotlora.trainer.gallery_check import GOOD, PURPOSES, Report, check_gallery
from hotlora.trainer.gallery_checks import gallery_rules, picture_rules, texts
from hotlora.trainer.gallery_checks.finding import PARTS
from hotlora.trainer.gallery_checks.looks import THUMB

RESOLUTION = 128
SAYINGS = ("a clay pot on a wooden table", "two books beside a window", "an old bicycle in the rain", "a bowl of fruit in soft light", "a lamp over a desk",
           "boats on a quiet lake", "a narrow street at night", "a dog under a tree", "a bridge seen from below", "snow on a red roof", "a cup by the fire",
           "chairs in an empty hall")


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    """Twelve different pictures that look photographed, small so that they are made quickly."""
    return [faults.photo(500 + i, 192, 160) for i in range(12)]


@pytest.fixture
def folder(tmp_path: Path, pictures) -> Path:
    for i, picture in enumerate(pictures):
        picture.save(tmp_path / f"{i:02d}.png")
        (tmp_path / f"{i:02d}.txt").write_text(SAYINGS[i])
    return tmp_path


def check(folder: Path, **settings) -> Report:
    return check_gallery(read_gallery(folder), resolution=RESOLUTION, **settings)


def files(report: Report, code: str) -> set[str]:
    return {name for finding in report.findings if finding.code == code for name in finding.files}


def codes(report: Report) -> set[str]:
    return {finding.code for finding in report.findings}


def saved(picture: Image.Image, quality: int) -> Image.Image:
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=quality)
    return Image.open(data).convert("RGB")


def test_a_gallery_that_is_fine(folder: Path) -> None:
    report = check(folder, purpose="any")
    assert report.findings == [] and report.score == 100 == sum(PARTS.values()) and report.is_good
    assert report.sentence() == "would train as is" and report.sentence("zh") == "可以直接训练" and report.points == PARTS


COPIES = {
    "smaller": lambda picture: picture.resize((144, 120), Image.LANCZOS),
    "mirrored": ImageOps.mirror,
    "saved again": lambda picture: saved(picture, 40),
    "cut": lambda picture: picture.crop((5, 4, picture.width - 5, picture.height - 4)),
    "darker": lambda picture: picture.point(lambda value: int(value * 0.85)),
    "smaller, mirrored and saved again": lambda picture: saved(ImageOps.mirror(picture.resize((160, 133))), 60)}


@pytest.mark.parametrize("way", list(COPIES))
def test_near_copies(folder: Path, pictures, way: str) -> None:
    for i in range(12):
        COPIES[way](pictures[i]).save(folder / f"copy{i:02d}.png")
    report = check(folder)
    [finding] = [finding for finding in report.findings if finding.code == "near_copy"]
    groups = [set(group) for group in finding.values["groups"]]
    assert all({f"{i:02d}.png", f"copy{i:02d}.png"} in groups for i in range(12)), groups
    # those with a caption stay
    assert set(finding.action.files) == {f"copy{i:02d}.png" for i in range(12)} and finding.action.kind == "leave_out"
    assert report.points["duplicates"] == 0


def test_different_pictures_are_no_copies(tmp_path: Path) -> None:
    """Among the 780 pairs of forty drawings on few backgrounds, which have much in common."""
    for i in range(40):
        faults.drawing(700 + i, 192).save(tmp_path / f"{i:02d}.png")
    assert not codes(check(tmp_path)) & {"same_file", "near_copy"}


def test_the_same_file_twice(folder: Path) -> None:
    for ending in ("png", "txt"):
        (folder / f"again.{ending}").write_bytes((folder / f"03.{ending}").read_bytes())
    report = check(folder)
    assert files(report, "same_file") == {"03.png", "again.png"} and not report.is_good
    [finding] = [finding for finding in report.findings if finding.code == "same_file"]
    assert finding.action.files == ("again.png",) and report.sentence() == "fix these first: 1 copy of a file that is there already"


@pytest.mark.parametrize("purpose", PURPOSES)
def test_too_few_and_too_many_for_the_purpose(folder: Path, purpose: str, monkeypatch) -> None:
    fewest, most = gallery_rules.AMOUNTS[purpose]
    assert ("too_few" in codes(check(folder, purpose=purpose))) == (fewest > 12)
    for name in list(folder.glob("*.png"))[2:]:
        name.unlink()
    report = check(folder, purpose=purpose)
    [finding] = [finding for finding in report.findings if finding.code == "too_few"]
    assert finding.severity == "fix" and finding.values == {"count": 2, "fewest": fewest, "most": most} and not report.is_good
    monkeypatch.setitem(gallery_rules.AMOUNTS, purpose, (1, 1))
    assert "too_many" in codes(check(folder, purpose=purpose))


def test_a_purpose_that_is_none(folder: Path) -> None:
    with pytest.raises(ValueError, match="purpose is 'cat' but must be one of any, "):
        check(folder, purpose="cat")


def test_one_background_too_often(tmp_path: Path) -> None:
    rng = random.Random(1)
    for i in range(12):
        picture = Image.new("RGB", (192, 160), (186, 190, 196)) if i < 9 else faults.photo(900 + i, 192, 160)
        picture.paste(faults.photo(800 + i, 80, 70), (rng.randint(40, 70), rng.randint(35, 55)))
        picture.save(tmp_path / f"{i:02d}.png")
    report = check(tmp_path)
    assert files(report, "same_background") == {f"{i:02d}.png" for i in range(9)}
    [finding] = [finding for finding in report.findings if finding.code == "same_background"]
    assert finding.values["percent"] == 75 and finding.severity == "look"
    assert [finding.severity for finding in check(tmp_path, purpose="style").findings if finding.code == "same_background"] == ["note"]


def test_one_framing_too_often(tmp_path: Path) -> None:
    """Sixteen objects of one size in the middle of different backgrounds; with other sizes and places nothing is said."""
    rng = random.Random(2)
    for name, box in (("same", lambda: (60, 50, 72, 60)), ("free", lambda: (rng.randint(0, 110), rng.randint(0, 90), rng.randint(30, 80), rng.randint(30, 70)))):
        (tmp_path / name).mkdir()
        for i in range(16):
            grey = rng.randint(30, 220)
            picture = Image.new("RGB", (192, 160), (grey, rng.randint(30, 220), 255 - grey))
            left, top, width, height = box()
            picture.paste(tuple((c + 128) % 256 for c in picture.getpixel((0, 0))), (left, top, left + width, top + height))
            picture.save(tmp_path / name / f"{i:02d}.png")
    assert len(files(check(tmp_path / "same"), "same_framing")) >= 15 and "same_framing" not in codes(check(tmp_path / "free"))


def test_the_same_logo_on_every_picture(tmp_path: Path) -> None:
    for i in range(12):
        faults.stamped(faults.photo(500 + i, 480, 360)).save(tmp_path / f"{i:02d}.png")
    report = check(tmp_path)
    [finding] = [finding for finding in report.findings if finding.code == "overlay"]
    assert finding.values["place"] == "bottom" and finding.severity == "fix" and "near the bottom edge" in report.sentence()


def test_sizes_and_shapes(folder: Path, pictures) -> None:
    pictures[0].resize((80, 66)).save(folder / "small.png")
    faults.photo(950, 600, 150).save(folder / "wide.png")
    report = check(folder)
    assert files(report, "small") == {"small.png"} and files(report, "extreme") == {"wide.png"}
    [finding] = [finding for finding in report.findings if finding.code == "small"]
    assert (finding.values["width"], finding.values["height"]) == (80, 66)


def test_a_strip_at_one_side_is_a_note(folder: Path, pictures) -> None:
    for i, box in enumerate(((0, 140, 192, 160), (0, 0, 24, 160))):
        copy = pictures[i].copy()
        copy.paste((250, 250, 250), box)
        copy.save(folder / f"{i:02d}.png")
    report = check(folder)
    assert files(report, "strip") == {"00.png", "01.png"} and report.is_good


CAPTIONS = {"no_caption": "", "praise_only": "masterpiece, best quality, (beautiful)", "short_caption": "sks, pot", "too_long": "sks, " + "a clay pot, " * 40}


def test_captions(folder: Path) -> None:
    for i, text in enumerate(CAPTIONS.values()):
        (folder / f"{i:02d}.txt").write_text(text)
    report = check(folder, trigger="sks", token_limit=LIMIT)
    for i, code in enumerate(CAPTIONS):
        assert files(report, code) == {f"{i:02d}.png"}, code
    assert files(report, "trigger_missing") == {"01.png"} | {f"{i:02d}.png" for i in range(4, 12)}
    [cut] = [finding for finding in report.findings if finding.code == "too_long"]
    end = cut.values["cuts"]["03.png"]
    assert CAPTIONS["too_long"].startswith(end) and end.endswith(cut.values["end"]) and cut.values["limit"] == LIMIT < cut.values["tokens"]
    assert f'it is cut after "... {cut.values["end"]}"' in report.text()
    # without a trigger word, what has no caption is trained on nothing
    assert [finding.severity for finding in check(folder).findings if finding.code == "no_caption"] == ["fix"]


def test_one_caption_for_many(folder: Path) -> None:
    for i in range(6):
        (folder / f"{i:02d}.txt").write_text("sks, a photo of the same pot")
    assert files(check(folder, trigger="sks"), "same_caption") == {f"{i:02d}.png" for i in range(6)}


@pytest.mark.parametrize("caption, code", [
    ("beautiful, masterpiece", "praise_only"), ("best quality, 8k, highly detailed", "praise_only"), ("杰作，最高质量", "praise_only"),
    ("a beautiful woman in a garden", None), ("masterpiece, a cat on a sofa", None), ("一只黑猫坐在窗台上", None), ("黑猫", "short_caption"),
    ("red car", "short_caption"), ("1girl, solo, smile", None)])
def test_praise_and_short_captions(folder: Path, caption: str, code: str | None) -> None:
    (folder / "00.txt").write_text(caption, encoding="utf-8")
    found = codes(check(folder, trigger="sks")) & {"praise_only", "short_caption"}
    assert found == ({code} if code else set())


def test_a_caption_beside_a_wrong_picture(folder: Path) -> None:
    """With similarities as CLIP gives them (0.15 to 0.35), of which two captions have changed places."""
    rng = np.random.default_rng(0)
    values = rng.normal(0.18, 0.015, (12, 12)) + rng.normal(0, 0.01, (12, 1)) + 0.09 * np.eye(12)
    values[[2, 7]] = values[[7, 2]]
    report = check(folder, similarity=lambda names, captions: values)
    assert files(report, "wrong_caption") == {"02.png", "07.png"}
    values = rng.normal(0.18, 0.015, (12, 12)) + 0.09 * np.eye(12)
    assert "wrong_caption" not in codes(check(folder, similarity=lambda names, captions: values))
    # all much alike: nothing can be told
    assert "wrong_caption" not in codes(check(folder, similarity=lambda names, captions: rng.normal(0.25, 0.02, (12, 12)) + 0.02 * np.eye(12)))
    with pytest.raises(RuntimeError, match="memory"):
        check(folder, similarity=_fails)


def _fails(names: list[str], captions: list[str]) -> np.ndarray:
    raise RuntimeError("out of memory")


def test_what_is_kept_of_a_check_is_used_and_a_damaged_file_is_not(folder: Path, monkeypatch) -> None:
    from hotlora.trainer.gallery_checks import looks

    cache, taken = folder.parent / "looks.npz", []
    first = check(folder, cache=cache)
    assert cache.is_file()
    monkeypatch.setattr(looks, "look_at", lambda path, most: taken.append(path.name) or looks.Look)
    again = check(folder, cache=cache)
    assert not taken and again.to_dict()["findings"] == first.to_dict()["findings"] and again.score == first.score
    monkeypatch.undo()
    cache.write_bytes(cache.read_bytes()[:2000])
    assert check(folder, cache=cache).score == first.score and len(looks.LookCache(cache).looks) == 12


def test_a_stop_keeps_what_was_measured(folder: Path) -> None:
    from hotlora.trainer.gallery_checks.looks import LookCache

    def stop(done: int, total: int) -> None:
        assert total == 12
        if done == 5:
            raise KeyboardInterrupt

    cache = folder.parent / "looks.npz"
    with pytest.raises(KeyboardInterrupt):
        check(folder, cache=cache, progress=stop)
    assert len(LookCache(cache).looks) >= 5


def test_every_finding_has_its_sentences_in_both_languages(folder: Path) -> None:
    rules = {code for code, *_ in picture_rules.RULES}
    assert rules <= set(texts.TEXTS)
    for code, entry in texts.TEXTS.items():
        assert set(entry) == set(texts.LANGUAGES) and all(len(entry[language]) == 3 and all(entry[language]) for language in texts.LANGUAGES), code
    (folder / "00.txt").write_text("masterpiece")
    report = check(folder, trigger="sks")
    english, chinese = report.text(), report.text("zh")
    assert len(english.splitlines()) == len(chinese.splitlines()) and "say what is to be seen" in english and "写出画面里有什么" in chinese
    assert report.score < 100 and (report.is_good == (report.score >= GOOD))


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 300), (300, 1), (4, 1)])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_picture_of_a_few_pixels_does_not_end_the_check(folder, size, suffix):
    """As a saved web page leaves them between the pictures."""
    Image.new("RGB", size, "red").save(folder / f"pixel.{suffix}")
    report = check(folder)
    assert report.pictures == 13 and files(report, "uniform") == {f"pixel.{suffix}"}


def test_a_picture_that_cannot_be_measured_does_not_end_the_check(folder: Path, monkeypatch, caplog) -> None:
    from hotlora.trainer.gallery_checks import looks

    look_at = looks.look_at
    monkeypatch.setattr(looks, "look_at", lambda path, most: look_at(path, most) if path.name != "03.png" else 1 / 0)
    report = check(folder)
    assert report.pictures == 12 and report.findings == [] and "03.png could not be measured" in caplog.text


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_grey_background_is_no_missing_part(folder: Path, pictures, suffix: str) -> None:
    for i, picture in enumerate(pictures):
        (folder / f"{i:02d}.png").unlink()
        paper = Image.new("RGB", (192, 160), (128, 128, 128))
        paper.paste(picture.resize((90 + i, 80)), (40, 30))
        paper.save(folder / f"{i:02d}.{suffix}", quality=95)
    assert "broken" not in codes(check(folder))


def test_the_lower_part_of_a_broken_download_is_missed(folder: Path, pictures) -> None:
    faults.broken(pictures[0], random.Random(1)).save(folder / "torn.jpg", quality=95)
    assert files(check(folder), "broken") == {"torn.jpg"}


def test_a_logo_is_told_from_chance_in_few_pictures() -> None:
    """Random pictures with a calm middle, whose median has large steps at their edges by chance; a mark on them is found."""
    for seed in range(5):
        grey_NTT = np.random.default_rng(seed).normal(128, 5.5, (8, THUMB, THUMB)).astype(np.uint8)
        grey_NTT[:, 20:-20, 20:-20] = 128
        assert overlay_of(grey_NTT) is None
        for i in range(5):
            grey_NTT[:, -14:-5, 50 + 7 * i:53 + 7 * i] = 250
        assert overlay_of(grey_NTT) == "bottom"


def overlay_of(grey_NTT: np.ndarray) -> str | None:
    return gallery_rules._overlay(SimpleNamespace(looks=[SimpleNamespace(grey_TT=grey_TT) for grey_TT in grey_NTT]), list(range(len(grey_NTT))))


def test_the_name_of_a_kohya_folder_is_its_pictures_caption(folder: Path) -> None:
    (folder / "10_sks dog").mkdir()
    for path in folder.glob("*.png"):
        path.rename(folder / "10_sks dog" / path.name)
    assert "no_caption" not in codes(check(folder)) and "short_caption" not in codes(check(folder))
    assert len(files(check(folder, trigger="rex"), "no_caption")) == 12, "a trigger takes the place of the folder's name"
    told = describe_gallery(str(folder))
    assert told["report"] == "12 pictures, 12 with a caption, 0 skipped" and all(one["warnings"] == [] for one in told["pictures"])
    assert {one["folder_caption"] for one in told["pictures"]} == {"sks dog"}
