"""How the page starts: all of its files are asked for at once, and the first screen does not wait for what it does not show."""
import re
from pathlib import Path

WEB = Path(__file__).resolve().parent.parent.parent / "web"


def test_every_module_is_asked_for_at_once():
    named = set(re.findall(r'rel="modulepreload" href="web/([^"]+)"', (WEB / "index.html").read_text(encoding="utf-8")))
    modules = {path.relative_to(WEB).as_posix() for pattern in ("*.js", "views/*.js", "text/*.js", "vendor/*.mjs") for path in WEB.glob(pattern)}
    assert named == modules - {"start.js"}


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
