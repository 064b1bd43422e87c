"""install.py in the hosts' own environments: hard-linked copies, so that the hosts themselves stay as they are."""
from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from hotlora.tests.hosts.places import host

pytestmark = pytest.mark.host


class Copy:
    """A host's environment, copied, and our install.py in a folder of its own."""

    def __init__(self, name: str, folder: Path, root: Path) -> None:
        self.webui, python = host(name)
        original = python.parent.parent
        if not (original / "pyvenv.cfg").is_file():
            pytest.skip(f"{python} is not in an environment that can be copied")
        try:
            shutil.copytree(original, folder / "venv", symlinks=True, copy_function=os.link)
        except shutil.Error as error:
            pytest.skip(f"{original} cannot be linked into {folder}, such as on another disk: {error.args[0][0]}")
        self.python, self.ours = folder / "venv" / python.relative_to(original), folder / "hotlora"
        self.ours.mkdir()
        shutil.copy(root / "install.py", self.ours)
        self.environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HOTLORA_EXTRAS")}
        self.environment.update(XDG_CACHE_HOME=str(folder / "cache"), HOTLORA_EXTRAS="all", PYTHONDONTWRITEBYTECODE="1")

    def versions(self) -> dict[str, str]:
        code = "import importlib.metadata as m, json; print(json.dumps({d.metadata['Name']: d.version for d in m.distributions()}))"
        return json.loads(self.run([self.python, "-c", code]))

    def run(self, command: list, cwd: Path | None = None) -> str:
        done = subprocess.run(command, cwd=cwd, env=self.environment, capture_output=True, text=True, timeout=580)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Traceback" not in done.stderr, done.stderr
        return done.stdout


def check(copy: Copy, start) -> None:
    """One line for each extra, and each package that was there has the version that it had; then silence."""
    before = copy.versions()
    lines = [line for line in start().splitlines() if line.startswith("HotLoRA: ")]
    after = copy.versions()
    print("\n".join(lines), *sorted(f"{name} {after[name]}" for name in set(after) - set(before)), sep="\n")
    assert {name: after.get(name) for name in before} == before
    assert lines and (len(lines) == 1 or all(any(word in line for line in lines) for word in ("prodigy", "lion", "8bit", "TensorBoard")))
    assert start().strip() == ""
    assert copy.versions() == after


@pytest.mark.parametrize("name", ["WEBUI", "FORGE", "REFORGE"])
def test_the_launcher_of_stable_diffusion_webui_and_its_forks(name, tmp_path, root):
    copy = Copy(name, tmp_path, root)
    code = f"from modules.launch_utils import run_extension_installer; run_extension_installer({str(copy.ours)!r})"
    check(copy, lambda: copy.run([copy.python, "-c", code], cwd=copy.webui))


def test_comfyui_manager(tmp_path, root):
    copy = Copy("COMFYUI", tmp_path, root)
    check(copy, lambda: copy.run([copy.python, "install.py"], cwd=copy.ours))
