"""HotLoRA in a webui that has loaded `modules_forge` but lacks the parts of Forge and reForge, as another fork may: it says where to train, and offers nothing else."""
import pytest

from hotlora.tests.hosts.webui_server import WebuiServer

pytestmark = pytest.mark.host
PRELOAD = "import sys\nimport types\n\nsys.modules['modules_forge'] = types.ModuleType('modules_forge')\n"


@pytest.fixture(scope="module")
def webui(tmp_path_factory):
    base = tmp_path_factory.mktemp("webui")
    fork = base / "extensions" / "fork"
    fork.mkdir(parents=True)
    (fork / "preload.py").write_text(PRELOAD)
    server = WebuiServer(base).start()
    yield server
    server.stop()


def test_the_tab_and_the_console_say_where_to_train(webui, root):
    told = [part["props"]["value"] for part in webui.get("/config")["components"] if "not inside this fork" in str(part["props"].get("value"))]
    assert len(told) == 1 and "iframe" not in told[0]
    command = f'python train.py ui --base "{webui.base / "models" / "Stable-diffusion"}"'
    assert f"{command} in {root}" in webui.log.read_text() and str(webui.loras) in told[0] and "不能在这个分支" in told[0]
    assert "Error loading script" not in webui.log.read_text()


def test_nothing_can_be_trained_there(webui):
    assert webui.request("GET", "/hotlora/")[0] == 404
    assert not any(name.startswith("hotlora_") for name in webui.get("/sdapi/v1/options"))


def test_a_reload_of_the_ui_leaves_one_tab(webui):
    webui.reload_ui()
    labels = [part["props"].get("label") for part in webui.get("/config")["components"]]
    assert labels.count("HotLoRA") == 1
