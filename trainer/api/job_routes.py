"""Routes of the jobs and their events."""
from __future__ import annotations

from ..paths import path_of
from .guard import allowed_folder, check_links, check_named_file, unquoted
from .info_routes import PRESET, SETTINGS_BODY
from .messages import ApiError, Response
from .routes import API, Call, Route
from .schema import MAX_INT, integer, objects

RUN = objects({"settings": SETTINGS_BODY, "preset": PRESET}, required=["settings"])
FOLDERS = ("train_data_dir", "reg_data_dir")
FILES = ("metadata_path", "init_lora")
COMMANDS = {"stop": "Stop after the step that is being done; what was learned is kept.", "pause": "Leave the base to the host until resumed.",
            "resume": "Go on: of a paused, stopped, failed or interrupted job, or of a queue that waits.",
            "save": "Save the LoRA after this step.", "sample": "Draw the preview prompts after this step.",
            "cancel": "Take a job out of the queue.", "again": "Queue a new job with the same settings.",
            "remove": "Move an ended job to the trash."}


def check_paths(call: Call, settings: dict) -> None:
    """ValueError or 403 unless every path in the settings is inside the bounds."""
    host = call.api.host
    for key in (*FOLDERS, *FILES):
        value = settings.get(key)
        if value in (None, ""):
            continue
        if not isinstance(value, str) or "\0" in value:
            raise ValueError(f"{key} is {str(value)[:100]!r} but must be a path")
        if key in FOLDERS:
            settings[key] = value = unquoted(value)
            root = allowed_folder(value, host.gallery_roots, host.home)
            check_links(root, host.gallery_roots, host.home)
        elif host.gallery_roots is not None:
            check_named_file(key, value, [*host.gallery_roots, *(host.lora_folders() if key == "init_lora" else [])], host.home)


def run_of(call: Call) -> tuple[dict, str | None]:
    """The settings and the preset that were asked for, with every path inside the bounds."""
    check_paths(call, call.data["settings"])
    return call.data["settings"], call.data.get("preset", "balanced")


def listing(call: Call) -> dict:
    return call.api.jobs.snapshot()


def start(call: Call) -> dict:
    settings, preset = run_of(call)
    job = call.api.jobs.submit(settings, preset)
    call.api.galleries.used(path_of(settings["train_data_dir"]))
    return job.public()


def plan(call: Call) -> dict:
    settings, preset = run_of(call)
    return call.api.jobs.plan(settings, preset)


def one(call: Call) -> dict:
    return call.api.jobs.get(call.path["id"]).public()


def command(name: str):
    def run(call: Call) -> dict:
        return call.api.jobs.command(call.path["id"], name).public()

    return run


def move(call: Call) -> dict:
    return call.api.jobs.command(call.path["id"], "move", call.data.get("before")).public()


def restore(call: Call) -> dict:
    return call.api.jobs.restore(call.path["id"]).public()


def losses(call: Call) -> dict:
    job = call.api.jobs.get(call.path["id"])
    return {"losses": call.api.jobs.losses(job, call.query.get("points", 2000))}


def log(call: Call) -> dict:
    found = call.api.jobs.events.of_job(call.api.jobs.get(call.path["id"]).id, "log", call.query.get("lines", 500))
    return {"lines": [{"id": event["id"], "time": event["time"], "text": event["text"]} for event in found]}


def preview(call: Call) -> Response:
    job = call.api.jobs.get(call.path["id"])
    known = {entry["file"] for entry in job.previews}
    path = call.api.jobs.store.run_folder(job) / "previews" / call.path["file"]
    if call.path["file"] not in known or not path.is_file():
        raise ApiError(404, f"{job.name} has no preview of that name")
    return Response(200, {"content-type": "image/png", "cache-control": "private, no-cache"}, path)


def events(call: Call) -> Response:
    after = call.query.get("after")
    seen = call.request.headers.get("last-event-id", "")
    if seen.isascii() and seen.isdigit() and len(seen) < 16:
        after = int(seen)
    headers = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-store", "x-accel-buffering": "no"}
    if call.request.method == "HEAD":
        return Response(200, headers, b"")
    return Response(200, headers, call.api.jobs.events.stream(after))


ROUTES = [
    Route("GET", f"{API}/jobs", listing, "All jobs, newest first; `last_event` is where the events go on from."),
    Route("POST", f"{API}/jobs", start, "Queue a training.", body=RUN, status=201),
    Route("POST", f"{API}/jobs/plan", plan, "What a training would do; nothing is loaded.", body=RUN),
    Route("GET", f"{API}/jobs/{{id}}", one, "One job with its settings and previews."),
    *(Route("POST", f"{API}/jobs/{{id}}/{name}", command(name), summary) for name, summary in COMMANDS.items()),
    Route("POST", f"{API}/jobs/{{id}}/restore", restore, "Bring a removed job back."),
    Route("POST", f"{API}/jobs/{{id}}/move", move, "Move a job in the queue, before another or (null) to the end.",
          body=objects({"before": {"type": ["string", "null"], "maxLength": 200}}, required=[])),
    Route("GET", f"{API}/jobs/{{id}}/losses", losses, "Loss by step; of many steps the mean of equal groups.", query={"points": integer(2, 20_000)}),
    Route("GET", f"{API}/jobs/{{id}}/log", log, "What was logged of a job, the newest lines in order; `id` is that of the line's event.",
          query={"lines": integer(1, 20_000)}),
    Route("GET", f"{API}/jobs/{{id}}/previews/{{file}}", preview, "A preview picture.", answer="image/png"),
    Route("GET", f"{API}/events", events, "Server-sent events; Last-Event-ID or `after` replays what came after it.",
          query={"after": integer(0, MAX_INT)}, answer="text/event-stream"),
]
