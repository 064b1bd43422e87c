"""`python train.py farm jobs/*.yaml`: many LoRAs, one after the other or side by side, on what this machine or a cluster has."""
from __future__ import annotations

import argparse
import glob
import signal
import sys
from pathlib import Path


def add_commands(commands) -> None:
    farm = commands.add_parser("farm", help="train a list of jobs on Ray, one device each, on this machine or a cluster")
    farm.add_argument("jobs", nargs="+", metavar="FILE", help="settings files as for --config; a pattern such as jobs/*.yaml will do")
    farm.add_argument("--out", type=Path, default=Path("output/farm"), help="folder for everything: the LoRAs lie in its loras, each run in its runs/NAME "
                      "(default: output/farm)")
    farm.add_argument("--address", metavar="HOST:PORT", help="a Ray cluster, or auto for the one of this machine (default: Ray is started here, and ends with the "
                      "last job); all its machines must see this folder, the pictures and --out at the same place")
    farm.add_argument("--retries", type=int, default=3, help="how often a job goes on from its newest state when its worker or machine dies (default: 3)")
    farm.add_argument("--cpus", type=int, help="CPU cores of each job (default: all, divided by the jobs, or by the GPUs where there are some)")
    farm.set_defaults(run=_farm)


def _farm(options: argparse.Namespace) -> int:
    from .farm import LOCK, Farm, read_jobs
    from .farm_table import Table, summary
    from .process_lock import hold

    for name, value, least in (("--retries", options.retries, 0), ("--cpus", options.cpus, 1)):
        if value is not None and value < least:
            raise ValueError(f"{name} is {value} but must be at least {least}")
    jobs = read_jobs(_files(options.jobs), options.out, here=options.address is None)
    lock = hold(options.out / LOCK)
    if lock is None:
        raise ValueError(f"another farm is at work in {options.out}; wait for it, or choose another --out")
    with lock:
        farm = Farm(jobs, options.out.resolve(), options.retries, options.address, options.cpus)
        before = {number: signal.signal(number, lambda *_: _stop(farm)) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            told = farm.run(Table(sys.stdout).show)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    print(f"{summary(told)}; the LoRAs are in {options.out / 'loras'}")
    if all(job["status"] == "completed" for job in told):
        return 0
    print("the same command goes on with what is not completed")
    return 1 if any(job["status"] == "failed" for job in told) else 3


def _stop(farm) -> None:
    print("\nstopping after the steps that are being done; press Ctrl-C again to end at once", file=sys.stderr)
    farm.stop()
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _files(given: list[str]) -> list[Path]:
    """The files that are meant: a shell of Windows leaves patterns as they are. One that is given twice counts once."""
    found: list[Path] = []
    for text in given:
        matches = sorted(glob.glob(text)) if glob.has_magic(text) and not Path(text).exists() else [text]
        if not matches:
            raise ValueError(f"no file is called {text}; give settings files such as jobs/*.yaml")
        found += map(Path, matches)
    return list({path.resolve(): path for path in found}.values())
