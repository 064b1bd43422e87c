"""Routes of the pictures that a LoRA is tried with."""
from __future__ import annotations

from .messages import ApiError, Response
from .routes import API, Call, Route
from .schema import MAX_INT, integer, objects, text

SIDE = {"type": ["integer", "null"], "minimum": 64, "maximum": 2048, "multipleOf": 8, "description": "Pixels; null is the base's own size."}
DRAWING = objects({
    "prompt": text("May have tags of other LoRAs."), "negative": text(), "seed": integer(0, MAX_INT), "steps": integer(1, 150),
    "guidance": {"type": ["number", "null"], "minimum": 0, "maximum": 100}, "width": SIDE, "height": SIDE,
    "names": {"type": "array", "items": text(minLength=1), "maxItems": 64, "description": "LoRAs or saved steps, a row for each."},
    "weights": {"type": "array", "items": {"type": "number", "minimum": -10, "maximum": 10}, "minItems": 1, "maxItems": 16,
                "description": "A column for each; 0 is the base alone."},
    "base_model": {"type": ["string", "null"], "maxLength": 4000, "description": "What to draw with, where the host offers a choice."}},
    required=["prompt", "names", "weights"])
DEFAULTS = {"negative": "", "seed": 0, "steps": 25, "guidance": None, "width": None, "height": None}


def start(call: Call) -> dict:
    request = {**DEFAULTS, **call.data}
    base = request.pop("base_model", None)
    for side in ("width", "height"):
        if request[side] is not None and request[side] % 8:
            raise ValueError(f"{side} is {request[side]} but must be a multiple of 8")
    return call.api.drawings.submit(request, base).public()


def listing(call: Call) -> dict:
    return {"drawings": [drawing.public() for drawing in call.api.drawings.all()]}


def _found(call: Call):
    drawing = call.api.drawings.get(call.path["id"])
    if drawing is None:
        raise ApiError(404, f"there is no drawing {call.path['id'][:100]!r}; older ones are removed, so draw it again")
    return drawing


def cancel(call: Call) -> dict:
    drawing = _found(call)
    call.api.drawings.cancel(drawing)
    return drawing.public()


def picture(call: Call) -> Response:
    path = call.api.drawings.picture(_found(call), call.path["file"])
    if path is None or not path.is_file():
        raise ApiError(404, "the drawing has no picture of that name")
    return Response(200, {"content-type": "image/png", "cache-control": "private, max-age=86400, immutable"}, path)


ROUTES = [
    Route("GET", f"{API}/drawings", listing, "The newest drawings with their pictures."),
    Route("POST", f"{API}/drawings", start, "Draw with the host's sampler: a row for each name, a column for each weight.", body=DRAWING, status=201),
    Route("POST", f"{API}/drawings/{{id}}/cancel", cancel, "End a drawing; the pictures that are finished stay."),
    Route("GET", f"{API}/drawings/{{id}}/{{file}}", picture, "One picture.", answer="image/png"),
]
