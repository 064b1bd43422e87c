"""Routes of the captions that models write, and of the gallery check."""
from __future__ import annotations

from ..captions.automatic import CaptionWishes
from ..caption_choices import FORMS, PURPOSES
from ..checking import CheckSettings, public
from .gallery_routes import FILE, FOLDER, whole_folder
from .routes import API, Call, Route
from .schema import integer, objects, text

SOME = {"type": ["array", "null"], "items": FILE, "maxItems": 20_000, "description": "Only these pictures; null is all."}
PURPOSE = {"type": "string", "enum": list(PURPOSES), "description": "What is learned, which captions leave out."}
TRIGGER = text("The trigger word.", maxLength=500)
START = objects({
    "folder": FOLDER, "model": text("One of those that gallery/captioners lists.", minLength=1, maxLength=4000), "purpose": PURPOSE, "trigger": TRIGGER,
    "subject": text("The word for what is learned, such as dog, which is left out too.", maxLength=500), "into": {"type": "string", "enum": list(FORMS)},
    "again": {"type": "boolean", "description": "Also replace captions that a model wrote and nobody has changed since."}, "files": SOME,
    "download": {"type": "boolean", "description": "Download the model when it is not on this machine."}}, required=["folder", "model"])


def captioners(call: Call) -> dict:
    told = {"models": call.api.jobs.captioning.models()}
    if "folder" in call.query:
        told |= call.api.jobs.captioning.planned(whole_folder(call, call.query["folder"]))
    return told


def state(call: Call) -> dict:
    return call.api.jobs.captioning.public()


def start(call: Call) -> dict:
    root, asked = whole_folder(call, call.data["folder"]), call.data
    files = asked.get("files")
    wishes = CaptionWishes(asked.get("purpose", "any"), asked.get("trigger", ""), asked.get("subject", ""), into=asked.get("into", "auto"),
                           again=asked.get("again", False), only=None if files is None else tuple(files))
    call.api.jobs.captioning.start(root, asked["model"], wishes, asked.get("download", False))
    return call.api.jobs.captioning.public()


def stop(call: Call) -> dict:
    call.api.jobs.captioning.stop()
    return call.api.jobs.captioning.public()


def take_out(call: Call) -> dict:
    return {"files": call.api.jobs.captioning.undo(whole_folder(call, call.data["folder"]), call.data.get("files"))}


def check(call: Call) -> dict:
    asked = {name: value for name, value in call.query.items() if name != "folder"}
    found = call.api.checks.ask(whole_folder(call, call.query["folder"]), CheckSettings(**asked, token_limit=call.api.host.token_limit))
    return public(found, call.api.checks.clip() is not None)


ROUTES = [
    Route("GET", f"{API}/gallery/captioners", captioners, "Models that can write captions: which are here, and how large the others are.",
          query={"folder": text("Adds how many captions are missing there, and where they would be written.", minLength=1)}),
    Route("GET", f"{API}/gallery/captioning", state, "How far the writing of captions is."),
    Route("POST", f"{API}/gallery/caption", start, "Write captions for pictures that have none.", body=START, status=201),
    Route("POST", f"{API}/gallery/caption/stop", stop, "Stop writing captions; what is done is kept."),
    Route("POST", f"{API}/gallery/caption/undo", take_out, "Take out captions that a model wrote and nobody has changed since.",
          body=objects({"folder": FOLDER, "files": SOME}, required=["folder"])),
    Route("GET", f"{API}/gallery/check", check, "What in the gallery hurts the result. It takes a while: ask again until the report is there.",
          query={"folder": FOLDER, "resolution": integer(32, 4096, "The training size in pixels."), "purpose": PURPOSE, "trigger": TRIGGER,
                 "compare": {"type": "boolean", "description": "Also compare captions with pictures, which needs a CLIP model on this machine."}},
          required=("folder",)),
]
