"""install.py in real environments, with wheels that are made here, so that no network is needed."""
from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REQUIRED = {"torch": "2.1.2", "safetensors": "0.4.2", "numpy": "1.26.2", "Pillow": "9.5.0", "PyYAML": "6.0.1"}
MODULES = {"Pillow": "PIL", "PyYAML": "yaml"}


def wheel(folder: Path, name: str, version: str, needs: tuple[str, ...] = (), code: str = "", module: str = "") -> Path:
    """A wheel as pip wants it, with one module."""
    stem = f"{name.replace('-', '_')}-{version}"
    info = f"{stem}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n" + "".join(f"Requires-Dist: {need}\n" for need in needs)
    files = {f"{module or name.replace('-', '_')}/__init__.py": code, f"{info}/METADATA": metadata,
             f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"}
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name_inside, content in files.items():
            archive.writestr(name_inside, content)
    return path


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """An environment like a host's, with pip and what HotLoRA needs. Importing its torch fails: nothing here may do that."""
    folder = tmp_path_factory.mktemp("template")
    made = subprocess.run([sys.executable, "-m", "venv", folder / "venv"], capture_output=True, text=True, timeout=300)
    if made.returncode:
        pytest.skip(f"this Python cannot make an environment: {made.stdout}{made.stderr}")
    there = [wheel(folder, name, version, module=MODULES.get(name, ""), code="raise RuntimeError('imported')" if name == "torch" else "")
             for name, version in REQUIRED.items()]
    subprocess.run([python_of(folder / "venv"), "-m", "pip", "install", "-q", "--no-index", "--no-deps", *there], check=True, timeout=300)
    return folder / "venv"


@pytest.fixture
def host(template, tmp_path, root):
    return Host(template, tmp_path, root)


def python_of(venv: Path) -> Path:
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


class Host:
    """A copy of the environment, a folder of wheels as its index, and our folder with install.py alone."""

    def __init__(self, template: Path, folder: Path, root: Path) -> None:
        self.index, self.ours, self.python = folder / "index", folder / "extensions" / "hotlora", python_of(folder / "venv")
        shutil.copytree(template, folder / "venv", symlinks=True)
        self.index.mkdir()
        self.ours.mkdir(parents=True)
        shutil.copy(root / "install.py", self.ours)
        self.environment = {name: value for name, value in os.environ.items()
                            if not name.startswith(("PIP_", "UV_", "PYTHON")) and name not in ("HOTLORA_EXTRAS", "INDEX_URL")}
        self.environment.update(PIP_NO_INDEX="1", PIP_FIND_LINKS=str(self.index), PIP_CONFIG_FILE=os.devnull,
                                XDG_CACHE_HOME=str(folder / "cache"), LOCALAPPDATA=str(folder / "cache"), VIRTUAL_ENV="")

    def offer(self, name: str, version: str, *needs: str) -> None:
        wheel(self.index, name, version, needs)

    def install(self, *arguments: str, **environment: str) -> list[str]:
        """The lines that it prints."""
        return self.run([self.python, self.ours / "install.py", *arguments], **environment)

    def run(self, command: list, cwd: Path | None = None, **environment: str) -> list[str]:
        done = subprocess.run(command, cwd=cwd, env={**self.environment, **environment}, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        assert not done.stderr, done.stderr
        return done.stdout.splitlines()

    def freeze(self) -> dict[str, str]:
        lines = self.run([self.python, "-m", "pip", "list", "--format", "json", "--disable-pip-version-check"])
        return {entry["name"]: entry["version"] for entry in json.loads(lines[0])}

    def break_pip(self) -> None:
        """From now on a call of pip or of uv ends with an error that cannot be missed."""
        for main in self.python.parent.parent.rglob("pip/__main__.py"):
            main.write_text("raise SystemExit('pip was called')")


def test_small_extras_are_added_and_nothing_else_changes(host):
    host.offer("prodigyopt", "1.1.2", "torch")
    host.offer("lion-pytorch", "0.2.5", "torch>=1.6", "a-new-one")
    host.offer("a-new-one", "3.0")
    host.offer("torch", "2.9.0")
    host.offer("numpy", "2.3.0")
    before = host.freeze()
    lines = host.install()
    assert [line.split(" for ")[0] for line in lines] == ["HotLoRA: installed prodigyopt==1.1.2",
                                                          "HotLoRA: installed lion-pytorch==0.2.5, a-new-one==3.0"]
    assert host.freeze() == {**before, "prodigyopt": "1.1.2", "lion-pytorch": "0.2.5", "a-new-one": "3.0"}


def test_nothing_is_installed_unasked_where_the_webui_skips_installs(host):
    host.offer("prodigyopt", "1.1.2")
    before = host.freeze()
    line, = host.install(COMMANDLINE_ARGS="--api --skip-install")
    assert "--skip-install" in line and host.freeze() == before
    psutil = pytest.importorskip("psutil")
    packages, = (host.python.parent.parent).rglob("site-packages")
    shutil.copytree(Path(psutil.__file__).parent, packages / "psutil")
    start = "import subprocess, sys; subprocess.run(sys.argv[1:3], check=True)"
    line, = host.run([host.python, "-c", start, host.python, host.ours / "install.py", "--skip-install"])
    assert "--skip-install" in line and host.freeze() == before
    line, = host.install("prodigy", COMMANDLINE_ARGS="--skip-install")
    assert "installed prodigyopt==1.1.2" in line, "asked for by name it is installed"


def test_an_extra_that_would_move_a_package_is_left_out_with_one_line(host):
    host.offer("prodigyopt", "1.1.2", "numpy>=2")
    host.offer("numpy", "2.3.0")
    before = host.freeze()
    line, = host.install(HOTLORA_EXTRAS="prodigy")
    assert "optimizer prodigy is off" in line and "would move numpy 1.26.2 to 2.3.0" in line
    assert f'"{host.python}" -m pip install prodigyopt' in line
    assert host.freeze() == before
    host.break_pip()
    assert host.install(HOTLORA_EXTRAS="prodigy") == [], "it is not asked again at the next start"


def test_an_older_version_that_fits_is_taken(host):
    host.offer("tensorboard", "2.20.0", "numpy>=2")
    host.offer("tensorboard", "2.14.0", "numpy>=1.12")
    host.offer("tensorboard", "1.0.0")
    host.offer("numpy", "2.3.0")
    before = host.freeze()
    line, = host.install("tensorboard")
    assert "tensorboard==2.14.0" in line and host.freeze() == {**before, "tensorboard": "2.14.0"}


def test_versions_that_are_too_old_are_not_taken(host):
    host.offer("bitsandbytes", "0.45.0", "torch>=2.2")
    host.offer("bitsandbytes", "0.35.0")
    host.offer("torch", "2.9.0")
    before = host.freeze()
    line, = host.install("adamw8bit")
    assert "would move torch 2.1.2 to 2.9.0" in line and host.freeze() == before


def test_a_package_that_does_not_come_as_a_wheel_is_left_out(host):
    (host.index / "prodigyopt-1.1.2.tar.gz").write_bytes(b"never opened")
    line, = host.install("prodigy")
    assert "stays off" in line


def test_the_second_start_does_nothing(host):
    host.offer("prodigyopt", "1.1.2", "torch")
    host.offer("lion-pytorch", "0.2.5", "torch")
    assert len(host.install()) == 2
    host.break_pip()
    assert host.install() == []


def test_what_was_left_out_is_asked_again_by_name_and_after_its_time(host):
    host.offer("prodigyopt", "1.1.2", "numpy>=2")
    assert len(host.install(HOTLORA_EXTRAS="prodigy")) == 1
    host.offer("prodigyopt", "1.1.1", "torch")
    assert host.install(HOTLORA_EXTRAS="prodigy") == []
    mark = host.ours / ".install.json"
    (key, known), = json.loads(mark.read_text()).items()
    mark.write_text(json.dumps({key: {name: until - 31 * 24 * 3600 for name, until in known.items()}}))
    line, = host.install(HOTLORA_EXTRAS="prodigy")
    assert "prodigyopt==1.1.1" in line


def test_offline_is_one_line_and_no_reason_to_fail(host):
    offline = {"PIP_NO_INDEX": "", "PIP_FIND_LINKS": "", "PIP_INDEX_URL": "http://127.0.0.1:9/simple"}
    before = host.freeze()
    line, = host.install(**offline)
    assert "no package index answers" in line and "optimizer prodigy, optimizer lion stays off" in line
    assert host.freeze() == before
    host.break_pip()
    assert host.install(**offline) == []


def test_the_users_mirror_is_asked(host):
    line, = host.install("prodigy", PIP_NO_INDEX="", PIP_FIND_LINKS="", INDEX_URL=(host.index / "mirror").as_uri())
    assert "no package index answers" in line
    host.offer("prodigyopt", "1.1.2")
    mirror = host.index / "mirror" / "prodigyopt"
    mirror.mkdir(parents=True)
    name = "prodigyopt-1.1.2-py3-none-any.whl"
    shutil.move(host.index / name, mirror / name)
    (mirror / "index.html").write_text(f"<!DOCTYPE html><html><body><a href='{name}'>{name}</a></body></html>")
    line, = host.install("prodigy", PIP_NO_INDEX="", PIP_FIND_LINKS="", INDEX_URL=(host.index / "mirror").as_uri())
    assert "prodigyopt==1.1.2" in line


def test_a_folder_that_cannot_be_written(host):
    (host.ours / ".install.json").mkdir()
    host.offer("prodigyopt", "1.1.2", "numpy>=2")
    assert len(host.install(HOTLORA_EXTRAS="prodigy")) == 1
    host.break_pip()
    assert host.install(HOTLORA_EXTRAS="prodigy") == [], "the mark lies in the user's folder then"


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": 1}', '{"a": {"prodigy": "x"}}', "\udcff"])
def test_a_damaged_mark_is_as_good_as_none(tmp_path, root, monkeypatch, content):
    spec = importlib.util.spec_from_file_location("hotlora_install", root / "install.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(script, "ROOT", tmp_path)
    for variable in ("LOCALAPPDATA", "XDG_CACHE_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / "cache"))
    (tmp_path / ".install.json").write_text(content, encoding="utf-8", errors="surrogateescape")
    assert script.Marks().is_due("prodigy")
    script.Marks().write(["prodigy"], 60)
    assert not script.Marks().is_due("prodigy") and script.Marks().is_due("lion")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".install.json"], "no other file is left behind"


def test_nothing_is_installed_where_none_is_chosen(host):
    host.break_pip()
    assert host.install(HOTLORA_EXTRAS="none") == []


def test_an_unknown_extra(host):
    line, = host.install(HOTLORA_EXTRAS="prodigy,xformers")
    assert line == ("HotLoRA: there is no extra 'xformers'; choose from prodigy, lion, adamw8bit, tensorboard, or all or none "
                    "(HOTLORA_EXTRAS)")


def test_a_missing_requirement_is_named(host):
    host.run([host.python, "-m", "pip", "uninstall", "-q", "-y", "PyYAML"])
    line, = host.install()
    assert "PyYAML is missing" in line and f'"{host.python}" -m pip install PyYAML' in line


def test_stable_diffusion_webuis_launcher(host, tmp_path):
    """It starts the file through a shell, with its own folder on PYTHONPATH. Its modules are not touched."""
    (tmp_path / "webui").mkdir()
    (tmp_path / "webui" / "launch.py").write_text("raise RuntimeError('imported')")
    host.offer("prodigyopt", "1.1.2", "torch")
    command = f'"{host.python}" "{host.ours / "install.py"}"'
    done = subprocess.run(command, shell=True, cwd=tmp_path / "webui", capture_output=True, text=True, timeout=300,
                          env={**host.environment, "PYTHONPATH": f"{tmp_path / 'webui'}{os.pathsep}", "HOTLORA_EXTRAS": "prodigy"})
    assert done.returncode == 0 and not done.stderr and "prodigyopt==1.1.2" in done.stdout


def test_comfyui_manager(host):
    """It starts the file by its bare name in our folder; the embedded Python of ComfyUI's download runs with -s."""
    host.offer("prodigyopt", "1.1.2", "torch")
    line, = host.run([host.python, "-s", "install.py"], cwd=host.ours, HOTLORA_EXTRAS="prodigy")
    assert "prodigyopt==1.1.2" in line


def test_uv_is_used_where_there_is_no_pip(host, tmp_path):
    uv = shutil.which("uv")
    real = subprocess.run([uv, "--version"], capture_output=True).returncode if uv else 1
    if real:
        pytest.skip("needs uv")
    host.run([host.python, "-m", "pip", "uninstall", "-q", "-y", "pip"])
    host.offer("prodigyopt", "1.1.2", "torch", "a-new-one")
    host.offer("a-new-one", "3.0")
    host.offer("lion-pytorch", "0.2.5", "numpy>=2")
    host.offer("numpy", "2.3.0")
    empty = tmp_path / "empty"
    empty.mkdir()
    settings = {"UV_DEFAULT_INDEX": empty.as_uri(), "UV_FIND_LINKS": str(host.index), "UV_CACHE_DIR": str(tmp_path / "uv"), "UV_NO_CONFIG": "1"}
    added, left_out = host.install(**settings)
    assert "installed a-new-one==3.0, prodigyopt==1.1.2" in added
    assert "optimizer lion is off" in left_out and "would move numpy 1.26.2 to 2.3.0" in left_out
    found = json.loads(host.run([uv, "pip", "list", "-q", "--format", "json", "--python", host.python], **settings)[0])
    assert {p["name"]: p["version"] for p in found}["numpy"] == "1.26.2" and "lion-pytorch" not in {p["name"] for p in found}
    offline = {"UV_NO_CONFIG": "1", "UV_CACHE_DIR": str(tmp_path / "uv2"), "UV_DEFAULT_INDEX": "http://127.0.0.1:9/simple"}
    line, = host.install("lion", **offline)
    assert "no package index answers" in line


def test_neither_pip_nor_uv(host, tmp_path):
    host.run([host.python, "-m", "pip", "uninstall", "-q", "-y", "pip"])
    line, = host.install(PATH=str(tmp_path))
    assert "there is neither pip nor uv" in line


@pytest.mark.slow
def test_a_pip_that_cannot_say_what_it_would_do(host, tmp_path):
    """pip 21 has neither --dry-run nor --report. Fetched from the index of the machine, so slow."""
    fetched = subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", tmp_path, "pip==21.3.1"],
                             capture_output=True, text=True, timeout=300)
    if fetched.returncode:
        pytest.skip(f"pip 21.3.1 cannot be had here: {fetched.stderr}")
    host.run([host.python, "-m", "pip", "install", "-q", "--no-index", next(tmp_path.glob("pip-*.whl"))])
    host.offer("prodigyopt", "1.1.2", "torch", "a-new-one")
    host.offer("a-new-one", "3.0")
    host.offer("lion-pytorch", "0.2.5", "numpy>=2")
    host.offer("numpy", "2.3.0")
    before = host.freeze()
    added, left_out = host.install()
    assert "prodigyopt==1.1.2" in added and "optimizer lion is off" in left_out
    assert host.freeze() == {**before, "prodigyopt": "1.1.2", "a-new-one": "3.0"}


def test_what_language_models_and_clusters_need_is_never_installed(host, root):
    """Not even where everything that install.py knows is asked for: these are for the command line, outside a host."""
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no reader of TOML")
    extras = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    names = {re.split(r"[<>=;\[ ]", need)[0] for need in (*extras["llm"], *extras["cluster"])} - {"tensorboard"}
    assert {"ray", "transformers", "peft"} <= names
    for name in names:
        host.offer(name, "99.0")
    for name in ("prodigyopt", "lion-pytorch", "bitsandbytes", "tensorboard"):
        host.offer(name, "99.0")
    before = host.freeze()
    host.install(HOTLORA_EXTRAS="all")
    assert set(host.freeze()) == {*before, "prodigyopt", "lion-pytorch", "bitsandbytes", "tensorboard"}
    for name in ("llm", "cluster"):
        [line] = host.install(HOTLORA_EXTRAS=name)
        assert f"there is no extra '{name}'" in line
