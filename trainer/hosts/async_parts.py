"""What both asynchronous servers share: the API works in threads of its own, so that the host's loop and its thread pool stay free."""
from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import AsyncIterator, Iterator

from ..api import Api, Request, Response

BLOCK = 1 << 20
_pool = ThreadPoolExecutor(8, "hotlora-http")


async def answered(api: Api, request: Request, blocks: AsyncIterator[bytes]) -> Response:
    """`blocks` are the body of the request, which is read only when its head may ask."""
    refused = api.refusal(request)
    if refused is not None:
        return refused
    body = await _body(blocks, api.body_limit(request.method, request.path))
    return await asyncio.get_running_loop().run_in_executor(_pool, api.handle, replace(request, body=body))


async def _body(blocks: AsyncIterator[bytes], limit: int) -> bytes:
    """The body, once in memory; of one that is too long only as much as shows it."""
    body = BytesIO()
    async for block in blocks:
        body.write(block[:max(0, limit + 1 - body.tell())])
    return body.getvalue()


async def parts_of(body: Path | Iterator[bytes]) -> AsyncIterator[bytes]:
    """A file or a stream in parts, each awaited in a thread that is this body's alone."""
    loop, pool = asyncio.get_running_loop(), ThreadPoolExecutor(1, "hotlora-stream")
    parts = _blocks(body) if isinstance(body, Path) else body
    try:
        while (part := await loop.run_in_executor(pool, next, parts, None)) is not None:
            yield part
    finally:
        if not isinstance(body, Path):
            parts.close()
        pool.shutdown(wait=False)


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            yield block
