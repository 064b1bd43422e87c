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


def use_dynamic_vram(headroom: int = 0) -> None:
    """What ComfyUI's main.py does on NVIDIA by default; to be called after `enter` and before torch is imported.

    `headroom`: bytes of the device's memory that it shall keep free. RuntimeError where this device cannot do it.
    """
    import comfy_aimdo.control

    comfy_aimdo.control.init()
    import comfy.memory_management
    import comfy.model_management
    import comfy.model_patcher

    if not comfy_aimdo.control.init_devices((device.index, headroom) for device in comfy.model_management.get_all_torch_devices()):
        raise RuntimeError("ComfyUI's dynamic memory (comfy-aimdo) does not work on this device")
    comfy.model_patcher.CoreModelPatcher = comfy.model_patcher.ModelPatcherDynamic
    comfy.memory_management.aimdo_enabled = True


def load(checkpoint: Path):
    """MODEL, CLIP and VAE of a checkpoint as the stock loader node gives them, under inference mode as there."""
    import comfy.sd
    import torch

    with torch.inference_mode():
        return comfy.sd.load_checkpoint_guess_config(str(checkpoint), output_vae=True, output_clip=True)[:3]
