"""A full-size SD1.5 in a real Forge and reForge: training borrows its weights, and the result is there at once. The same test as in the webui."""
import pytest

from hotlora.tests.hosts.forge_server import ForgeServer, ReforgeServer, write_model
from hotlora.tests.hosts.test_forge import INSIDE
from hotlora.tests.hosts.test_webui_borrow import running, test_training_borrows_and_gives_back  # noqa: F401
from hotlora.tests.random_models import full_shapes

pytestmark = [pytest.mark.host, pytest.mark.slow]


@pytest.fixture(scope="module", params=[ForgeServer, ReforgeServer])
def webui(request, tmp_path_factory):
    base = tmp_path_factory.mktemp("full")
    write_model(base, shapes=full_shapes("sd15"))
    yield from running(request.param(base, links={"inside_forge": INSIDE}))
