"""A small LLaMA with random weights and records of a made-up world."""
from __future__ import annotations

import json

import pytest

from hotlora.trainer.cli_llm import missing_package

if missing_package():
    collect_ignore_glob = ["test_*.py"]  # a conftest cannot skip; where a host's older packages are, nothing here can be imported
else:
    from hotlora.bench.llm_world import World, random_base
    from hotlora.trainer.llm.config import LanguageConfig
    from hotlora.trainer.llm.material import read_material
    from hotlora.trainer.llm.offline import go_offline, quiet_libraries
    from hotlora.trainer.llm.run import LanguageRun


@pytest.fixture(scope="session")
def world():
    return World(old=10, new=10)


@pytest.fixture(scope="session")
def base(world, tmp_path_factory):
    """The folder of a base; nothing may change it."""
    quiet_libraries()
    return random_base(tmp_path_factory.mktemp("llm") / "base", world)


@pytest.fixture(scope="session")
def tokenizer_of():
    """A tokenizer of its own for each test, which may change it."""
    from hotlora.trainer.llm.model import load_tokenizer

    return load_tokenizer


@pytest.fixture
def records(world, tmp_path):
    """24 questions with their answers."""
    path = tmp_path / "my facts.jsonl"
    pairs = [world.question(*fact) for fact in world.new_facts(24)]
    path.write_text("".join(json.dumps({"prompt": q, "completion": a}) + "\n" for q, a in pairs), encoding="utf-8")
    return path


@pytest.fixture
def config(base, records, tmp_path):
    return LanguageConfig(base_model=str(base), train_data_dir=str(records), output_dir=str(tmp_path / "out"), name="facts", lora_rank=4, steps=6,
                          batch_size=4, learning_rate=5e-3, max_length=64, device="cpu", tensorboard=False, state_minutes=0)


@pytest.fixture
def run_of():
    """A run that is ready to train."""
    def make(config, resume=False):
        go_offline()
        run = LanguageRun(read_material(config))
        changes = run.resume() if resume else []
        run.load()
        run.changes = changes
        return run

    return make
