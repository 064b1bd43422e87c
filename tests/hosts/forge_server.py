"""A real Forge on the CPU with this checkout among its extensions, driven over HTTP as the webui is."""
from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from hotlora.tests.hosts.places import host
from hotlora.tests.hosts.webui_server import WebuiServer, shapes_of_both_hosts
from hotlora.tests.random_models import vega_weights, write_checkpoint


class ForgeServer(WebuiServer):
    """See `WebuiServer`."""

    HOST, PROBE = "FORGE", "/sdapi/v1/samplers"
    FLAGS = ("--skip-prepare-environment --skip-python-version-check --skip-torch-cuda-test --always-cpu --api "
             "--disable-console-progressbars").split()

    def __init__(self, base: Path, *arguments: str, **options) -> None:
        # Forge gives its own scripts to the browser from its data folder alone
        super().__init__(base, "--gradio-allowed-path", str(host(self.HOST)[0]), *arguments, **options)


class ReforgeServer(WebuiServer):
    """A real reForge; see `WebuiServer`."""

    HOST, FLAGS = "REFORGE", ForgeServer.FLAGS


def write_vega(base: Path) -> None:
    """An SDXL of Segmind-Vega's shape."""
    path = base / "models" / "Stable-diffusion" / "random.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: x.half().contiguous() for name, x in vega_weights().items()}, str(path))


def write_model(base: Path, name: str = "random.safetensors", shapes: dict | None = None, dtype: torch.dtype = torch.float16, **options) -> str:
    """A checkpoint of random weights. Forge has the tokenizers, and knows text encoders and autoencoders in their full size alone."""
    path = base / "models" / "Stable-diffusion" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write_checkpoint(path, shapes or shapes_of_both_hosts(), dtype, **options)
    return name
