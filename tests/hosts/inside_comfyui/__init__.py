"""A pack of nodes for tests, without nodes: looks at ComfyUI from inside.

    GET /inside/state    what a run must leave as it was: of each loaded model the forwards, parameters, flags, modes and weights, and the
                         switches of ComfyUI itself
"""
import hashlib

import comfy.model_management as mm
import comfy.ops
import torch
from aiohttp import web
from server import PromptServer

NODE_CLASS_MAPPINGS: dict = {}
PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device)


def state() -> dict:
    """Facts as digests; memory that is free and counters of what was done are left out, as they change with every drawing."""
    models = {type(loaded.model.model).__name__: facts(loaded.model.model) for loaded in mm.current_loaded_models if loaded.model is not None}
    switches = {name: str(value) for name, value in vars(mm).items() if isinstance(value, PLAIN) and not name.startswith("_")}
    return {"models": models, "switches": switches, "every op": comfy.ops.run_every_op.__qualname__, "grad": torch.is_grad_enabled(),
            "inference": torch.is_inference_mode_enabled(), "generator": hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest()}


def facts(model: torch.nn.Module) -> dict:
    weights, own = hashlib.sha256(), []
    for path, part in model.named_modules():
        own.append((path, part.training, sorted(key for key in part.__dict__ if not key.startswith("_")), str(part.__dict__.get("forward"))))
        for name, x in part._parameters.items():
            if x is not None:
                own.append((path, name, id(x), x.requires_grad, x.is_inference(), str(x.dtype), str(x.device), x.data_ptr(), x.grad is None))
                weights.update(x.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return {"id": id(model), "modules": hashlib.sha256(repr(own).encode()).hexdigest(), "parts": len(own), "weights": weights.hexdigest()}


@PromptServer.instance.routes.get("/inside/state")
async def inside(request: web.Request) -> web.Response:
    with torch.no_grad():
        return web.json_response(state())
