"""HotLoRA beside the extensions whose names collide with those of its own folders, in a real stable-diffusion-webui.

HOTLORA_NEIGHBOURS names a folder with `sd-webui-traintrain` (at c7b68af, the last commit that runs with the packages that
stable-diffusion-webui pins), `sd-dynamic-prompts`, and `packages` with what these two need and the host does not have.
"""
from __future__ import annotations

import random
import re
import shutil
import time
from pathlib import Path

import pytest

from hotlora.tests.hosts.places import setting
from hotlora.tests.hosts.webui_server import ROOT, WebuiServer, write_model
from hotlora.trainer.demo import drawings

pytestmark = pytest.mark.host
NEIGHBOURS = ("sd-webui-traintrain", "sd-dynamic-prompts")
TABS = ("HotLoRA", "TrainTrain", "Wildcards Manager")
PROBE = '''"""What the webui has loaded, for a test."""
import sys

from modules import script_callbacks

starts = sys.modules.setdefault("probe_of_a_test", [])


def look():
    files = {name: str(getattr(module, "__file__", None)) for name, module in list(sys.modules.items())}
    callbacks = [f"{kind} {one.name}" for kind, found in script_callbacks.callback_map.items() for one in found]
    return {"starts": len(starts), "callbacks": sorted(callbacks), "files": files}


def started(demo, app):
    starts.append(demo)
    app.add_api_route("/probe/look", look)
    app.add_api_route("/probe/routes", lambda: sorted(str(getattr(route, "path", route)) for route in app.router.routes))


script_callbacks.on_app_started(started)
'''


@pytest.fixture(scope="module", params=["hotlora", "zz-hotlora"], ids=["loaded first", "loaded last"])
def webui(request, tmp_path_factory):
    """The webui with all three; it loads extensions by the names of their folders."""
    place = Path(setting("HOTLORA_NEIGHBOURS") or "/nowhere")
    missing = [name for name in (*NEIGHBOURS, "packages") if not (place / name).is_dir()]
    if missing:
        pytest.skip(f"HOTLORA_NEIGHBOURS, a variable or a key of hosts.toml, names no folder with {', '.join(missing)}")
    base = tmp_path_factory.mktemp("webui")
    write_model(base)
    server = WebuiServer(base, extensions=False, links={request.param: ROOT})
    for name in NEIGHBOURS:  # copies, because they write into their own folders
        shutil.copytree(place / name, base / "extensions" / name, ignore=shutil.ignore_patterns(".git"))
    probe = base / "extensions" / "probe" / "scripts"
    probe.mkdir(parents=True)
    (probe / "probe.py").write_text(PROBE)
    (probe.parent / "preload.py").write_text(f"import sys\nsys.path.append({str(place / 'packages')!r})\n")
    server.start()
    yield server
    server.stop()


def tabs(server: WebuiServer) -> list[str]:
    """Titles of the page's own tabs. Settings have tabs too, which may have the same titles."""
    return [part["props"]["label"] for part in server.get("/config")["components"]
            if part["type"] == "tabitem" and str(part["props"].get("elem_id")).startswith("tab_")]


def check_modules(server: WebuiServer) -> None:
    files = server.get("/probe/look")["files"]
    theirs = str(server.base / "extensions" / "sd-webui-traintrain")
    assert {name: path for name, path in files.items() if name.split(".")[0] == "trainer" and not path.startswith(theirs)
            and path != "None"} == {}, "trainer belongs to traintrain"
    assert files["trainer.train"].startswith(theirs) and files["trainer.trainer"].startswith(theirs)
    assert files["hotlora.trainer"] == str(ROOT / "trainer" / "__init__.py")
    names = {name for name, path in files.items() if path.startswith((str(ROOT), *map(str, server.base.glob("extensions/*hotlora"))))}
    assert {name.split(".")[0] for name in names} == {"hotlora"}, "our code is loaded under one name"


def test_all_tabs_load(webui):
    assert [tabs(webui).count(name) for name in TABS] == [1, 1, 1]
    log = webui.log.read_text(errors="replace")
    assert not re.search(r"\*\*\* Error (loading|executing|running|calling)", log), log
    for path in ("/hotlora/", "/hotlora/api/status"):
        assert webui.request("GET", path)[0] == 200


def test_each_has_its_own_modules(webui):
    check_modules(webui)


def test_a_run_and_its_tag(webui, tmp_path):
    drawings.draw_mascot(random.Random(1), "white").save(tmp_path / "me.png")
    job = webui.post("/hotlora/api/jobs", {"settings": {"train_data_dir": str(tmp_path), "name": "beside", "trigger": "sks", "steps": 2,
                                                        "lora_rank": 4, "resolution": 64}})["id"]
    until = time.monotonic() + 240
    while (state := webui.get(f"/hotlora/api/jobs/{job}"))["status"] in ("queued", "preparing", "running"):
        assert time.monotonic() < until, state
        time.sleep(0.2)
    assert state["status"] == "completed", state
    asked = {"prompt": "sks <lora:beside:1>", "seed": 5, "steps": 1, "width": 64, "height": 64}
    assert '"Lora hashes": "beside: ' in webui.post("/sdapi/v1/txt2img", asked)["info"]


def test_a_reload_of_the_ui_leaves_one_of_each(webui):
    before, shown, routes = webui.get("/probe/look"), tabs(webui), webui.get("/probe/routes")
    for _ in range(2):
        webui.reload_ui()
        after = webui.get("/probe/look")
        assert after["callbacks"] == before["callbacks"]
        assert sorted(tabs(webui)) == sorted(shown)
        assert webui.get("/probe/routes") == routes and sum(route.startswith("/hotlora") for route in routes) == 1
        check_modules(webui)
    assert webui.request("GET", "/hotlora/api/status")[0] == 200
