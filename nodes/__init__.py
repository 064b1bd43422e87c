"""The ComfyUI nodes, one per file. ComfyUI asks for `HotLoRAExtension`; nothing of the core is loaded before a node runs."""
from comfy_api.latest import ComfyExtension, io

from .caption import HotLoRACaption
from .compare import HotLoRACompare
from .gallery import HotLoRAGallery
from .prompt import HotLoRAPrompt
from .settings import HotLoRASettings
from .train import HotLoRATrain
from . import unfinished  # noqa: F401  adds its route to ComfyUI's server, before that of HotLoRAJob, which takes the rest
from .job import HotLoRAJob

NODES = (HotLoRAGallery, HotLoRACaption, HotLoRATrain, HotLoRASettings, HotLoRAPrompt, HotLoRACompare)


class HotLoRAExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [*NODES, HotLoRAJob]
