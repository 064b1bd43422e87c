"""HotLoRA: train a LoRA on the checkpoint that the host has already loaded, and use it in the next prompt.

Whatever the folder is called and whoever imports it (ComfyUI by path, `train.py`, a test), the code lives under the one
package name `hotlora`: `trainer` and `nodes` as top-level names belong to other extensions.
"""
import re
import sys
from importlib import util
from pathlib import Path

__version__ = "0.1.0"
COMFYUI, COMFYUI_OF = "0.14.0", "February 2026"
"""The oldest ComfyUI that has what we use of it; also in pyproject.toml."""


def _check_comfyui() -> None:
    """ImportError in an older ComfyUI, which prints its sentence and goes on with none of us: neither nodes nor page."""
    if "folder_paths" not in sys.modules:  # ComfyUI imports it before any pack of nodes
        return
    try:
        from comfyui_version import __version__ as found
    except ImportError:
        found = ""
    if [int(number) for number in re.findall(r"\d+", found)[:3]] < [int(number) for number in COMFYUI.split(".")]:
        raise ImportError(f"HotLoRA needs ComfyUI {COMFYUI} ({COMFYUI_OF}) or newer, and this is {found or 'an older one'}; "
                          "update ComfyUI, then start it again")


def _register() -> None:
    """Make this folder importable as the package `hotlora`; doing it again changes nothing."""
    if "hotlora" in sys.modules:
        return
    root = Path(__file__).resolve().parent
    spec = util.spec_from_file_location("hotlora", root / "__init__.py", submodule_search_locations=[str(root)])
    module = util.module_from_spec(spec)
    sys.modules["hotlora"] = module
    spec.loader.exec_module(module)


if __name__ != "hotlora":
    _check_comfyui()
    _register()


async def comfy_entrypoint():
    """What ComfyUI calls for the nodes."""
    from hotlora.nodes import HotLoRAExtension

    return HotLoRAExtension()
