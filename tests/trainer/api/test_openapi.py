"""The OpenAPI document, and requests made from it: whatever comes, the answer is what the document says and never a 500."""
import json
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hotlora.trainer.api.app import all_routes
from hotlora.trainer.api.openapi import describe
from hotlora.trainer.api.routes import Route
from hotlora.trainer.api.schema import check

NASTY = ["", " ", "..", "../x", "a/b", "\0", "\ud800", "名", "a" * 5000, "-1", "0", "9" * 30, "null", "<script>", "%00", "nan", "con", "x.png", "/etc/passwd", "1e3"]
texts = st.sampled_from(NASTY) | st.text(max_size=20)
scalars = st.none() | st.booleans() | st.integers(-2**70, 2**70) | st.floats() | texts
anything = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=8)


def from_schema(schema, known):
    """Values that fit a schema of ours, with real folders, files and jobs among them."""
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    kind = schema["type"] if isinstance(schema["type"], str) else next(kind for kind in schema["type"] if kind != "null")
    if kind == "string":
        return st.sampled_from(known) | st.text(max_size=30).map(lambda text: text[:schema.get("maxLength", 30)])
    if kind == "integer":
        return st.integers(schema.get("minimum"), schema.get("maximum"))
    if kind == "number":
        return st.floats(schema.get("minimum"), schema.get("maximum"))
    if kind == "boolean":
        return st.booleans()
    if kind == "array":
        return st.lists(from_schema(schema["items"], known), min_size=schema.get("minItems", 0), max_size=3)
    fixed = {name: from_schema(part, known) for name, part in schema.get("properties", {}).items()}
    extra = schema.get("additionalProperties")
    if not fixed:
        return st.dictionaries(st.sampled_from(known), from_schema(extra, known) if isinstance(extra, dict) else anything, max_size=3)
    required = {name: fixed[name] for name in schema["required"]}
    return st.fixed_dictionaries(required, optional={name: value for name, value in fixed.items() if name not in required})


def requests(route: Route, known):
    """A request for a route: right, wrong or absurd in each part."""
    path = st.fixed_dictionaries({name: (st.sampled_from(known) | texts).filter(bool) for name in re.findall(r"\{(\w+)\}", route.path)})
    parameters = {name: from_schema(schema, known).map(lambda value: str(value).lower() if isinstance(value, bool) else str(value)) | texts for name, schema in route.query.items()}
    query = st.fixed_dictionaries({name: parameters[name] for name in route.required}, optional={**{k: v for k, v in parameters.items() if k not in route.required}, "x": texts})
    if route.body is bytes:
        body = st.binary(max_size=200)
    elif route.body is not None:
        body = (from_schema(route.body, known) | anything).map(lambda value: json.dumps(value).encode()) | st.binary(max_size=20)
    else:
        body = st.just(b"") | st.binary(max_size=20)
    kind = st.sampled_from(["application/json"] * 8 + ["application/octet-stream", "image/png", "text/plain", "", "application/json; charset=utf-8"])
    return st.tuples(path, query, body, kind)


def table(client):
    return {f"{route.method} {route.path}": route for route in client.api.routes}


@pytest.mark.parametrize("route", all_routes(), ids=lambda route: f"{route.method} {route.path}")
def test_no_request_is_a_500(client, gallery, route, monkeypatch):
    # what is asked for is queued; hours of large pictures are not drawn
    monkeypatch.setattr("hotlora.trainer.drawing.DrawingQueue._work", lambda queue: None)
    job = client.post("jobs", {"settings": {"train_data_dir": str(gallery), "steps": 1, "lora_rank": 1}}, 201)["id"]
    known = [str(gallery), "0.png", "1.txt", job, "mascot", "my pictures", "train_data_dir", "steps", "name", "balanced", "x.yaml", "train_data_dir: a", "~0"]

    @given(request=requests(route, known))
    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    def ask(request):
        parts, query, body, kind = request
        path = re.sub(r"\{(\w+)\}", lambda match: parts[match[1]], route.path)
        response = client.ask(route.method, path, query=query, body=body, kind=kind)
        assert response.status < 500, (path, query, body, response.body)
        if response.status >= 400:
            told = json.loads(response.body)
            assert told["error"] and "\n" not in told["error"] and set(told) <= {"error", "details"}
            assert response.status in (400, 403, 404, 405, 409, 413, 415)
        elif route.answer == "application/json":
            json.loads(response.body)
        if hasattr(response.body, "close"):
            response.body.close()

    ask()


def test_every_route_is_described_and_told(client):
    told = client.get("openapi.json")
    assert told == json.loads(json.dumps(describe(client.api.routes, told["info"]["version"])))
    described = {f"{method.upper()} {path}" for path, methods in told["paths"].items() for method in methods}
    assert described == set(table(client)) and len(described) == len(client.api.routes)
    names = [operation["operationId"] for methods in told["paths"].values() for operation in methods.values()]
    assert len(set(names)) == len(names)
    for methods in told["paths"].values():
        for operation in methods.values():
            assert operation["summary"].endswith(".") and {"200", "201", "308"} & set(operation["responses"])


@pytest.mark.parametrize("value, schema, expected", [
    (1, {"type": "string"}, "must be text"), (True, {"type": "integer"}, "whole number"), (1.5, {"type": "integer"}, "whole number"),
    (5, {"type": "integer", "minimum": 6, "maximum": 7}, "from 6 to 7"), ("x", {"type": "string", "enum": ["a", "b"]}, "one of a, b"),
    ([], {"type": "array", "minItems": 1}, "0 entries"), ({"a": 1}, {"type": "object", "additionalProperties": False}, "not known"),
    ({}, {"type": "object", "required": ["folder"]}, "lacks folder"), ("abc", {"type": "string", "maxLength": 2}, "at most 2"),
    (None, {"type": "string"}, "must be text"), ([1, "x"], {"type": "array", "items": {"type": "integer"}}, r"\[1\]")])
def test_what_does_not_fit_is_named(value, schema, expected):
    with pytest.raises(ValueError, match=expected):
        check(value, schema)
