"""The READMEs tell the truth: their keys exist, their example runs, their layout names every file."""
import re
from dataclasses import replace

import pytest

from hotlora.trainer.config import SETTINGS
from hotlora.trainer.run import make_session, read_material

READMES = ("README.md", "README.zh-CN.md")


def block(text: str, language: str) -> str:
    return re.search(rf"```{language}\n(.*?)```", text, re.S)[1]


@pytest.mark.parametrize("name", READMES)
def test_the_keys_of_the_table_are_settings(root, name):
    rows = re.findall(r"^\| (`[^|]*) \|", (root / name).read_text(encoding="utf-8"), re.M)
    keys = {key for row in rows for key in re.findall(r"`(\w+)`", row)}
    assert len(keys) >= 13 and keys <= set(SETTINGS)


@pytest.mark.parametrize("name", READMES)
def test_links_and_pictures_are_there(root, name):
    for target in re.findall(r"\]\(([^)#]+)", (root / name).read_text(encoding="utf-8")):
        assert (root / target.strip("<>")).exists(), target


def test_the_two_readmes_have_the_same_code(root):
    blocks = [re.findall(r"```yaml\n(.*?)```", (root / name).read_text(encoding="utf-8"), re.S) for name in READMES]
    assert blocks[0] == blocks[1]


@pytest.mark.parametrize("name", READMES)
def test_the_example_of_own_code_runs(root, name, config, backend, tmp_path, monkeypatch):
    import yaml

    text = (root / name).read_text(encoding="utf-8")
    (tmp_path / "mine.py").write_text(block(text, "python"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    config = replace(config, **yaml.safe_load(block(text, "yaml")))
    session = make_session(read_material(config), backend)
    assert type(session.optimizer).__name__ == "RAdam" and session.train().status == "completed"


def test_the_layout_names_every_file(root):
    layout = (root / "README.md").read_text(encoding="utf-8").split("## Layout")[1]
    folders = ("trainer", "trainer/api", "trainer/captions", "trainer/demo", "trainer/gallery_checks", "trainer/hosts", "trainer/llm", "nodes", "bench",
               "scripts")
    for folder in folders:
        for file in sorted((root / folder).glob("*.py")):
            if file.name != "__init__.py":
                assert re.search(rf"(?<![\w]){re.escape(file.name)}\b", layout), f"{folder}/{file.name}"
