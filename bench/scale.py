"""How training scales: measured here on 1, 2 and 4 processes, and from that on paper for 8, 64 and 1,000 GPUs.

    python bench/scale.py                          about two minutes on two cores; prints Markdown tables
    python bench/scale.py --processes 1 2 --ranks 16
    python bench/scale.py --step-seconds 0.1 0.5   what one picture of SD1.5 and of SDXL takes on your GPU, for the tables on paper
    python bench/scale.py --json                   the same as one JSON object

Every process has one thread, a step has the same pictures whatever the number of processes, and the base is the embedded one. Timed are
whole steps of `train.py`'s own session, the part of them in which gradients are added up (with the waiting for whoever is slower), and,
after training, the adding up alone. On paper: t(N) = pictures of one GPU x seconds each + adding up, where that is
2 (N-1)/N x bytes / bandwidth + 2 ceil(log2 N) x latency: recursive halving and doubling (Rabenseifner; Thakur et al., 2005, section 4.5),
which rings and NCCL's double binary trees come near. Assumed are the bandwidths and latencies below, the seconds of --step-seconds, equal
GPUs that wait for none (the measured step shows what waiting costs), and nothing overlapped with the backward.
"""
from __future__ import annotations

import argparse
import json
import math
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import __init__  # noqa: E402, F401  registers the project as the package `hotlora`

GALLERY = ROOT / "trainer" / "demo" / "gallery"
PICTURES = 4
"""Of one step."""
WARM_UP, STEPS, SUMS = 3, 12, 20
SIZES = (250_000, 1_000_000, 4_000_000, 16_000_000, 64_000_000)
"""Bytes of gradients, for the time of adding up alone."""
GPUS = (1, 8, 64, 1000)
TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")


@dataclass(frozen=True)
class Network:
    """Bytes per second and seconds of latency of one transfer, as one GPU sees them among so many."""

    name: str
    bandwidth: float
    latency: float


NVLINK = Network("NVLink, 8 GPUs of one machine", 300e9, 10e-6)
INFINIBAND = Network("InfiniBand, 400 Gbit/s for each GPU", 40e9, 20e-6)
ETHERNET = Network("10 Gbit/s Ethernet, one card a machine", 1e9, 100e-6)
"""Sums of one machine's GPUs go through its card once, so that these do not share it."""


def sum_seconds(size: int, count: int, network: Network) -> float:
    """Of adding up `size` bytes over `count` GPUs."""
    return 0.0 if count == 1 else 2 * (count - 1) / count * size / network.bandwidth + 2 * math.ceil(math.log2(count)) * network.latency


def in_process(order: dict[str, Any]) -> None:
    """What one process does; the first prints what it measured."""
    import torch

    from hotlora.trainer.config import TrainConfig
    from hotlora.trainer.distributed import joined
    from hotlora.trainer.hosts.standalone import load_base
    from hotlora.trainer.run import make_session, read_material

    torch.set_num_threads(1)
    config = TrainConfig(train_data_dir=str(GALLERY), output_dir=order["out"], name="scale", trigger="sks", lora_rank=order["rank"], batch_size=PICTURES,
                         steps=WARM_UP + STEPS, tensorboard=False, state_minutes=0)
    with joined() as ranks:
        material = ranks.leaders_first(lambda _: read_material(config, make_captions=False))
        session = make_session(material, ranks.together(lambda: load_base("demo", "cpu")), ranks=ranks)
        adding, seconds = [], []
        if ranks.world > 1:
            total = ranks.total

            def timed(flat):
                began = time.perf_counter()
                out = total(flat)
                adding.append(time.perf_counter() - began)
                return out

            ranks.total = timed
        step = session.train_step

        def stepping():
            report = step()
            seconds.append(report.seconds)
            return report

        session.train_step = stepping
        session.train()
        size = sum(p.numel() for p in session.parameters) * 4
        found = {"world": ranks.world, "rank": order["rank"], "bytes": size, "step": statistics.median(seconds[WARM_UP:]),
                 "adding": statistics.median(adding[-STEPS:]) if adding else 0.0, "sums": {}}
        if ranks.world > 1:
            for one in (size, *order["sizes"]):
                found["sums"][one] = time_of_sum(ranks, total, one)
        if ranks.rank == 0:
            print(json.dumps(found))


def time_of_sum(ranks, total, size: int) -> float:
    """Median seconds of adding up `size` bytes, once all have come to it."""
    import torch

    flat, seconds = torch.ones(size // 4), []
    for _ in range(SUMS):
        ranks.gather(None)
        began = time.perf_counter()
        total(flat.clone())
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def measure(world: int, rank: int, sizes: list[int]) -> dict[str, Any]:
    """Start `world` processes of this file and return what the first of them measured."""
    with tempfile.TemporaryDirectory() as out, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
        probe.close()
        order = json.dumps({"out": out, "rank": rank, "sizes": sizes})
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        if world > 1:
            environment.update(WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        processes = [subprocess.Popen([sys.executable, __file__, "--inside", order], stdout=subprocess.PIPE, text=True,
                                      env={**environment, **({"RANK": str(number), "LOCAL_RANK": str(number)} if world > 1 else {})}) for number in range(world)]
        outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit(f"a process of {world} ended with {[process.returncode for process in processes]}; what it said is above")
    found = json.loads(outputs[0].strip().splitlines()[-1])
    return {**found, "sums": {int(size): seconds for size, seconds in found["sums"].items()}}


def adapter_bytes(family: str, rank: int) -> int:
    """Of the fp32 gradients of a LoRA on the attention and MLP linears of a real denoiser."""
    import torch
    from diffusers import UNet2DConditionModel

    shapes = json.loads((ROOT / "trainer" / "hosts" / "diffusers_models" / f"{family}.json").read_text(encoding="utf-8"))
    with torch.device("meta"):
        unet = UNet2DConditionModel(**shapes["unet"])
    layers = [module for name, module in unet.named_modules() if name.endswith(TARGETS) and hasattr(module, "in_features")]
    return 4 * rank * sum(layer.in_features + layer.out_features for layer in layers)


def farm_cost(jobs: int) -> float:
    """Seconds in which the farm's command reads how far so many jobs are, and writes its table; it does so twice a second."""
    from hotlora.trainer.farm import Farm, Job
    from hotlora.trainer.progress_file import write_progress

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        farm = Farm([Job(out / f"{number}.yaml", f"job-{number}", out) for number in range(jobs)], out)
        for job in farm.jobs:
            job.run_folder.mkdir(parents=True)
            write_progress(job.progress, status="running", step=12, total_steps=400, loss=0.1, seconds_left=70, attempts=1, node="machine", device="GPU 0")
        seconds = []
        for _ in range(5):
            began = time.perf_counter()
            farm.tell(lambda told: None)
            seconds.append(time.perf_counter() - began)
        return statistics.median(seconds)


def roll_call_cost() -> float:
    """Seconds in which the first process asks the store for one other's heartbeat; it does so for each of them twice a second."""
    from datetime import timedelta

    import torch.distributed as dist

    store, count = dist.TCPStore("127.0.0.1", 0, 1, True, timedelta(seconds=30)), 2000
    began = time.perf_counter()
    for _ in range(count):
        store.add("beat", 0)
    return (time.perf_counter() - began) / count


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)])


def measured_tables(found: list[dict[str, Any]]) -> list[str]:
    alone = {one["rank"]: one["step"] for one in found if one["world"] == 1}
    rows = [[str(one["world"]), str(one["rank"]), f"{one['bytes'] / 1e6:.2f}", f"{1000 * one['step']:.0f}", f"{1000 * one['adding']:.1f}",
             f"{1000 * one['sums'][one['bytes']]:.2f}" if one["world"] > 1 else "", f"{alone[one['rank']] / one['step']:.2f}" if one["rank"] in alone else ""]
            for one in found]
    parts = [f"Measured: {os.cpu_count()} cores, one thread for each process, {PICTURES} pictures a step, gloo over the loopback.\n\n" + table(
        ["processes", "LoRA rank", "gradients, MB", "step, ms", "adding up within it, waiting included, ms", "adding up alone, ms", "times as fast"], rows)]
    several = {one["world"]: one["sums"] for one in found if one["world"] > 1}
    if several:
        sizes = sorted({size for sums in several.values() for size in sums if size in SIZES})
        rows = [[f"{size / 1e6:g}", *(f"{1000 * sums[size]:.2f}" if size in sums else "" for sums in several.values())] for size in sizes]
        parts.append("Adding up alone, ms, against bytes.\n\n" + table(["MB", *(f"{world} processes" for world in several)], rows))
    return parts


def paper_tables(step_seconds: list[float], pictures: int, rank: int) -> list[str]:
    parts = []
    for (name, family), seconds in zip((("SD1.5", "sd15"), ("SDXL", "sdxl")), step_seconds):
        size, own, rows = adapter_bytes(family, rank), seconds * pictures, []
        for count in GPUS:
            networks = [NVLINK, INFINIBAND, ETHERNET] if count <= 8 else [INFINIBAND, ETHERNET]
            cells = {network.name: sum_seconds(size, count, network) for network in networks}
            rows.append([f"{count:,}", *(_cell(cells.get(network.name), own) if count > 1 else "0 (100 %)" for network in (NVLINK, INFINIBAND, ETHERNET)),
                         f"{count * pictures:,}", f"{2000 / (count * pictures):,.1f}"])
        parts.append(f"On paper: one LoRA of rank {rank} on {name}, {size / 1e6:.1f} MB of gradients, {pictures} picture{'s' * (pictures > 1)} for each GPU at "
                     f"{seconds:g} s; adding up in ms, and the share of a step that is training.\n\n" + table(
                         ["GPUs", NVLINK.name, INFINIBAND.name, ETHERNET.name, "pictures a step", "steps that are left of 2,000 pictures"], rows))
    return parts


def _cell(adding: float | None, own: float) -> str:
    return "-" if adding is None else f"{1000 * adding:.2f} ({100 * own / (own + adding):.1f} %)"


def farm_table(cost: dict[int, float], run_seconds: float, start_seconds: float) -> str:
    """Many LoRAs at a time need nothing of each other."""
    rows = [[f"{count:,}", f"{3600 / (run_seconds + start_seconds) * count:,.0f}", f"{100 * run_seconds / (run_seconds + start_seconds):.1f} %",
             f"{1000 * cost[count]:.0f}"] for count in GPUS]
    return (f"On paper: many LoRAs, one GPU each, runs of {run_seconds:g} s and {start_seconds:g} s for each start (worker, imports, base). "
            "The last column is measured here: it is done twice a second.\n\n" + table(["GPUs and jobs", "LoRAs an hour", "of the time is training", "reading and writing the table, ms"], rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--ranks", type=int, nargs="+", default=[16], help="LoRA ranks that are measured")
    parser.add_argument("--step-seconds", type=float, nargs=2, default=[0.13, 0.44], metavar=("SD15", "SDXL"),
                        help="of one picture on one GPU, for the tables on paper (default: 0.13 0.44, as the README measured on an H200)")
    parser.add_argument("--pictures", type=int, default=1, help="for each GPU in one step, for the tables on paper (default: 1)")
    parser.add_argument("--paper-rank", type=int, default=16)
    parser.add_argument("--run-seconds", type=float, default=300, help="of one LoRA on one GPU, for the farm (default: 300)")
    parser.add_argument("--start-seconds", type=float, default=20, help="until a job's first step (default: 20)")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        in_process(json.loads(options.inside))
        return
    found = [measure(world, rank, list(SIZES) if rank == options.ranks[0] else []) for rank in options.ranks for world in options.processes]
    cost, roll_call = {count: farm_cost(count) for count in GPUS}, roll_call_cost()
    if options.json:
        print(json.dumps({"measured": found, "farm": cost, "roll_call": roll_call}))
        return
    print("\n\n".join([*measured_tables(found), *paper_tables(options.step_seconds, options.pictures, options.paper_rank),
                       farm_table(cost, options.run_seconds, options.start_seconds),
                       f"Whether all live is asked twice a second, {1e6 * roll_call:.0f} us for each process here, in a thread beside the training: "
                       f"{1000 * roll_call * GPUS[-1]:.0f} ms for {GPUS[-1]:,}."]))


if __name__ == "__main__":
    main()
