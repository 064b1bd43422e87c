"""HotLoRA: train a LoRA on the checkpoint that the host has already loaded, and use it in the next prompt.

Whatever the folder is called and whoever imports it (ComfyUI by path, `train.py`, a test), the code lives under the one
package name `hotlora`: `trainer` and `nodes` as top-level names belong to other extensions.
"""
import sys
from importlib import util
from pathlib import Path

__version__ = "0.1.0"
WEB_DIRECTORY = "./web/comfy"


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
    _register()


async def comfy_entrypoint():
    """What ComfyUI calls for the nodes."""
    from hotlora.nodes import HotLoRAExtension

    return HotLoRAExtension()
