"""Attributes of a host's objects, set for a while."""
from __future__ import annotations

from contextlib import ExitStack
from typing import Any


def set_for_now(stack: ExitStack, owner: Any, name: str, value: Any) -> None:
    """Set an attribute of the host until the stack closes; one that this version does not have is left alone."""
    if hasattr(owner, name):
        stack.callback(setattr, owner, name, getattr(owner, name))
        setattr(owner, name, value)
