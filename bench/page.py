"""The page in a headless Chromium: how soon it is there, what 2,000 thumbnails hold of memory, and whether a long run slows it.

    python bench/page.py              all three, on the standalone server on this machine
    python bench/page.py --json       the same as one JSON object

First screen: milliseconds from the start of the navigation until the form stands there and what the server knows is shown, median
of 10; cold is a new browser profile, warm the same one again, and "with a run" has a gallery in the form and an ended run beside it.
Thumbnails: private memory of the process that holds the page, before and after 2,000 pictures were scrolled through, and how long
the server takes for a thumbnail that it makes or has on disk. Live run: what one event costs the page's main thread at the
beginning and at the end of 10,000 steps. Needs playwright and a Chromium (CHROMIUM names one).
"""
from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import __init__  # noqa: E402, F401  registers the project as the package `hotlora`

from hotlora.trainer.api import Api, Policy  # noqa: E402
from hotlora.trainer.demo import drawings  # noqa: E402
from hotlora.trainer.hosts.http_server import Server  # noqa: E402
from hotlora.trainer.hosts.standalone_host import StandaloneHost  # noqa: E402
from hotlora.trainer.job_store import Job, LossFile  # noqa: E402
from hotlora.trainer.jobs import JobQueue  # noqa: E402

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
             "--disable-sync"]
# the form, and beside it what the server knows: no run yet, or the newest one with its curve
WATCH = """
const look = () => {
  const there = document.querySelector(".main-actions .button") && document.querySelector(".empty h2, .run-head .badge")
    && !document.querySelector("main [aria-busy=true]") && document.querySelector(".header .base");
  if (there && window.hotloraReady === undefined) requestAnimationFrame((now) => { window.hotloraReady = performance.now(); });
  else requestAnimationFrame(look);
};
requestAnimationFrame(look);
"""


def chromium() -> str | None:
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Site:
    """A server of this process on a folder of its own. `queue` is what it serves, so that a run can be told without training one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        host = StandaloneHost(folder, ["demo"], "cpu")
        self.queue = JobQueue(host)
        self.server = Server(Api(host, self.queue, Policy()), "127.0.0.1", 0)
        self.url = self.server.url
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.queue.close()

    def add_job(self, gallery: Path, status: str, steps: int, total: int) -> Job:
        """A job with a curve, as if it had been trained."""
        queue = self.queue
        job = Job(queue.store.new_id(), "mascot", {"train_data_dir": str(gallery)}, "balanced", step=steps, total_steps=total, loss=0.1, created=time.time(),
                  started=time.time(), trigger="sks", base="demo", pictures=12, lora="mascot")
        losses, rng = LossFile(queue.store.run_folder(job)), random.Random(0)
        for step in range(1, steps + 1):
            losses.add(step, 0.1 + rng.random() * 0.1)
        queue._jobs[job.id] = job
        queue.change(job, status)
        return job


@contextmanager
def site(folder: Path) -> Iterator[Site]:
    running = Site(folder)
    try:
        yield running
    finally:
        running.close()


@contextmanager
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    path = chromium()
    if path is None:
        raise SystemExit("there is no Chromium on the PATH; install one, or set CHROMIUM to its program")
    with sync_playwright() as running:
        started = running.chromium.launch(executable_path=path, args=ARGUMENTS)
        try:
            yield started
        finally:
            started.close()


def write_gallery(folder: Path, count: int, side: int = 64) -> Path:
    """`count` pictures of which at most 20 differ, with captions."""
    folder.mkdir(parents=True)
    rng, lines = random.Random(0), ["file_name,caption"]
    for i in range(count):
        file = folder / f"{i:04d}.jpg"
        if i < 20:
            drawings.draw_mascot(rng, "white").resize((side, side)).save(file, quality=90)
        else:
            shutil.copy(folder / f"{i % 20:04d}.jpg", file)
        lines.append(f'{file.name},"sks, tag {i % 7}, number {i}"')
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def ready_after(page, url: str) -> tuple[float, float]:
    """Milliseconds until the first screen is ready, and until anything was painted."""
    page.goto(url, wait_until="commit")
    end = time.monotonic() + 60
    for what in ("window.hotloraReady", "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"):
        while page.evaluate(what) is None:
            assert time.monotonic() < end, f"the first screen does not come: {what}"
            page.wait_for_timeout(20)
    return page.evaluate("[window.hotloraReady, performance.getEntriesByName('first-contentful-paint')[0].startTime]")


def first_screen(browser, url: str, form: dict, repeats: int) -> dict[str, float]:
    """Medians for a new profile and for the same one again."""
    cold, warm, paint = [], [], []
    for _ in range(repeats):
        context = browser.new_context(viewport={"width": 1280, "height": 900}, locale="en-US")
        context.add_init_script(WATCH)
        if form:
            context.add_init_script(f"localStorage['hotlora.form'] ??= {json.dumps(json.dumps(form))}")
        page = context.new_page()
        ready, first = ready_after(page, url)
        cold.append(ready)
        paint.append(first)
        page.close()
        page = context.new_page()
        warm.append(ready_after(page, url)[0])
        context.close()
    return {"cold": round(statistics.median(cold)), "warm": round(statistics.median(warm)), "paint": round(statistics.median(paint)),
            "cold_worst": round(max(cold)), "warm_worst": round(max(warm))}


def measure_first(browser, folder: Path, repeats: int) -> dict[str, dict]:
    found = {}
    with site(folder / "empty") as running:
        first_screen(browser, running.url, {}, 1)  # the browser's own start is not the page's
        found["empty"] = first_screen(browser, running.url, {}, repeats)
    gallery = write_gallery(folder / "pictures", 20)
    with site(folder / "used") as running:
        running.add_job(gallery, "completed", 1440, 1440)
        found["with a run"] = first_screen(browser, running.url, {"folder": str(gallery), "name": "mascot", "trigger": "sks"}, repeats)
    return found


def private_bytes(browser) -> int:
    """Private memory of the largest renderer: of the page, as the others are spare ones. 0 where the system does not tell."""
    session = browser.new_browser_cdp_session()
    processes = session.send("SystemInfo.getProcessInfo")["processInfo"]
    sizes = []
    for process in processes:
        if process["type"] == "renderer":
            try:
                text = Path(f"/proc/{process['id']}/smaps_rollup").read_text()
            except OSError:
                continue
            sizes.append(1024 * sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Private_")))
    session.detach()
    return max(sizes, default=0)


def measure_thumbnails(browser, folder: Path, pictures: int) -> dict[str, float]:
    """Scroll through all of them, wait for each screen's thumbnails, and look at memory and at the cache on disk."""
    gallery = write_gallery(folder / "many", pictures, side=768)
    with site(folder / "home") as running:
        context = browser.new_context(viewport={"width": 1280, "height": 900}, locale="en-US")
        page = context.new_page()
        page.goto(running.url)
        page.locator(".main-actions .button").wait_for()
        before = private_bytes(browser)
        page.evaluate("folder => localStorage['hotlora.form'] = JSON.stringify({folder})", str(gallery))
        page.goto(f"{running.url}#/gallery")
        page.reload()
        page.locator(".cell").first.wait_for()
        most, began, height = 0, time.monotonic(), page.evaluate("document.documentElement.scrollHeight")
        for top in range(0, height, 700):
            page.evaluate("top => new Promise((drawn) => { window.scrollTo(0, top); requestAnimationFrame(() => requestAnimationFrame(drawn)); })", top)
            wait(page, "[...document.querySelectorAll('.cell .thumbnail')].every((one) => one.dataset.state === 'shown')")
            if top // 700 % 10 == 0:
                most = max(most, private_bytes(browser))
        seconds = time.monotonic() - began
        most = max(most, private_bytes(browser))
        page.context.new_cdp_session(page).send("HeapProfiler.collectGarbage")
        after = private_bytes(browser)
        elements = page.locator(".cell").count()
        context.close()
        on_disk = list((folder / "home" / "thumbnails").rglob("*.jpg"))
        one = urllib.parse.urlencode({"folder": gallery, "file": "0000.jpg", "size": 200})
        made, kept = (timed(f"{running.url}api/gallery/picture?{one}") for _ in range(2))
    return {"pictures": pictures, "elements": elements, "first screen MB": mega(before), "most MB": mega(most), "after MB": mega(after),
            "scroll seconds": round(seconds, 1), "thumbnails on disk": len(on_disk), "disk MB": mega(sum(f.stat().st_size for f in on_disk)),
            "made ms": round(1000 * made, 1), "from disk ms": round(1000 * kept, 1)}


def mega(size: int) -> float:
    return round(size / 1e6, 1)


def timed(url: str) -> float:
    began = time.perf_counter()
    urllib.request.urlopen(url).read()
    return time.perf_counter() - began


def wait(page, expression: str) -> None:
    end = time.monotonic() + 60
    while not page.evaluate(expression):
        assert time.monotonic() < end, expression
        page.wait_for_timeout(20)


def measure_live(browser, folder: Path, steps: int, per_event: int = 10) -> dict[str, float]:
    """Milliseconds of the main thread for an event in the first and in the last tenth of a run, drawing included, and the longest frame."""
    gallery = write_gallery(folder / "pictures", 12)
    with site(folder / "home") as running:
        job = running.add_job(gallery, "running", 2, steps)
        context = browser.new_context(viewport={"width": 1280, "height": 900}, locale="en-US")
        page = context.new_page()
        page.goto(f"{running.url}#/run")
        page.locator(".loss canvas").wait_for()
        devtools = context.new_cdp_session(page)
        devtools.send("Performance.enable")
        page.evaluate("""(() => { window.longest = 0; let before = performance.now();
          const next = (now) => { window.longest = Math.max(window.longest, now - before); before = now; requestAnimationFrame(next); }; requestAnimationFrame(next); })()""")
        events = (steps - 2) // per_event
        tenth, costs, rng = max(1, events // 10), [], random.Random(1)
        for part in range(10):
            first, used = part * tenth, busy(devtools)
            page.evaluate("window.longest = 0")
            for event in range(first, first + tenth):
                last = 2 + (event + 1) * per_event
                losses = [[step, 0.1 + rng.random() * 0.1] for step in range(last - per_event + 1, last + 1)]
                job.step, job.loss = last, losses[-1][1]
                running.queue.events.add("step", job.id, step=last, total_steps=steps, loss=job.loss, seconds_left=1.0, losses=losses)
                time.sleep(0.02)
            wait(page, f"document.querySelector('.run-line').innerText.includes('step {last:,} ')")
            costs.append((1000 * (busy(devtools) - used) / tenth, page.evaluate("window.longest")))
        context.close()
    return {"steps": last, "first tenth ms per event": round(costs[0][0], 2), "last tenth ms per event": round(costs[-1][0], 2),
            "longest frame ms, first": round(costs[0][1]), "longest frame ms, last": round(costs[-1][1])}


def busy(devtools) -> float:
    """Seconds that the page's main thread has worked."""
    return {one["name"]: one["value"] for one in devtools.send("Performance.getMetrics")["metrics"]}["TaskDuration"]


def table(found: dict) -> str:
    lines = ["| first screen, ms | cold | warm | first paint | worst |", "|---|---|---|---|---|"] if "first" in found else []
    lines += [f"| {name} | {one['cold']} | {one['warm']} | {one['paint']} | {max(one['cold_worst'], one['warm_worst'])} |" for name, one in found.get("first", {}).items()]
    for part in ("thumbnails", "live"):
        if part in found:
            lines += [*([""] if lines else []), f"| {part} | |", "|---|---|", *(f"| {name} | {value:,} |" for name, value in found[part].items())]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--only", choices=["first", "thumbnails", "live"], help="measure this alone")
    parser.add_argument("--repeats", type=int, default=10, help="page loads for each line of the first screen (default 10)")
    parser.add_argument("--pictures", type=int, default=2000, help="pictures to scroll through (default 2000)")
    parser.add_argument("--steps", type=int, default=10_000, help="steps of the live run (default 10000)")
    options = parser.parse_args(arguments)
    parts = {"first": lambda b, f: measure_first(b, f, options.repeats), "thumbnails": lambda b, f: measure_thumbnails(b, f, options.pictures),
             "live": lambda b, f: measure_live(b, f, options.steps)}
    found: dict[str, Any] = {"machine": f"{platform.machine()}, {os.cpu_count()} cores"}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, browser() as running:
        found["chromium"] = running.version
        for name, measure in parts.items():
            if options.only in (None, name):
                found[name] = measure(running, Path(folder) / name)
    print(json.dumps(found) if options.json else table(found))
    return found


if __name__ == "__main__":
    main()
