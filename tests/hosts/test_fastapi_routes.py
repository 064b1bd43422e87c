"""The ASGI application and the webui's logins, without a webui; tests/hosts/test_webui.py has the real one."""
import asyncio
import base64
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from hotlora.trainer.api import Api, Policy, Request
from hotlora.trainer.hosts.fastapi_routes import HotLoRA, webui_login
from hotlora.trainer.hosts.standalone_host import StandaloneHost
from hotlora.trainer.jobs import JobQueue


@pytest.fixture
def api(tmp_path):
    jobs = JobQueue(StandaloneHost(tmp_path, ["demo"], "cpu"))
    yield Api(jobs.host, jobs, Policy())
    jobs.close()


def finish(coroutine):
    """Its result, from a thread: Playwright's tests, when they came before, leave a running loop in this one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


def ask(api, method, path, body=b"", headers=(), query=b"", root="", parts=1):
    """Status, headers and body as an ASGI server sees them."""
    async def run():
        messages = [{"type": "http.request", "body": body[i * len(body) // parts:(i + 1) * len(body) // parts], "more_body": i + 1 < parts} for i in range(parts)]
        gone, sent = asyncio.Event(), []

        async def receive():
            if messages:
                return messages.pop(0)
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": method, "path": path, "query_string": query, "root_path": root, "client": ("127.0.0.1", 5),
                 "headers": [(b"host", b"localhost"), *headers]}
        await HotLoRA(api)(scope, receive, send)
        return sent

    sent = finish(run())
    return sent[0]["status"], {name.decode(): value.decode() for name, value in sent[0]["headers"]}, b"".join(part.get("body", b"") for part in sent[1:])


def test_answers_with_and_without_a_prefix(api):
    for path, root in (("/hotlora/api/status", ""), ("/hotlora/api/status", "/sub"), ("/sub/hotlora/api/status", "/sub")):
        status, headers, body = ask(api, "GET", path, root=root)
        assert status == 200 and json.loads(body)["host"] == "standalone" and headers["content-length"] == str(len(body))
    assert ask(api, "HEAD", "/hotlora/api/status")[2] == b""


def test_a_body_in_pieces(api):
    kind = [(b"content-type", b"application/json")]
    status, _, body = ask(api, "POST", "/hotlora/api/galleries", b'{"name": "faces"}', kind, parts=5)
    assert status == 201 and json.loads(body)["name"] == "faces"
    assert ask(api, "POST", "/hotlora/api/galleries", b" " * 9_000_000, kind, parts=20)[0] == 413


def test_no_body_is_read_of_a_request_that_may_not_ask(api):
    """Or anybody on the network could fill the memory."""
    read = []

    async def run(headers):
        sent = []

        async def receive():
            read.append(1)
            return {"type": "http.request", "body": b"x" * 1000, "more_body": len(read) % 50 != 0}

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/hotlora/api/loras/import", "query_string": b"file=a.safetensors",
                 "headers": [(b"host", b"localhost"), (b"content-type", b"application/octet-stream"), *headers]}
        await HotLoRA(api)(scope, receive, send)
        return sent[0]["status"]

    assert finish(run([])) == 400 and len(read) == 50, "a LoRA that is none, of one who may ask"
    assert finish(run([(b"origin", b"http://evil.example")])) == 403 and len(read) == 50
    api.policy = Policy(lambda request: "cookie" in request.headers, "Basic")
    assert finish(run([])) == 401 and len(read) == 50
    assert finish(run([(b"cookie", b"a")])) == 400 and len(read) == 100


def test_a_file_is_sent_in_blocks_and_not_compressed(api, gallery):
    query = f"folder={str(gallery).replace(' ', '%20')}&file=0.png".encode()
    status, headers, body = ask(api, "GET", "/hotlora/api/gallery/picture", query=query)
    assert status == 200 and body == (gallery / "0.png").read_bytes() and headers["content-encoding"] == "identity"


def test_a_stream_ends_when_the_reader_goes(api):
    async def run():
        gone, sent, first = asyncio.Event(), [], [{"type": "http.request"}]

        async def receive():
            if first:
                return first.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)
            if b"hello" in message.get("body", b""):
                api.jobs.events.add("log", text="news")
            if b"news" in message.get("body", b""):
                gone.set()

        await asyncio.wait_for(HotLoRA(api)({"type": "http", "method": "GET", "path": "/hotlora/api/events", "headers": [(b"host", b"x")]}, receive, send), 30)
        return sent

    sent = finish(run())
    assert b"news" in b"".join(part.get("body", b"") for part in sent) and sent[-1].get("more_body") is None
    assert dict(sent[0]["headers"])[b"content-encoding"] == b"identity"


def test_many_open_streams_leave_room_for_requests(api):
    async def run():
        open_streams = []

        async def receive():
            await asyncio.Event().wait()

        for _ in range(60):
            first = [{"type": "http.request"}]

            async def receive_of(first=first):
                return first.pop() if first else await receive()

            async def send(message):
                pass

            scope = {"type": "http", "method": "GET", "path": "/hotlora/api/events", "headers": [(b"host", b"x")]}
            open_streams.append(asyncio.ensure_future(HotLoRA(api)(scope, receive_of, send)))
        await asyncio.sleep(0)
        answer = await asyncio.get_running_loop().run_in_executor(None, ask, api, "GET", "/hotlora/api/status")
        for stream in open_streams:
            stream.cancel()
        await asyncio.gather(*open_streams, return_exceptions=True)
        return answer

    assert finish(run())[0] == 200
    assert threading.active_count() < 60


def request(**headers):
    return Request("GET", "/hotlora/api/status", headers={name.replace("_", "-"): value for name, value in headers.items()})


def basic(text):
    return "Basic " + base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize("app, api_auth, headers, expected", [
    (SimpleNamespace(auth=None), None, {}, True), (SimpleNamespace(), "", {}, True),
    (SimpleNamespace(auth={"a": "b"}, tokens={"t": "a"}), None, {}, False),
    (SimpleNamespace(auth={"a": "b"}, tokens={"t": "a"}), None, {"cookie": "x=1; access-token=t"}, True),
    (SimpleNamespace(auth={"a": "b"}, tokens={"t": "a"}), None, {"cookie": "access-token-unsecure=t"}, True),
    (SimpleNamespace(auth={"a": "b"}, tokens={"t": "a"}), None, {"cookie": "access-token=other"}, False),
    (SimpleNamespace(auth={"a": "b"}, tokens={}), None, {"cookie": "access-token="}, False),
    (SimpleNamespace(auth={"a": "b"}, tokens={"t": "a"}, cookie_id="i"), None, {"cookie": "access-token=t"}, False),
    (SimpleNamespace(auth={"a": "b"}, tokens={"t": "a"}, cookie_id="i"), None, {"cookie": "access-token-i=t"}, True),
    (SimpleNamespace(auth=lambda user, word: True, tokens={}), None, {}, False),
    (SimpleNamespace(auth={"a": "b"}, tokens={"t": "a"}), None, {"cookie": "\u0141\0;;=;access-token"}, False),
    (SimpleNamespace(auth=None), "u:p,v:q:r", {}, False), (SimpleNamespace(auth=None), "u:p,v:q:r", {"authorization": basic("u:p")}, True),
    (SimpleNamespace(auth=None), "u:p,v:q:r", {"authorization": basic("v:q:r")}, True), (SimpleNamespace(auth=None), "u:p", {"authorization": basic("u:")}, False),
    (SimpleNamespace(auth=None), "u:p", {"authorization": basic("u:pp")}, False), (SimpleNamespace(auth=None), "u:p", {"authorization": "Basic !!!"}, False),
    (SimpleNamespace(auth=None), "u:p", {"authorization": "Bearer u:p"}, False), (SimpleNamespace(auth=None, tokens={"t": "a"}), "u:p", {"cookie": "access-token=t"}, False),
    (SimpleNamespace(auth=None), "nonsense", {}, False),
    (SimpleNamespace(auth={"a": "b"}, tokens={"t": "a"}), "u:p", {"authorization": basic("u:p")}, True),
    (SimpleNamespace(auth={"a": "b"}, tokens={"t": "a"}), "u:p", {"cookie": "access-token=t"}, True),
    (SimpleNamespace(auth={"a": "b"}, tokens={"t": "a"}), "u:p", {"authorization": basic("a:b")}, False)])
def test_the_webuis_logins(app, api_auth, headers, expected):
    allowed, challenge = webui_login(app, api_auth)
    assert allowed(request(**headers)) is expected
    assert bool(challenge) == bool(api_auth and ":" in api_auth)
