"""What both hosts' pages are taken through, by clicks and keys alone; `inside` is the frame that holds HotLoRA's page."""
from __future__ import annotations

from pathlib import Path
from typing import Callable

from hotlora.tests.web.conftest import PATIENCE, set_advanced, status, until


def inside_of(page):
    """The frame of HotLoRA's page once it is there."""
    until(page, lambda: any("/hotlora/" in frame.url for frame in page.frames), 60_000)
    inside = next(frame for frame in page.frames if "/hotlora/" in frame.url)
    inside.locator("h1", has_text="Train a LoRA").wait_for()
    return inside


def train_from_an_empty_page(inside, pictures: list[Path], name: str) -> None:
    """Pictures and captions from the user's machine, a name, two steps."""
    inside.get_by_text("Drop pictures or a whole folder here").wait_for()
    inside.locator(".dropzone input[type=file]").set_input_files([str(path) for path in pictures])
    inside.get_by_text("4 pictures, 4 with a caption.").wait_for()
    inside.get_by_label("Name", exact=True).fill(name)
    inside.get_by_label("Trigger word").fill("sks")
    set_advanced(inside, {"steps": 2, "resolution": 64, "preview_steps": 0, "lora_rank": 2, "learning_rate": 0.05})
    inside.get_by_text("4 pictures, 2 steps").wait_for()
    inside.get_by_role("button", name="Train", exact=True).click()
    status(inside, "completed")


def draw_with_and_without(inside, name: str) -> None:
    """Two pictures by the host's sampler on the screen Try, and they differ."""
    inside.get_by_role("link", name="Try", exact=True).click()
    assert inside.get_by_role("combobox", name="LoRA").input_value() == name
    inside.get_by_text("Seed, steps, size, negative prompt").click()
    for label, value in (("Sampler steps", "2"), ("Width", "64"), ("Height", "64")):
        inside.get_by_label(label, exact=True).fill(value)
    inside.get_by_role("button", name="Draw", exact=True).click()
    until(inside, "document.querySelectorAll('.drawing img').length === 2", PATIENCE)
    inside.locator(".drawing img").first.scroll_into_view_if_needed()
    until(inside, "[...document.querySelectorAll('.drawing img')].every((one) => one.naturalWidth === 64)")
    assert inside.evaluate("""async () => {
      const texts = await Promise.all([...document.querySelectorAll(".drawing img")].map(async (one) => (await (await fetch(one.src)).blob()).text()));
      return texts[0] !== texts[1];
    }""")


def survive(open_tab: Callable, gallery: Path, lora: Path, restart: Callable[[], None]) -> None:
    """A run outlives a page that is closed, is the same in two tabs, and goes on after its server was killed; what was typed stays.

    `open_tab()` gives a page and HotLoRA's frame in it, `restart()` kills the server and starts it again at the same address.
    """
    page, inside = open_tab()
    inside.locator("input[list=hl-folders]").fill(str(gallery))
    inside.get_by_label("Name", exact=True).fill(lora.stem)
    inside.get_by_label("Trigger word").fill("sks")
    set_advanced(inside, {"steps": 100_000, "resolution": 64, "preview_steps": 0, "save_steps": 2, "lora_rank": 2})
    inside.get_by_text("4 pictures, 100,000 steps").wait_for()
    inside.get_by_role("button", name="Train", exact=True).click()
    status(inside, "running")
    page.close()
    page, inside = open_tab()
    status(inside, "running")
    other_page, other = open_tab()
    other.get_by_role("button", name="Pause").click()
    status(inside, "paused")
    inside.get_by_role("button", name="Resume").click()
    status(other, "running")
    other_page.close()
    inside.locator(".run .button[title*='<lora:']").wait_for(timeout=PATIENCE)   # a step was saved by now
    restart()
    inside.get_by_label("Name", exact=True).fill("typed meanwhile")
    status(inside, "interrupted")
    inside.get_by_role("button", name="Resume").click()
    status(inside, "running")
    inside.get_by_role("button", name="Stop and keep").click()
    status(inside, "stopped")
    assert lora.is_file()
    assert inside.get_by_label("Name", exact=True).input_value() == "typed meanwhile"
