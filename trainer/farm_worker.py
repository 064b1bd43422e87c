"""One job of a farm, in a Ray worker's own process: the run of `python train.py --config`, which goes on from its newest state after whatever ended it."""
from __future__ import annotations

import contextlib
import logging
import os
import platform
import re
import signal
import threading
import traceback
from pathlib import Path
from typing import Any, Iterator

from .llm.checkpoints import checkpoints_folder, find_checkpoints
from .output_files import put_folder
from .progress_file import VARIABLE, read_progress, write_progress
from .state import find_states

LOOK = 0.5
"""Seconds between two looks whether the farm is to stop."""
STATUS = {0: "completed", 3: "stopped", 130: "stopped"}
"""What the command line's exit statuses mean; any other is a failure."""


def train(job: dict[str, Any]) -> dict[str, Any]:
    """Train one job (see `trainer.farm.Job.order`) to the end, or until the farm is stopped. Returns what its progress file holds at the end.

    It may be called again with the same job, on this machine or another one: that is how Ray takes up a job whose worker died. Each call is
    the only one in its process, so a worker that is killed leaves nothing behind.
    """
    absent = [place for place in (job["folder"], job["config"]) if not Path(place).exists()]
    if absent:
        # its progress lies where nobody else can see it
        return {"status": "failed", "message": f"{absent[0]} is not there on {platform.node()}; all machines of the cluster must see the jobs, their "
                "pictures and --out at the same place, as in a network folder"}
    from .cli import main

    os.chdir(job["folder"])
    progress, run_folder = Path(job["progress"]), Path(job["run_folder"])
    run_folder.mkdir(parents=True, exist_ok=True)
    attempt = read_progress(progress).get("attempts", 0) + 1
    write_progress(progress, status="preparing", attempts=attempt, pid=os.getpid(), node=platform.node(), device=_device(), message="")
    os.environ[VARIABLE] = str(progress)
    arguments = ["train", "--config", job["config"], *(part for setting in job["settings"] for part in ("--set", setting))]
    if find_states(run_folder, job["name"]) or find_checkpoints(checkpoints_folder(run_folder, job["name"])):
        arguments.append("--resume")
    log_file = run_folder / "farm.log"
    with _written_to(log_file), _stopped_by(Path(job["stop"])):
        try:
            code = main(arguments)
            if code == 0:
                _collect(progress, Path(job["loras"]))
        except KeyboardInterrupt:
            code = 130
        except Exception as error:
            traceback.print_exc()
            print(f"error: {type(error).__name__}: {error}")
            code = 1
    status = STATUS.get(code, "failed")
    told = read_progress(progress)
    message = _error_of(log_file) if status == "failed" else told.get("message") or "stopped before the first step; nothing had been learned yet"
    write_progress(progress, status=status, message=message, seconds_left=None)
    return read_progress(progress)


def _collect(progress: Path, folder: Path) -> None:
    """The adapter folder of a language model moves to where the other LoRAs are; a LoRA file is there already."""
    told = read_progress(progress)
    lora = Path(told["lora"])
    if lora.is_dir() and lora.parent != folder:
        folder.mkdir(parents=True, exist_ok=True)
        moved = str(folder / lora.name)
        put_folder(lora, folder / lora.name)
        # the whole model that is told with it stays where it is, as name-merged
        message = re.sub(re.escape(str(lora)) + r"(?=[,;]|$)", lambda _: moved, told["message"])
        write_progress(progress, lora=moved, message=message)


def _device() -> str:
    """What the job has for itself."""
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES") or os.environ.get("HIP_VISIBLE_DEVICES") or ""
    return f"GPU {gpus}" if gpus else f"{os.environ.get('OMP_NUM_THREADS', '?')} CPU"


@contextlib.contextmanager
def _written_to(path: Path) -> Iterator[None]:
    """What the run says goes into a file, after what former attempts said."""
    with path.open("a", encoding="utf-8", errors="replace", buffering=1) as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        # the command line sends its sentences to what stderr is when it begins
        for handler in list(logging.getLogger().handlers):
            logging.getLogger().removeHandler(handler)
        yield


@contextlib.contextmanager
def _stopped_by(file: Path) -> Iterator[None]:
    """While inside, the file's coming does what Ctrl-C does at the command line: the step is finished and saved. Ray keeps SIGINT from its
    workers, so it is SIGTERM, which the command line takes in the same way; before there is a run to stop it ends the preparing."""
    def stop(number, frame) -> None:
        raise KeyboardInterrupt

    over = threading.Event()

    def watch() -> None:
        while not over.wait(LOOK):
            if file.exists():
                signal.raise_signal(signal.SIGTERM)
                return

    before = signal.signal(signal.SIGTERM, stop)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        signal.signal(signal.SIGTERM, before)


def _error_of(log_file: Path) -> str:
    """The sentence that the run ended with."""
    lines = log_file.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return errors[-1] if errors else f"it ended without a word; {log_file} has what it said before"
