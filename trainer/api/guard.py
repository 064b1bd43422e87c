"""Who may ask for what, decided before any handler runs: the login, where a change may come from, sizes, types and folders."""
from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Callable
from urllib.parse import urlsplit

from ..gallery_files import existing_folder, list_files, relative_name
from ..paths import path_of
from .messages import ApiError, Request

READING = ("GET", "HEAD")
TYPES = ("application/json", "application/octet-stream")
NAMES = "HOTLORA_SERVER_NAMES"
"""The environment variable with further names of the server, as of a proxy in front of it."""


@dataclass
class Policy:
    """What a host demands. `allowed` says whether a request carries the host's login; `challenge` is what a browser is told without one.

    `hosts` are the names by which the server may be called, None for any: a page of another site can make its own name mean this
    machine, and only the name in the request tells. `further` gives those that the user adds in a setting of the host, called `setting`,
    as text; it is asked for each request, and so is the environment variable that does the same in every host.
    """

    allowed: Callable[[Request], bool] = lambda request: True
    challenge: str = ""
    hosts: frozenset[str] | None = None
    further: Callable[[], str] = lambda: ""
    setting: str = ""

    def names(self) -> frozenset[str] | None:
        return None if self.hosts is None else self.hosts | server_names(f"{os.environ.get(NAMES, '')} {self.further()}")


def check_login(policy: Policy, request: Request) -> None:
    if not policy.allowed(request):
        headers = {"www-authenticate": policy.challenge} if policy.challenge else {}
        raise ApiError(401, "log in to this server first; HotLoRA asks for the same login", headers=headers)


def check_origin(policy: Policy, request: Request) -> None:
    """Only pages of this very server may change anything, and no other site's page may look."""
    host = request.headers.get("host", "")
    names = policy.names()
    if names is not None and _name(host) not in names:
        places = f"{policy.setting}, or in " if policy.setting else ""
        raise ApiError(421, f"this server is not called {_name(host)[:100]!r}; open it as {' or '.join(sorted(names))}, or add the name of your own proxy in "
                            f"{places}the environment variable {NAMES} before the start")
    site = request.headers.get("sec-fetch-site", "")
    opened = request.headers.get("sec-fetch-mode") == "navigate" and not request.path.startswith("/hotlora/api")
    if site in ("cross-site", "same-site") and not (request.method in READING and opened):
        raise ApiError(403, "another site's page asked for this; open HotLoRA's own page")
    origin = request.headers.get("origin")
    if request.method in READING or origin is None or site == "same-origin":
        return
    parts = urlsplit(origin)
    port = {"http": ":80", "https": ":443"}.get(parts.scheme, ":")
    ours = [value.strip().lower() for name in ("host", "x-forwarded-host") for value in request.headers.get(name, "").split(",") if value.strip()]
    if parts.scheme not in ("http", "https") or parts.netloc.lower().removesuffix(port) not in [value.removesuffix(port) for value in ours]:
        raise ApiError(403, f"a page of {origin[:100]} asked for this; only pages of this server may change anything")


def check_type(request: Request, expects_json: bool) -> None:
    """Types that a form of another page can send are never taken, whatever the origin."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if not kind and not request.body:
        return
    if expects_json and kind != "application/json":
        raise ApiError(415, f"the content type is {kind[:80]!r} but must be application/json")
    if not expects_json and kind not in TYPES and not kind.startswith("image/"):
        raise ApiError(415, f"the content type is {kind[:80]!r} but must be application/octet-stream or image/...")


def check_size(length: int, limit: int) -> None:
    if length > limit:
        raise ApiError(413, f"the request has {length / 1e6:.1f} MB but at most {limit / 1e6:.1f} MB are allowed here")


def unquoted(folder: str) -> str:
    """Without the quotes that Windows' "Copy as path" puts around; no full path begins with one."""
    return folder[1:-1] if len(folder) > 1 and folder[0] == folder[-1] and folder[0] in "\"'" else folder


def allowed_folder(folder: str, roots: list[Path] | None, home: Path) -> Path:
    """A gallery's folder that may be read, links followed. ValueError when it is not there; 403 when it is out of bounds."""
    bounds = bounds_of(roots, home)
    path = path_of(unquoted(folder))
    if bounds is not None and not _within(path, bounds):
        raise ApiError(403, f"{folder[:300]} is outside of the folders that may be used here ({', '.join(map(str, bounds))}); "
                            "put the pictures into one of them, or ask who runs this server to allow it")
    if not path.is_absolute():
        raise ValueError(f"the folder {folder[:300]!r} is not a full path; give one such as {Path.home() / 'pictures'}")
    if path.resolve() == Path(path.resolve().anchor):
        raise ValueError(f"{folder[:300]} is a whole disk; choose the folder with the pictures")
    return existing_folder(path)


def check_links(root: Path, roots: list[Path] | None, home: Path) -> None:
    """With bounds, nothing that a gallery holds may lie outside of them."""
    bounds = bounds_of(roots, home)
    if bounds is None:
        return
    files = list_files(root)
    for path in (*files.pictures, *files.metadata, *files.masks.values(), *files.sidecars.values(), *(item.path for item in files.skipped)):
        if not _within(path, bounds):
            raise ApiError(403, f"{relative_name(path, root)} in {root} is a link that leads out of the folders that may be used here; remove it")


def check_file(path: Path, roots: list[Path] | None, home: Path) -> None:
    bounds = bounds_of(roots, home)
    if bounds is not None and not _within(path, bounds):
        raise ApiError(403, f"{path.name} leads out of the folders that may be used here")


def check_named_file(key: str, value: str, roots: list[Path] | None, home: Path) -> None:
    """With bounds, a file that a client names is inside of them, and by a full path: what a shorter one means depends on who reads it."""
    bounds, path = bounds_of(roots, home), path_of(value)
    if bounds is None:
        return
    if not path.is_absolute():
        raise ValueError(f"{key} is {value[:300]!r}, which is not a full path; give one such as {bounds[0] / path.name}")
    if not _within(path, bounds):
        raise ApiError(403, f"{key} {value[:300]} is outside of the folders that may be used here ({', '.join(map(str, bounds))}); put the file into one of "
                            "them, or ask who runs this server to allow it")


def bounds_of(roots: list[Path] | None, home: Path) -> list[Path] | None:
    return None if roots is None else [*roots, home / "galleries"]


def _within(path: Path, bounds: list[Path]) -> bool:
    real = os.path.realpath(path)
    for bound in bounds:
        try:
            if os.path.commonpath([real, os.path.realpath(bound)]) == os.path.realpath(bound):
                return True
        except ValueError:  # another drive, or a path that is not absolute
            continue
    return False


def loopback_names(listen: str) -> frozenset[str] | None:
    """The names of a server that listens on a loopback address only; None for one that others reach under any name."""
    if listen in ("", "localhost"):
        listen = "127.0.0.1"
    try:
        if not ipaddress.ip_address(listen).is_loopback:
            return None
    except ValueError:
        return None
    return frozenset(("localhost", "127.0.0.1", "[::1]", listen))


def server_names(text: str) -> frozenset[str]:
    """Names as people write them, separated by commas or blanks, with or without scheme, port and path: as in a request's `host`, without the port."""
    return frozenset(_name(entry.split("://")[-1].split("/")[0]) for entry in text.replace(",", " ").split()) - {""}


def _name(host: str) -> str:
    return urlsplit("//" + host.lower()).netloc.rsplit(":", 1)[0] if not host.endswith("]") else host.lower()
