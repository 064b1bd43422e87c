"""An Api over the tests' backend, asked without a server."""
import json

import pytest

from hotlora.trainer.api import Api, Policy, Request
from hotlora.trainer.hosts.standalone_host import SharedBackend, StandaloneHost
from hotlora.trainer.jobs import JobQueue


class Client:
    """Asks an Api as a page of its own server would, unless told otherwise."""

    def __init__(self, api):
        self.api = api

    def ask(self, method, path, data=None, query=None, headers=None, body=None, kind="application/json"):
        headers = {"host": "localhost:7865", **(headers or {})}
        if data is not None:
            body = json.dumps(data).encode()
        if body is not None:
            headers.setdefault("content-type", kind)
        path = path if path.startswith("/") else f"/hotlora/api/{path}"
        response = self.api.handle(Request(method, path, {key: str(value) for key, value in (query or {}).items()}, headers, body or b"", "127.0.0.1"))
        assert response.headers["x-content-type-options"] == "nosniff"
        return response

    def get(self, path, status=200, **query):
        return self._json(self.ask("GET", path, query=query), status)

    def post(self, path, data=None, status=200, **options):
        return self._json(self.ask("POST", path, {} if data is None and "body" not in options else data, **options), status)

    def _json(self, response, status):
        assert response.status == status, response.body
        values = json.loads(response.body)
        if status >= 400:
            assert values["error"] and "\n" not in values["error"] and "Traceback" not in values["error"]
        return values


@pytest.fixture
def host(tmp_path, backend):
    host = StandaloneHost(tmp_path / "home", ["demo"], "cpu")
    host._loaded = "demo", SharedBackend(backend)
    return host


@pytest.fixture
def api(host):
    jobs = JobQueue(host)
    yield Api(host, jobs, Policy())
    jobs.close()


@pytest.fixture
def client(api):
    return Client(api)
