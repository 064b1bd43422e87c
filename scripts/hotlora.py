"""HotLoRA in stable-diffusion-webui: makes the folder above importable as the package `hotlora`, and hands over to it.

The webui runs this file anew at each reload of its UI, while `hotlora` stays loaded.
"""
import sys
from importlib import util
from pathlib import Path


def _extension():
    if "hotlora" not in sys.modules:
        root = Path(__file__).resolve().parent.parent
        spec = util.spec_from_file_location("hotlora", root / "__init__.py", submodule_search_locations=[str(root)])
        module = util.module_from_spec(spec)
        sys.modules["hotlora"] = module
        spec.loader.exec_module(module)
    from hotlora.trainer.hosts import webui_fork

    if not webui_fork.kind():
        return webui_fork
    from hotlora.trainer.hosts import webui_extension

    return webui_extension


_extension().register()
