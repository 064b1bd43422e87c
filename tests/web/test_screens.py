"""From 12 pictures to a LoRA that can be seen, on the embedded base, in both languages at once; HOTLORA_SCREENSHOTS=1 writes the READMEs' pictures."""
import io
import os
import tempfile
import urllib.parse
from pathlib import Path

import pytest
from PIL import Image

from hotlora.tests.trainer.ui_server import UiServer
from hotlora.tests.web.screenshots import shot
from hotlora.trainer.demo.judge import shows_mascot
from hotlora.trainer.demo.run_demo import GALLERY_DIR

from .conftest import PATIENCE, set_advanced, until

pytestmark = pytest.mark.slow
LANGUAGES = {"en": "en-US", "zh": "zh-CN"}
PROMPTS = "a photo of sks on a white background\na photo of sks on a black background\na red star on a beige background"
LONG = 30 * 60_000


def shots(pages: dict, screen: str) -> None:
    """The screen in each language as the READMEs show it; HOTLORA_SCREENSHOTS=all adds dark and narrow ones to look at."""
    for language, page in pages.items():
        page.mouse.move(0, 0)
        while page.locator(".toast").count():
            page.locator(".toast .icon-button").first.click()
        shot(page, f"{screen}-{language}")
        if os.environ.get("HOTLORA_SCREENSHOTS") == "all":
            page.emulate_media(color_scheme="dark")
            shot(page, f"{screen}-{language}-dark")
            page.set_viewport_size({"width": 380, "height": 900})
            shot(page, f"{screen}-{language}-380", full_page=True)
            page.emulate_media(color_scheme="light")
            page.set_viewport_size({"width": 1280, "height": 860})


def go(pages: dict, screen: str, selector: str) -> None:
    for page in pages.values():
        page.evaluate("screen => { location.hash = `#/${screen}`; }", screen)
        page.locator(selector).first.wait_for(timeout=LONG)
        page.evaluate("window.scrollTo(0, 0)")


def drawn(server, page) -> list[Image.Image]:
    """The newest drawing's pictures in the order of its columns."""
    sources = page.evaluate("[...document.querySelector('.drawing').querySelectorAll('img')].map((one) => one.src)")
    return [Image.open(io.BytesIO(server.request("GET", source.removeprefix(server.url))[1])).convert("RGB") for source in sources]


@pytest.fixture
def server():
    """In a folder whose name is short, as it is in the pictures."""
    with tempfile.TemporaryDirectory(prefix="hotlora-", ignore_cleanup_errors=True) as folder, UiServer(Path(folder)) as started:
        yield started


def test_from_pictures_to_a_lora_that_can_be_seen(server, open_page):
    pages = {language: open_page(server, viewport={"width": 1280, "height": 860}, locale=locale) for language, locale in LANGUAGES.items()}
    page = pages["en"]
    page.get_by_label("Name", exact=True).fill("mascot")
    page.locator(".dropzone input[type=file]").set_input_files(sorted(map(str, GALLERY_DIR.iterdir())))
    page.get_by_text("12 pictures, 12 with a caption.").wait_for()
    page.get_by_label("Trigger word").fill("sks")
    page.get_by_role("radio", name="Object").check()
    set_advanced(page, {"preview_prompts": PROMPTS})
    folder = page.evaluate("JSON.parse(localStorage['hotlora.form']).folder")
    form = page.evaluate("localStorage['hotlora.form']")
    pages["zh"].evaluate("form => { localStorage['hotlora.form'] = form; }", form)
    pages["zh"].reload()
    for one in pages.values():
        one.locator(".told strong").wait_for()
    page.get_by_role("button", name="Train", exact=True).click()

    go(pages, "run", ".preview-grid tbody tr:nth-child(4)")
    shots(pages, "run")
    page.locator(".run-head .badge", has_text="completed").wait_for(timeout=LONG)
    assert server.get("jobs")["jobs"][0]["total_steps"] == 360

    go(pages, "train", ".preview-grid img")
    shots(pages, "train")
    go(pages, "gallery", ".cell")
    for one in pages.values():
        one.locator(".gallery-bar input[type=checkbox]").first.uncheck()
        until(one, "[...document.querySelectorAll('.cell .thumbnail')].every((one) => one.dataset.state === 'shown')")
    shots(pages, "gallery")

    # the same seed without it and with more and more of it
    go(pages, "try", "#hl-try")
    page.get_by_role("textbox", name="Prompt", exact=True).fill("a photo of sks on a gray background")
    page.get_by_role("radio", name="Weights").check()
    page.get_by_role("button", name="Draw", exact=True).click()
    until(page, "document.querySelectorAll('.drawing img').length === 6", PATIENCE)
    pictures = drawn(server, page)
    assert not shows_mascot(pictures[0]), "the base alone draws it"
    assert sum(map(shows_mascot, pictures[2:])) >= 2, "the LoRA cannot be seen"
    page.get_by_role("radio", name="Saved steps").check()
    page.get_by_role("button", name="Draw", exact=True).click()
    for one in pages.values():
        until(one, "document.querySelectorAll('.drawing img').length >= 6 + 16", PATIENCE)
        one.get_by_role("radio").nth(2).check()
        one.locator(".drawing img").last.scroll_into_view_if_needed()
        until(one, "[...document.querySelectorAll('.drawing img')].every((image) => image.naturalWidth > 0)")
        one.evaluate("window.scrollTo(0, 0)")
    shots(pages, "try")

    # a second run for the history, and both curves
    settings = {"train_data_dir": folder, "name": "mascot_quick", "trigger": "sks", "steps": 60, "preview_steps": 30, "preview_prompts": PROMPTS.split("\n")[:1]}
    server.until(server.post("jobs", {"settings": settings, "preset": "quick"})["id"], "completed", seconds=600)
    long = server.post("jobs", {"settings": {**settings, "name": "mascot_thorough", "steps": 100_000, "preview_steps": 0}, "preset": "best"})["id"]
    server.post("jobs", {"settings": {**settings, "name": "another_style", "steps": 1000}, "preset": "balanced"})
    server.until(long, "running", step=20)
    go(pages, "runs", "#hl-history")
    for one in pages.values():
        for i in range(2):
            one.locator("[aria-labelledby=hl-history] .job-row").nth(i).locator("button[aria-pressed]").click()
        one.locator(".loss canvas").wait_for()
        one.evaluate("window.scrollTo(0, 0)")
    shots(pages, "runs")
    server.post(f"jobs/{long}/stop")
    assert urllib.parse.urlsplit(page.url).fragment == "/runs"
