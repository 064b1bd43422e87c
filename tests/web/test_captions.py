"""Captions by a model and the gallery check in a real browser, on the real server with models of the real classes in its model folder."""
from __future__ import annotations

import shutil

import pytest
from PIL import Image

from hotlora.tests.trainer.captions.small_models import blip_folder
from hotlora.tests.trainer.ui_server import UiServer
from hotlora.trainer.captions.writing import write_new
from hotlora.trainer.captions.metadata import read_metadata
from hotlora.trainer.left_out import left_out

from .conftest import until

BLIP = "Salesforce/blip-image-captioning-base"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    blip_folder(folder / "captioners" / BLIP.split("/")[1])
    return folder


@pytest.fixture(scope="module")
def captioner(tmp_path_factory, models):
    """A server with a BLIP in its model folder, and with no network to download from."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        patch.setenv("HF_HUB_CACHE", str(models / "no hub"))
        with UiServer(tmp_path_factory.mktemp("captioner"), "--models-dir", str(models)) as server:
            yield server


@pytest.fixture
def open_gallery(captioner, open_page):
    def open_(folder, trigger: str = "", subject: str = "", **options):
        page = open_page(captioner, **options)
        page.locator("input[list=hl-folders]").fill(str(folder))
        if trigger:
            page.get_by_label("Trigger word").fill(trigger)
        if subject:
            page.get_by_role("radio", name=subject).check()
        page.locator(".strip img").first.wait_for()
        page.goto(f"{captioner.url}/hotlora/#/gallery")
        page.locator(".cell").first.wait_for()
        return page

    return open_


@pytest.fixture
def bare(gallery):
    """Five pictures without captions and one with a person's."""
    for i in range(1, 6):
        (gallery / f"{i}.txt").unlink()
    return gallery


def captions(page) -> list[str]:
    return [one.input_value() for one in page.locator(".cell textarea").all()]


def score(page) -> int:
    page.locator(".checks[aria-busy=false] .score strong").wait_for()
    return int(page.locator(".score strong").inner_text())


def test_captions_are_written_shown_marked_and_undone(open_gallery, bare):
    page = open_gallery(bare, trigger="zzz")
    page.get_by_role("button", name="Write captions").first.click()
    dialog = page.get_by_role("dialog", name="Write captions")
    dialog.get_by_text("5 pictures have no caption. New ones go into .txt files.").wait_for()
    assert dialog.get_by_label("Model", exact=True).input_value() == "blip-base" and dialog.get_by_label("Trigger word").input_value() == "zzz"
    dialog.get_by_role("button", name="Write captions").click()
    page.get_by_text("5 captions written by Salesforce/blip-image-captioning-base.").wait_for()
    until(page, "[...document.querySelectorAll('.cell textarea')].every((one) => one.value)")
    shown = captions(page)
    assert shown[0].startswith("a photo of sks") and all(text.startswith("zzz") for text in shown[1:])
    assert page.locator(".cell .automatic").count() == 5 and (bare / "3.txt").read_text() == shown[3]
    # one that is changed is the user's
    page.get_by_label("Caption of 3.png").fill("my own words")
    page.locator(".save-state", has_text="Captions saved").wait_for()
    until(page, "document.querySelectorAll('.cell .automatic').length === 4")
    page.get_by_role("button", name="Take out 4 automatic captions").click()
    until(page, "[...document.querySelectorAll('.cell textarea')].filter((one) => one.value).length === 2")
    assert (bare / "3.txt").read_text() == "my own words" and not (bare / "2.txt").exists()
    assert (bare / "0.txt").read_text().startswith("a photo of sks")


def test_what_has_to_be_downloaded_is_said_before_and_a_missing_network_after(open_gallery, bare, models):
    page = open_gallery(bare)
    page.get_by_role("button", name="Write captions").first.click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Model", exact=True).select_option("blip-large")
    target = str(models / "captioners" / "blip-image-captioning-large")
    dialog.get_by_text(f"1.88 GB are downloaded once from Hugging Face into {target}").wait_for()
    assert not (models / "captioners" / "blip-image-captioning-large").exists()
    dialog.get_by_role("button", name="Download 1.88 GB and write captions").click()
    page.locator(".captioning.failed", has_text="could not be downloaded").wait_for()
    assert target in page.locator(".captioning.failed").inner_text()
    page.locator(".captioning").get_by_role("button", name="Close").click()
    assert captions(page)[1:] == [""] * 5


def test_a_stop_keeps_what_is_done(open_gallery, tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(250):
        Image.effect_noise((64, 64), 60 + i % 60).convert("RGB").save(folder / f"{i:03d}.png")
    for i in range(250, 3000):
        shutil.copy(folder / f"{i % 250:03d}.png", folder / f"{i:04d}.png")
    page = open_gallery(folder)
    page.get_by_role("button", name="Write captions").first.click()
    page.get_by_role("dialog").get_by_role("button", name="Write captions").click()
    page.locator(".captioning", has_text="Writing captions: ").wait_for()
    until(page, lambda: (folder / "metadata.csv").exists())
    page.get_by_role("button", name="Stop and keep").click()
    page.locator(".captioning", has_text="still missing").wait_for()
    done = len(read_metadata(folder / "metadata.csv"))
    assert 0 < done < 3000 and f"Stopped: {done} written" in page.locator(".captioning").inner_text()


def test_captions_for_the_selected_only(open_gallery, bare):
    page = open_gallery(bare)
    page.locator(".thumb").nth(2).click()
    page.get_by_role("button", name="Write captions").first.click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_text("For the 1 chosen picture").wait_for()
    dialog.get_by_role("button", name="Write captions").click()
    page.get_by_text("1 caption written by").wait_for()
    until(page, lambda: (bare / "2.txt").exists())
    assert not (bare / "1.txt").exists()


def test_the_check_shows_its_findings_on_the_pictures_and_leaves_out_at_a_click(open_gallery, gallery, captioner):
    shutil.copy(gallery / "0.png", gallery / "copy.png")
    Image.new("RGB", (64, 64), (90, 90, 90)).save(gallery / "grey.png")
    page = open_gallery(gallery, trigger="sks", subject="Object")
    before = score(page)
    page.locator(".verdict", has_text="fix these first").wait_for()
    assert page.locator(".checks .parts li").count() == 5
    copies = page.locator(".finding", has_text="1 copy of a file that is there already")
    assert "counts double" in copies.inner_text() and "leave the copies out" in copies.inner_text()
    assert "almost of one colour" in page.locator(".cell", has=page.get_by_label("Caption of grey.png")).locator(".warn").get_attribute("title")
    copies.get_by_role("button", name="Show 2").click()
    page.locator(".gallery-bar", has_text="2 of 8 pictures").wait_for()
    page.locator(".gallery-bar .chip").click()
    page.locator(".gallery-bar", has_text="8 pictures").wait_for()
    copies.get_by_role("button", name="leave out").click()
    copies.wait_for(state="detached")
    assert left_out(gallery) == {"copy.png"} and (gallery / "copy.png").exists()
    assert score(page) > before
    cell = page.locator(".cell", has=page.get_by_label("Caption of copy.png"))
    assert "left-out" in cell.get_attribute("class")
    assert captioner.post("jobs/plan", {"settings": {"train_data_dir": str(gallery)}})["pictures"] == 7
    cell.get_by_role("button", name="left out").click()
    copies.wait_for()
    assert left_out(gallery) == set()
    # the same by selection, and undone from the message; the message of before must be gone
    page.get_by_role("button", name="Undo").wait_for(state="detached")
    page.locator(".thumb").nth(0).click()
    page.locator(".gallery-bar").get_by_role("button", name="Leave out").click()
    until(page, lambda: left_out(gallery) == {"0.png"})
    page.get_by_role("button", name="Undo").click()
    until(page, lambda: left_out(gallery) == set())


def test_the_check_offers_captions_and_the_trigger(open_gallery, bare):
    (bare / "1.txt").write_text("round, on a white table")
    write_new(bare, {bare / "2.png": "zwx, a cup on grass"}, "model", "any", trigger="zwx")
    page = open_gallery(bare, trigger="sks")
    score(page)
    page.locator(".finding", has_text="2 pictures whose caption lacks the trigger word sks").get_by_role("button", name="add the trigger word").click()
    until(page, lambda: (bare / "1.txt").read_text() == "sks, round, on a white table")
    until(page, lambda: (bare / "2.txt").read_text() == "sks, a cup on grass")
    page.locator(".finding", has_text="3 pictures without a caption").get_by_role("button", name="make captions").click()
    page.get_by_role("dialog").get_by_text("For the 3 chosen pictures").wait_for()


def test_the_check_in_chinese_and_usable_by_keys_and_readers(open_gallery, bare):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python")
    page = open_gallery(bare, locale="zh-CN")
    score(page)
    assert "张图没有描述" in page.locator(".findings").inner_text() and "请先处理" in page.locator(".verdict").inner_text()
    assert axe.Axe().run(page, context=".checks").violations_count == 0
    page.get_by_role("button", name="自动描述").click()
    page.get_by_role("dialog").get_by_text("5 张图片没有描述。新的描述写入 各图片的 .txt 文件。").wait_for()
    found = axe.Axe().run(page, context=".asking")
    assert found.violations_count == 0, found.generate_report()
    page.keyboard.press("Escape")
    page.get_by_role("dialog").wait_for(state="detached")


def test_findings_of_each_kind_look_alike_and_a_narrow_page_shows_them_whole(open_gallery, bare):
    page = open_gallery(bare, trigger="zork", viewport={"width": 360, "height": 640})
    score(page)
    assert page.locator(".finding.note").count() and page.locator(".finding:not(.note)").count()
    paddings = page.evaluate("[...document.querySelectorAll('.finding')].map((one) => getComputedStyle(one).padding)")
    assert len(set(paddings)) == 1, paddings
    assert page.evaluate("(() => { const all = document.querySelector('.findings'); return all.scrollHeight <= all.clientHeight; })()")


def test_the_plan_says_what_would_be_written(captioner, open_page, bare):
    page = open_page(captioner)
    page.locator("input[list=hl-folders]").fill(str(bare))
    page.locator(".told", has_text="First blip-image-captioning-base writes 5 captions that are missing, into .txt files of the folder").wait_for()
    assert not (bare / "1.txt").exists()
