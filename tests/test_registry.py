"""What ComfyUI's registry asks of a pack of nodes, as far as it can be looked at here."""
import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

import hotlora
from hotlora.trainer.config import SETTINGS

tomllib = pytest.importorskip("tomllib" if sys.version_info >= (3, 11) else "tomli")


@pytest.fixture
def project(root) -> dict:
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))


def tracked(root: Path) -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z", "*.py"], cwd=root, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [root / name for name in done.stdout.split("\0") if name and (root / name).exists()]


def test_the_project_says_what_the_registry_wants_to_know(project, root):
    name = project["project"]["name"]
    assert re.fullmatch(r"[a-z][a-z0-9._-]{0,99}", name) and "comfy" not in name
    assert project["tool"]["comfy"]["requires-comfyui"] == f">={hotlora.COMFYUI}"
    assert project["tool"]["comfy"]["PublisherId"] and project["tool"]["comfy"]["DisplayName"]
    # the registry's client finds the version by this pattern, in the file that [tool.comfy.version] names
    text = (root / project["tool"]["comfy"]["version"]["path"]).read_text(encoding="utf-8")
    [version] = re.findall(r'^__version__ = "([^"]+)"', text, re.MULTILINE)
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)


def test_the_english_texts_of_the_settings_node_are_those_of_the_settings(root):
    """Here, because the test in a real ComfyUI (`test_comfyui.py`) is skipped where there is none."""
    told = json.loads((root / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8"))["HotLoRASettings"]["inputs"]
    assert {name: texts["tooltip"] for name, texts in told.items()} == {name: SETTINGS[name].tooltip() for name in told}


def test_nothing_is_installed_into_comfyui(project, root):
    lines = [line for line in (root / "requirements.txt").read_text(encoding="utf-8").splitlines() if line.strip() and not line.startswith("#")]
    assert lines == []
    assert not any("==" in one or "<" in one for one in project["project"]["dependencies"]), "a pin would move a package of the host"


def test_no_file_runs_text_as_code(root):
    """Rules S102 and S307 of ruff, for which the registry turns a pack down."""
    files = tracked(root)
    assert len(files) > 100
    found = [f"{path.relative_to(root)}:{node.lineno}" for path in files for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
             if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("exec", "eval")]
    assert not found


def test_the_registry_s_own_client_finds_nothing(root, tmp_path):
    """`comfy node validate` on what is committed; it needs no network. Set COMFY_CLI to its `comfy` where that is not on the PATH."""
    comfy = os.environ.get("COMFY_CLI") or shutil.which("comfy")
    if comfy is None:
        pytest.skip("comfy-cli is not installed")
    subprocess.run(["git", "clone", "-q", "--depth", "1", f"file://{root}", str(tmp_path / "clone")], check=True)
    environment = {**os.environ, "HOME": str(tmp_path), "DO_NOT_TRACK": "1"}
    subprocess.run([comfy, "--skip-prompt", "tracking", "disable"], cwd=tmp_path, env=environment, check=True, capture_output=True)
    done = subprocess.run([comfy, "--skip-prompt", "node", "validate"], cwd=tmp_path / "clone", env=environment, capture_output=True, text=True)
    told = done.stdout + done.stderr
    assert done.returncode == 0 and "All validation checks passed" in told, told
    assert "S102" not in told and "S307" not in told and "E702" not in told, told


@pytest.mark.parametrize("found, is_enough", [("0.13.9", False), ("0.3.76", False), (None, False), ("0.14.0", True), ("0.33.0", True), ("1.0", True), ("v0.20.1-3-gabc", True)])
def test_an_older_comfyui_is_told_in_one_sentence_which_it_has_to_be(root, monkeypatch, found, is_enough):
    """What ComfyUI imports before a pack of nodes is stood in for, as there is one version of it here at most; whatever a pack raises, it prints and goes on."""
    monkeypatch.setitem(sys.modules, "folder_paths", types.ModuleType("folder_paths"))
    monkeypatch.setitem(sys.modules, "comfyui_version", None if found is None else types.SimpleNamespace(__version__=found))
    spec = importlib.util.spec_from_file_location("as_comfyui_names_it", root / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    if is_enough:
        spec.loader.exec_module(module)
        return
    with pytest.raises(ImportError, match=re.escape(f"needs ComfyUI {hotlora.COMFYUI}")) as error:
        spec.loader.exec_module(module)
    assert (found or "an older one") in str(error.value) and not hasattr(module, "comfy_entrypoint")
