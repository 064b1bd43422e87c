"""The route of the farms."""
from __future__ import annotations

from ..farms import list_farms
from .routes import API, Call, Route


def listing(call: Call) -> dict:
    return {"farms": list_farms(call.api.host.home)}


ROUTES = [Route("GET", f"{API}/farms", listing, "Farms of `python train.py farm --out FOLDER` in a folder of this server's own, with all their jobs.")]
