"""The page inside the real ComfyUI's page: the sidebar tab, a training, and its LoRA in a graph, all by clicks and keys."""
import pytest

from hotlora.tests.hosts.comfy_server import ComfyServer, write_gallery, write_model
from hotlora.tests.web.conftest import PATIENCE, browser, set_advanced, status, until  # noqa: F401  browser is a fixture

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


def test_train_in_the_sidebar_and_use_it_in_a_graph(comfy, browser, tmp_path):  # noqa: F811
    page = browser.new_context(viewport={"width": 1600, "height": 900}, locale="en-US").new_page()
    page.set_default_timeout(120_000)
    faults = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(f"http://127.0.0.1:{comfy.port}/")
    until(page, "Boolean(window.app?.extensionManager && window.app.graph)", 120_000)
    page.keyboard.press("Escape")
    page.locator(".hotlora-tab-button, [aria-label*='HotLoRA'], [aria-label='Train a LoRA']").first.click()
    page.locator("iframe[title=HotLoRA]").wait_for()
    until(page, lambda: any("/hotlora/" in frame.url for frame in page.frames))
    inside = next(frame for frame in page.frames if "/hotlora/" in frame.url)
    inside.locator("h1", has_text="Train a LoRA").wait_for()
    # as dark as ComfyUI is
    assert inside.locator("html").get_attribute("data-theme") == "dark"
    inside.locator("input[list=hl-folders]").fill(str(comfy.base / "input" / "me"))
    inside.get_by_label("Name", exact=True).fill("page_lora")
    inside.get_by_label("Trigger word").fill("sks")
    set_advanced(inside, {"steps": 2, "resolution": 64, "preview_steps": 0, "lora_rank": 2})
    inside.get_by_text("4 pictures, 2 steps").wait_for()
    inside.get_by_role("button", name="Train", exact=True).click()
    status(inside, "completed")
    assert (comfy.loras / "page_lora.safetensors").is_file()
    page.screenshot(path=str(tmp_path / "comfyui.png"))
    inside.get_by_role("button", name="Add a Prompt node").click()
    until(page, "window.app.graph._nodes.some((node) => node.type === 'HotLoRAPrompt')")
    values = page.evaluate("window.app.graph._nodes.find((node) => node.type === 'HotLoRAPrompt').widgets.map((one) => one.value)")
    assert "<lora:page_lora:0.8>, sks" in values
    page.get_by_role("button", name="Open large").click()
    page.locator("dialog iframe[title=HotLoRA]").wait_for()
    page.get_by_role("button", name="Close", exact=True).last.click()
    page.locator("dialog iframe[title=HotLoRA]").wait_for(state="detached")
    assert not [fault for fault in faults if "hotlora" in fault.lower()], faults
