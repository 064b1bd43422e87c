"""The page inside the real ComfyUI's page: the sidebar tab, a training, and its LoRA in a graph, all by clicks and keys."""

import pytest

from hotlora.tests.hosts.comfy_server import ComfyServer, write_gallery, write_model
from hotlora.tests.hosts.page_steps import draw_with_and_without, inside_of, survive, train_from_an_empty_page
from hotlora.tests.web.conftest import browser, until  # noqa: F401  browser is a fixture
from hotlora.tests.web.screenshots import shot

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def comfy(tmp_path_factory):
    base = tmp_path_factory.mktemp("comfy")
    write_model(base)
    write_gallery(base)
    server = ComfyServer(base).start()
    server.post("/settings", {"Comfy.TutorialCompleted": True})   # else its list of templates covers everything
    yield server
    server.stop()


def open_tab(comfy, context):
    """ComfyUI's page with our sidebar tab open, and our page in it."""
    page = context.new_page()
    page.set_default_timeout(120_000)
    page.goto(f"http://127.0.0.1:{comfy.port}/")
    until(page, "Boolean(window.app?.extensionManager && window.app.graph)", 120_000)
    page.keyboard.press("Escape")
    page.locator(".hotlora-tab-button, [aria-label*='HotLoRA'], [aria-label='Train a LoRA']").first.click()
    page.locator("iframe[title=HotLoRA]").wait_for()
    return page, inside_of(page)


def test_from_an_empty_page_to_a_picture_and_into_a_graph(comfy, browser):  # noqa: F811
    page, inside = open_tab(comfy, browser.new_context(viewport={"width": 1600, "height": 900}, locale="en-US"))
    faults = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    # as dark as ComfyUI is
    assert inside.locator("html").get_attribute("data-theme") == "dark"
    train_from_an_empty_page(inside, sorted((comfy.base / "input" / "me").iterdir()), "page_lora")
    assert (comfy.loras / "page_lora.safetensors").is_file()
    page.evaluate("window.app.graph.clear()")   # the graph that is shown first wants models that are not here
    inside.get_by_role("button", name="Add a Prompt node").click()
    until(page, "window.app.graph._nodes.some((node) => node.type === 'HotLoRAPrompt')")
    values = page.evaluate("window.app.graph._nodes.find((node) => node.type === 'HotLoRAPrompt').widgets.map((one) => one.value)")
    assert "<lora:page_lora:0.8>, sks" in values
    inside.evaluate("window.scrollTo(0, 0)")
    shot(page, "comfyui")
    page.get_by_role("button", name="Open large").click()
    page.locator("dialog iframe[title=HotLoRA]").wait_for()
    large = inside_of(page)
    draw_with_and_without(large, "page_lora")
    page.get_by_role("button", name="Close", exact=True).last.click()
    page.locator("dialog iframe[title=HotLoRA]").wait_for(state="detached")
    assert not [fault for fault in faults if "hotlora" in fault.lower()], faults


def test_a_run_outlives_its_page_and_its_server(comfy, browser):  # noqa: F811
    context = browser.new_context(viewport={"width": 1600, "height": 900}, locale="en-US")

    def restart():
        comfy.kill()
        comfy.start(port=comfy.port)

    survive(lambda: open_tab(comfy, context), comfy.base / "input" / "me", comfy.loras / "outlives.safetensors", restart)
    context.close()
