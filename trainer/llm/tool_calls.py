"""Tool calls of a conversation, as OpenAI's fine-tuning format has them and as chat templates take them."""
from __future__ import annotations

import json
from typing import Any

from ..settings import shown

CALL = '{"function": {"name": "...", "arguments": {...}}}'


def read_calls(message: dict[str, Any]) -> dict[str, Any]:
    """The tool_calls of an answer with their arguments as objects, which is how templates take them; {} when it has none. ValueError for wrong ones."""
    if message.get("function_call"):
        raise ValueError("function_call is the form before tool_calls; write it as tool_calls")
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list):
        raise ValueError(f"tool_calls is {shown(calls)} but must be a list of calls such as {CALL}")
    return {"tool_calls": [_call(call) for call in calls]} if calls else {}


def _call(call: Any) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ValueError(f"a call of tool_calls is {shown(call)} but must be like {CALL}")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            pass
    if not isinstance(arguments, dict):
        raise ValueError(f"the arguments of the call {function['name']} are {shown(arguments)} but must be a JSON object")
    about = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
    return {**about, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def read_tools(tools: Any) -> tuple[dict[str, Any], ...]:
    """The tools that a conversation names, given as a list or as its JSON. ValueError for anything else."""
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError):
            pass
    if not tools:
        return ()
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise ValueError(f"tools is {shown(tools)} but must be a list of JSON schemas of functions")
    return tuple(tools)
