"""Attacks on the API: each is a clear 4xx, and nothing is touched."""
import io
import os
from dataclasses import replace

import pytest
from PIL import Image

from hotlora.trainer.api import Policy
from hotlora.trainer.api.guard import loopback_names

EVIL = {"origin": "http://evil.example"}
CHANGING = ("test_its_own_page_changes_things", "test_a_link_that_leads_out_of_bounds")


def snapshot(*folders):
    return {path: path.read_bytes() if path.is_file() else None for folder in folders for path in sorted(folder.rglob("*"))
            if "thumbnails" not in path.parts and path.name not in ("recent.json",)}


@pytest.fixture(autouse=True)
def untouched(request, tmp_path, api):
    """Nothing below the test's folder changes, whatever is tried."""
    if request.node.originalname in CHANGING:
        yield
        return
    request.getfixturevalue("gallery")
    if "bounded" in request.fixturenames:
        request.getfixturevalue("bounded")
    before = snapshot(tmp_path)
    yield
    assert snapshot(tmp_path) == before


@pytest.fixture
def bounded(api, tmp_path):
    """Galleries are bounded to one folder; beside it lies a secret picture."""
    root, secret = tmp_path / "allowed", tmp_path / "secret"
    for folder in (root, secret):
        folder.mkdir()
        Image.new("RGB", (32, 32), "red").save(folder / "p.png")
        (folder / "p.txt").write_text(f"caption in {folder.name}")
    api.host.gallery_roots = [root]
    return root, secret


def png():
    data = io.BytesIO()
    Image.new("RGB", (16, 16)).save(data, "PNG")
    return data.getvalue()


def posts(gallery):
    """Every kind of change, as (path, data)."""
    folder = str(gallery)
    return [("galleries", {"name": "x"}), ("gallery/captions", {"folder": folder, "captions": {"0.png": "changed"}}),
            ("gallery/remove", {"folder": folder, "files": ["0.png"]}), ("gallery/restore", {"folder": folder, "files": ["0.png"]}),
            ("jobs", {"settings": {"train_data_dir": folder}}), ("jobs/plan", {"settings": {"train_data_dir": folder}}), ("jobs/x/stop", {}),
            ("loras/x/delete", {}), ("settings/save", {"settings": {}})]


def test_without_the_login_every_route_is_closed(client, api, gallery):
    api.policy = Policy(lambda request: request.headers.get("cookie") == "key=1", 'Basic realm="HotLoRA"')
    for route in api.routes:
        path = route.path.replace("{id}", "x").replace("{file}", "x").replace("{name}", "x").replace("{rest}", "app.js")
        response = client.ask(route.method, path, {} if route.method == "POST" else None)
        assert response.status == 401 and response.headers["www-authenticate"] == 'Basic realm="HotLoRA"', path
    assert client.ask("GET", "/hotlora/api/nothing").status == 401
    assert client.ask("GET", "status", headers={"cookie": "key=1"}).status == 200


def test_a_page_of_another_site_changes_nothing(client, gallery):
    for path, data in posts(gallery):
        for headers in (EVIL, {"origin": "null"}, {"origin": "http://localhost:1234"}, {"origin": "file://"}, {"sec-fetch-site": "cross-site"},
                        {"sec-fetch-site": "same-site"}, {"origin": "http://localhost:7865.evil.example"}, {"origin": "javascript://localhost:7865"}):
            client.post(path, data, 403, headers=headers)


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/plain", "text/plain; application/json", "text/xml", ""])
def test_what_a_form_can_send_is_not_taken(client, gallery, kind):
    for path, data in posts(gallery):
        client.post(path, data, 415, headers={"content-type": kind, "origin": "http://localhost:7865"})
    query = {"folder": str(gallery), "file": "new.png"}
    client.post("gallery/upload", None, 415, body=png(), query=query, headers={"content-type": kind})


def test_another_sites_page_does_not_look_either(client, gallery):
    for headers in ({"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, {"sec-fetch-site": "same-site", "sec-fetch-mode": "no-cors"}):
        assert client.ask("GET", "gallery/picture", query={"folder": str(gallery), "file": "0.png"}, headers=headers).status == 403
    assert client.ask("GET", "/hotlora/", headers={"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}).status in (200, 404), "a link to the page"
    assert client.ask("GET", "status", headers={"sec-fetch-site": "none"}).status == 200


@pytest.mark.parametrize("headers", [{}, {"origin": "http://localhost:7865"}, {"origin": "http://LOCALHOST:7865"}, {"origin": "https://x.example", "host": "x.example:443"},
                                     {"origin": "https://tunnel.example", "sec-fetch-site": "same-origin"},
                                     {"origin": "https://proxy.example:8443", "x-forwarded-host": "proxy.example:8443"}])
def test_its_own_page_changes_things(client, headers):
    client.post("galleries", {"name": "x"}, 201, headers=headers)


def test_a_name_that_another_site_made_to_mean_this_machine(client, api):
    api.policy = Policy(hosts=loopback_names("127.0.0.1"))
    for host in ("evil.example", "evil.example:7865", "127.0.0.1.evil.example", "", "localhost.evil.example:80"):
        assert client.ask("GET", "status", headers={"host": host}).status == 421, host
    for host in ("localhost", "localhost:7865", "127.0.0.1:7865", "[::1]:7865", "LOCALHOST:7865"):
        assert client.ask("GET", "status", headers={"host": host}).status == 200, host
    assert loopback_names("0.0.0.0") is None and loopback_names("192.168.1.5") is None


@pytest.mark.parametrize("entry", ["lora.example", "LORA.example:8443", "https://lora.example", "a.example, https://lora.example:8443/hotlora/", "a.example\nlora.example"])
def test_a_proxys_name_that_the_user_allows_counts_at_once_however_it_is_written(client, api, monkeypatch, entry):
    written = []
    api.policy = Policy(hosts=loopback_names("127.0.0.1"), further=lambda: " ".join(written), setting="Settings, HotLoRA")
    asked = {"host": "lora.example:8443"}
    told = client._json(client.ask("GET", "status", headers=asked), 421)["error"]
    assert "'lora.example'" in told and "Settings, HotLoRA, or in the environment variable HOTLORA_SERVER_NAMES" in told
    written.append(entry)
    assert client.ask("GET", "status", headers=asked).status == 200
    written.clear()
    monkeypatch.setenv("HOTLORA_SERVER_NAMES", entry)
    assert client.ask("GET", "status", headers=asked).status == 200
    for host in ("evil.example", "xlora.example", "lora.example.evil.example", "", "https", "example"):
        assert client.ask("GET", "status", headers={"host": host}).status == 421, host
    assert client.ask("GET", "status", headers={"host": "localhost:7865"}).status == 200


def test_a_folder_out_of_bounds(client, bounded, gallery):
    root, secret = bounded
    folder = str(secret)
    for outside in (folder, str(gallery), f"{root}/../secret", f"{root}x", "/", "/etc", "~"):
        assert "allow" in client.get("gallery", 403, folder=outside)["error"]
        client.get("gallery/picture", 403, folder=outside, file="p.png")
        client.get("gallery/history", 403, folder=outside, file="p.png")
        client.post("gallery/upload", None, 403, body=png(), kind="image/png", query={"folder": outside, "file": "new.png"})
    for path, data in posts(secret)[1:6]:
        client.post(path, data, 403)
    for key in ("reg_data_dir", "metadata_path", "init_lora"):
        client.post("jobs", {"settings": {"train_data_dir": str(root), key: str(secret / "p.png" if key != "reg_data_dir" else secret)}}, 403)
    assert client.get("gallery", folder=str(root))["pictures"][0]["file"] == "p.png"


@pytest.mark.parametrize("quote", ['"', "'"])
def test_a_folder_in_quotes_as_windows_copies_it(client, bounded, quote):
    root, secret = bounded
    folder = f"{quote}{root}{quote}"
    assert client.get("gallery", folder=folder)["folder"] == client.get("gallery", folder=str(root))["folder"]
    settings = {"train_data_dir": folder, "name": "quoted", "trigger": "sks", "steps": 1}
    assert client.post("jobs/plan", {"settings": settings})["pictures"] == 1
    client.get("gallery", 403, folder=f"{quote}{secret}{quote}")
    client.post("jobs/plan", {"settings": {**settings, "train_data_dir": f"{quote}{secret}{quote}"}}, 403)
    client.get("gallery", 403, folder=f"{quote}{root}")


def test_a_file_out_of_bounds_by_a_name_that_means_another(client, bounded, tmp_path, monkeypatch):
    """From a current folder inside of the bounds, `~/x` and `../x` look as if they lay inside as well."""
    root, secret = bounded
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(secret))
    monkeypatch.chdir(root)
    for key, value, status in (("init_lora", "~/p.png", 403), ("metadata_path", "~/c.csv", 403), ("metadata_path", "../secret/c.csv", 400), ("metadata_path", "c.csv", 400),
                               ("init_lora", "p.png", 400), ("train_data_dir", "~", 403), ("reg_data_dir", "~", 403)):
        settings = {"train_data_dir": str(root), key: value}
        for path in ("jobs", "jobs/plan", "bundles"):
            error = client.post(path, {"settings": settings}, status)["error"]
            assert key in error or value == "~"


def test_a_settings_file_reads_no_other_file_out_of_bounds(client, bounded, monkeypatch):
    root, secret = bounded
    monkeypatch.chdir(secret)
    for folder, status in ((root, 200), (secret, 403), ("~", 403), (".", 400)):
        text = f"network_dim = 4\nsample_prompts = '{folder}/p.txt'\n"
        told = client.post("settings/load", {"name": "x.toml", "text": text}, status)
        assert told["settings"]["preview_prompts"] == ["caption in allowed"] if status == 200 else "caption" not in str(told)


def test_whether_a_folder_out_of_bounds_exists_is_not_told(client, bounded, tmp_path):
    there, not_there = (client.get("gallery", 403, folder=str(tmp_path / name))["error"].replace(name, "x") for name in ("secret", "nothing"))
    assert there == not_there


@pytest.mark.skipif(os.name != "posix", reason="makes links")
def test_a_link_that_leads_out_of_bounds(client, bounded, tmp_path):
    root, secret = bounded
    before = snapshot(secret)
    for name, target in (("folder", secret), ("q.png", secret / "p.png"), ("p.caption", secret / "p.txt"), ("metadata.csv", secret / "p.txt"), ("p_mask.png", secret / "p.png")):
        (root / name).symlink_to(target)
        assert "link" in client.get("gallery", 403, folder=str(root))["error"], name
        for path, data in posts(root)[1:3]:
            client.post(path, data, 403)
        client.post("jobs", {"settings": {"train_data_dir": str(root)}}, 403)
        if name in ("folder", "q.png"):
            client.get("gallery/picture", 403, folder=str(root), file="folder/p.png" if name == "folder" else name)
            client.get("gallery/picture", 403, folder=str(root), file="folder/p.png" if name == "folder" else name, size=64)
        if name == "folder":
            client.post("gallery/upload", None, 403, body=png(), kind="image/png", query={"folder": str(root), "file": "folder/new.png"})
            client.get("gallery", 403, folder=str(root / "folder"))
        (root / name).unlink()
    assert snapshot(secret) == before and client.get("gallery", folder=str(root))["pictures"]


@pytest.mark.parametrize("file", ["../secret/p.png", "..", "/etc/passwd", "a/../../secret/p.png", "./p.png", "a//p.png", "p.png/", "../../../../../../etc/passwd", "p\0.png"])
def test_names_that_lead_out_of_the_gallery(client, gallery, file):
    for query in ({"size": 64}, {}):
        client.get("gallery/picture", 400, folder=str(gallery), file=file, **query)
    client.post("gallery/captions", {"folder": str(gallery), "captions": {file: "x"}}, 400)
    client.post("gallery/remove", {"folder": str(gallery), "files": [file]}, 400)
    client.post("gallery/restore", {"folder": str(gallery), "files": [file]}, 400)


@pytest.mark.parametrize("file", ["../p.png", "..\\p.png", "a/../../p.png", "p.exe", "p.html", "p.safetensors", ".png", "p.png\0.exe", "p"])
def test_uploads_that_lead_out_or_are_no_pictures(client, gallery, file):
    client.post("gallery/upload", None, 400, body=png(), kind="image/png", query={"folder": str(gallery), "file": file})


def test_only_pictures_are_handed_out(client, gallery):
    client.get("gallery/picture", 400, folder=str(gallery), file="0.txt")
    client.get("gallery/picture", 404, folder=str(gallery), file="9.png")
    assert client.ask("GET", "gallery/picture", query={"folder": str(gallery), "file": "0.png"}).headers["content-security-policy"] == "default-src 'none'"


@pytest.mark.parametrize("path", ["../train.py", "../locales/en/nodeDefs.json", "../../etc/passwd", "..%2ftrain.py", "..\\train.py", "/etc/passwd", "C:/x", "comfy/../../train.py", ".", "x.py"])
def test_static_files_end_at_their_folder(client, path):
    assert client.ask("GET", f"/hotlora/web/{path}").status == 404


def test_jobs_and_previews_are_names_and_not_paths(client):
    for job in ("..", "../..", "x/../y", "%2e%2e", "a" * 5000, "\0"):
        assert client.ask("GET", f"/hotlora/api/jobs/{job}").status in (400, 404)
        assert client.ask("POST", f"/hotlora/api/jobs/{job}/restore", {}).status in (400, 404)
    assert client.ask("POST", "/hotlora/api/loras/../delete", {}).status == 404
    assert client.ask("POST", "/hotlora/api/loras/nothing/delete", {}).status == 404


def test_absurd_sizes(client, gallery, api):
    query = {"folder": str(gallery), "file": "0.png"}
    for size in ("0", "63", "1025", "-1", "9" * 400, "64.5", "abc", "", "NaN", "٦٤"):
        client.get("gallery/picture", 400, **query, size=size)
    for points in ("1", "0", "99999999", "x"):
        client.get("jobs/x/losses", 400, points=points)
    client.post("galleries", {"name": "x" * 5000}, 400)
    client.post("galleries", None, 413, body=b"{" + b" " * 8_000_000 + b"}")
    client.post("gallery/upload", None, 413, body=b"\0" * 250_000_001, kind="image/png", query={"folder": str(gallery), "file": "x.png"})
    client.post("jobs/x/stop", None, 404, body=b"{}")
    client.post("jobs/x/stop", None, 413, body=b" " * 2000)
    client.post("galleries", None, 400, body=b"[" * 100_000)
    client.post("jobs", {"settings": {f"s{i}": i for i in range(300)}}, 400)
    client.post("jobs", {"settings": {"train_data_dir": str(gallery), "steps": 10**400}}, 400)
    assert api.body_limit("POST", "/hotlora/api/gallery/upload") == 250_000_000 and api.body_limit("POST", "/hotlora/api/nothing") == 1000


def test_a_decompression_bomb_is_not_unpacked(client, gallery):
    data = io.BytesIO()
    Image.new("1", (15_000, 15_000)).save(data, "PNG")
    assert len(data.getvalue()) < 1_000_000
    client.post("gallery/upload", None, 400, body=data.getvalue(), kind="image/png", query={"folder": str(gallery), "file": "bomb.png"})


@pytest.mark.parametrize("data", [[], "x", 1, None, True, {"folder": 1, "captions": {}}, {"folder": "x"}, {"folder": "x", "captions": []},
                                  {"folder": "x", "captions": {"a": 1}}, {"folder": "x", "captions": {}, "more": 1}, {"folder": "\0", "captions": {}},
                                  {"folder": "", "captions": {}}, {"folder": "x" * 5000, "captions": {}}, {"folder": "\ud800", "captions": {}}])
def test_wrong_types(client, data):
    import json

    client.post("gallery/captions", None, 400, body=json.dumps(data).encode())


@pytest.mark.parametrize("body", [b"\xff\xfe", b"{", b"nonsense", b'{"name": NaN}', b"\0", b'{"name": "x"'])
def test_what_is_not_json(client, body):
    client.post("galleries", None, 400, body=body)


def test_a_name_with_half_a_character(client, gallery):
    client.post("gallery/captions", None, 400, body=b'{"folder": "/tmp/\\ud800", "captions": {"\\udfff": "x"}}')


def test_methods_and_paths(client):
    assert client.get("gallery/upload", 405)["error"] and client.ask("GET", "gallery/upload").headers["allow"] == "POST"
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "X" * 500):
        assert client.ask(method, "status").status in (403, 405)
    client.get("nothing/at/all", 404)
    client.get("", 404)
    assert client.ask("GET", "/hotlora/api/status/").status == 404


def test_settings_cannot_run_programs(client, gallery):
    for settings in ({"augmentation": "os:system"}, {"loss_term": str(gallery / "0.txt") + ":f"}, {"optimizer": "os.system"}):
        assert "command line" in client.post("jobs", {"settings": {"train_data_dir": str(gallery), **settings}}, 400)["error"]


def test_an_error_of_ours_is_a_500_with_folded_details(client, api, monkeypatch):
    def broken(call):
        raise KeyError("x")

    api.routes[0] = replace(api.routes[0], handler=broken)
    told = client.get("status", 500)
    assert "report" in told["error"] and "Traceback" in told["details"]
