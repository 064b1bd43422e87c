"""Farms as a page shows them: what `python train.py farm` writes of itself, read by whoever looks on."""
from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

STATE = "farm.json"
PATIENCE = 20.0
"""Seconds without news after which nobody works on a farm any more."""
FACTS = {"name": str, "status": str, "step": int, "total_steps": int, "loss": (int, float), "seconds_left": (int, float), "message": str, "attempts": int,
         "node": str, "device": str}
STATUSES = ("queued", "preparing", "running", "completed", "stopped", "failed")


def list_farms(home: Path) -> list[dict[str, Any]]:
    """The farms whose folder lies in `home`, the one with the newest news first; a damaged file is passed over."""
    found = []
    for path in home.glob(f"*/{STATE}"):
        try:
            state = json.loads(path.read_bytes())
            updated, finished = float(state["updated"]), bool(state["finished"])
            jobs = [_facts(job) for job in state["jobs"]]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        going = not finished and time.time() - updated < PATIENCE
        if not going:  # whoever wrote that they run is gone
            jobs = [{**job, "status": "interrupted"} if job["status"] in ("preparing", "running") else job for job in jobs]
        found.append({"folder": str(path.parent), "name": path.parent.name, "updated": updated, "finished": finished, "going": going, "jobs": jobs})
    return sorted(found, key=lambda farm: -farm["updated"])


def _facts(job: dict[str, Any]) -> dict[str, Any]:
    facts = {key: job[key] for key, kind in FACTS.items() if isinstance(job.get(key), kind)}
    facts.setdefault("step", 0)
    facts.setdefault("total_steps", 0)
    if facts["status"] not in STATUSES:
        raise ValueError(facts["status"])
    return facts
