"""The OpenAPI document, made from the table of routes."""
from __future__ import annotations

import re
from typing import Any

from .routes import Route

ERRORS = {400: "Something in the request is not allowed; `error` says what and what to do.", 401: "The host's login is missing.",
          403: "A page of another site, or a folder out of bounds.", 404: "It is not there.", 405: "Another method is needed.",
          409: "It cannot be done in this state.", 413: "Too large.", 415: "Another content type is needed.", 421: "The server is not called so.",
          507: "The disk is full."}
ERROR = {"type": "object", "properties": {"error": {"type": "string"}, "details": {"type": "string"}}, "required": ["error"]}


def describe(routes: list[Route], version: str) -> dict[str, Any]:
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {"openapi": "3.0.3", "info": {"title": "HotLoRA", "version": version}, "paths": paths,
            "components": {"schemas": {"Error": ERROR}}}


def _operation(route: Route) -> dict[str, Any]:
    parts = re.findall(r"\{(\w+)\}", route.path)
    parameters = [{"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}} for name in parts]
    parameters += [{"name": name, "in": "query", "required": name in route.required, "schema": _plain(schema)}
                   for name, schema in route.query.items()]
    kind = "*/*" if route.answer == "*/*" else route.answer
    answers = {str(route.status): {"description": "Done.", "content": {kind: {}}}}
    for status, meaning in ERRORS.items():
        answers[str(status)] = {"description": meaning, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}
    operation = {"operationId": re.sub(r"\W+", "_", f"{route.method.lower()}{route.path}"), "summary": route.summary,
                 "parameters": parameters, "responses": answers}
    if route.body is bytes:
        operation["requestBody"] = {"required": True, "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
    elif route.body is not None:
        operation["requestBody"] = {"required": bool(route.body.get("required")), "content": {"application/json": {"schema": _plain(route.body)}}}
    return operation


def _plain(schema: Any) -> Any:
    """OpenAPI 3.0 has no list of types: null is a flag there."""
    if isinstance(schema, list):
        return [_plain(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {key: _plain(value) for key, value in schema.items()}
    if isinstance(schema.get("type"), list):
        kinds = [kind for kind in schema["type"] if kind != "null"]
        assert len(kinds) == 1, schema
        plain["type"], plain["nullable"] = kinds[0], "null" in schema["type"]
    return plain
