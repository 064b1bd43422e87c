"""Python's own server in front of the API: what only shows on a real socket."""
import http.client
import json
import socket
import threading
import time

import pytest

from hotlora.trainer.api import Api, Policy
from hotlora.trainer.hosts.http_server import Server
from hotlora.trainer.hosts.standalone_host import StandaloneHost, find_bases
from hotlora.trainer.jobs import JobQueue


@pytest.fixture
def server(tmp_path):
    jobs = JobQueue(StandaloneHost(tmp_path, ["demo"], "cpu"))
    server = Server(Api(jobs.host, jobs, Policy()), "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    jobs.close()


def raw(server, data: bytes) -> bytes:
    """What comes back on a connection of its own until the server closes it."""
    with socket.create_connection(server.server_address[:2], timeout=30) as connection:
        connection.sendall(data)
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
        return b"".join(parts)


def request(server, method, path, body=None, headers=None):
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=30)
    connection.request(method, path, body, headers or {})
    answer = connection.getresponse()
    return answer, answer.read()


def test_one_connection_carries_several_requests(server):
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=30)
    for _ in range(3):
        connection.request("GET", "/hotlora/api/status")
        answer = connection.getresponse()
        assert answer.status == 200 and json.loads(answer.read())["host"] == "standalone"
        connection.request("POST", "/hotlora/api/galleries", b"{", {"Content-Type": "application/json"})
        answer = connection.getresponse()
        assert answer.status == 400 and b"not JSON" in answer.read()
    connection.request("HEAD", "/hotlora/api/status")
    answer = connection.getresponse()
    assert answer.read() == b"" and int(answer.headers["content-length"]) > 0
    connection.request("GET", "/hotlora/api/jobs")
    assert connection.getresponse().status == 200


def test_a_body_where_none_belongs_does_not_become_the_next_request(server):
    smuggled = b"POST /hotlora/api/galleries HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n{\"name\": \"x\"}"
    for method in (b"GET", b"HEAD", b"DELETE"):
        length = b"Content-Length: %d\r\n" % len(smuggled)
        answer = raw(server, method + b" /hotlora/api/status HTTP/1.1\r\nHost: x\r\n" + length + b"\r\n" + smuggled
                     + b"GET /hotlora/api/jobs HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert answer.count(b"HTTP/1.1 ") == 2 and b" 201 " not in answer, answer
    assert not (server.api.host.home / "galleries").exists()


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "QUERY", "X"])
def test_other_methods_are_told_which_there_are(server, method):
    answer, body = request(server, method, "/hotlora/api/status")
    assert answer.status == 405 and answer.headers["allow"] == "GET" and json.loads(body)["error"]


def test_the_start_page_leads_to_the_page(server):
    answer, _ = request(server, "GET", "/")
    assert answer.status == 307 and answer.headers["location"] == "/hotlora/"


def test_a_body_of_one_who_may_not_ask_is_read_away_and_not_kept(server, monkeypatch):
    server.api.policy = Policy(lambda request: False)
    asked = []
    monkeypatch.setattr(server.api, "handle", asked.append)
    for size in (10, 3_000_000):
        answer, body = request(server, "POST", "/hotlora/api/loras/import?file=a.safetensors", b"x" * size, {"Content-Type": "application/octet-stream"})
        assert answer.status == 401 and b"log in" in body and answer.headers["x-content-type-options"] == "nosniff" and not asked
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=30)
    for _ in range(2):  # what was read away is not the next request
        connection.request("POST", "/hotlora/api/jobs", b"GET / HTTP/1.1\r\n\r\n")
        answer = connection.getresponse()
        assert answer.status == 401 and b"log in" in answer.read()


def test_a_body_that_is_too_long_is_answered_and_not_kept(server):
    answer, body = request(server, "POST", "/hotlora/api/jobs/x/stop", b"x" * 3_000_000, {"Content-Type": "application/json"})
    assert answer.status == 413 and b"at most" in body
    answer, _ = request(server, "POST", "/hotlora/api/nothing", b"x" * 3_000_000, {"Content-Type": "application/json"})
    assert answer.status == 404


@pytest.mark.parametrize("head, status", [
    (b"Content-Length: -5", b"400"), (b"Content-Length: 99999999999999999999", b"400"), (b"Content-Length: 1e3", b"400"), ("Content-Length: ٣".encode(), b"400"),
    (b"Content-Length: 2\r\nContent-Length: 5", b"400"), (b"Transfer-Encoding: chunked", b"411")])
def test_lengths_that_are_none(server, head, status):
    answer = raw(server, b"POST /hotlora/api/galleries HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n" + head + b"\r\n\r\n{}")
    assert answer.startswith(b"HTTP/1.1 " + status), answer


@pytest.mark.parametrize("line", [b"GARBAGE", b"GET", b"GET /hotlora/api/status HTTP/9.9", b"GET " + b"/" * 70_000 + b" HTTP/1.1", b"GET /%zz%ff%00 HTTP/1.1",
                                  b"GET http://[broken HTTP/1.1", b"GET //[/hotlora HTTP/1.1", b"\xff\xfe / HTTP/1.1"])
def test_requests_that_are_none_do_not_end_the_server(server, line):
    answer = raw(server, line + b"\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert b" 500 " not in answer.split(b"\r\n")[0] and (answer or line.startswith(b"GARBAGE"))
    assert request(server, "GET", "/hotlora/api/status")[0].status == 200


def test_a_stream_lives_until_the_client_goes(server):
    jobs = server.api.jobs
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=30)
    connection.request("GET", "/hotlora/api/events?after=0")
    answer = connection.getresponse()
    assert answer.status == 200 and answer.readline() == b"retry: 1000\n"
    jobs.events.add("log", text="one")
    lines = []
    while not lines or not lines[-1].startswith(b"data: "):
        lines.append(answer.readline())
    assert json.loads(lines[-1][6:])["text"] == "one"
    answer.close()
    connection.close()
    end = time.monotonic() + 30
    while any("process_request_thread" in thread.name for thread in threading.enumerate()):
        jobs.events.add("log", text="anybody there")
        assert time.monotonic() < end, "the thread of the client that left is still there"
        time.sleep(0.02)


def test_a_port_that_is_taken_is_one_sentence(server):
    with pytest.raises(ValueError, match="choose another --port"):
        Server(server.api, "127.0.0.1", server.server_address[1])
    with pytest.raises(ValueError, match="choose another --port"):
        Server(server.api, "127.0.0.1", 99999)


def test_bases(tmp_path):
    assert find_bases([]) == ["demo"]
    (tmp_path / "a.safetensors").write_bytes(b"")
    assert find_bases([str(tmp_path), "demo"]) == [str(tmp_path / "a.safetensors"), "demo"]
    for wrong in (str(tmp_path / "missing"), ):
        with pytest.raises(ValueError, match="does not exist"):
            find_bases([wrong])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="without a .safetensors"):
        find_bases([str(tmp_path / "empty")])


def test_head_and_body_of_an_answer_leave_together(server):
    """Apart, the body waits for the browser's acknowledgement of the head: some 40 ms for each request after a connection's first."""
    with socket.create_connection(server.server_address[:2], timeout=30) as connection:
        for _ in range(5):
            connection.sendall(b"GET /hotlora/api/status HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            head, _, body = connection.recv(65536).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200") and json.loads(body)["host"] == "standalone"
