"""Tiny models with random weights, and no network."""
from __future__ import annotations

import socket
from pathlib import Path

import pytest

from hotlora.trainer.hosts.standalone import StandaloneBackend, load_base

from tests import random_models

FAMILIES = ("sd15", "sd2", "sdxl")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("loading must not use the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> dict[str, Path]:
    """One tiny single file per family. SD2's says in its metadata what it predicts, as random weights cannot be asked."""
    folder = tmp_path_factory.mktemp("files")
    for family in FAMILIES:
        metadata = {"modelspec.prediction_type": "v"} if family == "sd2" else None
        random_models.write_checkpoint(folder / f"{family}.safetensors", random_models.tiny_shapes(family), metadata=metadata)
    return {family: folder / f"{family}.safetensors" for family in FAMILIES}


@pytest.fixture(scope="session")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("folders")
    return {family: random_models.write_folder(root / family, random_models.tiny_shapes(family)) for family in FAMILIES}


@pytest.fixture(scope="session")
def loaded(folders) -> dict[str, StandaloneBackend]:
    return {family: load_base(str(folder), device="cpu") for family, folder in folders.items()}
