"""Captions and the check as a page asks for them, with small models of the real classes in the host's model folder."""
import json
import time

import pytest
from PIL import Image

from hotlora.tests.trainer.captions.small_models import blip_folder
from hotlora.trainer.captions.marks import FILE as MARKS
from hotlora.trainer.captions.metadata import read_metadata
from hotlora.trainer.left_out import FILE as LEFT_OUT

pytest.importorskip("transformers")


@pytest.fixture
def models(tmp_path, host, monkeypatch):
    """A model folder with a BLIP of random weights as a user would put it there."""
    folder = tmp_path / "models"
    blip_folder(folder / "captioners" / "blip-image-captioning-base")
    monkeypatch.setattr(host, "model_folders", lambda: [folder])
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "no hub"))
    return folder


@pytest.fixture
def bare(gallery):
    for path in gallery.glob("*.txt"):
        path.unlink()
    return gallery


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def told_of(events, kind):
    return [event for event in events if event["kind"] == kind]


def ended(client):
    return until(lambda: (told := client.get("gallery/captioning")) and not told["works"] and told)


def captions(client, folder):
    return {one["file"]: (one["caption"], one["automatic"]) for one in client.get("gallery", folder=str(folder))["pictures"]}


def test_what_can_be_chosen_and_what_it_weighs(client, models, bare):
    told = client.get("gallery/captioners", folder=str(bare))
    found = {one["model"]: one for one in told["models"]}
    assert found["blip-base"]["here"] and found["blip-base"]["folder"] == str(models / "captioners" / "blip-image-captioning-base")
    assert not found["blip-large"]["here"] and found["blip-large"]["gigabytes"] == 1.88 and str(models) in found["blip-large"]["folder"]
    assert (told["missing"], told["kept"], told["into"]) == (6, 0, "metadata.csv")
    (bare / "0.txt").write_text("mine")
    assert client.get("gallery/captioners", folder=str(bare))["into"] == ".txt files"
    blip_folder(models / "captioners" / "my own")
    assert any(one["name"] == "my own" and one["here"] and one["gigabytes"] is None for one in client.get("gallery/captioners")["models"])


def test_captions_are_written_marked_told_and_undone(client, models, bare):
    (bare / "1.txt").write_text("a person's own words")
    seen = client.api.jobs.events.last
    client.post("gallery/caption", {"folder": str(bare), "model": "blip-base", "trigger": "sks"}, 201)
    told = ended(client)
    assert told["status"] == "done" and told["written"] == 5 and told["left"] == 0 and "5 captions written" in told["message"], told
    found = captions(client, bare)
    assert found["1.png"] == ("a person's own words", False)
    assert all(found[f"{i}.png"][0].startswith("sks") and found[f"{i}.png"][1] for i in (0, 2, 3, 4, 5)), found
    events = client.api.jobs.events.since(seen)
    statuses = [event["state"]["status"] for event in told_of(events, "captioning")]
    assert statuses[0] == "loading" and "writing" in statuses and statuses[-1] == "done"
    assert {file for event in told_of(events, "gallery") for file in event["captions"]} == {f"{i}.png" for i in (0, 2, 3, 4, 5)}
    client.post("gallery/captions", {"folder": str(bare), "captions": {"2.png": "changed by hand"}})
    assert captions(client, bare)["2.png"] == ("changed by hand", False)
    assert client.post("gallery/caption/undo", {"folder": str(bare), "files": ["0.png"]})["files"] == ["0.png"]
    assert client.post("gallery/caption/undo", {"folder": str(bare)})["files"] == ["3.png", "4.png", "5.png"]
    found = captions(client, bare)
    assert {file: caption for file, (caption, _) in found.items() if caption} == {"1.png": "a person's own words", "2.png": "changed by hand"}
    assert not (bare / MARKS).exists() or "0.png" not in json.loads((bare / MARKS).read_text())["captions"]


def test_only_some_pictures_and_the_rest_later(client, models, bare):
    client.post("gallery/caption", {"folder": str(bare), "model": "blip-base", "files": ["3.png", "1.png"]}, 201)
    assert ended(client)["written"] == 2 and set(read_metadata(bare / "metadata.csv")) == {"1.png", "3.png"}
    client.post("gallery/caption", {"folder": str(bare), "model": "blip-base", "into": "metadata"}, 201)
    assert ended(client)["written"] == 4 and len(read_metadata(bare / "metadata.csv")) == 6


def test_a_stop_keeps_what_is_done(client, models, bare, monkeypatch):
    """Twenty pictures in batches of eight; the stop comes with the first caption."""
    for i in range(6, 20):
        Image.effect_noise((40, 40), 50 + i).convert("RGB").save(bare / f"{i}.png")
    captioning = client.api.jobs.captioning
    monkeypatch.setattr(captioning, "_progress", lambda done, total: captioning.stop())
    client.post("gallery/caption", {"folder": str(bare), "model": "blip-base"}, 201)
    told = ended(client)
    assert told["status"] == "stopped" and told["written"] == 8 and told["left"] == 12
    assert len([caption for caption in read_metadata(bare / "metadata.csv").values() if caption]) == 8
    monkeypatch.undo()
    client.post("gallery/caption/stop")
    assert len(captions(client, bare)) == 20


def test_one_gallery_at_a_time_and_clear_refusals(client, models, bare, monkeypatch):
    folder = {"folder": str(bare)}
    for body, status, words in (
            ({**folder, "model": "blip-large"}, 400, "1.88 GB) is not on this machine; let it be downloaded, or put its files into"),
            ({**folder, "model": "somebody/else", "download": True}, 400, "must be one of blip-base, blip-large"),
            ({**folder, "model": str(models / "captioners")}, 400, "must be one of"),
            ({"folder": str(bare / "gone"), "model": "blip-base"}, 400, "does not exist"),
            ({**folder, "model": "blip-base", "purpose": "cat"}, 400, "any, object, person, character, style"),
            ({"model": "blip-base"}, 400, "lacks folder")):
        assert words in client.post("gallery/caption", body, status)["error"]
    client.api.jobs.captioning.state.status = "writing"
    assert "stop that first" in client.post("gallery/caption", {**folder, "model": "blip-base"}, 409)["error"]
    client.api.jobs.captioning.state.status = "idle"


def test_a_failed_download_is_one_sentence_with_the_folder(client, models, bare, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    client.post("gallery/caption", {"folder": str(bare), "model": "blip-large", "download": True}, 201)
    told = ended(client)
    assert told["status"] == "failed" and "could not be downloaded" in told["message"] and str(models / "captioners" / "blip-image-captioning-large") in told["message"]
    assert captions(client, bare)["0.png"] == ("", False)


def test_a_damaged_model_is_named(client, models, bare):
    (models / "captioners" / "blip-image-captioning-base" / "model.safetensors").write_bytes(b"not weights")
    client.post("gallery/caption", {"folder": str(bare), "model": "blip-base"}, 201)
    assert "cannot be loaded" in ended(client)["message"]


def report(client, folder, **settings):
    return until(lambda: client.get("gallery/check", folder=str(folder), **settings)["report"])


@pytest.mark.parametrize("limit, wanted", [(75, ["0.png"]), (None, [])])
def test_a_caption_is_cut_only_where_the_host_cuts_it(client, host, gallery, limit, wanted):
    assert host.token_limit == 75
    host.token_limit = limit
    (gallery / "0.txt").write_text("a photo of sks, " + 30 * "a red star, ")
    assert [file for finding in report(client, gallery)["findings"] if finding["code"] == "too_long" for file in finding["files"]] == wanted


def test_the_check_is_asked_for_until_it_is_there(client, gallery):
    (gallery / "copy.png").write_bytes((gallery / "0.png").read_bytes())
    told = client.get("gallery/check", folder=str(gallery))
    assert told["total"] == 7 >= told["done"] and set(told) == {"works", "done", "total", "can_compare", "report"}
    found = report(client, gallery, trigger="sks", purpose="object", resolution=64)
    assert client.get("gallery/check", folder=str(gallery), trigger="sks", purpose="object", resolution=64)["done"] == 7
    [copies] = [finding for finding in found["findings"] if finding["code"] == "same_file"]
    assert set(copies["files"]) == {"0.png", "copy.png"} and copies["action"]["kind"] == "leave_out" and copies["action"]["files"] == ["copy.png"]
    assert set(copies["what"]) == {"en", "zh"} and "fix these first" in found["sentence"]["en"] and 0 <= found["score"] < 100
    assert sum(part["points"] for part in found["parts"]) == pytest.approx(found["score"], abs=0.6)
    # the click that the finding offers
    assert client.post("gallery/leave-out", {"folder": str(gallery), "files": copies["action"]["files"]})["files"] == ["copy.png"]
    after = report(client, gallery, trigger="sks", purpose="object", resolution=64)
    assert not any(finding["code"] == "same_file" for finding in after["findings"]) and after["score"] > found["score"] and after["pictures"] == 6
    assert (gallery / "copy.png").exists()
    shown = {one["file"]: one["left_out"] for one in client.get("gallery", folder=str(gallery))["pictures"]}
    assert shown["copy.png"] and not shown["0.png"]
    assert client.post("jobs/plan", {"settings": {"train_data_dir": str(gallery)}})["pictures"] == 6
    assert client.post("gallery/put-back", {"folder": str(gallery), "files": ["copy.png", "0.png"]})["files"] == ["copy.png"]
    assert not (gallery / LEFT_OUT).exists()
    assert report(client, gallery, trigger="sks", purpose="object", resolution=64)["pictures"] == 7
    assert "there is no picture gone.png" in client.post("gallery/leave-out", {"folder": str(gallery), "files": ["gone.png"]}, 400)["error"]


def test_the_check_sees_a_new_caption_and_says_what_is_wrong_with_a_folder(client, gallery, tmp_path):
    assert not any(finding["code"] == "short_caption" for finding in report(client, gallery)["findings"])
    client.post("gallery/captions", {"folder": str(gallery), "captions": {"0.png": "one"}})
    assert any(finding["code"] == "short_caption" and finding["files"] == ["0.png"] for finding in report(client, gallery)["findings"])
    (tmp_path / "empty").mkdir()
    def refusal():
        answer = client.ask("GET", "gallery/check", query={"folder": str(tmp_path / "empty")})
        return answer.status == 400 and json.loads(answer.body)["error"]
    assert "has no pictures" in until(refusal)


def test_a_job_writes_captions_first_and_says_so_before(client, models, bare):
    settings = {"train_data_dir": str(bare), "trigger": "sks", "lora_rank": 1, "steps": 1}
    told = client.post("jobs/plan", {"settings": settings})["captions"]
    assert (told["count"], told["model"], told["into"]) == (6, "blip-image-captioning-base", "metadata.csv") and "auto_caption: false" in told["sentence"]
    assert client.post("jobs/plan", {"settings": {**settings, "auto_caption": False}})["captions"] is None
    job = client.post("jobs", {"settings": {**settings, "auto_caption": False, "name": "without"}}, 201)["id"]
    until(lambda: client.get(f"jobs/{job}")["status"] == "completed", 120)
    assert not (bare / "metadata.csv").exists()
    job = client.post("jobs", {"settings": settings}, 201)["id"]
    until(lambda: client.get(f"jobs/{job}")["status"] == "completed", 120)
    assert len(read_metadata(bare / "metadata.csv")) == 6 and all(automatic for _, automatic in captions(client, bare).values())
    assert client.post("jobs/plan", {"settings": settings})["captions"] is None
    assert len(client.post("gallery/caption/undo", {"folder": str(bare)})["files"]) == 6 and not (bare / "metadata.csv").exists()


def test_a_bounded_server_takes_captioning_models_from_its_own_folders_only(client, models, bare, host, tmp_path):
    host.gallery_roots = [bare]
    elsewhere = blip_folder(tmp_path / "elsewhere")
    settings = {"train_data_dir": str(bare), "trigger": "sks"}
    assert "outside of the model folders" in client.post("jobs/plan", {"settings": {**settings, "caption_model": str(elsewhere)}}, 400)["error"]
    assert client.post("jobs/plan", {"settings": {**settings, "caption_model": "blip-base"}})["captions"]["count"] == 6
    assert client.ask("GET", "gallery/check", query={"folder": str(tmp_path)}).status == 403
    assert client.post("gallery/caption", {"folder": str(tmp_path), "model": "blip-base"}, 403)
