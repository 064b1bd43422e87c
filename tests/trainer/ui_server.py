"""`python train.py ui` as a process of its own, driven over HTTP."""
from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Iterator

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


class UiServer:
    """`folder` is its output folder. Use as a context manager, or `start` and `stop`."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder, self.arguments, self.url = folder, arguments, ""

    def __enter__(self) -> UiServer:
        return self.start()

    def __exit__(self, *error) -> None:
        self.stop()

    def start(self) -> UiServer:
        pytest.importorskip("diffusers", reason="the embedded base needs diffusers, which hosts may lack")
        command = [sys.executable, str(ROOT / "train.py"), "ui", "--port", "0", "--output-dir", str(self.folder), "--device", "cpu", *self.arguments]
        # nothing listens there: what has to be downloaded cannot be, and says so at once
        environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"}
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log = self.folder / "server.log"
        with self.log.open("a") as errors:
            self.process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)
        line = self.process.stdout.readline()
        assert line.startswith("HotLoRA is at "), line + self.log.read_text()
        self.url = line.split()[-1].removesuffix("/hotlora/")
        return self

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(120)
        self.process.stdout.close()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def request(self, method: str, path: str, data=None, headers: dict | None = None) -> tuple[int, bytes]:
        if data is not None and not isinstance(data, bytes):
            data, headers = json.dumps(data).encode(), {"Content-Type": "application/json", **(headers or {})}
        request = urllib.request.Request(self.url + path, data, headers or {}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def get(self, path: str):
        status, body = self.request("GET", f"/hotlora/api/{path}")
        assert status == 200, body
        return json.loads(body)

    def post(self, path: str, data: dict | None = None):
        status, body = self.request("POST", f"/hotlora/api/{path}", data or {})
        assert status in (200, 201), body
        return json.loads(body)

    def until(self, job: str, *statuses: str, step: int = 0, seconds: float = 300) -> dict:
        """The job once it has one of the statuses and at least so many steps."""
        end = time.monotonic() + seconds
        while True:
            found = self.get(f"jobs/{job}")
            if found["status"] in statuses and found["step"] >= step:
                return found
            assert found["status"] not in ("failed", "cancelled") and time.monotonic() < end and self.process.poll() is None, (found, self.log.read_text()[-2000:])
            time.sleep(0.05)

    def events(self, after: int | None = None, seen: int | None = None) -> Iterator[dict]:
        """Events as a browser gets them; `seen` is what it says after a lost connection."""
        headers = {} if seen is None else {"Last-Event-ID": str(seen)}
        path = "/hotlora/api/events" + ("" if after is None else f"?after={after}")
        with urllib.request.urlopen(urllib.request.Request(self.url + path, headers=headers), timeout=60) as answer:
            for line in answer:
                if line.startswith(b"data: "):
                    yield json.loads(line[6:])
