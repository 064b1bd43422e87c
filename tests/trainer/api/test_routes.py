"""The routes as a page uses them, on a real queue with the embedded base."""
import json
import time

from PIL import Image

from hotlora.trainer.config import SETTINGS
from hotlora.trainer.lora_file import load_lora


def until_ended(client, job):
    end = time.monotonic() + 120
    while (found := client.get(f"jobs/{job}"))["status"] in ("queued", "preparing", "running"):
        assert time.monotonic() < end, found
        time.sleep(0.02)
    return found


def test_from_an_empty_page_to_a_lora(client, gallery, host):
    folder = client.post("galleries", {"name": "my face"}, 201)["folder"]
    assert client.get("gallery", folder=folder)["pictures"] == []
    for path in sorted(gallery.iterdir()):
        kind = "image/png" if path.suffix == ".png" else "application/octet-stream"
        assert client.post("gallery/upload", None, 201, body=path.read_bytes(), kind=kind, query={"folder": folder, "file": path.name})["file"] == path.name
    pictures = client.get("gallery", folder=folder, resolution=64)["pictures"]
    assert [picture["file"] for picture in pictures] == [f"{i}.png" for i in range(6)] and pictures[0]["bucket"] == [64, 64]
    client.post("gallery/captions", {"folder": folder, "captions": {"0.png": "a photo of zzz"}})
    assert client.get("gallery", folder=folder)["pictures"][0]["caption"] == "a photo of zzz"
    assert client.get("gallery/history", folder=folder, file="0.png")["history"][0]["before"].startswith("a photo of sks")
    settings = {"train_data_dir": folder, "trigger": "zzz", "lora_rank": 2, "steps": 4, "save_steps": 2, "preview_steps": 4}
    told = client.post("jobs/plan", {"settings": settings})
    assert told["pictures"] == 6 and told["steps"] == 4 and told["tag"] == "<lora:my face:1>" and told["can_train"]
    job = client.post("jobs", {"settings": settings, "preset": "quick"}, 201)
    done = until_ended(client, job["id"])
    assert done["status"] == "completed" and done["settings"] == settings and done["tag"] == "<lora:my face:1>"
    preview = client.ask("GET", f"jobs/{job['id']}/previews/{done['previews'][0]['file']}")
    assert Image.open(preview.body).size == (64, 64)
    [lora] = client.get("loras")["loras"]
    assert (lora["name"], lora["trigger"], lora["tag"], lora["finished"], lora["base"]) == ("my face", "zzz", "<lora:my face:1>", True, "demo")
    assert [step["name"] for step in lora["steps"]] == ["my face-000002"] and lora["job"] == job["id"]
    assert client.ask("GET", lora["preview"]).status == 200
    load_lora(host.lora_folders()[0] / lora["path"])
    assert client.get("loras/my face")["name"] == "my face"
    assert client.get("galleries")["galleries"][0] == {"folder": folder, "name": "my face", "pictures": 6, "first": "0.png", "own": True}
    again = client.post(f"jobs/{job['id']}/again")
    assert again["id"] != job["id"] and until_ended(client, again["id"])["status"] == "completed"
    assert client.post("jobs/plan", {"settings": settings})["seconds"] > 0, "measured by now"


def test_a_lora_goes_to_the_trash_and_comes_back(client, gallery, host):
    settings = {"train_data_dir": str(gallery), "name": "face", "lora_rank": 1, "steps": 2, "save_steps": 1}
    until_ended(client, client.post("jobs", {"settings": settings}, 201)["id"])
    folder = host.lora_folders()[0]
    (folder / "face.preview.png").write_bytes(b"x")
    (folder / "face-other.safetensors").write_bytes(b"not ours")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert sorted(client.post("loras/face/delete")["names"]) == ["face", "face-000001"]
    assert [path.name for path in folder.iterdir()] == ["face-other.safetensors"]
    assert client.get("loras")["loras"] == [] and not list((host.home / "trash").rglob("*.safetensors"))
    client.post("loras/face/delete", status=404)
    client.post("loras/face-other/delete", status=404)
    assert sorted(client.post("loras/face/restore")["names"]) == ["face", "face-000001"]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    client.post("loras/face/restore", status=404)
    assert client.post("loras/face-000001/delete")["names"] == ["face-000001"] and (folder / "face.safetensors").exists()


def test_a_lora_that_a_later_run_put_aside_is_known_as_that_of_its_job(client, gallery):
    settings = {"train_data_dir": str(gallery), "name": "face", "lora_rank": 1, "steps": 1, "preview_steps": 1}
    first, second = (client.post("jobs", {"settings": settings}, 201)["id"] for _ in range(2))
    runs = [until_ended(client, job)["run"] for job in (first, second)]
    listed = {lora["name"]: lora for lora in client.get("loras")["loras"]}
    assert {name: (lora["job"], lora["run"]) for name, lora in listed.items()} == {"face": (second, runs[1]), "face-v1": (first, runs[0])}
    assert first in listed["face-v1"]["preview"] and second in listed["face"]["preview"]


def test_a_lora_of_a_sub_folder_is_deleted_by_its_path(client, gallery, host, monkeypatch):
    settings = {"train_data_dir": str(gallery), "name": "face", "lora_rank": 1, "steps": 1}
    folder = host.lora_folders()[0]
    (folder / "old").mkdir(parents=True)
    for path in (folder / "old" / "face.safetensors", folder / "face.safetensors"):
        until_ended(client, client.post("jobs", {"settings": settings}, 201)["id"])
        (folder / "face.safetensors").replace(path)
    told = []
    monkeypatch.setattr(host, "lora_written", lambda name, path: told.append((name, path)))
    monkeypatch.setattr(host, "lora_removed", lambda name: told.append((name, None)))
    assert client.get("loras/old/face")["path"] == "old/face.safetensors"
    assert client.post("loras/old/face/delete")["names"] == ["face"] and not (folder / "old" / "face.safetensors").exists()
    assert client.get("loras/face")["path"] == "face.safetensors" and told == [("face", folder / "face.safetensors")]
    assert client.post("loras/old/face/restore")["names"] == ["face"]
    client.post("loras/face/delete")
    client.post("loras/face/delete")
    assert told[-2:] == [("face", folder / "old" / "face.safetensors"), ("face", None)]


def test_a_restored_lora_takes_no_ones_place(client, gallery, host):
    settings = {"train_data_dir": str(gallery), "name": "face", "lora_rank": 1, "steps": 1}
    for _ in range(2):
        until_ended(client, client.post("jobs", {"settings": settings}, 201)["id"])
        data = (host.lora_folders()[0] / "face.safetensors").read_bytes()
        if not (host.home / "trash").exists():
            client.post("loras/face/delete")
    assert "again" in client.post("loras/face/restore", status=409)["error"]
    assert (host.lora_folders()[0] / "face.safetensors").read_bytes() == data


def test_removed_pictures_come_back(client, gallery):
    folder = str(gallery)
    client.post("gallery/remove", {"folder": folder, "files": ["0.png", "3.png"]})
    assert len(client.get("gallery", folder=folder)["pictures"]) == 4 and not (gallery / "0.txt").exists()
    client.post("gallery/restore", {"folder": folder, "files": ["0.png", "3.png"]})
    assert len(client.get("gallery", folder=folder)["pictures"]) == 6 and (gallery / "0.txt").exists()


def test_a_thumbnail_is_kept_and_follows_the_picture(client, gallery, host):
    query = {"folder": str(gallery), "file": "0.png", "size": 64}
    first = client.ask("GET", "gallery/picture", query=query)
    assert first.headers["content-type"] == "image/jpeg" and len(list((host.home / "thumbnails").rglob("*.jpg"))) == 1
    assert client.ask("GET", "gallery/picture", query=query, headers={"if-none-match": first.headers["etag"]}).status == 304
    Image.new("RGB", (500, 20), "green").save(gallery / "0.png")
    second = client.ask("GET", "gallery/picture", query={**query, "v": 5})
    assert second.body != first.body and "immutable" in second.headers["cache-control"]
    import io

    assert Image.open(io.BytesIO(second.body)).size[0] == 64
    whole = client.ask("GET", "gallery/picture", query={"folder": str(gallery), "file": "0.png"})
    assert whole.body == gallery / "0.png" and whole.headers["content-type"] == "image/png"


def test_every_setting_is_described(client):
    told = {entry["name"]: entry for entry in client.get("settings")["settings"]}
    assert list(told) == list(SETTINGS)
    assert told["lora_rank"]["minimum"] == 1 and told["lora_rank"]["help"] == SETTINGS["lora_rank"].help
    assert told["train_data_dir"]["required"] and told["output_dir"]["decided"] and not told["steps"]["decided"]
    assert told["base_model"]["choices"] == ["demo"] and told["optimizer"]["choices"][0] == "adamw"


def test_settings_files_are_read_and_written_as_the_command_line_does(client, gallery):
    text = client.post("settings/save", {"settings": {"train_data_dir": str(gallery), "lora_rank": 4, "learning_rate": "2e-4", "steps": None}})["text"]
    assert "lora_rank: 4" in text
    back = client.post("settings/load", {"name": "my.yaml", "text": text})["settings"]
    assert back | {"train_data_dir": str(gallery), "lora_rank": 4, "learning_rate": 2e-4} == back
    assert client.post("settings/load", {"name": "x.toml", "text": "network_dim = 4\nmax_train_steps = 7\n"})["settings"]["steps"] == 7
    assert "line 2" in client.post("settings/load", {"name": "my.yaml", "text": "a: 1\n b: ["}, 400)["error"]
    assert "lora_rank" in client.post("settings/load", {"name": "my.yaml", "text": "lora_rnak: 4"}, 400)["error"]


def test_a_settings_file_has_what_the_preset_fills_in_and_comes_back_under_another(client, gallery):
    given = {"train_data_dir": str(gallery), "steps": 600, "batch_size": 2}
    text = client.post("settings/save", {"settings": given, "preset": "best"})["text"]
    saved = client.post("settings/load", {"name": "my.yaml", "text": text})["settings"]
    started = client.post("jobs/plan", {"settings": given, "preset": "best"})
    assert started["filled"].items() <= saved.items() and "conv_rank" in started["filled"]
    assert (saved["steps"], saved["batch_size"], saved["base_model"]) == (600, 2, "demo")
    # nothing is left for another preset to fill in
    assert client.post("jobs/plan", {"settings": saved, "preset": "quick"})["filled"] == {}
    assert client.post("settings/save", {"settings": given, "preset": "most"}, 400)


def test_a_settings_file_names_defaults_that_a_preset_would_change(client):
    named = "lora_rank: 16\nlearning_rate: 1e-4\nlr_scheduler: cosine\npreview_steps: 0\nflip: false\nsteps: null\n"
    assert client.post("settings/load", {"name": "my.yaml", "text": named})["settings"] == {
        "lora_rank": 16, "learning_rate": 1e-4, "lr_scheduler": "cosine", "preview_steps": 0}
    assert client.post("settings/load", {"name": "kohya.toml", "text": "network_dim = 16\n"})["settings"] == {"lora_rank": 16}


def test_the_status_says_what_is_possible(client, api, tmp_path):
    told = client.get("status")
    assert (told["host"], told["can_train"], told["gallery_roots"]) == ("standalone", True, None) and told["base"] == {"name": "demo", "family": "demo"}
    api.host.gallery_roots = [tmp_path]
    assert client.get("status")["gallery_roots"] == [str(tmp_path), str(api.host.home / "galleries")]


def test_events_after_an_id_and_after_a_lost_connection(client, api):
    for number in range(5):
        api.jobs.events.add("log", text=str(number))
    for query, headers, expected in (({"after": 3}, {}, [4, 5]), ({"after": 0}, {"last-event-id": "4"}, [5]), ({"after": 3}, {"last-event-id": "x"}, [4, 5])):
        response = client.ask("GET", "events", query=query, headers=headers)
        assert response.headers["content-type"].startswith("text/event-stream") and response.headers["cache-control"] == "no-store"
        next(response.body)
        lines = next(response.body).decode().split("\n")
        assert [json.loads(line[6:])["id"] for line in lines if line.startswith("data: ")] == expected
        response.body.close()


def test_the_log_of_a_job(client, gallery):
    job = client.post("jobs", {"settings": {"train_data_dir": str(gallery), "steps": 1}}, 201)["id"]
    until_ended(client, job)
    lines = client.get(f"jobs/{job}/log")["lines"]
    assert any("6 pictures" in line["text"] for line in lines) and [line["id"] for line in lines] == sorted(line["id"] for line in lines)
    assert client.get(f"jobs/{job}/log", lines=1)["lines"] == lines[-1:]
    client.get("jobs/x/log", 404)
    client.get(f"jobs/{job}/log", 400, lines=0)


def test_the_page_and_its_files(client):
    page = client.ask("GET", "/hotlora/")
    assert page.status == 200 and page.headers["content-type"].startswith("text/html") and "default-src 'self'" in page.headers["content-security-policy"]
    assert client.ask("GET", "/hotlora").headers["location"] == "/hotlora/"
    script = client.ask("GET", "/hotlora/web/comfy/hotlora.js")
    assert script.headers["content-type"].startswith("text/javascript")
    assert client.ask("GET", "/hotlora/web/comfy/hotlora.js", headers={"if-none-match": script.headers["etag"]}).status == 304


def test_a_job_in_the_wrong_state_says_what_it_can(client, gallery):
    job = client.post("jobs", {"settings": {"train_data_dir": str(gallery), "steps": 1, "lora_rank": 1}}, 201)["id"]
    until_ended(client, job)
    assert "completed" in client.post(f"jobs/{job}/pause", status=409)["error"]
    assert client.post(f"jobs/{job}/remove")["id"] == job
    client.get(f"jobs/{job}", 404)
    assert client.post(f"jobs/{job}/restore")["id"] == job and client.get(f"jobs/{job}")["status"] == "completed"


def test_drawings(client, api):
    made = client.post("drawings", {"prompt": "a red circle", "names": [], "weights": [0], "steps": 1}, status=201)
    drawing = api.drawings.get(made["id"])
    end = time.monotonic() + 120
    while drawing.status in ("queued", "drawing"):
        assert time.monotonic() < end, drawing
        time.sleep(0.02)
    [shown] = client.get("drawings")["drawings"]
    assert shown["status"] == "done" and shown["total"] == 1
    found = client.ask("GET", f"drawings/{made['id']}/{shown['pictures'][0]['file']}")
    assert found.status == 200 and found.headers["content-type"] == "image/png" and found.body.is_file()
    assert client.post(f"drawings/{made['id']}/cancel")["status"] == "done"
    for path in (f"drawings/{made['id']}/drawing.json", "drawings/none/000.png"):
        client.get(path, status=404)
    assert "multiple of 8" in client.post("drawings", {"prompt": "x", "names": [], "weights": [0], "width": 100}, status=400)["error"]
    assert "no LoRA 'x'" in client.post("drawings", {"prompt": "x", "names": ["x"], "weights": [0]}, status=400)["error"]


def test_an_answer_says_up_to_which_event_it_is_certain(client):
    """What comes while it is made may be in it or not: the number is that of before."""
    events = client.api.jobs.events
    events.add("log", text="one")
    assert int(client.ask("GET", "jobs").headers["hotlora-last-event"]) == events.last
    before = events.last
    client.post("galleries", {"name": "faces"}, status=201)
    answer = client.ask("POST", "galleries", {"name": "more"})
    assert int(answer.headers["hotlora-last-event"]) >= before
