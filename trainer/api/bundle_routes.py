"""Routes by which a job goes to another machine, and its LoRA comes back."""
from __future__ import annotations

import secrets
from dataclasses import replace
from urllib.parse import quote

from ..bundle import export_job
from ..config import TrainConfig
from ..hosts.base_files import BaseFacts, facts_of_files
from ..job_settings import base_of, checked_settings, with_preset
from ..job_store import Job
from ..jobs import NotNow
from ..lora_import import LARGEST, base_name, import_lora
from ..run import read_material
from .job_routes import RUN, check_paths, run_of
from .messages import ApiError, Response
from .routes import API, Call, Route
from .schema import text

KEPT = 3
"""Bundles that stay on the server for their download; older ones are deleted."""


def export_settings(call: Call) -> dict:
    """As a start with these settings would run, but for captions that a model would write first."""
    settings, preset = run_of(call)
    host = call.api.host
    config, warnings = checked_settings(host, settings)
    material = read_material(config, make_captions=False)
    complete = with_preset(config, settings, preset, len(material.gallery.examples), base_of(host, config))
    return _export(call, replace(material, config=complete), _base(call, complete), warnings)


def export_of_job(call: Call) -> dict:
    """With the settings that the job began with."""
    job = call.api.jobs.get(call.path["id"])
    check_paths(call, job.settings)
    if job.config is None:
        call.data = {"settings": {**job.settings, "name": job.name}, "preset": job.preset}
        return export_settings(call)
    material = read_material(replace(TrainConfig.from_dict(job.config), name=job.name), make_captions=False)
    base = _base(call, material.config)
    return _export(call, material, base, _other_base(job, base))


def _base(call: Call, config: TrainConfig) -> BaseFacts:
    """What would be trained on. NotNow where that is what is loaded, and nothing is."""
    host = call.api.host
    name = base_of(host, config) or (host.base() or {}).get("name")
    if name is None:
        raise NotNow("no checkpoint is loaded, so the job has no base; load the one to train on first")
    return facts_of_files(base_name(name), host.base_files(name))


def _other_base(job: Job, base: BaseFacts) -> list[str]:
    if not job.base or base_name(job.base).casefold() == base.name.casefold():
        return []
    return [f"{job.name} was trained on {job.base}, and the bundle is made for {base.name}, which is loaded now; load the other one and export again if "
            "that is what you want"]


def _export(call: Call, material, base: BaseFacts, warnings: list[str]) -> dict:
    folder = call.api.host.home / "bundles"
    done = export_job(folder / f"{secrets.token_hex(4)}-{material.name}.zip", material, base)
    for old in sorted(folder.glob("*.zip"), key=lambda path: path.stat().st_mtime)[:-KEPT]:
        old.unlink(missing_ok=True)
    return {"file": f"{material.name}.zip", "address": f"{API}/bundles/{quote(done.path.name)}", "bytes": done.bytes, "pictures": done.pictures,
            "base": {"name": base.name, "hash": base.hash}, "warnings": warnings + done.warnings}


def download(call: Call) -> Response:
    found = [path for path in (call.api.host.home / "bundles").glob("*.zip") if path.name == call.path["file"]]
    if not found:
        raise ApiError(404, "the bundle is not here any more; export the job again")
    name = quote(found[0].name.partition("-")[2])
    return Response(200, {"content-type": "application/zip", "cache-control": "no-store", "content-disposition": f"attachment; filename*=UTF-8''{name}"}, found[0])


def bring_back(call: Call) -> dict:
    done = import_lora(call.api.host, call.query["file"], call.data)
    call.api.jobs.events.add("loras", names=[name for name in (done.kept, done.name) if name])
    return done.public()


ROUTES = [
    Route("POST", f"{API}/bundles", export_settings, "Put a job into one file that another machine can run; its address is in the answer.", body=RUN, status=201),
    Route("POST", f"{API}/jobs/{{id}}/bundle", export_of_job, "The same of a job that is here, with its own settings.", status=201),
    Route("GET", f"{API}/bundles/{{file}}", download, "A bundle that was just made.", answer="application/zip"),
    Route("POST", f"{API}/loras/import", bring_back, "Bring back a LoRA: a .safetensors file, or the result of a bundle. Its tag works at once.",
          query={"file": text("The file's name.", minLength=1, maxLength=500)}, required=("file",), body=bytes, status=201, limit=LARGEST),
]
