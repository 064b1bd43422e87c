"""What extension managers run (stable-diffusion-webui's launcher, ComfyUI-Manager), and what can be run by hand.

HotLoRA needs nothing that a host lacks. Extras switch single features on, and one is installed only when no package that is
already there would be moved; otherwise it is left out, and one line says what is off and how to get it. Nothing is asked
twice: what is there is found without importing it, and what was left out is remembered. This file stands alone, because it
runs in any folder, under any Python of a host, and must not import the host, torch or the package itself.

    python install.py                      what HOTLORA_EXTRAS names, or the small ones
    python install.py tensorboard          these, asked again even if they were left out before
    HOTLORA_EXTRAS="prodigy adamw8bit"     names, "all" or "none"
"""
from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent
REQUIRED = {"torch": "torch", "safetensors": "safetensors", "numpy": "numpy", "PIL": "Pillow", "yaml": "PyYAML"}
"""What to import, and the package that it comes with."""
EXTRAS = {
    "prodigy": ("prodigyopt", "prodigyopt>=1.0", "optimizer prodigy"),
    "lion": ("lion_pytorch", "lion-pytorch>=0.1", "optimizer lion"),
    "adamw8bit": ("bitsandbytes", "bitsandbytes>=0.43", "optimizer adamw8bit"),
    "tensorboard": ("tensorboard", "tensorboard>=2.12", "TensorBoard logs"),
}
"""Name: what to import, the package with the oldest version that will do, and the feature that it switches on."""
SMALL = ("prodigy", "lion")
"""Installed unasked: each one wheel of some kilobytes that needs nothing but torch. The others bring megabytes and more packages."""
DAY = 24 * 3600
NO_ANSWER = re.compile(r"from versions: none|NewConnectionError|ConnectionError|ConnectTimeout|ReadTimeout|timed out|name resolution|"
                       r"Failed to fetch|dns error|error sending request|Network is unreachable|Network connectivity is disabled", re.I)


class NoIndex(Exception):
    """No package index answers."""


class OldPip(Exception):
    """This pip does not know an option."""


class LeftOut(Exception):
    """Why an extra cannot be had without harm; a part of a sentence."""


def main(arguments: list[str]) -> int:
    """Always 0: a host starts with or without extras."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if _lacks_required():
        return 0
    if not arguments and _skips_install():
        say("installs nothing, because the webui runs with --skip-install; all but extra optimizers and TensorBoard logs works without")
        return 0
    try:
        wanted = chosen(arguments or os.environ.get("HOTLORA_EXTRAS", "").replace(",", " ").split())
    except ValueError as error:
        say(str(error))
        return 0
    absent = [name for name in wanted if find_spec(EXTRAS[name][0]) is None]
    if not absent:
        return 0
    marks = Marks()
    due = [name for name in absent if arguments or marks.is_due(name)]
    if due:
        _install_all(due, marks)
    return 0


def chosen(names: list[str]) -> list[str]:
    """Names of extras; ValueError for an unknown one."""
    names = [name.lower() for name in names]
    if not names:
        return list(SMALL)
    if names == ["none"]:
        return []
    if names == ["all"]:
        return list(EXTRAS)
    for name in names:
        if name not in EXTRAS:
            raise ValueError(f"there is no extra {name!r}; choose from {', '.join(EXTRAS)}, or all or none (HOTLORA_EXTRAS)")
    return list(dict.fromkeys(names))


def say(sentence: str) -> None:
    print(f"HotLoRA: {sentence}", flush=True)


def _skips_install() -> bool:
    """Whether stable-diffusion-webui has --skip-install. Its launcher then runs no installer, but its button "Install from URL" does all the same."""
    flag = "--skip-install"
    if flag in os.environ.get("COMMANDLINE_ARGS", "").split():
        return True
    try:
        import psutil  # the webui has it
    except ImportError:
        return False
    try:
        return any(flag in parent.cmdline() for parent in psutil.Process().parents())
    except (OSError, psutil.Error):
        return False


def _lacks_required() -> bool:
    lacking = [package for module, package in REQUIRED.items() if find_spec(module) is None]
    if sys.version_info < (3, 10):
        say(f"Python {sys.version_info[0]}.{sys.version_info[1]} is too old; it needs 3.10 or newer, so install the host anew with that")
    elif lacking:
        say(f"does not work here, because {', '.join(lacking)} is missing: run {_command(lacking)}, or without a host "
            f'"{sys.executable}" -m pip install -e "{ROOT}[standalone]"')
    return bool(lacking) or sys.version_info < (3, 10)


def _install_all(names: list[str], marks: Marks) -> None:
    """Install what does no harm, and say a line about each extra."""
    installer = Installer.find()
    if installer is None:
        say(f"left out {', '.join(EXTRAS[name][2] for name in names)}, because there is neither pip nor uv here; install one of them")
        marks.write(names, 30 * DAY)
        return
    for name in names:
        _, requirement, feature = EXTRAS[name]
        package = requirement.split(">=")[0]
        try:
            added = installer.add(requirement)
            say(f"installed {', '.join(added)} for {feature}; no other package has changed")
        except NoIndex:
            say(f"no package index answers, so {', '.join(EXTRAS[rest][2] for rest in names[names.index(name):])} stays off and all else "
                f"works; it is tried again after a day, or now with \"{sys.executable}\" \"{ROOT / 'install.py'}\" {name}")
            marks.write(names[names.index(name):], DAY)
            return
        except LeftOut as reason:
            say(f"{feature} is off, because {package} {reason}; to have it all the same, run {_command([package])}")
            marks.write([name], 30 * DAY)


def _command(packages: list[str]) -> str:
    start = f'"{sys.executable}" -m pip' if find_spec("pip") else f'uv pip --python "{sys.executable}"'
    return f"{start} install {' '.join(packages)}"


class Marks:
    """When each extra that was left out is asked for again, per Python; in our folder, or the user's where ours is read-only."""

    def __init__(self) -> None:
        cache = os.environ.get("LOCALAPPDATA") or os.environ.get("XDG_CACHE_HOME") or os.path.expanduser(os.path.join("~", ".cache"))
        self.places = [ROOT / ".install.json", Path(cache) / "hotlora" / "install.json"]
        self.key = f"{sys.prefix} {sys.version_info[0]}.{sys.version_info[1]}"
        self.known: dict[str, float] = {}
        for place in self.places:
            self.known.update(self._read(place).get(self.key, {}))

    def is_due(self, name: str) -> bool:
        """True again when a clock that was wrong has been set back."""
        until = self.known.get(name, 0)
        return not time.time() < until <= time.time() + 31 * DAY

    def write(self, names: list[str], seconds: float) -> None:
        self.known.update({name: time.time() + seconds for name in names})
        for place in self.places:
            try:
                self._replace(place, {**self._read(place), self.key: self.known})
                return
            except OSError:
                continue

    @staticmethod
    def _read(place: Path) -> dict[str, dict[str, float]]:
        """Empty for a file that is not there or not ours."""
        try:
            found = json.loads(place.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        if not isinstance(found, dict):
            return {}
        return {key: {name: until for name, until in marks.items() if isinstance(until, (int, float))}
                for key, marks in found.items() if isinstance(marks, dict)}

    @staticmethod
    def _replace(place: Path, content: dict) -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=place.parent, prefix=".install-")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                json.dump(content, stream)
            os.replace(temporary, place)
        except OSError:
            os.unlink(temporary)
            raise


class Installer:
    """pip or uv, asked first what it would do, with every package that is there held at its version."""

    def __init__(self, start: list[str], is_uv: bool) -> None:
        self.start, self.is_uv = start, is_uv
        self.there = installed()

    @classmethod
    def find(cls) -> Installer | None:
        """The pip of this Python; uv where an environment has none."""
        if find_spec("pip"):
            alone = ["-s"] if sys.flags.no_user_site else []
            return cls([sys.executable, *alone, "-m", "pip"], is_uv=False)
        from shutil import which

        uv = [sys.executable, "-m", "uv"] if find_spec("uv") else [which("uv")] if which("uv") else None
        return cls([*uv, "pip"], is_uv=True) if uv else None

    def add(self, requirement: str) -> list[str]:
        """Install a package and what else it needs; "name==version" of each. LeftOut when something that is there would move."""
        with tempfile.TemporaryDirectory() as folder:
            held = Path(folder) / "held.txt"
            held.write_text("".join(f"{name}=={version}\n" for name, version in self.there.items()), encoding="utf-8")
            try:
                plan = self._plan([requirement, "-c", str(held)], folder)
            except LeftOut as reason:
                raise LeftOut(self._what_would_move(requirement, folder) or str(reason)) from None
            if plan is None:  # a pip that cannot say what it would do, but obeys what is held
                self._run([requirement, "-c", str(held)], minutes=15)
                return [f"{name}=={version}" for name, version in installed().items() if name not in self.there]
            moved = self._moved(plan)
            if moved:
                raise LeftOut(moved)
            exact = [f"{name}=={version}" for name, version in plan.items()]
            self._run(["--no-deps", *exact], minutes=15)
        self.there.update(plan)
        return exact

    def _plan(self, what: list[str], folder: str) -> dict[str, str] | None:
        """What would be installed; None from a pip older than 22.2."""
        if self.is_uv:
            text = self._run(["--dry-run", *what], minutes=1)
            return {plain(name): version for name, version in re.findall(r"^\s*[+~] (\S+?)==(\S+)", text, re.M)}
        report = Path(folder) / "report.json"
        try:
            self._run(["--dry-run", "--report", str(report), *what], minutes=1)
        except OldPip:
            return None
        items = json.loads(report.read_text(encoding="utf-8"))["install"]
        return {plain(item["metadata"]["name"]): item["metadata"]["version"] for item in items}

    def _moved(self, plan: dict[str, str]) -> str:
        moved = [f"{name} {self.there[name]} to {version}" for name, version in plan.items() if name in self.there]
        return f"would move {', '.join(moved)}" if moved else ""

    def _what_would_move(self, requirement: str, folder: str) -> str:
        try:
            return self._moved(self._plan([requirement], folder) or {})
        except (LeftOut, NoIndex):
            return ""

    def _run(self, what: list[str], minutes: float) -> str:
        """What the installer prints. Wheels only, so that no package's own code runs or is compiled here."""
        index = os.environ.get("INDEX_URL", "").strip()  # the mirror that stable-diffusion-webui's users set
        patience = [] if self.is_uv else ["--timeout", "5", "--retries", "0", "--no-input", "--disable-pip-version-check"]
        whose = ["--python", sys.executable] if self.is_uv else []
        command = [*self.start, "install", "--only-binary", ":all:", *whose, *patience, *(["--index-url", index] if index else []), *what]
        environment = {**os.environ, "UV_HTTP_TIMEOUT": "5", "UV_HTTP_RETRIES": "0", "NO_COLOR": "1", "PYTHONIOENCODING": "utf-8"}
        try:
            done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace", timeout=minutes * 60,
                                  env=environment, cwd=ROOT, stdin=subprocess.DEVNULL)
        except subprocess.TimeoutExpired:
            raise NoIndex from None
        except OSError as error:
            raise LeftOut(f"cannot be installed ({error})") from None
        text = done.stdout + done.stderr
        if done.returncode == 0:
            return text
        if NO_ANSWER.search(text):
            raise NoIndex
        if "no such option" in text:
            raise OldPip
        raise LeftOut(f"cannot be installed beside the packages that are here ({_last_error(text)})")


def _last_error(text: str) -> str:
    """The sentence that matters most in what pip or uv printed."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"(ERROR|error|×|x No)", line)] or lines or ["no reason given"]
    return re.sub(r"^(ERROR|error): ?|^× ?", "", errors[0]).rstrip(".")[:200]


def plain(name: str) -> str:
    """Package names are the same in any case and with any of the three separators."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installed() -> dict[str, str]:
    """Every package of this Python with a version that can be held."""
    import importlib.metadata

    found = {}
    for distribution in importlib.metadata.distributions():
        name, version = distribution.metadata["Name"], distribution.version
        if name and version and re.fullmatch(r"[\w.!+-]+", version):
            found.setdefault(plain(name), version)
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
