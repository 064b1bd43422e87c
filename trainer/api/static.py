"""The page's own files."""
from __future__ import annotations

import hashlib
from pathlib import Path

from .messages import ApiError, Response
from .routes import Call, Route

WEB = Path(__file__).resolve().parent.parent.parent / "web"
KINDS = {".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".mjs": "text/javascript; charset=utf-8",
         ".css": "text/css; charset=utf-8", ".json": "application/json; charset=utf-8", ".svg": "image/svg+xml", ".png": "image/png",
         ".jpg": "image/jpeg", ".webp": "image/webp", ".woff2": "font/woff2", ".txt": "text/plain; charset=utf-8", ".ico": "image/x-icon"}
RULES = ("default-src 'self'; img-src 'self' blob: data:; style-src 'self' 'unsafe-inline'; connect-src 'self'; object-src 'none'; "
         "base-uri 'self'; form-action 'self'; frame-ancestors 'self'")
"""What the page may load: nothing from any other machine."""
FOREVER = "private, max-age=31536000, immutable"


def page_routes() -> list[Route]:
    return [
        Route("GET", "/hotlora/", _page, "The page.", answer="text/html"),
        Route("GET", "/hotlora", lambda call: Response(308, {"location": "/hotlora/"}, b""), "To the page.", answer="text/html", status=308),
        Route("GET", "/hotlora/web/{rest}", lambda call: _file(call, WEB.joinpath(*_parts(call.path["rest"]))), "A file of the page.",
              answer="text/javascript", errors=(404,)),
    ]


def _page(call: Call) -> Response:
    """index.html, in which the addresses of the page's files have a version: a browser keeps each file until there is a new one."""
    html = (WEB / "index.html").read_bytes().replace(b'"web/', f'"web/{_version()}/'.encode())
    return with_etag(call, html, KINDS[".html"], {"content-security-policy": RULES})


def _version() -> str:
    """Changes with every file of the page."""
    found = sorted((str(path.relative_to(WEB)), path.stat().st_mtime_ns, path.stat().st_size) for path in WEB.rglob("*") if path.suffix in KINDS)
    return "~" + hashlib.blake2b(repr(found).encode(), digest_size=6).hexdigest()


def _parts(name: str) -> list[str]:
    parts = name.split("/")
    if parts[0].startswith("~"):
        parts = parts[1:]
    if any(part in ("", ".", "..") or "\\" in part or ":" in part or "\0" in part for part in parts):
        raise ApiError(404, "there is no such file of the page")
    return parts


def _file(call: Call, path: Path) -> Response:
    """A file of the page, for good where its address has a version: the next version has another one."""
    if path.suffix not in KINDS or not path.is_file() or not path.resolve().is_relative_to(WEB):
        raise ApiError(404, "there is no such file of the page")
    cache = FOREVER if call.path["rest"].startswith("~") else "no-cache"
    return with_etag(call, path.read_bytes(), KINDS[path.suffix], {"content-security-policy": RULES} if path.suffix == ".html" else {}, cache)


def with_etag(call: Call, data: bytes, kind: str, headers: dict[str, str] | None = None, cache: str = "no-cache") -> Response:
    """The content, or 304 when the browser has it already."""
    tag = f'"{hashlib.blake2b(data, digest_size=12).hexdigest()}"'
    headers = {"etag": tag, "cache-control": cache, **(headers or {})}
    if tag in call.request.headers.get("if-none-match", ""):
        return Response(304, headers, b"")
    return Response(200, {"content-type": kind, **headers}, data)
