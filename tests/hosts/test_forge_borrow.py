"""A full-size SD1.5 in a real Forge: training borrows its weights, and the result is there at once. The same test as in the webui."""
import random

import pytest

from hotlora.tests.hosts.forge_server import ForgeServer, write_model
from hotlora.tests.hosts.test_forge import INSIDE
from hotlora.tests.hosts.test_webui_borrow import test_training_borrows_and_gives_back  # noqa: F401
from hotlora.tests.random_models import full_shapes
from hotlora.trainer.demo import drawings

pytestmark = [pytest.mark.host, pytest.mark.slow]


@pytest.fixture(scope="module")
def webui(tmp_path_factory):
    base = tmp_path_factory.mktemp("full")
    write_model(base, shapes=full_shapes("sd15"))
    folder = base / "me"
    folder.mkdir()
    for i in range(3):
        drawings.draw_mascot(random.Random(i), "white").resize((256, 256)).save(folder / f"{i}.png")
    server = ForgeServer(base, links={"inside_forge": INSIDE}).start()
    yield server
    server.stop()
