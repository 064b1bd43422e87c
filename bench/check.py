"""How long the gallery check takes, the first and the second time: `python bench/check.py [--pictures 2000] [--json]`.

Files of 12 megapixels are one camera-like JPEG each: a few drawn scenes with noise of their own. The check runs in a process of its own, so
that its peak memory is its own. With --folder the files are written there, and used again when they are there.
"""
from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
SCENES, REPEATS = 6, 10
PROBE = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL)
print(done.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def write_pictures(folder: Path, count: int) -> None:
    """4000x3000 JPEG files. Every tenth is drawn anew, which takes longer than checking it; the others are such a file with a comment of
    their own, so that the bytes of no two are the same and each is decoded."""
    rng = np.random.default_rng(0)
    scenes = []
    for _ in range(SCENES):
        small = Image.fromarray(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8)).resize((4000, 3000), Image.BICUBIC)
        scenes.append(np.asarray(small, dtype=np.int16) + rng.normal(0, 4, (3000, 4000, 1)).astype(np.int16))
    for i in range(count):
        if i % REPEATS == 0:
            moved = np.roll(scenes[i // REPEATS % SCENES], (int(rng.integers(3000)), int(rng.integers(4000))), (0, 1)) + int(rng.integers(-20, 20))
            Image.fromarray(moved.clip(0, 255).astype(np.uint8)).save(data := io.BytesIO(), "JPEG", quality=90)
        comment = f"{i:08d}".encode()
        start = b"\xff\xd8\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment
        (folder / f"{i:05d}.jpg").write_bytes(start + data.getvalue()[2:])


def check(folder: Path, cache: Path) -> tuple[float, float]:
    """(seconds, peak memory in GB) of one call of the command."""
    began = time.monotonic()
    told = subprocess.run([sys.executable, "-c", PROBE, sys.executable, str(ROOT / "train.py"), "check", "--dir", str(folder), "--cache", str(cache), "--json"],
                          capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True).stdout.split()
    assert told[0] == "0", told
    return time.monotonic() - began, int(told[1]) * 1024 / 1e9


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--pictures", type=int, default=2000)
    options.add_argument("--folder", type=Path, default=None)
    options.add_argument("--write-only", action="store_true", help="only write the files into --folder")
    options.add_argument("--json", action="store_true")
    asked = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pictures = asked.folder or Path(folder) / "pictures"
        pictures.mkdir(parents=True, exist_ok=True)
        if len(list(pictures.glob("*.jpg"))) != asked.pictures:
            write_pictures(pictures, asked.pictures)
        if asked.write_only:
            return
        first, memory = check(pictures, Path(folder) / "cache")
        second, _ = check(pictures, Path(folder) / "cache")
    found = {"pictures": asked.pictures, "first_seconds": round(first, 1), "second_seconds": round(second, 2), "peak_gigabytes": round(memory, 2)}
    print(json.dumps(found) if asked.json else f"{asked.pictures} pictures of 12 MP: {first:.1f} s, {memory:.2f} GB; the second time {second:.2f} s")


if __name__ == "__main__":
    main()
