"""The API in stable-diffusion-webui: one route of their FastAPI, written to ASGI itself, so that any version will do."""
from __future__ import annotations

import asyncio
import base64
import hmac
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any, AsyncIterator, Callable
from urllib.parse import parse_qsl

from ..api import Api, Request, Response
from .async_parts import answered, parts_of

NAME = "hotlora"


def register(app: Any, api: Api) -> None:
    """Answer everything below /hotlora. Registering again, as after a reload of the UI, takes the place of the former route."""
    from starlette.routing import Route

    routes = app.router.routes
    routes[:] = [route for route in routes if getattr(route, "name", None) != NAME]
    # before gradio's own, some of which match every path
    routes.insert(0, Route("/hotlora{rest:path}", HotLoRA(api), name=NAME, include_in_schema=False))


class HotLoRA:
    """An ASGI application over an Api."""

    def __init__(self, api: Api) -> None:
        self.api = api

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        path = scope["path"]
        root = scope.get("root_path", "")
        if root and path.startswith(f"{root}/hotlora"):  # newer servers leave the prefix in
            path = path[len(root):]
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        query = dict(parse_qsl(scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True))
        client = scope.get("client") or ("",)
        response = await answered(self.api, Request(scope["method"], path, query, headers, client=client[0]), _blocks(receive))
        await _send(response, scope["method"] == "HEAD", receive, send)


async def _blocks(receive: Callable) -> AsyncIterator[bytes]:
    """The body as it comes."""
    more = True
    while more:
        message = await receive()
        yield message.get("body", b"")
        more = message["type"] == "http.request" and message.get("more_body")


async def _send(response: Response, head_only: bool, receive: Callable, send: Callable) -> None:
    headers = dict(response.headers)
    if isinstance(response.body, bytes):
        headers["content-length"] = str(len(response.body))
    else:
        # the hosts compress streams in blocks, which would hold events back, and pictures for nothing
        headers["content-encoding"] = "identity"
    if isinstance(response.body, Path):
        headers["content-length"] = str(response.body.stat().st_size)
    raw = [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": response.status, "headers": raw})
    if head_only or isinstance(response.body, bytes):
        await send({"type": "http.response.body", "body": b"" if head_only else response.body})
        if hasattr(response.body, "close"):
            response.body.close()
        return
    watch = asyncio.ensure_future(_until_gone(receive, response.body))
    try:
        async for part in parts_of(response.body):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    finally:
        watch.cancel()


async def _until_gone(receive: Callable, body: Any) -> None:
    """A stream that nobody reads any more ends at once."""
    while (await receive())["type"] != "http.disconnect":
        pass
    if hasattr(body, "close"):
        body.close()


def webui_login(app: Any, api_auth: str | None) -> tuple[Callable[[Request], bool], str]:
    """What `Policy` needs to ask for the webui's own logins: `--gradio-auth` by its cookie, `--api-auth` by HTTP basic.

    With either of them set a request must carry one of them. Asked anew for each request, as the tokens come and go.
    """
    accounts = dict(entry.split(":", 1) for entry in (api_auth or "").split(",") if ":" in entry)

    def allowed(request: Request) -> bool:
        with_page = getattr(app, "auth", None) is not None
        if not accounts and not with_page:
            return not api_auth
        return (with_page and _has_cookie(app, request)) or _has_account(accounts, request)

    return allowed, 'Basic realm="HotLoRA"' if accounts else ""


def _has_cookie(app: Any, request: Request) -> bool:
    try:
        cookies = SimpleCookie(request.headers.get("cookie", ""))
    except CookieError:
        return False
    tokens = getattr(app, "tokens", None) or {}
    # gradio 4 adds an id, which tells several servers of one machine apart
    suffix = f"-{app.cookie_id}" if getattr(app, "cookie_id", None) else ""
    return any(name in cookies and cookies[name].value in tokens for name in (f"access-token{suffix}", f"access-token-unsecure{suffix}"))


def _has_account(accounts: dict[str, str], request: Request) -> bool:
    kind, _, code = request.headers.get("authorization", "").partition(" ")
    if kind.lower() != "basic":
        return False
    try:
        user, _, password = base64.b64decode(code, validate=True).decode("utf-8").partition(":")
    except ValueError:
        return False
    return user in accounts and hmac.compare_digest(password.encode(), accounts[user].encode())
