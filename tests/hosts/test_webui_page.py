"""The page in the tab of the real stable-diffusion-webui: a training, and its LoRA in the txt2img prompt, all by clicks and keys."""
import pytest

from hotlora.tests.hosts.test_webui import write_gallery
from hotlora.tests.hosts.webui_server import WebuiServer, write_model
from hotlora.tests.web.conftest import browser, set_advanced, status, until  # noqa: F401  browser is a fixture

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def webui(tmp_path_factory):
    base = tmp_path_factory.mktemp("webui")
    write_model(base)
    write_gallery(base / "me")
    server = WebuiServer(base, settings={"sd_model_checkpoint": "random.safetensors"}).start()
    yield server
    server.stop()


def test_train_in_the_tab_and_try_in_txt2img(webui, browser, tmp_path):  # noqa: F811
    page = browser.new_context(viewport={"width": 1600, "height": 1000}, locale="en-US").new_page()
    page.set_default_timeout(180_000)
    page.goto(f"{webui.url}/?__theme=dark")
    page.locator("#txt2img_prompt textarea").wait_for()
    page.locator("#txt2img_prompt textarea").fill("a castle")
    page.get_by_role("tab", name="HotLoRA").or_(page.locator("#tabs > .tab-nav button", has_text="HotLoRA")).first.click()
    until(page, lambda: any("/hotlora/" in frame.url for frame in page.frames), 60_000)
    inside = next(frame for frame in page.frames if "/hotlora/" in frame.url)
    inside.locator("h1", has_text="Train a LoRA").wait_for()
    assert inside.locator("html").get_attribute("data-theme") == "dark"
    inside.locator("input[list=hl-folders]").fill(str(webui.base / "me"))
    inside.get_by_label("Name", exact=True).fill("tab_lora")
    inside.get_by_label("Trigger word").fill("sks")
    set_advanced(inside, {"steps": 2, "resolution": 64, "preview_steps": 0, "lora_rank": 2})
    inside.get_by_text("4 pictures, 2 steps").wait_for()
    inside.get_by_role("button", name="Train", exact=True).click()
    status(inside, "completed")
    page.screenshot(path=str(tmp_path / "webui.png"))
    inside.get_by_role("button", name="Try in txt2img").click()
    prompt = page.locator("#txt2img_prompt textarea")
    until(page, lambda: prompt.input_value() == "a castle, <lora:tab_lora:0.8>, sks")
    assert prompt.is_visible()
    # again does not add it a second time
    page.locator("#tabs > .tab-nav button", has_text="HotLoRA").click()
    inside.get_by_role("button", name="Try in txt2img").click()
    until(page, lambda: prompt.is_visible())
    assert prompt.input_value() == "a castle, <lora:tab_lora:0.8>, sks"
    # what the webui itself holds is what is shown: it draws with the LoRA
    page.locator("#txt2img_steps input[type=number]").fill("1")
    page.locator("#txt2img_width input[type=number]").fill("64")
    page.locator("#txt2img_height input[type=number]").fill("64")
    page.locator("#txt2img_height input[type=number]").blur()
    page.locator("#txt2img_generate").click()
    page.locator("#html_info_txt2img", has_text="Lora hashes: \"tab_lora").first.wait_for()
