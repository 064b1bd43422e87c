"""A job leaves the page as a file and its LoRA comes back; farms are shown while they work."""
import json
import subprocess
import sys
import time
from pathlib import Path

from hotlora.trainer.bundle_read import read_bundle
from hotlora.trainer.farm import Farm, place, read_jobs
from hotlora.trainer.lora_file import load_lora, read_safetensors, write_safetensors
from hotlora.trainer.progress_file import write_progress

from .conftest import fill_form, until

ROOT = Path(__file__).resolve().parent.parent.parent


def test_a_job_goes_out_and_its_lora_comes_back(server, open_page, gallery, tmp_path):
    page = open_page(server)
    fill_form(page, gallery, steps=3, resolution=64)
    page.get_by_text("6 pictures, 3 steps").wait_for()
    page.locator("details.advanced > summary").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Export job").click()
    download.value.save_as(tmp_path / "job.zip")
    bundle = read_bundle(tmp_path / "job.zip")
    config, _ = bundle.config([])
    assert download.value.suggested_filename == "mascot.zip" and (bundle.name, len(bundle.pictures), bundle.base.name) == ("mascot", 6, "demo")
    assert (config.steps, config.trigger, config.save_steps) == (3, "sks", 1), "as Train would have begun it"
    page.get_by_text('python train.py run-bundle "mascot.zip"').wait_for()

    job = server.post("jobs", {"settings": {"train_data_dir": str(gallery), "name": "mascot", "trigger": "sks", "steps": 1, "resolution": 64, "lora_rank": 2}})["id"]
    server.until(job, "completed")
    page.get_by_role("link", name="History").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Export mascot as a job for another machine").click()
    download.value.save_as(tmp_path / "again.zip")
    assert read_bundle(tmp_path / "again.zip").config([])[0].lora_rank == 2

    # another machine runs it, and its result comes back
    done = subprocess.run([sys.executable, str(ROOT / "train.py"), "run-bundle", "job.zip"], cwd=tmp_path, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    chooser = page.get_by_label("Import result", exact=True)
    chooser.set_input_files(tmp_path / "output" / "mascot-result.zip")
    page.get_by_text("The former mascot is kept as mascot-v1.").wait_for()
    assert page.locator(".import .warning").count() == 0
    brought = server.folder / "loras" / "mascot.safetensors"
    assert brought.read_bytes() == (tmp_path / "output" / "mascot.safetensors").read_bytes() and load_lora(brought)[1]["ss_steps"] == "3"

    # one that was trained on another base
    tensors, metadata = read_safetensors(brought)
    write_safetensors(tmp_path / "mascot (1).safetensors", tensors, {**metadata, "ss_sd_model_name": "other", "ss_new_sd_model_hash": "0" * 64})
    chooser.set_input_files(tmp_path / "mascot (1).safetensors")
    page.get_by_text("<lora:mascot:1> works in the next prompt.").wait_for()
    page.get_by_text("The former mascot is kept as mascot-v2.").wait_for()
    page.locator(".import .warning", has_text="mascot was trained on other (SHA-256 000000000000...), and demo").wait_for()
    assert load_lora(server.folder / "loras" / "mascot.safetensors")[1]["ss_sd_model_name"] == "other"
    assert load_lora(server.folder / "loras" / "mascot-v2.safetensors")[1]["ss_sd_model_name"] == "demo"
    page.locator(".import").get_by_role("link", name="Try it").click()
    until(page, "document.querySelector('#hl-try') && [...document.querySelectorAll('option')].some((one) => one.value === 'mascot-v1')")

    page.evaluate("location.hash = '#/runs'")
    page.get_by_label("Import result", exact=True).set_input_files(tmp_path / "job.zip")
    page.locator(".problem", has_text="job.zip is an exported job and not its result").wait_for()


def test_a_farm_is_shown_while_it_works(server, open_page, gallery, tmp_path):
    files = []
    for name in ("one", "two"):
        files.append(tmp_path / f"{name}.yaml")
        files[-1].write_text(f"train_data_dir: '{gallery}'\nname: {name}\n", encoding="utf-8")
    out = server.folder / "night"
    jobs = read_jobs(files, out)
    for job in jobs:
        place(job)
    farm = Farm(jobs, out)
    write_progress(jobs[0].progress, status="running", step=12, total_steps=40, loss=0.25, seconds_left=70, attempts=2, node="here", device="GPU 0")
    farm.tell(lambda told: None)
    page = open_page(server, "#/runs")
    table = page.get_by_role("region", name="Farm: night")
    table.locator("tr", has_text="one").locator("td", has_text="step 12 of 40 · 1 min 10 s left").wait_for()
    table.get_by_text("here (GPU 0)").wait_for()
    table.locator("tr", has_text="two").get_by_text("queued").wait_for()
    page.set_viewport_size({"width": 380, "height": 800})
    until(page, "innerWidth === 380")
    assert page.evaluate("document.documentElement.scrollWidth") <= 380
    write_progress(jobs[0].progress, status="completed", step=40)
    write_progress(jobs[1].progress, status="failed", message="no pictures")
    farm.tell(lambda told: None, finished=True)
    table.locator("tr", has_text="one").get_by_text("completed").wait_for()
    table.locator("tr", has_text="two").get_by_text("no pictures").wait_for()
    assert page.get_by_text("1 of 2 jobs completed").count() == 1

    state = json.loads((out / "farm.json").read_text(encoding="utf-8"))
    state["jobs"][0]["status"], state["finished"], state["updated"] = "running", False, time.time() - 600
    (out / "farm.json").write_text(json.dumps(state), encoding="utf-8")
    page.reload()
    table.locator("tr", has_text="one").get_by_text("interrupted").wait_for()
    table.get_by_text("it is not running now; its command goes on where it was").wait_for()
