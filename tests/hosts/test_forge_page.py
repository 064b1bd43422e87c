"""The page in the tab of the real Forge, with gradio 4, and of reForge: the same steps as in stable-diffusion-webui."""
import pytest

from hotlora.tests.hosts.forge_server import ForgeServer, ReforgeServer, write_model
from hotlora.tests.hosts.test_webui import write_gallery
from hotlora.tests.hosts.test_webui_page import test_from_an_empty_page_to_a_picture_and_txt2img  # noqa: F401
from hotlora.tests.web.conftest import browser  # noqa: F401  a fixture

pytestmark = pytest.mark.host


@pytest.fixture(scope="module", params=[ForgeServer, ReforgeServer])
def webui(request, tmp_path_factory):
    base = tmp_path_factory.mktemp("forge")
    write_model(base)
    write_gallery(base / "me")
    server = request.param(base, settings={"sd_model_checkpoint": "random.safetensors"}).start()
    yield server
    server.stop()
