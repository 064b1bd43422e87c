"""How the page starts: all of its files are asked for at once, and the first screen does not wait for what it does not show."""
import re
from pathlib import Path

from hotlora.tests.trainer.ui_server import UiServer

from .conftest import until

WEB = Path(__file__).resolve().parent.parent.parent / "web"


def needed_from_the_start() -> set[str]:
    """app.js and what it imports, directly or not; what is imported by a call comes later."""
    found, left = set(), ["app.js"]
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            imported = re.findall(r'^(?:import|export) [^;]*?from "(\.[^"]+)";', (WEB / name).read_text(encoding="utf-8"), re.MULTILINE)
            left += [((WEB / name).parent / one).resolve().relative_to(WEB).as_posix() for one in imported]
    return found


def test_what_the_first_screen_needs_is_asked_for_at_once_and_nothing_else():
    named = re.findall(r'rel="modulepreload" href="web/([^"]+)"', (WEB / "index.html").read_text(encoding="utf-8"))
    assert sorted(named) == sorted(needed_from_the_start())
    late = {"vendor/uplot.mjs", "text/zh.js", "views/gallery.js", "views/try.js", "views/runs.js", "views/run.js", "views/advanced.js"}
    assert not late & set(named)


def test_a_browser_keeps_the_files_of_a_version(shared_server, browser):
    html = shared_server.request("GET", "/hotlora/")[1].decode()
    versions = set(re.findall(r'(?:src|href)="web/(~\w+)/', html))
    assert len(versions) == 1 and len(re.findall(r'(?:src|href)="web/', html)) == html.count(f"web/{versions.pop()}/")
    context = browser.new_context()
    visits = []
    for _ in range(2):
        page = context.new_page()
        page.goto(f"{shared_server.url}/hotlora/")
        page.locator(".empty h2, .run").first.wait_for()
        until(page, "performance.getEntriesByType('resource').some((one) => one.name.endsWith('views/try.js'))")
        visits.append(dict(page.evaluate("performance.getEntriesByType('resource').filter((one) => one.name.includes('/web/')).map((one) => [one.name, one.transferSize])")))
        page.close()
    # the size of what was transferred is 0 for what the browser had; what the page loads at its leisure may come at the second visit only
    first, second = visits
    both = first.keys() & second.keys()
    assert len(both) > 15 and any(first.values()) and not any(second[name] for name in both)
    context.close()


def test_screens_that_were_not_opened_yet_come_without_the_server(tmp_path, open_page):
    with UiServer(tmp_path / "ui") as server:
        page = open_page(server)
        until(page, "['gallery', 'run', 'runs', 'try'].every((name) => performance.getEntriesByType('resource').some((one) => one.name.endsWith(`views/${name}.js`) && one.responseEnd))")
    page.locator(".banner", has_text="The server does not answer").wait_for()
    for screen, words in (("Try", "No LoRA has been trained here yet"), ("History", "Nothing has been trained yet"), ("Gallery", "Choose a gallery")):
        page.get_by_role("link", name=screen, exact=True).click()
        page.locator("main h2", has_text=words).wait_for()


def test_a_part_that_does_not_come_is_told_and_the_rest_works(shared_server, open_page):
    page = open_page(shared_server)
    page.get_by_label("Name", exact=True).fill("kept")
    page.route("**/views/try.js", lambda route: route.abort())
    page.goto(f"{shared_server.url}/hotlora/?again#/try")
    page.get_by_text("did not come from the server").wait_for()
    page.get_by_role("link", name="Train", exact=True).click()
    assert page.get_by_label("Name", exact=True).input_value() == "kept"
    page.unroute("**/views/try.js")
    page.goto(f"{shared_server.url}/hotlora/?again#/try")
    page.reload()
    page.locator("main h1, main h2").first.wait_for()


def test_the_form_is_there_before_the_server_has_said_anything(shared_server, open_page):
    page = open_page(shared_server)
    page.get_by_label("Name", exact=True).fill("kept")
    page.route("**/hotlora/api/**", lambda route: None)   # asked, and never answered
    page.reload(wait_until="commit")
    page.get_by_role("button", name="Train", exact=True).wait_for()
    assert page.get_by_label("Name", exact=True).input_value() == "kept"


def test_the_page_runs_nothing_but_its_own_files(shared_server):
    status, body = shared_server.request("GET", "/hotlora/")
    assert status == 200
    html = body.decode()
    assert "<script" in html and not re.search(r"<script(?![^>]*src=)", html) and not re.search(r"\son\w+=", html)
    for path in [*WEB.glob("*.js"), *WEB.glob("views/*.js"), *WEB.glob("text/*.js"), *WEB.glob("vendor/*.mjs")]:
        code = path.read_text(encoding="utf-8")
        assert not re.search(r"\beval\(|new Function\(", code), path
        assert path.parent.name == "vendor" or not re.search(r"dangerouslySetInnerHTML|insertAdjacentHTML|\b(inner|outer)HTML\b|document\.write", code), path


def test_vendored_files_name_their_licences():
    licences = (WEB / "vendor" / "LICENSES.txt").read_text(encoding="utf-8")
    for path in WEB.glob("vendor/*.[mc][js]s"):
        assert path.name in licences


def test_a_click_on_a_part_that_has_not_come_yet_is_not_lost(shared_server, browser):
    """Advanced is opened before its module is there, and is open when it comes."""
    context, held = browser.new_context(), []
    page = context.new_page()
    page.route(re.compile(r"views/advanced\.js"), lambda route: held.append(route))
    page.goto(shared_server.url + "/hotlora/")
    page.locator("details.advanced > summary").click()
    search = page.get_by_role("searchbox", name="Search settings")
    assert search.count() == 0
    until(page, lambda: bool(held))
    held[0].continue_()
    search.wait_for()
    assert page.locator("details.advanced").get_attribute("open") is not None
    page.locator("details.advanced > summary").click()
    search.wait_for(state="hidden")
    context.close()


def test_a_part_that_comes_between_its_first_drawing_and_its_effects_is_shown(shared_server, browser):
    """Loaded at leisure in just that moment; nothing else would draw the screen again."""
    page = browser.new_page()
    page.goto(shared_server.url + "/hotlora/")
    page.locator("details.advanced").wait_for()
    page.evaluate("""async () => {
      const at = [...document.scripts].map((one) => one.src).find((src) => /app\\.js|start\\.js/.test(src)).replace(/[^/]*$/, "");
      const [{ lazy, fetchLater }, { html }, { render }] = await Promise.all(["lazy.js?with-no-other-part", "store.js", "vendor/preact.mjs"].map((name) => import(at + name)));
      const place = document.body.appendChild(document.createElement("div"));
      window.requestIdleCallback = (work) => work();
      const Part = lazy(async () => ({ Part: () => html`<p class="part-of-a-test">here</p>` }), "Part");
      render(html`<${Part} />`, place);
      fetchLater();
    }""")
    page.locator(".part-of-a-test").wait_for(timeout=20_000)
    page.close()
