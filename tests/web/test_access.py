"""Everybody can use it: axe-core finds nothing serious, themes are followed, nothing is wider than a sidebar."""
from pathlib import Path

import pytest

from .conftest import until

SCREENS = ["#/train", "#/gallery", "#/run", "#/try", "#/runs"]


@pytest.fixture(scope="module")
def filled(shared_server, tmp_path_factory):
    """The shared server with a gallery and a finished run."""
    import random

    from hotlora.trainer.demo import drawings

    folder = tmp_path_factory.mktemp("pictures")
    for i in range(3):
        drawings.draw_mascot(random.Random(i), "white").save(folder / f"{i}.png")
    (folder / "0.txt").write_text("a photo of sks, round")
    (folder / "broken.png").write_bytes(b"no picture")
    job = shared_server.post("jobs", {"settings": {"train_data_dir": str(folder), "name": "shown", "trigger": "sks", "steps": 2, "resolution": 64,
                                                   "preview_steps": 1, "save_steps": 1}})
    shared_server.until(job["id"], "completed")
    return folder


def open_filled(shared_server, open_page, folder, **options):
    page = open_page(shared_server, **options)
    page.locator("input[list=hl-folders]").fill(str(folder))
    page.locator(".strip img").first.wait_for()
    return page


def show(page, screen: str) -> None:
    """A screen with all that can be folded out."""
    page.evaluate("screen => { location.hash = screen; }", screen)
    page.locator(f".screen-{screen[2:]}").wait_for()
    page.locator(".screen h1, .screen h2, .run").first.wait_for()
    if screen == "#/gallery":
        page.locator(".cell").nth(2).wait_for()
    if screen in ("#/train", "#/run"):
        page.locator(".loss canvas").wait_for()
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    until(page, "!document.querySelector('main [aria-busy=true]')")


@pytest.mark.parametrize("screen", SCREENS)
def test_axe_finds_nothing_serious(shared_server, open_page, filled, screen):
    axe = Path(pytest.importorskip("axe_playwright_python", reason="axe is not installed: pip install axe-playwright-python").__file__).parent / "axe.min.js"
    page = open_filled(shared_server, open_page, filled)
    show(page, screen)
    page.evaluate(axe.read_text(encoding="utf-8"))
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
        serious = [f"{scheme}: {one['id']}: {one['help']}: {node['html'][:200]}" for one in found["violations"] if one["impact"] in ("serious", "critical")
                   for node in one["nodes"]]
        assert not serious, "\n".join(serious)


@pytest.mark.parametrize("language", ["en-US", "zh-CN"])
def test_nothing_is_wider_than_the_window(shared_server, open_page, filled, language):
    page = open_filled(shared_server, open_page, filled, locale=language)
    for screen in SCREENS:
        show(page, screen)
        for width in (380, 1600):
            page.set_viewport_size({"width": width, "height": 800})
            until(page, f"innerWidth === {width}")
            assert page.evaluate("document.documentElement.scrollWidth") <= width, (screen, width)


def test_nothing_is_wider_before_the_page_has_measured_its_new_width(shared_server, browser, open_page, filled):
    """A page that never learns of the change stands for each moment before it does, on a machine however slow."""
    context = browser.new_context(viewport={"width": 1600, "height": 800})
    context.set_default_timeout(60_000)
    context.add_init_script("window.ResizeObserver = class { observe() {} disconnect() {} };")
    try:
        page = open_filled(shared_server, open_page, filled, context=context)
        for screen in SCREENS:
            page.set_viewport_size({"width": 1600, "height": 800})
            until(page, "innerWidth === 1600")
            show(page, screen)
            page.set_viewport_size({"width": 380, "height": 800})
            until(page, "innerWidth === 380")
            assert page.evaluate("document.documentElement.scrollWidth") <= 380, screen
    finally:
        context.close()


def background(page) -> float:
    """How light the page is, from 0 to 1."""
    red, green, blue = map(float, page.evaluate("getComputedStyle(document.querySelector('.card')).backgroundColor.match(/[\\d.]+/g).slice(0, 3)"))
    return (red + green + blue) / 765


def test_themes_of_the_system_and_of_the_address(shared_server, open_page):
    assert background(open_page(shared_server, color_scheme="light")) > 0.8
    assert background(open_page(shared_server, color_scheme="dark")) < 0.3
    assert background(open_page(shared_server, "?__theme=dark", color_scheme="light")) < 0.3
    assert background(open_page(shared_server, "?theme=light", color_scheme="dark")) > 0.8


def test_every_form_control_is_reached_by_tab_alone(shared_server, open_page):
    page = open_page(shared_server)
    seen = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("(document.activeElement.innerText || document.activeElement.name || document.activeElement.placeholder || '').trim()"))
    assert {"Add pictures", "Train", "Gallery", "Advanced", "hl-preset"} <= seen, seen
