"""The HTTP API as plain functions, request in and response out. Nothing here knows a web framework; trainer/hosts/ has the adapters."""
from .app import Api
from .guard import Policy
from .messages import Request, Response

__all__ = ["Api", "Policy", "Request", "Response"]
