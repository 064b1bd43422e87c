"""The part of JSON Schema that the routes use: one description checks requests and makes the OpenAPI document."""
from __future__ import annotations

import re
from typing import Any

TYPES = {"string": str, "object": dict, "array": list, "boolean": bool, "null": type(None)}
MAX_INT = 2**53 - 1


def text(description: str = "", **limits: Any) -> dict[str, Any]:
    return {"type": "string", "maxLength": 4000, **({"description": description} if description else {}), **limits}


def integer(minimum: int, maximum: int, description: str = "") -> dict[str, Any]:
    return {"type": "integer", "minimum": minimum, "maximum": maximum, **({"description": description} if description else {})}


def objects(properties: dict[str, Any], required: list[str] | None = None) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties) if required is None else required, "additionalProperties": False}


def check(value: Any, schema: dict[str, Any], name: str = "the body") -> None:
    """ValueError in one sentence when a value does not fit."""
    kinds = schema.get("type")
    kinds = [kinds] if isinstance(kinds, str) else kinds or []
    if kinds and not any(_is(value, kind) for kind in kinds):
        raise ValueError(f"{name} is {_shown(value)} but must be {' or '.join(_named(kind) for kind in kinds)}")
    if "enum" in schema and value not in schema["enum"]:
        raise ValueError(f"{name} is {_shown(value)} but must be one of {', '.join(map(str, schema['enum']))}")
    if isinstance(value, str):
        _check_text(value, schema, name)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        low, high = schema.get("minimum"), schema.get("maximum")
        if (low is not None and value < low) or (high is not None and value > high):
            raise ValueError(f"{name} is {_shown(value)} but must be from {low} to {high}")
    elif isinstance(value, list):
        _check_list(value, schema, name)
    elif isinstance(value, dict):
        _check_object(value, schema, name)


def _check_text(value: str, schema: dict[str, Any], name: str) -> None:
    if "\0" in value or any("\ud800" <= char <= "\udfff" for char in value):
        raise ValueError(f"{name} has a character that no file and no text may have; remove it")
    if len(value) > schema.get("maxLength", len(value)):
        raise ValueError(f"{name} has {len(value)} characters but at most {schema['maxLength']} are allowed")
    if len(value) < schema.get("minLength", 0):
        raise ValueError(f"{name} is empty; give a text")
    if "pattern" in schema and not re.search(schema["pattern"], value):
        raise ValueError(f"{name} is {_shown(value)}, which is not of the form {schema['pattern']}")


def _check_list(value: list, schema: dict[str, Any], name: str) -> None:
    low, high = schema.get("minItems", 0), schema.get("maxItems", len(value))
    if not low <= len(value) <= high:
        raise ValueError(f"{name} has {len(value)} entries but must have from {low} to {high}")
    for number, item in enumerate(value):
        check(item, schema.get("items", {}), f"{name}[{number}]")


def _check_object(value: dict, schema: dict[str, Any], name: str) -> None:
    known, extra = schema.get("properties", {}), schema.get("additionalProperties", True)
    for key in schema.get("required", []):
        if key not in value:
            raise ValueError(f"{name} lacks {key}; add it")
    if len(value) > schema.get("maxProperties", len(value)):
        raise ValueError(f"{name} has {len(value)} entries but at most {schema['maxProperties']} are allowed")
    for key, item in value.items():
        if key in known:
            check(item, known[key], key)
        elif extra is False:
            raise ValueError(f"{name} has {_shown(key)}, which is not known; it may have {', '.join(known) or 'nothing'}")
        elif isinstance(extra, dict):
            _check_text(key, {"maxLength": 4000}, "a name")
            check(item, extra, f"{key[:80]}")


def from_text(value: str, schema: dict[str, Any], name: str) -> Any:
    """A parameter of the query in its own type."""
    if schema.get("type") == "integer":
        if not re.fullmatch(r"-?[0-9]{1,16}", value, re.ASCII):
            raise ValueError(f"{name} is {_shown(value)} but must be a whole number")
        converted: Any = int(value)
    elif schema.get("type") == "boolean":
        if value not in ("0", "1", "true", "false"):
            raise ValueError(f"{name} is {_shown(value)} but must be 0 or 1")
        converted = value in ("1", "true")
    else:
        converted = value
    check(converted, schema, name)
    return converted


def _is(value: Any, kind: str) -> bool:
    if kind == "integer":
        return isinstance(value, int) and not isinstance(value, bool)
    if kind == "number":
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, TYPES[kind])


def _named(kind: str) -> str:
    return {"string": "text", "object": "an object", "array": "a list", "boolean": "true or false", "null": "null", "integer": "a whole number",
            "number": "a number"}[kind]


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 100 else shown[:97] + "..."
