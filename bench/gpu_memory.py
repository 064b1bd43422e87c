"""Training in the memory of smaller GPUs: what was given up for it, what was said before, the peak, and the time of a step.

    python bench/gpu_memory.py                    Stable Diffusion 1.5's shape at 512, SDXL's at 1024, random weights in bf16
    python bench/gpu_memory.py --cases sdxl:8     some of them: base and size of the card in GB
    python bench/gpu_memory.py --tiny             shapes of a few million weights, on a CPU as well, to see that the bench runs
    python bench/gpu_memory.py --json FILE        what was measured, as JSON too

Each line is a fresh process on the first GPU. It prepares four pictures, trains a LoRA of rank 16 with AdamW, batch size 1, through
the standalone backend; torch's allocator gets what a card of that size leaves beside its driver (0.5 GB).
Only one of them trains at a time, while the next ones make their base.
"""
from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import __init__  # noqa: E402, F401  registers the project as the package `hotlora`

CASES = ["sdxl:8", "sd15:4", "sdxl:6", "sdxl:12", "sdxl:24", "sd15:6", "sd15:8", "sd15:12", "sd15:24", "sdxl:4"]
"""The two that matter most come first; they draw a preview, too."""
DRAWING = CASES[:2]
DRIVER = 0.5e9
"""Bytes of a card that torch's allocator never gets: the driver's context and the display."""
RESOLUTION = {"sd15": 512, "sdxl": 1024}
LINE = "RESULT "


class Watch:
    """Listens to the run; `drawn` and `peaks` are in bytes."""

    def __init__(self, device) -> None:
        self.device, self.footprint, self.seconds, self.peak, self.drawn, self.pictures = device, None, [], None, None, 0

    def __getattr__(self, name):
        return lambda *_: None

    def planned(self, session, footprint) -> None:
        self.footprint = footprint
        self._forget()

    def stepped(self, session, report) -> None:
        self.seconds.append(report.seconds)
        self.peak = self._peak()
        if report.step == report.total_steps:
            self._forget()

    def drew(self, session, step, prompts, pictures) -> None:
        self.pictures, self.drawn = len(pictures), self._peak()

    def _peak(self) -> int | None:
        import torch

        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else None

    def _forget(self) -> None:
        import torch

        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)


def worker(base: str, card: float, tiny: bool, steps: int) -> dict:
    """One case. The base is made at once; the rest waits for a line on the standard input, and then has the memory of such a card."""
    import torch

    from hotlora.bench.random_base import GALLERY, random_base
    from hotlora.trainer.config import TrainConfig
    from hotlora.trainer.run import make_session, read_material

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backend = random_base(base, device, torch.bfloat16 if device.type == "cuda" else torch.float32, tiny)
    backend.encoder_id, backend.text_id, backend.base_hash  # noqa: B018  takes seconds, and is no part of what is measured
    backend.free_memory()
    print("READY", flush=True)
    sys.stdin.readline()

    began, limit = time.perf_counter(), card * 2**30 - DRIVER
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / torch.cuda.get_device_properties(0).total_memory), 0)
    pictures = sorted(path.name for path in GALLERY.glob("*.png"))
    watch, session, error = Watch(device), None, ""
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig.from_dict({
            "train_data_dir": str(GALLERY), "output_dir": folder, "base_model": base, "resolution": 64 if tiny else RESOLUTION[base], "upscale": True,
            "steps": steps, "trigger": "mascot", "lora_rank": 16, "validation": False, "tensorboard": False, "preview_steps": steps if f"{base}:{card:g}" in DRAWING else 0, "state_minutes": 0,
            "leave_out": pictures[4:]})
        try:
            session = make_session(read_material(config, make_captions=False), backend, [watch])
            session.train()
        except Exception as caught:
            error = f"{type(caught).__name__}: {caught}"
            traceback.print_exc()
    settled, found = watch.seconds[2:] or watch.seconds, watch.footprint
    return {"base": base, "card": card, "limit": limit, "rungs": session.plan.taken if session else [], "error": error, "sentence": found and found.sentence(),
            "planned": found and found.held + found.training, "planned_preview": found and found.held + found.optimizer + found.previews,
            "peak": watch.peak, "preview_peak": watch.drawn, "pictures": watch.pictures,
            "reserved": torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None,
            "seconds": sorted(settled)[len(settled) // 2] if settled else None, "seconds_in_all": time.perf_counter() - began,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU", "torch": torch.__version__}


def in_fresh_process(case: str, tiny: bool, steps: int, turn: threading.Lock, until: float) -> dict:
    base, card = case.split(":")
    command = [sys.executable, str(Path(__file__).resolve()), "--worker", "--cases", case, "--steps", str(steps), *(["--tiny"] if tiny else [])]
    lines: list[str] = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        clock = threading.Timer(max(0.0, until - time.monotonic()), process.kill)
        clock.start()
        for line in process.stdout:
            lines.append(line)
            if line.startswith("READY"):
                break
        with turn:
            try:
                process.stdin.write("go\n")
                process.stdin.close()
            except OSError:
                pass  # it has ended already; what it said tells why
            lines += process.stdout
        clock.cancel()
    result = next((json.loads(line[len(LINE):]) for line in lines if line.startswith(LINE)), None)
    if result is None or result["error"]:
        print(f"--- {case}\n" + "".join(lines[-40:]), file=sys.stderr, flush=True)
    result = result or {"base": base, "card": float(card), "rungs": [],
                        "error": "no time was left" if time.monotonic() >= until else f"the process ended with {process.returncode}"}
    print(f"{case}: {result['error'] or result['sentence']} ({result.get('seconds_in_all', 0):.0f} s)", file=sys.stderr, flush=True)
    return result


def run(cases: list[str], tiny: bool, steps: int, at_once: int, seconds: float) -> list[dict]:
    turn, until = threading.Lock(), time.monotonic() + seconds
    with ThreadPoolExecutor(at_once) as pool:
        rows = list(pool.map(lambda case: in_fresh_process(case, tiny, steps, turn, until), cases))
    return sorted(rows, key=lambda row: (row["base"], row["card"]))


def report(rows: list[dict]) -> str:
    lines = ["| base | card, GB | what was given up | said before, GB | peak of a step, GB | off by | reserved, GB | s/step | preview, said / peak, GB |",
             "|---|---|---|---|---|---|---|---|---|"]
    for row in rows:
        given_up = "; ".join(row["rungs"]) or "nothing"
        if row["error"]:
            lines.append(f"| {row['base']} | {row['card']:g} | {given_up}: {row['error']} | | | | | | |")
            continue
        off = f"{row['planned'] / row['peak'] - 1:+.1%}" if row["peak"] else ""
        preview = ""
        if f"{row['base']}:{row['card']:g}" in DRAWING:
            preview = f"{gb(row['planned_preview'])} / {gb(row['preview_peak'])}" + ("" if row["pictures"] else " (left out)")
        lines.append(f"| {row['base']} | {row['card']:g} | {given_up} | {gb(row['planned'])} | {gb(row['peak'])} | {off} | {gb(row['reserved'])} | "
                     f"{row['seconds']:.2f} | {preview} |")
    first = next((row for row in rows if "device" in row), None)
    return "\n".join([*lines, "", f"{first['device']}, torch {first['torch']}" if first else "no case came to its end"])


def gb(size: float | None) -> str:
    return "" if size is None else f"{size / 1e9:.2f}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=CASES, metavar="BASE:GB")
    parser.add_argument("--steps", type=int, default=6, help="of each run (default: %(default)s)")
    parser.add_argument("--at-once", type=int, default=3, help="processes that make their base while one trains (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=200, help="after which what is not done is left out (default: %(default)s)")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        base, card = options.cases[0].split(":")
        print(LINE + json.dumps(worker(base, float(card), options.tiny, options.steps)), flush=True)
        return 0
    rows = run(options.cases, options.tiny, options.steps, options.at_once, options.seconds)
    if options.json:
        Path(options.json).write_text(json.dumps({"bench": "gpu_memory", "rows": rows}, indent=1), encoding="utf-8")
    print(report(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
