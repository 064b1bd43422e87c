"""Many LoRAs, of pictures and of texts: a list of jobs on Ray, one device each, on this machine or a cluster. Ray schedules, and takes
a job up again when its worker or its machine dies; the run then goes on from its newest state, as `train.py --resume` does."""
from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import signal
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

from .config import TrainConfig
from .config_files import load_config, read_values
from .farms import STATE
from .hosts.standalone import existing_base, pick_device
from .job_settings import name_of
from .llm.config import LanguageConfig
from .llm.config_files import is_language_run, load_language_config
from .output_files import write_atomically
from .preflight import check_paths, preflight
from .progress_file import read_progress, write_progress

log = logging.getLogger(__name__)
STOP, LOCK, LORAS = "farm.stop", "farm.lock", "loras"
ROOT = Path(__file__).resolve().parent.parent
FREE = ("output_dir", "lora_dir", "cache_dir", "device", "save_steps", "state_minutes", "preview_steps", "preview_prompts", "preview_seed",
              "preview_guidance", "preview_max_tokens", "tensorboard", "log_every")
"""Settings in which a job may differ from the run that it goes on with."""
OBJECTS = 100_000_000
"""Bytes that Ray may use for results; ours are a few lines."""


@dataclass
class Job:
    """One settings file and where its run lies. `order` is what a worker is sent; `was_done` says that this farm found it completed."""

    config: Path
    name: str
    out: Path
    settings: list[str] = field(default_factory=list)
    on_cpu: bool = False
    digest: str = ""
    was_done: bool = False

    @property
    def run_folder(self) -> Path:
        return self.out / "runs" / self.name

    @property
    def progress(self) -> Path:
        return self.run_folder / "progress.json"

    def order(self) -> dict[str, Any]:
        return {"config": str(self.config), "name": self.name, "settings": self.settings, "folder": os.getcwd(), "run_folder": str(self.run_folder),
                "loras": str(self.out / LORAS), "progress": str(self.progress), "stop": str(self.out / STOP)}

    def told(self) -> dict[str, Any]:
        """How far it is, as anybody may read it."""
        facts = read_progress(self.progress)
        if self.was_done and (lora := facts.get("lora")) and not Path(lora).exists():
            facts["message"] = f"its LoRA is no longer at {lora}; to train it again, delete {self.run_folder}"
        kept = ("status", "step", "total_steps", "loss", "seconds_left", "message", "lora", "attempts", "node", "device", "pid", "updated")
        return {"name": self.name, "config": self.config.name, "status": "queued", "step": 0, "total_steps": 0,
                **{key: facts[key] for key in kept if facts.get(key) is not None}}


def read_jobs(files: list[Path], out: Path, here: bool = True) -> list[Job]:
    """The jobs of settings files. ValueError that names every file with something wrong in it, so that nothing has begun yet then.

    `here`: they run on this machine, so that its packages and its device count too; what the machines of a cluster have they say themselves.
    """
    jobs, wrong = [], []
    for file in files:
        try:
            jobs.append(_read_job(file, out.resolve(), here))
        except ValueError as error:
            text = str(error).removesuffix(".")
            wrong.append(text if text.startswith(str(file)) else f"{file}: {text}")
    taken: dict[str, Job] = {}
    for job in jobs:
        other = taken.setdefault(job.name.casefold(), job)
        if other is not job:
            wrong.append(f"{job.config} and {other.config} would both write the LoRA {job.name}; set another name in one of them")
    if wrong:
        raise ValueError("; ".join(wrong) + (". Nothing has been started" if len(wrong) == 1 else f". {len(wrong)} faults, so nothing has been started"))
    return jobs


def _read_job(file: Path, out: Path, here: bool) -> Job:
    config, name = _language_run(file) if is_language_run(read_values(file)) else _picture_run(file, here)
    job = Job(file.resolve(), name, out, on_cpu=config.device == "cpu", digest=_digest(config))
    job.settings = [f"name={name}", f"output_dir={job.run_folder}"]
    if isinstance(config, TrainConfig):
        job.settings.append(f"lora_dir={out / LORAS}")
        if config.cache_dir is None:
            job.settings.append(f"cache_dir={out / 'cache'}")
    if config.device not in ("auto", "cpu"):
        job.settings.append("device=auto")  # which of several GPUs is for Ray to say
    return job


def _picture_run(file: Path, here: bool) -> tuple[TrainConfig, str]:
    config, _ = load_config(file)
    if here:
        device = pick_device("cpu" if config.device == "cpu" else "auto")
        # to ask a GPU takes memory of it, which this process would hold as long as the jobs run
        preflight(config, None if device.type == "cuda" else device)
    else:
        check_paths(config)
    existing_base(config.base_model)
    return config, name_of(config)


def _language_run(file: Path) -> tuple[LanguageConfig, str]:
    from .cli_llm import need_packages
    from .llm.base_folder import find_base
    from .llm.material import run_name
    from .llm.records import find_files

    need_packages()
    config, _ = load_language_config(file)
    find_files(Path(config.train_data_dir), "train_data_dir")
    find_base(config.base_model)
    return config, run_name(config)


def _digest(config: TrainConfig | LanguageConfig) -> str:
    """Changes with every setting that the result depends on."""
    settings = {key: value for key, value in config.to_dict().items() if key not in FREE}
    return hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=16).hexdigest()


def place(job: Job) -> bool:
    """Make the job's folder ready; False when its run is done already. A run with other settings is kept as `name-v1`."""
    before = read_progress(job.progress)
    if before and before.get("digest") != job.digest:
        number = 1
        while (kept := job.run_folder.with_name(f"{job.name}-v{number}")).exists():
            number += 1
        os.replace(job.run_folder, kept)
        log.info("the settings of %s are others than before, so it begins anew; the former run is %s", job.name, kept)
        before = {}
    if before.get("status") == "completed" and before.get("lora"):
        job.was_done = True
        if not Path(before["lora"]).exists():  # moved to where a host finds it, perhaps
            log.warning("warning: %s: %s", job.name, job.told()["message"])
        return False
    job.run_folder.mkdir(parents=True, exist_ok=True)
    write_progress(job.progress, digest=job.digest, status="queued", message="", seconds_left=None, attempts=0, pid=None, node=None, device=None)
    return True


@dataclass
class Farm:
    """The jobs of one folder. `run` returns when all are over; `stop` may be called from a signal handler."""

    jobs: list[Job]
    out: Path
    retries: int = 3
    address: str | None = None
    cpus: int | None = None
    started: float = field(default_factory=time.time)

    def stop(self) -> None:
        """Every run ends after the step that it is doing, saved; what has not begun does not begin."""
        (self.out / STOP).write_bytes(b"")

    def run(self, look: Callable[[list[dict[str, Any]]], None]) -> list[dict[str, Any]]:
        """`look` is given all jobs about twice a second. ValueError when there is no Ray, or no cluster at the address."""
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / STOP).unlink(missing_ok=True)
        waiting = [job for job in self.jobs if place(job)]
        self.tell(look)
        if waiting:
            with _Ray(self.address) as ray:
                self._work(ray, waiting, look)
        return self.tell(look, finished=True)

    def _work(self, ray: Any, waiting: list[Job], look: Callable[[list[dict[str, Any]]], None]) -> None:
        # a device that Ray does not count, such as Apple's, is given to one job after the other
        alone = self.address is None and pick_device("auto").type not in ("cpu", "cuda")
        share = shares(ray.nodes(), 1 if alone else len(waiting), self.cpus)
        task = ray.remote(max_calls=1)(in_worker())
        pending = {}
        for job in waiting:
            gpus = share.gpus and not job.on_cpu
            options = {"num_gpus": 1, "num_cpus": share.beside_gpu} if gpus else {"num_cpus": share.cpus}
            threads = share.beside_gpu if gpus else share.cpus
            pending[task.options(**options, max_retries=self.retries, name=job.name).remote(str(ROOT), threads, job.order())] = job
        while pending:
            if (self.out / STOP).exists():
                self._cancel(ray, pending)
            done, _ = ray.wait(list(pending), timeout=0.5)
            for reference in done:
                self._end(ray, pending.pop(reference), reference)
            self.tell(look)

    def _cancel(self, ray: Any, pending: dict[Any, Job]) -> None:
        """What still waits for a device is taken out of Ray's queue; runs see the file by themselves."""
        for reference in [reference for reference, job in pending.items() if read_progress(job.progress).get("status") == "queued"]:
            ray.cancel(reference)
            write_progress(pending[reference].progress, status="stopped", message="it had not begun")
            del pending[reference]

    def _end(self, ray: Any, job: Job, reference: Any) -> None:
        """What became of a job, where its worker could not say so itself."""
        try:
            told = ray.get(reference)
            if told != read_progress(job.progress):
                write_progress(job.progress, **told)
        except ray.exceptions.RayError as error:
            why = f"its worker died {read_progress(job.progress).get('attempts', 0)} times ({_first_line(error)}); the same command goes on from its newest state"
            write_progress(job.progress, status="failed", message=why, seconds_left=None)

    def tell(self, look: Callable[[list[dict[str, Any]]], None], finished: bool = False) -> list[dict[str, Any]]:
        told = [job.told() for job in self.jobs]
        state = {"started": self.started, "updated": time.time(), "finished": finished, "out": str(self.out), "jobs": told}
        write_atomically(self.out / STATE, json.dumps(state, ensure_ascii=False, indent=1).encode("utf-8", "replace"))
        look(told)
        return told


@dataclass(frozen=True)
class Shares:
    """What one job is given: `cpus` cores, or a GPU where there are `gpus`, and `beside_gpu` cores with it."""

    gpus: bool
    cpus: int
    beside_gpu: int


def shares(nodes: list[dict[str, Any]], jobs: int, cpus: int | None) -> Shares:
    """Of the machines that Ray knows: the cores are divided among the jobs, those of a machine with GPUs among its GPUs.

    ValueError when `cpus` cores for a job are more than any machine has.
    """
    has = [node["Resources"] for node in nodes if node["Alive"] and node["Resources"].get("CPU")]
    if not has:
        raise ValueError("no machine of the cluster has a CPU to give; start one with `ray start`")
    largest, together = max(int(one["CPU"]) for one in has), sum(int(one["CPU"]) for one in has)
    with_gpu = [one for one in has if one.get("GPU", 0) >= 1]
    beside = min((int(one["CPU"] // one["GPU"]) for one in with_gpu), default=1)
    if cpus is not None and cpus > largest:
        raise ValueError(f"--cpus is {cpus}, but the largest machine has {largest}; give at most that")
    return Shares(bool(with_gpu), cpus or max(1, min(largest, together // jobs)), max(1, min(cpus or beside, beside)))


def in_worker() -> Callable[[str, int, dict[str, Any]], dict[str, Any]]:
    """What a worker calls. A function within a function is sent as it is, so that the worker needs no installed package of ours; it must
    use nothing from outside. The number of threads counts only if it is set before torch is loaded."""
    def train_job(root: str, threads: int, order: dict) -> dict:
        import os
        import sys

        os.environ["OMP_NUM_THREADS"] = str(threads)
        if not os.path.exists(os.path.join(root, "__init__.py")):
            return {"status": "failed", "message": f"HotLoRA is not at {root} on {os.uname().nodename}; all machines need it at the same place"}
        sys.path.insert(0, root)
        import __init__  # noqa: F401  registers the folder as the package hotlora
        from hotlora.trainer.farm_worker import train

        return train(order)

    return train_job


class _Ray:
    """Ray while inside: a cluster's by its address, else one of this machine's own that ends with it. Nothing is sent to anybody: no usage
    statistics, no dashboard, and on this machine only its own address is listened on."""

    def __init__(self, address: str | None) -> None:
        self.address, self.folder = address, ""

    def __enter__(self) -> Any:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            import ray
        except ImportError:
            raise ValueError("the farm needs the package ray; `pip install ray`, or `pip install -e .[cluster]`") from None
        of_ours = signal.getsignal(signal.SIGTERM)
        try:
            if self.address is not None:
                ray.init(address=self.address, log_to_driver=False, logging_level="ERROR")
            else:
                # its sockets lie there, and their paths may not be long
                self.folder = tempfile.mkdtemp(prefix="hlray-", dir="/tmp" if os.path.isdir("/tmp") else None)
                ray.init(address="local", log_to_driver=False, logging_level="ERROR", include_dashboard=False, object_store_memory=OBJECTS,
                         _node_ip_address="127.0.0.1", _temp_dir=self.folder)
        except Exception as error:  # each way to fail has an exception of its own
            self._remove()
            where = f"no Ray cluster answers at {self.address}" if self.address else "Ray could not be started on this machine"
            raise ValueError(f"{where} ({_first_line(error)}); `ray start --head` starts a cluster, and says its address") from error
        signal.signal(signal.SIGTERM, of_ours)
        return ray

    def __exit__(self, *error) -> None:
        import ray

        ray.shutdown()
        self._remove()

    def _remove(self) -> None:
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)


def _first_line(error: BaseException) -> str:
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
