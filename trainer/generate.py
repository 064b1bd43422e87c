"""Pictures from prompts with `<lora:name:weight>` tags."""
from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Iterator

from PIL import Image

from .adapter import Adapter
from .backend import Backend, SampleRequest
from .live import LoraTag, Registry, parse_prompt
from .lora_file import to_layers


@contextmanager
def loras_applied(backend: Backend, tags: list[LoraTag], registry: Registry) -> Iterator[None]:
    """Attach every LoRA that the tags name, each with its weights; several add up, and a name given twice counts twice."""
    components = backend.components()
    # all are found and fitted before the first is attached, so that an error leaves the base as it was
    adapters = []
    for tag in tags:
        adapter = Adapter.from_weights(components, to_layers(registry.find(tag.name).weights, backend.lora_key, components, backend.name))
        adapter.set_multiplier(te=tag.te, unet=tag.unet)
        adapters.append(adapter.to(backend.device).eval())
    with ExitStack() as stack:
        for adapter in adapters:
            stack.enter_context(adapter.attached(components))
        yield


def generate(backend: Backend, prompt: str, registry: Registry, request: SampleRequest | None = None) -> list[Image.Image]:
    """Draw `prompt`, whose tags are taken out of the text before it is encoded. `request` gives seed, size and steps."""
    text, tags = parse_prompt(prompt)
    request = replace(request, prompts=(text,) * len(request.prompts)) if request else SampleRequest(prompts=(text,))
    with loras_applied(backend, tags, registry):
        return backend.sample(request)
