"""The API over Python's own HTTP server, for `python train.py ui`."""
from __future__ import annotations

import logging
import shutil
import socket
import sys
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from ..api import Api, Request, Response

log = logging.getLogger(__name__)
GONE = (BrokenPipeError, ConnectionResetError, ConnectionAbortedError, socket.timeout)
DRAINED = 10_000_000
"""Bytes of a refused body that are read away, so that the client reads the answer instead of a broken connection."""


class Server(ThreadingHTTPServer):
    """Serves an Api, a thread for each connection."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, api: Api, listen: str, port: int) -> None:
        self.api = api
        self.address_family = socket.AF_INET6 if ":" in listen else socket.AF_INET
        try:
            super().__init__((listen, port), Handler)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ValueError(f"the address {listen}:{port} cannot be listened on ({reason}); choose another --port") from error

    def handle_error(self, request, client_address) -> None:
        """A browser that leaves in the middle is no fault."""
        if not isinstance(sys.exc_info()[1], GONE):
            log.exception("the request of %s failed", client_address[0])

    @property
    def url(self) -> str:
        host, port = self.server_address[:2]
        return f"http://{f'[{host}]' if ':' in str(host) else host}:{port}/hotlora/"


class Handler(BaseHTTPRequestHandler):
    """One connection, which may carry several requests."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "HotLoRA", ""
    timeout = 60
    # head and body go out together: apart, a small body waits some 40 ms until the browser has acknowledged the head
    wbufsize = -1
    disable_nagle_algorithm = True
    server: Server

    def __getattr__(self, name: str):
        """Every method is answered by the API, which says what there is for those that it has no use for."""
        if name.startswith("do_"):
            return self._take
        raise AttributeError(name)

    def _take(self) -> None:
        """Read the request to its end, also the body of one that should have none: what is left would pass for the next request."""
        if "transfer-encoding" in self.headers:
            self._refuse(411, "send the request with a Content-Length")
            return
        text = self.headers.get("content-length") or "0"
        if not (text.isascii() and text.isdigit() and len(text) < 16) or len(self.headers.get_all("content-length", [])) > 1:
            self._refuse(400, "Content-Length is not a number")
            return
        try:
            parts = urlsplit(self.path)
        except ValueError:
            self._refuse(400, "the address cannot be read")
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        self._answer(Request(self.command, unquote(parts.path), query, headers, client=self.client_address[0]), int(text))

    def _answer(self, request: Request, length: int) -> None:
        refused = self.server.api.refusal(request)
        body = b"" if refused else self.rfile.read(min(length, self.server.api.body_limit(request.method, request.path) + 1))
        self._drain(length - len(body))
        if self.path in ("/", "") and self.command in ("GET", "HEAD"):
            self._send(Response(307, {"location": "/hotlora/"}, b""))
        else:
            self._send(refused or self.server.api.handle(replace(request, body=body)))

    def _drain(self, left: int) -> None:
        self.close_connection |= left > DRAINED
        left = min(left, DRAINED)
        while left > 0 and (block := self.rfile.read(min(left, 1 << 16))):
            left -= len(block)

    def _refuse(self, status: int, sentence: str) -> None:
        self.close_connection = True
        self._send(Response(status, {"content-type": "application/json"}, b'{"error": "%s"}' % sentence.encode()))

    def _send(self, response: Response) -> None:
        try:
            self.send_response(response.status)
            for name, value in response.headers.items():
                self.send_header(name, value.encode("latin-1", "replace").decode("latin-1"))
            self._send_body(response.body)
        except GONE:
            self.close_connection = True
        finally:
            if hasattr(response.body, "close"):
                response.body.close()

    def _send_body(self, body) -> None:
        with_body = self.command != "HEAD"
        if isinstance(body, bytes):
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            if with_body:
                self.wfile.write(body)
        elif isinstance(body, Path):
            with body.open("rb") as file:
                self.send_header("content-length", str(body.stat().st_size))
                self.end_headers()
                if with_body:
                    shutil.copyfileobj(file, self.wfile)
        else:
            # its end is the end of the connection
            self.close_connection = True
            self.send_header("connection", "close")
            self.end_headers()
            self.wfile.flush()
            for part in body:
                self.wfile.write(part)
                self.wfile.flush()

    def log_message(self, format: str, *arguments) -> None:
        log.debug("%s %s", self.client_address[0], format % arguments)
