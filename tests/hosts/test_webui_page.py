"""The page in the tab of the real stable-diffusion-webui: a training, and its LoRA in the txt2img prompt, all by clicks and keys."""
import pytest

from hotlora.tests.hosts.page_steps import draw_with_and_without, inside_of, survive, train_from_an_empty_page
from hotlora.tests.hosts.test_webui import write_gallery
from hotlora.tests.hosts.webui_server import WebuiServer, write_model
from hotlora.tests.web.conftest import browser, until  # noqa: F401  browser is a fixture
from hotlora.tests.web.screenshots import shot

pytestmark = pytest.mark.host
TAB = "#tabs > .tab-nav button"


@pytest.fixture(scope="module")
def webui(tmp_path_factory):
    base = tmp_path_factory.mktemp("webui")
    write_model(base)
    write_gallery(base / "me")
    server = WebuiServer(base, settings={"sd_model_checkpoint": "random.safetensors"}).start()
    yield server
    server.stop()


def open_tab(webui, context):
    """The webui's page with our tab open, and our page in it."""
    page = context.new_page()
    page.set_default_timeout(180_000)
    page.goto(f"{webui.url}/?__theme=dark")
    page.locator("#txt2img_prompt textarea").wait_for()
    page.locator(TAB, has_text="HotLoRA").click()
    return page, inside_of(page)


def test_from_an_empty_page_to_a_picture_and_txt2img(webui, browser):  # noqa: F811
    page, inside = open_tab(webui, browser.new_context(viewport={"width": 1600, "height": 1000}, locale="en-US"))
    assert inside.locator("html").get_attribute("data-theme") == "dark"
    page.locator(TAB, has_text="txt2img").click()
    page.locator("#txt2img_prompt textarea").fill("a castle")
    page.locator(TAB, has_text="HotLoRA").click()
    train_from_an_empty_page(inside, sorted((webui.base / "me").iterdir()), "tab_lora")
    shot(page, "webui")
    draw_with_and_without(inside, "tab_lora")
    inside.get_by_role("button", name="Try in txt2img").click()
    prompt = page.locator("#txt2img_prompt textarea")
    until(page, lambda: prompt.input_value() == "a castle, <lora:tab_lora:0.8>, sks")
    assert prompt.is_visible()
    # again does not add it a second time
    page.locator(TAB, has_text="HotLoRA").click()
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


def test_a_run_outlives_its_page_and_its_server(webui, browser):  # noqa: F811
    context = browser.new_context(viewport={"width": 1600, "height": 1000}, locale="en-US")

    def restart():
        webui.kill()
        webui.start(port=webui.port)

    survive(lambda: open_tab(webui, context), webui.base / "me", webui.loras / "outlives.safetensors", restart)
    context.close()
