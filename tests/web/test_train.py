"""The first screen in a real browser: from pictures to a LoRA, over reloads, a killed server and two tabs."""
import json
import re
import shutil
from pathlib import Path

import pytest

from hotlora.tests.trainer.ui_server import UiServer
from hotlora.trainer.demo.run_demo import GALLERY_DIR
from hotlora.trainer.lora_file import load_lora

from .conftest import PATIENCE, fill_form, set_advanced, status, until


def test_from_an_empty_page_to_a_lora_by_keys(server, open_page, gallery, tmp_path):
    page = open_page(server)
    page.get_by_text("Nothing has been trained yet").wait_for()
    files = sorted(map(str, gallery.iterdir()))
    page.locator(".dropzone input[type=file]").set_input_files(files)
    page.get_by_text("6 pictures, 6 with a caption.").wait_for()
    page.get_by_label("Name", exact=True).focus()
    page.keyboard.type("mascot")
    page.keyboard.press("Tab")
    page.keyboard.type("sks")
    page.get_by_role("radio", name="Object").focus()
    page.keyboard.press("Space")
    page.get_by_text("Previews: “a photo of sks on a white table”, “a photo of sks in a garden”").wait_for()
    set_advanced(page, {"steps": 6, "preview_steps": 3, "resolution": 64})
    page.get_by_text("6 pictures, 6 steps").wait_for()
    page.get_by_role("button", name="Train", exact=True).focus()
    page.keyboard.press("Enter")
    status(page, "completed")

    assert load_lora(server.folder / "loras" / "mascot.safetensors")
    assert "step 6 of 6" in page.locator(".run-line").inner_text()
    assert re.fullmatch(r"Memory: [\d.]+ GB at the peak, [\d.]+ more than before, and [\d.]+ were free: it fits\.", page.locator(".run-memory").inner_text())
    # two prompts at two steps, each picture drawn
    pictures = page.locator(".preview-grid img")
    assert pictures.count() == 4
    pictures.first.scroll_into_view_if_needed()
    until(page, "[...document.querySelectorAll('.preview-grid img')].every((one) => one.naturalWidth > 0)")
    page.get_by_role("button", name="Copy the tag").click()
    page.get_by_text("Copied: <lora:mascot:0.8>, sks").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == "<lora:mascot:0.8>, sks"
    job = server.get("jobs")["jobs"][0]
    assert job["total_steps"] == 6 and job["trigger"] == "sks"
    assert server.get(f"jobs/{job['id']}")["settings"]["preview_prompts"] == ["a photo of sks on a white table", "a photo of sks in a garden"]


def test_what_is_said_of_the_previews_is_what_will_be_drawn(server, open_page, gallery):
    page = open_page(server)
    page.get_by_role("textbox", name="Pictures").or_(page.get_by_role("combobox", name="Pictures")).fill(str(gallery))
    page.get_by_role("radio", name="Object").check()
    page.get_by_text("Previews of it need a trigger word.").wait_for()
    page.get_by_label("Trigger word").fill("zork")
    page.get_by_text("Previews: “a photo of zork on a white table”, “a photo of zork in a garden”").wait_for()
    set_advanced(page, {"preview_prompts": "zork on the moon"})
    page.get_by_text("Previews: your own prompts, under Advanced.").wait_for()


DOUBLE = """async (name) => {
  const button = () => [...document.querySelectorAll("button")].find((one) => one.innerText.trim() === name || one.innerText.trim() === "Add to the queue");
  const clicked = button();
  clicked.click();
  // the second click, once the first one's answer is there
  const began = performance.getEntriesByType("resource").length;
  const isAnswered = () => performance.getEntriesByType("resource").slice(began).some((one) => /\\/(jobs|drawings|again)$/.test(one.name));
  while (!isAnswered()) await new Promise((next) => setTimeout(next, 5));
  await new Promise((next) => setTimeout(next, 60));
  const off = button().disabled;
  button().click();
  return off;
}"""


def test_a_double_click_makes_one_run_and_one_drawing(server, open_page, gallery):
    page = open_page(server)
    fill_form(page, gallery, name="twice", steps=2, resolution=64)
    page.get_by_text("6 pictures, 2 steps").wait_for()
    assert page.evaluate(DOUBLE, "Train")
    until(page, "!document.querySelector('.main-actions button').disabled")
    assert len(server.get("jobs")["jobs"]) == 1
    status(page, "completed")
    page.evaluate("location.hash = '#/try'")
    page.get_by_text("Seed, steps, size, negative prompt").click()
    page.get_by_label("Sampler steps").fill("1")
    assert page.evaluate(DOUBLE, "Draw")
    until(page, "!document.querySelector('.main-actions button').disabled")
    assert len(server.get("drawings")["drawings"]) == 1
    page.evaluate("location.hash = '#/runs'")
    page.get_by_role("button", name="Train again").wait_for()
    assert page.evaluate(DOUBLE, "Train again")
    until(page, "![...document.querySelectorAll('button')].some((one) => one.ariaBusy === 'true')")
    assert len(server.get("jobs")["jobs"]) == 2


def test_train_that_is_under_way_is_so_on_every_screen_and_in_each_language(server, open_page, gallery):
    page = open_page(server)
    fill_form(page, gallery, name="once", steps=2, resolution=64)
    page.get_by_text("6 pictures, 2 steps").wait_for()
    held, may_go = [], []
    page.route("**/jobs/plan", lambda route: route.continue_() if may_go else held.append(route))

    def let_go():
        may_go.append(True)
        for route in held:
            route.continue_()
        held.clear()

    page.get_by_role("button", name="Train", exact=True).click()
    until(page, lambda: bool(held))
    # what is typed meanwhile is for the next run
    page.get_by_label("Name", exact=True).fill("next")
    page.get_by_label("Language").select_option("zh")
    button = page.locator(".main-actions button")
    page.get_by_role("button", name="开始训练").wait_for()
    assert button.is_disabled()
    page.evaluate("location.hash = '#/runs'")
    page.locator(".screen-runs").wait_for()
    page.evaluate("location.hash = '#/train'")
    button.wait_for()
    assert button.is_disabled()
    let_go()
    status(page, "已完成")
    assert [job["name"] for job in server.get("jobs")["jobs"]] == ["once"]
    # a refusal that comes to another language than the one in which Train was pressed is told all the same
    page.get_by_label("名称", exact=True).fill("CON")
    page.locator(".told.wrong", has_text="CON").wait_for()
    may_go.clear()
    button.click()
    until(page, lambda: bool(held))
    page.get_by_label("语言").select_option("en")
    let_go()
    page.get_by_text("the name 'CON'").first.wait_for()
    page.locator(".field-error", has_text="the name 'CON'").or_(page.locator(".problem", has_text="the name 'CON'")).wait_for()


def test_the_plan_is_asked_for_once_and_follows_what_happens_to_the_pictures(server, open_page, gallery, browser):
    context = browser.new_context(locale="en-US")
    asked = []
    context.on("request", lambda request: asked.append(request.url) if request.url.endswith("/jobs/plan") else None)
    page = open_page(server, context=context)
    fill_form(page, gallery)
    page.get_by_text("6 pictures, 6 steps").wait_for()
    asked.clear()
    page.reload()
    page.get_by_text("6 pictures, 6 steps").wait_for()
    page.locator(".header .base").wait_for()
    until(page, lambda: page.evaluate("performance.getEntriesByType('resource').some((one) => one.name.includes('/views/runs.js'))"))
    assert len(asked) == 1, asked
    server.post("gallery/leave-out", {"folder": str(gallery), "files": [sorted(path.name for path in gallery.glob("*.png"))[0]]})
    page.get_by_text("5 pictures, 6 steps").wait_for()
    context.close()


def test_the_plan_of_another_folder_or_name_is_not_shown_as_this_one_s(shared_server, open_page, gallery, tmp_path):
    page = open_page(shared_server)
    folder, name, told = page.locator("input[list=hl-folders]"), page.get_by_label("Name", exact=True), page.locator(".told")
    name.fill("mascot")
    folder.fill(str(gallery))
    page.locator(".told", has_text="6 pictures").wait_for()
    held = []
    page.route("**/jobs/plan", lambda route: held.append(route))
    name.fill("")
    assert "mascot" not in name.get_attribute("placeholder") and page.get_by_text("Empty: mascot").count() == 0
    until(page, lambda: len(held) == 1)
    folder.fill(str(tmp_path / "another"))
    page.wait_for_timeout(50)
    assert told.inner_text() == "Reading the folder…"
    until(page, lambda: len(held) == 2)
    held.pop().continue_()
    page.locator(".told.wrong", has_text="another does not exist").wait_for()
    folder.fill(str(gallery))
    page.wait_for_timeout(50)
    assert told.inner_text() == "Reading the folder…"


def test_the_viewer_walks_by_keys_and_compares(server, open_page, gallery):
    job = server.post("jobs", {"settings": {"train_data_dir": str(gallery), "name": "seen", "steps": 2, "resolution": 64, "preview_steps": 1,
                                            "preview_prompts": ["one", "two"]}})
    server.until(job["id"], "completed")
    page = open_page(server, "#/run")
    page.get_by_role("button", name="Step 1: one").click()
    title = page.locator(".viewer header strong")
    prompt = page.locator(".viewer header p span")
    assert (title.inner_text(), prompt.inner_text()) == ("Step 1", "one")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowRight")
    page.locator(".viewer header", has_text="Step 2").locator("span", has_text="two").wait_for()
    # with one of another row and column, then with one of the same column
    compare = page.get_by_label("Compare with")
    assert [one.strip() for one in compare.locator("option").all_inner_texts()] == ["–", "one", "one", "two"]
    compare.select_option(value="1\none")
    assert page.locator(".tag-left").inner_text() == "Step 1: one" and page.locator(".tag-right").inner_text() == "Step 2: two"
    until(page, "[...document.querySelectorAll('.compare img')].length === 2 && [...document.querySelectorAll('.compare img')].every((one) => one.naturalWidth > 0)")
    compare.select_option(value="1\ntwo")
    assert page.locator(".tag-left").inner_text() == "Step 1"
    slider = page.get_by_label("Divider between the two pictures")
    slider.focus()
    before = page.locator(".compare").get_attribute("style")
    page.keyboard.press("ArrowRight")
    until(page, lambda: page.locator(".compare").get_attribute("style") != before)
    page.keyboard.press("Escape")
    page.locator(".viewer").wait_for(state="detached")


def test_a_bad_folder_is_told_and_the_form_stays(shared_server, open_page, tmp_path):
    page = open_page(shared_server)
    missing = tmp_path / "not there"
    fill_form(page, missing, name="kept")
    page.get_by_text(f"The gallery {missing} does not exist").first.wait_for()
    page.get_by_role("button", name=re.compile("^(Train|Add to the queue)$")).click()
    page.locator(".field-error", has_text="does not exist").wait_for()
    page.reload()
    assert page.get_by_label("Name", exact=True).input_value() == "kept"
    assert page.locator("input[list=hl-folders]").input_value() == str(missing)
    assert page.locator("details.advanced .count").first.inner_text() == "2 changed"


def test_an_error_stands_at_its_own_field_until_the_form_is_another(shared_server, open_page, gallery, tmp_path):
    page = open_page(shared_server)
    train = page.get_by_role("button", name=re.compile("^(Train|Add to the queue)$"))
    folder = page.locator("input[list=hl-folders]")
    folder.fill(f"{tmp_path / 'not there'}/")
    train.click()
    page.locator(".field-error", has_text="does not exist").wait_for()
    folder.fill(str(gallery))
    page.get_by_text("6 pictures").first.wait_for()
    assert page.locator(".field-error").count() == 0
    set_advanced(page, {"reg_data_dir": tmp_path / "no regularization"})
    train.click()
    page.locator(".problem", has_text="no regularization does not exist").wait_for()
    assert page.locator(".field-error").count() == 0


def test_a_base_that_is_gone_is_shown_and_another_can_be_chosen(shared_server, open_page, gallery):
    page = open_page(shared_server)
    form = {"folder": str(gallery), "name": "", "trigger": "sks", "preset": "balanced", "subject": "", "more": {"base_model": "gone.safetensors", "steps": 6}}
    page.evaluate("form => localStorage.setItem('hotlora.form', JSON.stringify(form))", form)
    page.reload()
    page.get_by_text("base_model is 'gone.safetensors' but must be one of demo").wait_for()
    base = page.get_by_label("Base model")
    assert base.locator("option:checked").inner_text() == "gone (not here any more)"
    base.select_option("demo")
    page.get_by_text("6 pictures, 6 steps").wait_for()
    base.wait_for(state="detached")


@pytest.mark.parametrize("setting, value, sentence", [("lora_rank", "0", "lora_rank is '0'"), ("learning_rate", "much", "learning_rate is 'much'")])
def test_a_wrong_value_is_told_before_and_at_the_start(shared_server, open_page, gallery, setting, value, sentence):
    page = open_page(shared_server)
    fill_form(page, gallery, **{setting: value})
    page.locator(".told.wrong", has_text=sentence).wait_for()
    page.get_by_role("button", name=re.compile("^(Train|Add to the queue)$")).click()
    page.locator(".problem", has_text=sentence).wait_for()
    page.locator("details.advanced > summary").click()
    page.get_by_role("searchbox", name="Search settings").fill(setting)
    assert page.locator(f"#hl-set-{setting}").input_value() == value
    page.get_by_role("button", name=re.compile("^Reset ")).and_(page.locator(".setting .link")).click()
    page.get_by_text("6 pictures").first.wait_for()


def test_the_example_of_the_help_can_be_typed(shared_server, open_page, gallery):
    page = open_page(shared_server)
    fill_form(page, gallery, steps=6, optimizer_args="{betas: [0.9, 0.99]}")
    assert kept_form(page)["more"]["optimizer_args"] == {"betas": [0.9, 0.99]}
    set_advanced(page, {"optimizer_args": '{"betas": [0.9, 0.98]}'})
    assert kept_form(page)["more"]["optimizer_args"] == {"betas": [0.9, 0.98]}
    page.get_by_text("6 pictures, 6 steps").wait_for()


def test_an_address_with_a_percent_sign_shows_a_page(shared_server, open_page):
    page = open_page(shared_server, "#/run/50%_done")
    page.get_by_text("This run is not here any more").or_(page.get_by_text("there is no job")).wait_for()


def test_a_narrow_page_shows_the_whole_dialog_for_captions(shared_server, open_page, tmp_path, gallery):
    for caption in list(gallery.glob("*.txt")) + sorted(gallery.glob("*.png"))[1:]:
        caption.unlink()
    page = open_page(shared_server, viewport={"width": 360, "height": 640})
    page.locator("input[list=hl-folders]").fill(str(gallery))
    page.evaluate("location.hash = '#/gallery'")
    page.get_by_text("1 picture", exact=True).wait_for()
    page.get_by_role("button", name="Write captions").click()
    dialog = page.locator("dialog.asking")
    dialog.get_by_label("Word for it").wait_for()
    assert dialog.evaluate("(one) => one.scrollWidth <= one.clientWidth")
    assert dialog.evaluate("(one) => one.querySelector('.icon-button').getBoundingClientRect().right <= one.getBoundingClientRect().right")


@pytest.mark.parametrize("locale", ["en-US", "zh-CN"])
def test_a_narrow_page_cuts_no_field_off(shared_server, open_page, locale):
    page = open_page(shared_server, viewport={"width": 360, "height": 640}, locale=locale)
    page.locator("details.advanced > summary").click()
    for group in page.locator("details.advanced details > summary").all():
        group.click()
    page.locator("#hl-set-repeats").wait_for()
    # the text that an empty field shows has no width of its own: measured in the font of its field
    cut = """[...document.querySelectorAll("form input[placeholder]")].filter((one) => {
      const style = getComputedStyle(one);
      const canvas = document.createElement("canvas").getContext("2d");
      canvas.font = style.font;
      return canvas.measureText(one.placeholder).width > one.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
    }).map((one) => [one.id, one.placeholder])"""
    assert page.evaluate(cut) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


IN_SIGHT = "(place) => { const at = document.querySelector(place).getBoundingClientRect(); return at.top >= 0 && at.bottom <= innerHeight; }"


def test_what_train_and_draw_have_begun_comes_into_sight(server, open_page, gallery):
    page = open_page(server, viewport={"width": 360, "height": 640})
    fill_form(page, gallery, name="seen", steps=100_000, resolution=64)
    page.get_by_text("6 pictures, 100,000 steps").wait_for()
    page.get_by_role("button", name="Train", exact=True).click()
    until(page, "Boolean(document.querySelector('.run-head'))")
    until(page, lambda: page.evaluate(IN_SIGHT, ".run-head"))
    # the one that runs stays in sight, so the other is told of
    page.get_by_label("Name", exact=True).fill("later")
    page.get_by_role("button", name="Add to the queue").click()
    page.get_by_text("later waits in the queue; it begins when the run before it has ended.").wait_for()
    page.locator(".toast").get_by_role("button", name="History").click()
    page.locator(".job-row", has_text="later").wait_for()
    first, second = sorted(server.get("jobs")["jobs"], key=lambda job: job["name"], reverse=True)
    server.post(f"jobs/{second['id']}/cancel")
    server.until(first["id"], "running", step=1)
    server.post(f"jobs/{first['id']}/stop")
    server.until(first["id"], "stopped")
    page.evaluate("location.hash = '#/try'")
    page.get_by_text("Seed, steps, size, negative prompt").click()
    page.get_by_label("Sampler steps").fill("1")
    page.get_by_role("button", name="Draw", exact=True).click()
    page.locator(".drawing").wait_for()
    until(page, lambda: page.evaluate(IN_SIGHT, "#hl-drawings"))


def test_words_that_most_base_models_cannot_read_are_told_of(server, open_page, gallery):
    job = server.post("jobs", {"settings": {"train_data_dir": str(gallery), "name": "read", "steps": 1, "resolution": 64}})
    server.until(job["id"], "completed")
    page = open_page(server, locale="zh-CN")
    page.get_by_label("触发词").fill("小明")
    page.get_by_text("大多数底模只读英文：触发词最好用拉丁字母，例如 xiaoming。").wait_for()
    page.get_by_label("触发词").fill("naïve_2")
    page.get_by_text("用来唤起学到的内容，最好是少见的词。").wait_for()
    page.evaluate("location.hash = '#/try'")
    page.get_by_role("textbox", name="提示词", exact=True).fill("海边的小明, 4k")
    page.get_by_text("大多数底模只读英文，请用英文写提示词。").wait_for()


def test_reload_pause_and_stop_in_the_middle(server, open_page, gallery):
    page = open_page(server)
    fill_form(page, gallery, steps=2000, resolution=64)
    page.get_by_text("6 pictures, 2,000 steps").wait_for()
    page.get_by_role("button", name="Train", exact=True).click()
    status(page, "running")
    until(page, "/^\\d+% · mascot/.test(document.title)", PATIENCE)
    page.reload()
    status(page, "running")
    page.get_by_role("button", name="Pause").click()
    status(page, "paused")
    page.get_by_role("button", name="Resume").click()
    status(page, "running")
    page.get_by_role("button", name="Save now").click()
    page.get_by_role("button", name="Copy the tag").wait_for(timeout=PATIENCE)
    page.get_by_role("button", name="Stop and keep").click()
    status(page, "stopped")
    assert page.locator(".loss canvas").count() == 1
    assert (server.folder / "loras" / "mascot.safetensors").is_file()
    assert page.title() == "HotLoRA"


def test_a_killed_server_loses_nothing(tmp_path, open_page, gallery):
    server = UiServer(tmp_path / "ui").start()
    port = server.url.rsplit(":", 1)[1]
    page = open_page(server)
    fill_form(page, gallery, steps=2000, resolution=64, save_steps=2)
    page.get_by_role("button", name="Train", exact=True).click()
    page.get_by_role("button", name="Copy the tag").wait_for(timeout=PATIENCE)
    job = server.get("jobs")["jobs"][0]["id"]
    server.kill()
    page.locator(".banner", has_text="The server does not answer").wait_for()
    page.get_by_label("Name", exact=True).fill("typed while it was away")
    server = UiServer(tmp_path / "ui", "--port", port).start()
    try:
        status(page, "interrupted")
        assert page.get_by_label("Name", exact=True).input_value() == "typed while it was away"
        page.locator(".banner").wait_for(state="detached")
        page.get_by_role("button", name="Resume").click()
        status(page, "running")
        page.get_by_role("button", name="Stop and keep").click()
        status(page, "stopped")
        steps = [step for step, _ in server.get(f"jobs/{job}/losses")["losses"]]
        assert steps == list(range(1, len(steps) + 1))
    finally:
        server.stop()


def test_two_tabs_show_the_same(server, open_page, gallery):
    first = open_page(server)
    second = open_page(server, context=first.context)
    fill_form(first, gallery, steps=2, resolution=64)
    until(second, "document.querySelector('input[list=hl-folders]').value !== ''")
    assert second.get_by_label("Name", exact=True).input_value() == "mascot"
    second.get_by_text("6 pictures, 2 steps").wait_for()
    second.get_by_role("button", name="Train", exact=True).click()
    status(first, "completed")
    status(second, "completed")


def test_a_failed_run_says_why_with_the_details_folded(server, open_page, gallery):
    settings = {"train_data_dir": str(gallery), "resolution": 64}
    made = server.post("jobs", {"settings": {**settings, "name": "made", "steps": 1}})["id"]
    server.until(made, "completed")
    lora = Path(shutil.copy(server.folder / "loras" / "made.safetensors", gallery / "lora.safetensors"))
    first = server.post("jobs", {"settings": {**settings, "name": "first", "steps": 100_000}})["id"]
    page = open_page(server)
    fill_form(page, gallery, steps=2, resolution=64, init_lora=lora)
    page.get_by_role("button", name="Add to the queue").click()
    page.get_by_text("mascot waits in the queue").wait_for()
    # what was whole when it was queued is damaged when its turn comes
    lora.write_bytes(b"no LoRA")
    server.until(first, "running", step=1)
    server.post(f"jobs/{first}/stop")
    page.evaluate("location.hash = '#/runs'")
    page.locator(".job-row", has_text="mascot").locator(".badge", has_text="failed").wait_for(timeout=PATIENCE)
    page.evaluate("id => { location.hash = `#/run/${id}`; }", next(job["id"] for job in server.get("jobs")["jobs"] if job["name"] == "mascot"))
    problem = page.locator(".run .problem")
    assert "lora.safetensors" in problem.locator("p").inner_text()
    assert not problem.locator("pre").is_visible()
    problem.locator("summary").click()
    assert "Traceback" in problem.locator("pre").inner_text()


def test_settings_go_to_a_yaml_file_and_back(shared_server, open_page, gallery, browser, tmp_path):
    page = open_page(shared_server)
    fill_form(page, gallery, name="in_a_file", steps=77, lora_rank=5)
    page.locator("details.advanced > summary").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Save settings").click()
    file = tmp_path / download.value.suggested_filename
    download.value.save_as(file)
    assert file.name == "in_a_file.yaml" and "lora_rank: 5" in file.read_text()

    # a page that has just been opened and does not know its settings yet: what the file says is not left out
    context, waiting = browser.new_context(locale="en-US"), []
    context.route("**/api/settings", lambda route: waiting.append(route))
    other = open_page(shared_server, context=context)
    other.locator("details.advanced > summary").click()
    other.locator("details.advanced input[type=file]").set_input_files(file)
    other.wait_for_timeout(500)
    assert waiting
    for request in waiting:
        request.continue_()
    other.get_by_text("Settings of in_a_file.yaml loaded.").wait_for()
    assert other.get_by_label("Name", exact=True).input_value() == "in_a_file"
    other.get_by_text("6 pictures, 77 steps").wait_for()
    context.close()


def kept_form(page) -> dict:
    return page.evaluate("JSON.parse(localStorage['hotlora.form'])")


def test_what_train_would_do_is_what_is_saved_and_what_is_loaded_is_what_train_does(shared_server, open_page, gallery, tmp_path):
    page = open_page(shared_server)
    page.locator("input[list=hl-folders]").fill(str(gallery))
    page.get_by_role("radio", name="Best").check()
    page.get_by_text("6 pictures, 600 steps").wait_for()
    page.locator("details.advanced > summary").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Save settings").click()
    saved = shared_server.post("settings/load", {"name": "x.yaml", "text": Path(download.value.path()).read_text()})["settings"]
    assert saved.items() >= {"steps": 600, "lora_rank": 32, "batch_size": 4, "lr_scheduler": "inverse_sqrt", "preview_steps": 75, "save_steps": 150}.items()

    file = tmp_path / "mine.yaml"
    file.write_text("lora_rank: 16\nlearning_rate: 1e-4\nlr_scheduler: cosine\n")
    page.locator("details.advanced input[type=file]").set_input_files(file)
    page.get_by_text("Settings of mine.yaml loaded.").wait_for()
    assert kept_form(page)["more"] == {"lora_rank": 16, "learning_rate": 1e-4, "lr_scheduler": "cosine"}
    page.get_by_role("button", name="Undo").click()
    assert kept_form(page)["more"] == {} and kept_form(page)["preset"] == "best"
    page.locator("details.advanced input[type=file]").set_input_files(file)
    page.get_by_text("Settings of mine.yaml loaded.").wait_for()
    # the usual value is a choice also when it is chosen by hand, after another
    page.get_by_role("searchbox", name="Search settings").fill("lr_scheduler")
    scheduler = page.locator("#hl-set-lr_scheduler")
    for choice in ("constant", "cosine"):
        scheduler.select_option(choice)
    page.get_by_text("6 pictures").first.wait_for()
    assert kept_form(page)["more"]["lr_scheduler"] == "cosine" and scheduler.input_value() == "cosine"


def test_the_queue_is_ordered_and_the_history_undone(server, open_page, gallery):
    settings = {"train_data_dir": str(gallery), "steps": 100_000, "resolution": 64}
    jobs = [server.post("jobs", {"settings": {**settings, "name": name}}) for name in ("first", "second", "third")]
    page = open_page(server, "#/runs")
    page.get_by_role("button", name="Move third up").click()
    until(page, "document.querySelectorAll('.job-list')[0].innerText.indexOf('third') < document.querySelectorAll('.job-list')[0].innerText.indexOf('second')")
    assert server.get("jobs")["queue"] == [jobs[2]["id"], jobs[1]["id"]]
    row = page.locator(".job-row", has_text="second")
    row.get_by_role("button", name="Cancel").click()
    page.locator(".job-row", has_text="second").locator(".badge", has_text="cancelled").wait_for()
    page.get_by_role("button", name="Remove second from the history").click()
    page.locator(".job-row", has_text="second").wait_for(state="detached")
    page.get_by_role("button", name="Undo").click()
    page.locator(".job-row", has_text="second").wait_for()


def test_a_run_in_the_history_names_its_lora_as_it_is_called_now(server, open_page, gallery):
    settings = {"train_data_dir": str(gallery), "name": "mine", "steps": 2, "save_steps": 1, "resolution": 64}
    jobs = [server.post("jobs", {"settings": settings})["id"] for _ in range(2)]
    for job in jobs:
        server.until(job, "completed")
    assert {lora["name"]: (lora["job"], [step["name"] for step in lora["steps"]]) for lora in server.get("loras")["loras"]} == {
        "mine": (jobs[1], ["mine-000001"]), "mine-v1": (jobs[0], ["mine-000001-v1"])}
    page = open_page(server, "#/runs")
    rows = page.locator(".job-row")
    for row, name in ((0, "mine"), (1, "mine-v1")):
        rows.nth(row).get_by_role("button", name="Copy the tag").click()
        until(page, f"navigator.clipboard.readText().then((text) => text === '<lora:{name}:0.8>')")
    server.post("loras/mine-v1/delete")
    rows.nth(1).get_by_text("mine is another LoRA now; that of this run is not here any more.").wait_for()
    assert rows.nth(1).get_by_role("button", name="Copy the tag").count() == 0 and rows.nth(0).get_by_role("button", name="Copy the tag").count() == 1
    page.goto(f"{server.url}/hotlora/#/run/{jobs[0]}")
    page.get_by_text("About this run").click()
    page.get_by_text("mine is another LoRA now").wait_for()


def test_a_saved_step_is_drawn_beside_the_base(server, open_page, gallery):
    job = server.post("jobs", {"settings": {"train_data_dir": str(gallery), "name": "drawn", "trigger": "sks", "steps": 2, "resolution": 64, "save_steps": 1,
                                            "learning_rate": 0.01}})
    server.until(job["id"], "completed")
    page = open_page(server, "#/try")
    assert page.get_by_role("textbox", name="Prompt", exact=True).input_value() == "a photo of sks"
    # what cannot be used is told where it stands, and nothing is drawn
    numbers = page.get_by_text("Seed, steps, size, negative prompt")
    numbers.click()
    page.get_by_label("Seed").fill("1,5")
    page.get_by_label("Width").fill("512px")
    numbers.click()
    page.get_by_role("button", name="Draw", exact=True).click()
    assert page.locator(".field-error").all_inner_texts() == [
        "“1,5” cannot be used; give a whole number from 0 to 9007199254740991.",
        "“512px” cannot be used; give a multiple of 8 from 64 to 2048, or leave it empty."]
    assert server.get("drawings")["drawings"] == []
    page.get_by_label("Seed").fill("1")
    page.get_by_label("Width").fill("")
    assert page.locator(".field-error").count() == 0
    page.get_by_label("Sampler steps").fill("3")
    page.get_by_role("radio", name="Saved steps").check()
    page.get_by_role("button", name="Draw", exact=True).click()
    until(page, "document.querySelectorAll('.drawing img').length === 8", PATIENCE)
    # the base is the same in both rows, and every weight is another picture
    addresses = [page.locator(".drawing img").nth(i).get_attribute("src") for i in range(8)]
    assert addresses[0] == addresses[4] and len(set(addresses)) == 7
    pictures = {server.request("GET", address.removeprefix(server.url))[1] for address in set(addresses)}
    assert len(pictures) == 7
    page.reload()
    page.get_by_role("button", name="drawn: 0.8").click()
    page.get_by_label("Compare with").select_option(label="without")
    page.locator(".compare img").nth(1).wait_for()
    page.close()
    # one that the host has ended says why
    server.stop()
    path, = (server.folder / "drawings").glob("*/drawing.json")
    ended = {**json.loads(path.read_text(encoding="utf-8")), "status": "cancelled", "message": "another checkpoint was loaded"}
    path.write_text(json.dumps(ended), encoding="utf-8")
    server.start()
    open_page(server, "#/try").get_by_text("another checkpoint was loaded").wait_for()


def test_a_zoom_stays_while_steps_come_in(server, open_page, gallery):
    job = server.post("jobs", {"settings": {"train_data_dir": str(gallery), "name": "long", "steps": 100_000, "resolution": 64}})
    server.until(job["id"], "running", step=8)
    page = open_page(server, "#/run")
    plot = page.locator(".u-over")
    plot.wait_for()
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    page.mouse.move(box["x"] + 0.1 * box["width"], box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.5 * box["width"], box["y"] + 20, steps=4)
    page.mouse.up()
    page.get_by_role("button", name="Whole curve").wait_for()
    # the step under the right edge is the same one after many more steps, and the last one when the whole curve is back
    def at_the_edge():
        page.mouse.move(box["x"] + 3, box["y"] + 30)
        page.mouse.move(box["x"] + box["width"] - 2, box["y"] + 30)
        return int(page.locator(".u-legend .u-series").first.locator(".u-value").inner_text())

    zoomed = at_the_edge()
    page.locator(".smoothing input").fill("0.5")
    page.evaluate("new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)))")
    assert at_the_edge() == zoomed
    step = server.get(f"jobs/{job['id']}")["step"]
    server.until(job["id"], "running", step=step + 10)
    until(page, lambda: int(page.locator(".run-line").inner_text().split()[1].replace(",", "")) >= step + 10, PATIENCE)
    assert at_the_edge() == zoomed < step
    page.get_by_role("button", name="Whole curve").click()
    until(page, lambda: at_the_edge() > zoomed)


def test_the_end_is_told_by_the_browser_where_it_may(server, open_page, gallery):
    page = open_page(server)
    # stands in for the window of the system, which no page can look into
    page.evaluate("""() => {
      window.told = [];
      window.Notification = class { constructor(title, more) { window.told.push([title, more.body]); } static permission = "default";
        static requestPermission() { Notification.permission = "granted"; return Promise.resolve("granted"); } };
    }""")
    fill_form(page, gallery, steps=100_000, resolution=64)
    page.get_by_text("6 pictures, 100,000 steps").wait_for()
    page.get_by_role("button", name="Train", exact=True).click()
    page.get_by_role("button", name="Notify me").click()
    page.get_by_role("button", name="Notify me").wait_for(state="detached")
    page.evaluate("Object.defineProperty(document, 'visibilityState', { value: 'hidden' })")
    status(page, "running")
    job = server.get("jobs")["jobs"][0]
    server.until(job["id"], "running", step=1)
    server.post(f"jobs/{job['id']}/stop")
    status(page, "stopped")
    until(page, "window.told.length === 1")
    title, body = page.evaluate("window.told[0]")
    assert title == "mascot is stopped; what it learned is kept." and "stopped after step" in body


def test_a_run_that_is_stopped_before_its_first_step_is_not_said_to_have_learned(server, open_page, gallery):
    page = open_page(server)
    page.get_by_text("Nothing has been trained yet").wait_for()
    job = server.post("jobs", {"settings": {"train_data_dir": str(gallery), "name": "mascot", "steps": 100_000, "resolution": 64}})["id"]
    server.until(job, "preparing")
    server.post(f"jobs/{job}/stop")
    page.get_by_text("mascot is stopped; it had learned nothing yet.").wait_for()
    assert server.get(f"jobs/{job}")["step"] == 0 and not list((server.folder / "loras").glob("*"))


def test_sample_now_and_the_log(server, open_page, gallery):
    page = open_page(server)
    fill_form(page, gallery, steps=100_000, resolution=64, preview_prompts="one prompt")
    page.get_by_text("6 pictures, 100,000 steps").wait_for()
    page.get_by_role("button", name="Train", exact=True).click()
    page.get_by_role("button", name="Sample now").click(timeout=PATIENCE)
    page.locator(".preview-grid img").first.wait_for(timeout=PATIENCE)
    assert not page.locator(".log pre").is_visible()
    page.get_by_text("Log", exact=True).click()
    page.locator(".log pre", has_text="6 pictures").wait_for()
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.reload()
    page.get_by_text("Log", exact=True).click()
    page.locator(".log pre", has_text="6 pictures").wait_for()
    assert page.locator(".log pre").inner_text().count("6 pictures") == 1
    assert not [url for url in asked if "/api/events" in url and url.endswith("after=0")], "the history of all jobs is not read for one log"
    page.get_by_role("button", name="Stop and keep").click()
    status(page, "stopped")


def test_two_curves_are_laid_over_each_other_and_a_run_goes_on_from_the_history(server, open_page, gallery):
    settings = {"train_data_dir": str(gallery), "resolution": 64, "lora_rank": 2}
    for name in ("first", "second"):
        server.until(server.post("jobs", {"settings": {**settings, "name": name, "steps": 3}})["id"], "completed")
    job = server.post("jobs", {"settings": {**settings, "name": "third", "steps": 100_000}})["id"]
    server.until(job, "running", step=2)
    server.post(f"jobs/{job}/stop")
    stopped = server.until(job, "stopped")["step"]
    page = open_page(server, "#/runs")
    for name in ("first", "second"):
        page.locator(".job-row", has_text=name).get_by_role("button", name="Curve").click()
    page.locator(".loss canvas").wait_for()
    legend = page.locator(".u-legend")
    assert "first (" in legend.inner_text() and "second (" in legend.inner_text()
    until(page, lambda: page.locator(".plot").get_attribute("aria-label").count("at step 3") == 2)
    # a curve goes with its run, and comes back with it
    for name in ("first", "second"):
        page.get_by_role("button", name=f"Remove {name} from the history").click()
    page.get_by_label("Loss curves").wait_for(state="detached")
    page.locator(".toast", has_text="first").get_by_role("button", name="Undo").click()
    page.locator(".toast", has_text="second").get_by_role("button", name="Undo").click()
    until(page, lambda: page.locator(".plot").get_attribute("aria-label").count("at step 3") == 2)
    row = page.locator(".job-row", has_text="third")
    row.get_by_role("button", name="Resume").click()
    row.locator(".badge", has_text="running").wait_for(timeout=PATIENCE)
    server.until(job, "running", step=stopped + 1)
    row.get_by_role("link", name="third").click()
    page.get_by_role("button", name="Stop and keep").click()
    status(page, "stopped")
    page.get_by_role("link", name="History").click()
    page.locator(".job-row", has_text="first").get_by_role("button", name="Train again").click()
    until(page, lambda: [one["status"] for one in server.get("jobs")["jobs"] if one["name"] == "first"] == ["completed"] * 2, PATIENCE)
    page.evaluate("localStorage.setItem('hotlora.form', JSON.stringify({ name: 'draft' }))")
    page.reload()
    page.locator(".job-row", has_text="second").get_by_role("button", name="Use settings").click()
    page.get_by_text("6 pictures, 3 steps").wait_for()
    assert page.get_by_label("Name", exact=True).input_value() == "second"
    page.get_by_role("button", name="Undo").last.click()
    assert page.get_by_label("Name", exact=True).input_value() == "draft"


def test_the_plan_says_time_and_memory_and_what_the_base_asks_for(shared_server, open_page, gallery):
    page = open_page(shared_server)
    page.locator("input[list=hl-folders]").fill(str(gallery))
    told = page.locator(".told[role=status]")
    told.wait_for()
    assert re.match(r"6 pictures, 300 steps, about ([0-9]+ (h|min|s) ?)+, about [0-9.]+ of [0-9.]+ GB\n", told.inner_text()), told.inner_text()
    assert "Weight decay 1, Min SNR gamma 0, Batch size 4" in told.inner_text()
    page.get_by_role("radio", name="Quick").check()
    page.locator(".told[role=status]", has_text="100 steps").wait_for()

    def said_seconds() -> int:
        parts = re.search(r"about ((?:[0-9]+ (?:h|min|s) ?)+)", told.inner_text())[1]
        return sum(int(count) * {"h": 3600, "min": 60, "s": 1}[unit] for count, unit in re.findall(r"([0-9]+) (h|min|s)", parts))

    # drawing is a part of the time: of 7 previews, one every 13 steps, as the page spreads them, and of 100
    plan = shared_server.post("jobs/plan", {"settings": {"train_data_dir": str(gallery)}, "preset": "quick"})
    assert said_seconds() == pytest.approx(plan["seconds"] + 7 * plan["seconds_per_preview"], abs=1)
    set_advanced(page, {"preview_steps": 1})
    told.get_by_text("a preview every step").wait_for()
    assert said_seconds() == pytest.approx(plan["seconds"] + 100 * plan["seconds_per_preview"], abs=1)
    set_advanced(page, {"preview_steps": ""})
    page.locator("details.advanced > summary").click()
    search = page.get_by_role("searchbox", name="Search settings")
    search.fill("lr_scheduler")
    scheduler = page.locator("#hl-set-lr_scheduler")
    assert scheduler.input_value() == "inverse_sqrt"
    # the usual value is a change here, marked as one, and can be set back
    scheduler.select_option("constant")
    page.locator(".setting.changed").wait_for()
    page.get_by_role("button", name="Reset LR scheduler").click()
    assert scheduler.input_value() == "inverse_sqrt" and page.locator(".setting.changed").count() == 0


def test_a_lora_goes_to_the_trash_and_back(server, open_page, gallery):
    job = server.post("jobs", {"settings": {"train_data_dir": str(gallery), "name": "thrown", "steps": 2, "resolution": 64}})
    server.until(job["id"], "completed")
    page = open_page(server, "#/try")
    page.get_by_role("button", name="Move thrown to the trash").click()
    page.get_by_text("No LoRA has been trained here yet").wait_for()
    assert not (server.folder / "loras" / "thrown.safetensors").exists()
    page.get_by_role("button", name="Undo").click()
    page.get_by_role("combobox", name="LoRA").wait_for()
    assert (server.folder / "loras" / "thrown.safetensors").is_file()


def test_of_two_loras_of_one_name_the_chosen_one_goes_to_the_trash(server, open_page, gallery):
    job = server.post("jobs", {"settings": {"train_data_dir": str(gallery), "name": "twin", "trigger": "sks", "steps": 2, "resolution": 64}})
    server.until(job["id"], "completed")
    here, there = server.folder / "loras" / "twin.safetensors", server.folder / "loras" / "old #1" / "twin.safetensors"
    there.parent.mkdir()
    there.write_bytes(here.read_bytes())
    page = open_page(server, "#/try")
    page.get_by_role("textbox", name="Prompt", exact=True).fill("a long prompt")
    page.get_by_role("combobox", name="LoRA").select_option("old #1/twin")
    assert page.get_by_role("textbox", name="Prompt", exact=True).input_value() == "a long prompt"
    page.get_by_text("The trigger word of this LoRA, sks, is not in the prompt.").wait_for()
    page.get_by_role("button", name="Move old #1/twin to the trash").click()
    page.get_by_role("button", name="Move twin to the trash").wait_for()
    assert here.is_file() and not there.exists()
    page.get_by_role("button", name="Undo").click()
    page.get_by_role("option", name="old #1/twin").wait_for(state="attached")
    assert here.is_file() and there.is_file()


def test_loss_on_held_out_pictures_is_drawn_beside_the_curve(server, open_page):
    settings = {"train_data_dir": str(GALLERY_DIR), "name": "held", "trigger": "sks", "steps": 160, "batch_size": 1, "validation": True, "resolution": 64,
                "early_stop": False}
    job = server.post("jobs", {"settings": settings})["id"]
    page = open_page(server, f"#/run/{job}")
    page.locator(".u-legend", has_text="held-out pictures, against the base").wait_for(timeout=PATIENCE)
    measured = server.until(job, "completed")["measured"]
    assert measured and all(one["held_out"] is not None for one in measured)
    until(page, lambda: f"against the base at step {measured[-1]['step']}." in page.locator(".plot").get_attribute("aria-label"))
    until(page, lambda: "Prior drift: " in page.locator(".plot").get_attribute("aria-label"))
    page.reload()
    page.locator(".u-legend", has_text="held-out pictures, against the base").wait_for()
    page.locator(".u-legend", has_text="prior drift").wait_for()


def test_a_measurement_that_is_no_number_is_a_gap_in_the_picture(server, open_page, gallery):
    settings = {"train_data_dir": str(gallery), "name": "burnt", "steps": 6, "resolution": 64, "validation": False}
    job = server.post("jobs", {"settings": settings})["id"]
    server.until(job, "completed")
    server.stop()
    path = server.folder / "jobs" / job / "job.json"
    measured = [{"step": 2, "held_out": -0.5, "drift": 0.25}, {"step": 4, "held_out": float("nan"), "drift": 0.75},
                {"step": 6, "held_out": float("nan"), "drift": float("inf")}]
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), "measured": measured}), encoding="utf-8")
    server.start()
    page = open_page(server, f"#/run/{job}")
    page.locator(".u-legend", has_text="held-out pictures, against the base").wait_for()
    described = page.locator(".plot").get_attribute("aria-label")
    assert "-50% against the base at step 2." in described and "Prior drift: 0.750 at step 4." in described
    box = page.locator(".u-over").bounding_box()
    page.mouse.move(box["x"] + box["width"] - 2, box["y"] + box["height"] / 2)
    for label in ("held-out pictures, against the base", "prior drift"):
        page.locator(".u-legend .u-series", has_text=label).locator(".u-value", has_text="–").wait_for()


def test_prior_drift_of_a_gallery_too_small_to_hold_pictures_back_is_drawn(server, open_page, gallery):
    assert len(list(gallery.glob("*.png"))) < 12
    settings = {"train_data_dir": str(gallery), "name": "drifts", "trigger": "sks", "steps": 20, "batch_size": 1, "validation": True, "resolution": 64,
                "early_stop": False}
    job = server.post("jobs", {"settings": settings})["id"]
    page = open_page(server, f"#/run/{job}")
    page.locator(".u-legend", has_text="prior drift").wait_for(timeout=PATIENCE)
    assert all(one["held_out"] is None for one in server.until(job, "completed")["measured"])
    assert page.locator(".u-legend", has_text="held-out pictures").count() == 0


def test_pictures_without_captions_and_trigger_are_warned_of_before_the_start(shared_server, open_page, gallery):
    for caption in gallery.glob("*.txt"):
        caption.unlink()
    page = open_page(shared_server)
    page.locator("input[list=hl-folders]").fill(str(gallery))
    page.get_by_text("no prompt can ask for what is learned").wait_for()
    page.get_by_role("button", name="Use sks").click()
    assert page.get_by_label("Trigger word").input_value() == "sks"
    page.get_by_text("no prompt can ask for what is learned").wait_for(state="detached")


def late(page, path: str, when) -> list:
    """Answers of POST `path` reach the page only after `when()`. Returns a list that grows with each that has been let go."""
    gone = []

    def hold(route):
        answer = route.fetch()
        until(page, when)
        route.fulfill(response=answer)
        gone.append(route)

    page.route(re.compile(path), lambda route: hold(route) if route.request.method == "POST" else route.continue_())
    return gone


def test_an_answer_that_comes_after_its_events_does_not_take_the_page_back(server, open_page, gallery):
    """Events and answers come by two connections. What the later one says is what is shown, whichever comes first."""
    page = open_page(server)
    fill_form(page, gallery, name="overtaken", steps=100_000, resolution=64)
    running = page.locator(".run-head .badge", has_text="running")
    gone = late(page, r"/api/jobs$", lambda: running.count() == 1)
    page.get_by_role("button", name="Train", exact=True).click()
    until(page, lambda: len(gone) == 1)
    job = server.get("jobs")["jobs"][0]
    assert job["status"] == "running"
    step = page.locator(".run-line").inner_text()
    until(page, lambda: page.locator(".run-line").inner_text() != step)
    assert running.count() == 1
    paused = page.locator(".run-head .badge", has_text="paused")
    gone = late(page, rf"/api/jobs/{job['id']}/pause$", lambda: paused.count() == 1)
    page.get_by_role("button", name="Pause").click()
    until(page, lambda: len(gone) == 1)
    page.get_by_role("button", name="Resume").wait_for()
    assert paused.count() == 1
    server.post(f"jobs/{job['id']}/stop", {})
    server.until(job["id"], "stopped")


def test_a_tab_out_of_sight_gives_its_connection_back_but_not_while_its_run_goes(server, browser, open_page, gallery):
    context = browser.new_context(locale="en-US")
    context.add_init_script("""const Real = EventSource; window.sources = [];
      window.EventSource = class extends Real { constructor(...given) { super(...given); window.sources.push(this); } };""")
    context.clock.install()
    page = open_page(server, context=context)

    def connections() -> int:
        return page.evaluate("sources.filter((one) => one.readyState !== EventSource.CLOSED).length")

    def see(state: str) -> None:
        page.evaluate("""state => { Object.defineProperty(document, 'visibilityState', { value: state, configurable: true });
          document.dispatchEvent(new Event('visibilitychange')); }""", state)

    until(page, lambda: connections() == 1)
    see("hidden")
    context.clock.fast_forward(61_000)
    until(page, lambda: connections() == 0)
    job = server.post("jobs", {"settings": {"train_data_dir": str(gallery), "name": "meanwhile", "steps": 2, "resolution": 64}})["id"]
    server.until(job, "completed")
    see("visible")
    page.locator(".run-head", has_text="meanwhile").wait_for()
    until(page, lambda: connections() == 1)

    fill_form(page, gallery, name="mine", steps=100_000, resolution=64)
    page.get_by_role("button", name="Train", exact=True).click()
    status(page, "running")
    see("hidden")
    context.clock.fast_forward(61_000)
    page.wait_for_timeout(500)
    assert connections() == 1
    own = server.get("jobs")["jobs"][0]["id"]
    server.until(own, "running", step=1)
    server.post(f"jobs/{own}/stop")
    page.get_by_text("mine is stopped; what it learned is kept.").wait_for()
    context.clock.fast_forward(61_000)
    until(page, lambda: connections() == 0)
    context.close()
