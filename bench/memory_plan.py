"""What was planned against what was needed: the peak that is said before a run, beside the peak that the run comes to.

    python bench/memory_plan.py             random weights in Stable Diffusion 1.5's shape at 256x256, fp32 on a CPU, bf16 on a GPU
    python bench/memory_plan.py --base demo --resolution 64      the embedded base, to see that the bench runs
    python bench/memory_plan.py --json      the same as one JSON object

Each line is a fresh process for the plan (what `--dry-run` says) and another for the run: three steps and a preview where it is asked for.
The peak of a CPU is the resident memory of the whole process, that of a GPU what torch has allocated there.
"""
from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import __init__  # noqa: E402, F401  registers the project as the package `hotlora`

VARIANTS = {
    "batch 1": {},
    "batch 2": {"batch_size": 2},
    "batch 1, checkpointing": {"gradient_checkpointing": True},
    "batch 2, checkpointing": {"batch_size": 2, "gradient_checkpointing": True},
    "batch 1, 8 accumulated": {"gradient_accumulation_steps": 8, "lora_rank": 64},
    "batch 1, a preview": {"preview_steps": 3},
}


def worker(what: str, base: str, resolution: int, variant: str, folder: str) -> dict:
    """`what` is "plan" or "run"."""
    import torch

    from hotlora.bench.memory_peak import peak_bytes
    from hotlora.bench.random_base import GALLERY, random_base
    from hotlora.trainer.config import TrainConfig
    from hotlora.trainer.dataset import Dataset
    from hotlora.trainer.estimate import measure_ahead
    from hotlora.trainer.run import make_adapter, make_session, read_material
    from hotlora.trainer.session import Listener, Session

    class Planned(Listener):
        def planned(self, session, footprint) -> None:
            self.footprint = footprint

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = TrainConfig.from_dict({
        "train_data_dir": str(GALLERY), "output_dir": folder, "base_model": base, "resolution": resolution, "upscale": True, "steps": 3, "validation": False,
        "tensorboard": False, "trigger": "mascot", **VARIANTS[variant]})
    backend = random_base(base, device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    material = read_material(config, make_captions=False)
    if what == "plan":
        session = Session(config, backend, Dataset(config, backend, material.gallery), make_adapter(config, backend), name="x", total_steps=3)
        footprint, _ = measure_ahead(session, print)
        return {"planned": footprint.peak, "sentence": footprint.sentence()}
    watch = Planned()
    session = make_session(material, backend, [watch])
    session.train()
    return {"measured": peak_bytes(device.type), "planned": watch.footprint.peak, "sentence": watch.footprint.sentence()}


def in_fresh_process(*arguments: str) -> dict:
    done = subprocess.run([sys.executable, str(Path(__file__).resolve()), *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def run(base: str, resolution: int, variants: list[str]) -> list[dict]:
    rows = []
    for variant in variants:
        with tempfile.TemporaryDirectory() as folder:
            asked = ["--base", base, "--resolution", str(resolution), "--variants", variant, "--folder", folder]
            plan, done = (in_fresh_process("--worker", what, *asked) for what in ("plan", "run"))
        rows.append({"variant": variant, "dry_run": plan["planned"], "planned": done["planned"], "measured": done["measured"], "sentence": plan["sentence"]})
    return rows


def report(rows: list[dict]) -> str:
    lines = ["| | said by --dry-run, GB | said at the start, GB | measured peak, GB | off by |", "|---|---|---|---|---|"]
    for row in rows:
        off = ", ".join(f"{row[key] / row['measured'] - 1:+.1%}" for key in ("dry_run", "planned"))
        lines.append(f"| {row['variant']} | {row['dry_run'] / 1e9:.2f} | {row['planned'] / 1e9:.2f} | {row['measured'] / 1e9:.2f} | {off} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="sd15", choices=["sd15", "sd2", "sdxl", "demo"])
    parser.add_argument("--resolution", type=int, default=256, help="pixels (default: %(default)s)")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--worker", choices=["plan", "run"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        print(json.dumps(worker(options.worker, options.base, options.resolution, options.variants[0], options.folder)))
        return 0
    rows = run(options.base, options.resolution, options.variants)
    print(json.dumps({"bench": "memory_plan", "base": options.base, "resolution": options.resolution, "rows": rows}) if options.json else report(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
