"""The API in ComfyUI's aiohttp server; nodes/job.py has the route."""
from __future__ import annotations

from pathlib import Path

from aiohttp import web

from ..api import Api, Request
from .async_parts import answered, parts_of

GONE = (ConnectionResetError, ConnectionError)


async def answer(api: Api, request: web.Request) -> web.StreamResponse:
    """Answer a request below /hotlora; ComfyUI has each of its routes a second time below /api."""
    path = request.path[len("/api"):] if request.path.startswith("/api/hotlora") else request.path
    headers = {name.lower(): value for name, value in request.headers.items()}
    response = await answered(api, Request(request.method, path, dict(request.query), headers, client=request.remote or ""), request.content.iter_any())
    if isinstance(response.body, bytes):
        return web.Response(status=response.status, headers=response.headers, body=response.body)
    stream = web.StreamResponse(status=response.status, headers=response.headers)
    if isinstance(response.body, Path):
        stream.content_length = response.body.stat().st_size
    await stream.prepare(request)
    if request.method == "HEAD":
        if hasattr(response.body, "close"):
            response.body.close()
        return stream
    parts = parts_of(response.body)
    try:
        async for part in parts:
            await stream.write(part)
        await stream.write_eof()
    except GONE:
        pass
    finally:
        await parts.aclose()
    return stream
