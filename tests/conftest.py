"""Makes the checkout importable as the package `hotlora`, and gives tests a small gallery and the embedded base to train on."""
import random
import sys
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if "hotlora" not in sys.modules:
    sys.path.insert(0, str(ROOT))
    import __init__  # noqa: F401  registers the package

    sys.path.remove(str(ROOT))

import pytest  # noqa: E402
import torch  # noqa: E402

from hotlora.trainer.config import TrainConfig  # noqa: E402
from hotlora.trainer.demo import drawings  # noqa: E402
from hotlora.trainer.hosts.standalone import load_base  # noqa: E402
from hotlora.trainer.run import make_session, read_material  # noqa: E402

torch.set_num_threads(min(2, torch.get_num_threads()))


def pytest_collection_modifyitems(items):
    """The page's tests early: a whole file goes to one of the processes, and their large files at the end would leave the other without work.

    Not before those of bench/, some of which start a browser of their own, which cannot be done once the page's tests have one.
    """
    items.sort(key=lambda item: {"bench": 0, "web": 1}.get(item.path.relative_to(ROOT).parts[1], 2))


@pytest.fixture
def root() -> Path:
    """The checkout's folder."""
    return ROOT


@pytest.fixture(scope="session")
def backend():
    pytest.importorskip("diffusers", reason="the embedded base needs diffusers, which hosts may lack")
    return load_base("demo", "cpu")


@pytest.fixture
def gallery(tmp_path):
    """Six pictures of the mascot with sidecar captions."""
    folder = tmp_path / "my pictures"
    folder.mkdir()
    rng = random.Random(1)
    for i, background in enumerate(["white", "gray", "black", "beige", "white", "gray"]):
        drawings.draw_mascot(rng, background).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a photo of sks, round, on a {background} background")
    return folder


@pytest.fixture
def config(gallery, tmp_path):
    return TrainConfig(train_data_dir=str(gallery), output_dir=str(tmp_path / "out"), name="mascot", trigger="sks", lora_rank=4,
                       steps=4, batch_size=2, learning_rate=1e-3, tensorboard=False, save_dtype="fp32")


@pytest.fixture
def session_of(backend):
    """Make a session on the embedded base from a config and changes to it."""
    def make(config, listeners=None, **changes):
        return make_session(read_material(replace(config, **changes)), backend, listeners)

    return make
