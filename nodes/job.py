"""HotLoRA Job: the node by which a training that was started on the page takes its turns in ComfyUI; and the page's routes."""
from __future__ import annotations

import asyncio

from aiohttp import web
from comfy_api.latest import io
from server import PromptServer


class HotLoRAJob(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HotLoRAJob", display_name="HotLoRA Job", category="HotLoRA", is_dev_only=True, is_output_node=True,
            description="A turn of a training that was started on HotLoRA's page. It cannot be used in a graph of your own.",
            inputs=[
                io.String.Input("lease", tooltip="Which turn this is."),
                io.Model.Input("model", optional=True, tooltip="The model to train on."),
                io.Clip.Input("clip", optional=True, tooltip="The text encoder of the same checkpoint."),
                io.Vae.Input("vae", optional=True, tooltip="The VAE of the same checkpoint."),
            ],
            outputs=[])

    @classmethod
    def execute(cls, lease: str, model=None, clip=None, vae=None) -> io.NodeOutput:
        from ..trainer.hosts.comfy_host import serve

        serve(lease, model, clip, vae)
        return io.NodeOutput()


@PromptServer.instance.routes.route("*", "/hotlora{rest:(/.*)?}")
async def hotlora(request: web.Request) -> web.StreamResponse:
    from ..trainer.hosts.aiohttp_routes import answer
    from ..trainer.hosts.comfy_host import api

    return await answer(await asyncio.get_running_loop().run_in_executor(None, api), request)
