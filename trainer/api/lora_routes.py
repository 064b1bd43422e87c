"""Routes of the LoRAs."""
from __future__ import annotations

from ..live import Registry
from ..loras import list_loras, remove_lora, restore_lora
from .messages import ApiError
from .routes import API, Call, Route


def _all(call: Call) -> list[dict]:
    """With the newest preview of the job that made each."""
    found = list_loras(call.api.host.lora_folders())
    jobs = call.api.jobs.snapshot()["jobs"]
    for lora in found:
        job = next((job for job in jobs if job["lora"] and (job["run"] == lora["run"] if job["run"] else job["name"] == lora["name"])), None)
        previews = call.api.jobs.get(job["id"]).previews if job else []
        lora["job"] = job["id"] if job else None
        lora["preview"] = f"{API}/jobs/{job['id']}/previews/{previews[-1]['file']}" if previews else None
    return found


def listing(call: Call) -> dict:
    return {"loras": _all(call)}


def one(call: Call) -> dict:
    for lora in _all(call):
        if call.path["rest"] == lora["name"]:
            return lora
    raise ApiError(404, f"there is no LoRA {call.path['rest'][:200]} that was trained here; load the list again")


def delete(call: Call) -> dict:
    host = call.api.host
    names = [path.stem for path in remove_lora(host.home, host.lora_folders(), call.path["rest"])]
    left = {path.stem: path for path in Registry(host.lora_folders()).files()}
    for name in names:
        if name in left:
            host.lora_written(name, left[name])
        else:
            host.lora_removed(name)
    call.api.jobs.events.add("loras", names=names, removed=True)
    return {"names": names}


def restore(call: Call) -> dict:
    host = call.api.host
    paths = restore_lora(host.home, call.path["rest"])
    for path in paths:
        host.lora_written(path.stem, path)
    call.api.jobs.events.add("loras", names=[path.stem for path in paths])
    return {"names": [path.stem for path in paths]}


ROUTES = [
    Route("GET", f"{API}/loras", listing, "LoRAs that were trained here, newest first, with their saved steps."),
    Route("GET", f"{API}/loras/{{rest}}", one, "One LoRA."),
    Route("POST", f"{API}/loras/{{rest}}/delete", delete, "Move a LoRA with its saved steps, or one saved step, to the trash."),
    Route("POST", f"{API}/loras/{{rest}}/restore", restore, "Bring a deleted LoRA back."),
]
