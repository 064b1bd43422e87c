"""A headless Chromium on the real standalone server with the embedded base. Skipped where playwright or a Chromium is missing."""
from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest

from hotlora.tests.trainer.ui_server import UiServer

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
             "--disable-sync"]
PATIENCE = 240_000
"""Milliseconds that a test waits for what the trainer does; a page that is ready answers at once."""


def chromium() -> str | None:
    return os.environ.get("HOTLORA_CHROMIUM") or next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="session")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    path = chromium()
    if path is None:
        pytest.skip("no Chromium on the PATH; set HOTLORA_CHROMIUM to one")
    with playwright.sync_playwright() as running:
        started = running.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield started
        started.close()


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory):
    with UiServer(tmp_path_factory.mktemp("ui")) as server:
        yield server


@pytest.fixture
def server(tmp_path):
    """A server of this test's own, without any history."""
    with UiServer(tmp_path / "ui") as started:
        yield started


@pytest.fixture
def open_page(browser):
    """Open the page of a server in a browser profile of its own. Faults of the page and requests to other machines fail the test."""
    contexts, faults = [], []

    def open_(server: UiServer, path: str = "", context=None, **options):
        if context is None:
            context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, "locale": "en-US", **options})
            context.grant_permissions(["clipboard-read", "clipboard-write"])
            context.set_default_timeout(60_000)
            contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: request.url.startswith((server.url, "blob:", "data:")) or faults.append(f"asked for {request.url}"))
        page.goto(f"{server.url}/hotlora/{path}")
        page.wait_for_selector(".screen")
        return page

    yield open_
    for context in contexts:
        context.close()
    assert not faults, faults


def until(page, condition, patience: int = 60_000) -> None:
    """Wait for a function of Python, or for an expression of the page; its own content policy forbids playwright's way of waiting."""
    end = time.monotonic() + patience / 1000
    while not (page.evaluate(condition) if isinstance(condition, str) else condition()):
        assert time.monotonic() < end, f"it does not come: {condition}"
        page.wait_for_timeout(50)


def fill_form(page, folder: Path | str, name: str = "mascot", steps: int = 6, **more) -> None:
    """Fill in the form by its labels."""
    page.get_by_role("textbox", name="Pictures").or_(page.get_by_role("combobox", name="Pictures")).fill(str(folder))
    page.get_by_label("Name", exact=True).fill(name)
    page.get_by_label("Trigger word").fill("sks")
    set_advanced(page, {"steps": steps, "preview_steps": 0, **more})


def set_advanced(page, values: dict) -> None:
    page.locator("details.advanced > summary").click()
    search = page.get_by_role("searchbox", name="Search settings")
    for name, value in values.items():
        search.fill(name)
        page.locator(f"#hl-set-{name}").fill(str(value))
    search.fill("")
    page.locator("details.advanced > summary").click()


def status(page, word: str) -> None:
    """Wait until the run that is shown has a status."""
    page.locator(".run-head .badge", has_text=word).wait_for(timeout=PATIENCE)
