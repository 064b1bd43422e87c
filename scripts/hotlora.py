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
    # loaded, not only there: a change from a fork to the webui in the same folder can leave the package's folder behind
    if "modules_forge" in sys.modules:
        from hotlora.trainer.hosts import webui_fork as extension
    else:
        from hotlora.trainer.hosts import webui_extension as extension

    return extension


_extension().register()
