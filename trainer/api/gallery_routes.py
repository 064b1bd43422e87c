"""Routes of the gallery."""
from __future__ import annotations

from pathlib import Path

from ..captions.tokens import count_tokens
from ..galleries import SIZES, describe_gallery, inside, picture_file, thumbnail
from ..gallery_edit import History, leave_out, put_back, remove, restore, safe_file, upload, write_captions
from ..gallery_files import printable
from ..names import check_name
from ..pictures import SUFFIXES
from .guard import allowed_folder, check_file, check_links
from .messages import ApiError, Response
from .routes import API, LARGE, Call, Route
from .schema import MAX_INT, integer, objects, text
from .static import FOREVER, KINDS, with_etag

FOLDER = text("The gallery's folder, a full path.", minLength=1)
FILE = text("A picture by its name in the gallery, with / between folders.", minLength=1, maxLength=1000)
FILES = objects({"folder": FOLDER, "files": {"type": "array", "items": FILE, "minItems": 1, "maxItems": 20_000}})
CAPTIONS = {"type": "object", "additionalProperties": text(maxLength=20_000), "maxProperties": 20_000}
PICTURE_KINDS = {**KINDS, ".jpeg": "image/jpeg", ".jfif": "image/jpeg", ".gif": "image/gif", ".bmp": "image/bmp", ".avif": "image/avif"}


def _folder(call: Call, folder: str) -> Path:
    host = call.api.host
    return allowed_folder(folder, host.gallery_roots, host.home)


def whole_folder(call: Call, folder: str) -> Path:
    """A folder all of whose content may be used."""
    root = _folder(call, folder)
    check_links(root, call.api.host.gallery_roots, call.api.host.home)
    return root


def galleries(call: Call) -> dict:
    host, found = call.api.host, []
    for gallery in call.api.galleries.list():
        try:
            allowed_folder(gallery["folder"], host.gallery_roots, host.home)
        except (ApiError, ValueError):
            continue
        found.append(gallery)
    return {"galleries": found}


def make(call: Call) -> dict:
    path = call.api.galleries.make(check_name(call.data["name"]))
    return {"folder": printable(path), "name": path.name}


def gallery(call: Call) -> dict:
    root = whole_folder(call, call.query["folder"])
    call.api.galleries.used(root)
    return describe_gallery(str(root), call.query.get("quick", False), call.query.get("resolution"))


def picture(call: Call) -> Response:
    host = call.api.host
    root = _folder(call, call.query["folder"])
    path = picture_file(root, call.query["file"])
    check_file(path, host.gallery_roots, host.home)
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path.name[:200]} is not a picture")
    # an address that names the version of the picture is never asked for again
    cache = FOREVER if "v" in call.query else "private, no-cache"
    if "size" in call.query:
        return with_etag(call, thumbnail(host.home, path, call.query["size"]), "image/jpeg", cache=cache)
    headers = {"content-type": PICTURE_KINDS[path.suffix.lower()], "cache-control": cache, "content-security-policy": "default-src 'none'"}
    return Response(200, headers, path)


def add(call: Call) -> dict:
    root = _folder(call, call.query["folder"])
    check_file(inside(root, safe_file(call.query["file"])), call.api.host.gallery_roots, call.api.host.home)
    name = upload(root, call.query["file"], call.data, call.query.get("apart", False))
    call.api.galleries.used(root)
    call.api.jobs.events.add("gallery", folder=printable(root), added=[name])
    return {"file": name}


def captions(call: Call) -> dict:
    root = whole_folder(call, call.data["folder"])
    written = write_captions(call.api.host.home, root, call.data["captions"])
    call.api.jobs.events.add("gallery", folder=printable(root), captions=written)
    return {"captions": written}


def tokens(call: Call) -> dict:
    return {"tokens": [count_tokens(caption) for caption in call.data["texts"]]}


def history(call: Call) -> dict:
    root = _folder(call, call.query["folder"])
    return {"history": History(call.api.host.home, root).of(call.query["file"])}


def take_away(call: Call) -> dict:
    root = whole_folder(call, call.data["folder"])
    files = remove(call.api.host.home, root, call.data["files"])
    call.api.jobs.events.add("gallery", folder=printable(root), removed=files)
    return {"files": files}


def leave_out_pictures(call: Call) -> dict:
    root = whole_folder(call, call.data["folder"])
    files = leave_out(root, call.data["files"])
    call.api.jobs.events.add("gallery", folder=printable(root), left_out={file: True for file in files})
    return {"files": files}


def put_back_pictures(call: Call) -> dict:
    root = whole_folder(call, call.data["folder"])
    files = put_back(root, call.data["files"])
    call.api.jobs.events.add("gallery", folder=printable(root), left_out={file: False for file in files})
    return {"files": files}


def bring_back(call: Call) -> dict:
    root = _folder(call, call.data["folder"])
    files = restore(call.api.host.home, root, call.data["files"])
    call.api.jobs.events.add("gallery", folder=printable(root), restored=files)
    return {"files": files}


ROUTES = [
    Route("GET", f"{API}/galleries", galleries, "Galleries made here and folders used lately."),
    Route("POST", f"{API}/galleries", make, "Make an empty gallery.", body=objects({"name": text(maxLength=200)}), status=201),
    Route("GET", f"{API}/gallery", gallery, "The pictures of a folder with their captions, and what is skipped and why.",
          query={"folder": FOLDER, "quick": {"type": "boolean", "description": "Read the sizes only; broken pictures may be among them."},
                 "resolution": integer(32, 4096, "Adds the bucket and the cut of each picture.")}, required=("folder",)),
    Route("GET", f"{API}/gallery/picture", picture, "A thumbnail as JPEG, or without a size the file itself.",
          query={"folder": FOLDER, "file": FILE, "size": integer(*SIZES), "v": integer(0, MAX_INT, "The picture's `modified`: lets the browser keep it.")},
          required=("folder", "file"), answer="image/*"),
    Route("POST", f"{API}/gallery/upload", add, "Add one picture, caption file or metadata file.",
          query={"folder": FOLDER, "file": FILE,
                 "apart": {"type": "boolean", "description": "A picture gets another name also beside one of its stem, whose caption file it would share."}},
          required=("folder", "file"), body=bytes, status=201, limit=LARGE),
    Route("POST", f"{API}/gallery/captions", captions, "Write captions to where they come from.",
          body=objects({"folder": FOLDER, "captions": CAPTIONS})),
    Route("POST", f"{API}/captions/tokens", tokens, "How many tokens of CLIP texts have; a text encoder reads 75 at a time.",
          body=objects({"texts": {"type": "array", "items": text(maxLength=20_000), "maxItems": 2000}})),
    Route("GET", f"{API}/gallery/history", history, "Former captions of a picture, newest first.", query={"folder": FOLDER, "file": FILE},
          required=("folder", "file")),
    Route("POST", f"{API}/gallery/remove", take_away, "Move pictures to the trash.", body=FILES),
    Route("POST", f"{API}/gallery/restore", bring_back, "Bring removed pictures back.", body=FILES),
    Route("POST", f"{API}/gallery/leave-out", leave_out_pictures, "Leave pictures out of what is trained; they stay where they are.", body=FILES),
    Route("POST", f"{API}/gallery/put-back", put_back_pictures, "Train on pictures again that were left out.", body=FILES),
]
