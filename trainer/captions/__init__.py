"""Captions: from sidecar files and metadata tables, in whatever encoding they were written, and made by models."""
from .decoding import decode_text
from .metadata import read_metadata
from .sidecar import read_sidecar

__all__ = ["decode_text", "read_metadata", "read_sidecar"]
