"""The page inside the real ComfyUI's page: the sidebar tab, a training, and its LoRA in a graph, all by clicks and keys."""
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from hotlora.tests.hosts.comfy_server import ROOT, ComfyServer, ended, error_of, write_gallery, write_model
from hotlora.tests.hosts.page_steps import draw_with_and_without, inside_of, survive, train_from_an_empty_page
from hotlora.tests.web.conftest import PATIENCE, browser, until  # noqa: F401  browser is a fixture
from hotlora.tests.web.screenshots import shot

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def comfy(tmp_path_factory):
    base = tmp_path_factory.mktemp("comfy")
    if os.environ.get("HOTLORA_SCREENSHOTS"):   # nodes show where files are
        base = Path(tempfile.gettempdir()) / "ComfyUI"
        shutil.rmtree(base, ignore_errors=True)
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


def open_template(page, name: str) -> None:
    """By clicks, from the button in the sidebar to the graph; the card has a picture, and all nodes of the graph are known."""
    page.get_by_role("button", name="Templates", exact=True).click()
    page.get_by_role("dialog").get_by_text("hotlora", exact=True).click()
    card = page.get_by_test_id(f"template-workflow-{name}")
    card.wait_for()
    until(page, lambda: card.locator("img").first.evaluate("image => image.naturalWidth > 100"))
    card.click()
    page.get_by_test_id("template-workflows-content").wait_for(state="detached")
    until(page, "window.app.graph._nodes.some((node) => node.type.startsWith('HotLoRA'))")
    assert page.evaluate("window.app.graph._nodes.filter((node) => !(node.type in window.LiteGraph.registered_node_types)).length") == 0


def set_widgets(page, values: dict) -> None:
    """Values of widgets, by the type of the node."""
    page.evaluate("""(values) => {
        for (const node of window.app.graph._nodes)
            for (const [name, value] of Object.entries(values[node.type] ?? {}))
                node.widgets.find((one) => one.name === name).value = value;
    }""", values)


@pytest.fixture
def model_of_the_templates(comfy):
    """A checkpoint with the name that the example graphs have."""
    path = comfy.base / "models" / "checkpoints" / "model.safetensors"
    os.link(path.with_name("random.safetensors"), path)
    yield
    path.unlink()


def test_the_example_graphs_open_from_the_templates_and_the_first_trains_and_draws(comfy, browser, model_of_the_templates):  # noqa: F811
    page = browser.new_context(viewport={"width": 1742, "height": 770}, locale="en-US").new_page()
    page.set_default_timeout(120_000)
    page.goto(f"http://127.0.0.1:{comfy.port}/")
    until(page, "Boolean(window.app?.extensionManager && window.app.graph)", 120_000)
    for name in ("Prompt with a LoRA", "Compare weights and steps", "Train and test"):
        open_template(page, name)
    set_widgets(page, {"HotLoRAGallery": {"folder": "me"}, "HotLoRATrain": {"name": "by_template", "steps": 20, "resolution": 64},
                       "EmptyLatentImage": {"width": 128, "height": 128}, "KSampler": {"steps": 4}})
    done = len(comfy.get("/history"))
    page.get_by_test_id("queue-button").click()
    until(page, lambda: len(comfy.get("/history")) > done, PATIENCE)
    entry = list(comfy.get("/history").values())[-1]
    assert ended(entry) == "success", error_of(entry)
    assert (comfy.loras / "by_template.safetensors").is_file()
    # the nodes show what came of it: the pictures of the gallery, the loss, the picture that was drawn, and the report
    until(page, "window.app.graph._nodes.filter((node) => node.imgs?.length).length === 3")
    told = page.evaluate("window.app.graph._nodes.find((node) => node.type === 'HotLoRATrain').widgets.find((one) => one.name === 'hotlora_text').value")
    assert "completed 20 steps" in told
    page.keyboard.press("Escape")
    page.locator("canvas#graph-canvas").click(position={"x": 900, "y": 740})
    page.keyboard.press(".")
    shot(page, "Train and test", width=1742, folder=ROOT / "example_workflows")


def test_a_run_outlives_its_page_and_its_server(comfy, browser):  # noqa: F811
    context = browser.new_context(viewport={"width": 1600, "height": 900}, locale="en-US")

    def restart():
        comfy.kill()
        comfy.start(port=comfy.port)

    survive(lambda: open_tab(comfy, context), comfy.base / "input" / "me", comfy.loras / "outlives.safetensors", restart)
    context.close()
