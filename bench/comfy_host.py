"""ComfyUI's modules in this process, without its server: for measurements and for tests that look inside."""
from __future__ import annotations

import os
import sys
from pathlib import Path


def enter(folder: Path, *arguments: str) -> None:
    """Make ComfyUI in `folder` importable as if it had been started with these arguments, such as --cpu."""
    root = str(Path(__file__).resolve().parent.parent)
    sys.path[:] = [str(folder), *(path for path in sys.path if path not in ("", root, str(Path(__file__).parent)))]
    os.chdir(folder)
    sys.argv = ["main.py", *arguments]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.cli_args  # noqa: F401  reads sys.argv now


def load(checkpoint: Path):
    """MODEL, CLIP and VAE of a checkpoint as the stock loader node gives them, under inference mode as there."""
    import comfy.sd
    import torch

    with torch.inference_mode():
        return comfy.sd.load_checkpoint_guess_config(str(checkpoint), output_vae=True, output_clip=True)[:3]
