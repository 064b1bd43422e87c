"""HotLoRA Compare: one grid, weights across and saved steps down, all from one seed."""
from __future__ import annotations

import comfy.samplers
from comfy_api.latest import io, ui


class HotLoRACompare(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HotLoRACompare", display_name="HotLoRA Compare", category="HotLoRA",
            description="Draws the same prompt without the LoRA and with it at several weights, a row for each saved step.",
            inputs=[
                io.Model.Input("model", tooltip="The model without the LoRA."),
                io.Clip.Input("clip", tooltip="The text encoder without the LoRA."),
                io.Vae.Input("vae", tooltip="Turns latents into pictures."),
                io.String.Input("name", default="my_lora", tooltip="Name of the LoRA, or its tag; name-000100 and the like are its saved steps."),
                io.String.Input("prompt", multiline=True, default="a photo of sks", tooltip="What to draw, without a tag for this LoRA; tags of other LoRAs are on every picture."),
                io.String.Input("negative", default="", tooltip="What should not be in the picture; tags of other LoRAs work here too."),
                io.String.Input("weights", default="0.4, 0.8, 1.2", tooltip="Weights across, with commas between them."),
                io.Int.Input("max_rows", default=6, min=1, max=50, tooltip="At most this many saved steps, evenly chosen; the finished LoRA is always among them."),
                io.Int.Input("seed", default=0, min=0, max=2**53, control_after_generate=False, tooltip="All pictures start from the same noise."),
                io.Int.Input("steps", default=20, min=1, max=1000, tooltip="Sampling steps."),
                io.Float.Input("cfg", default=7.0, min=0.0, max=100.0, step=0.1, tooltip="How closely to follow the prompt."),
                io.Combo.Input("sampler_name", options=comfy.samplers.KSampler.SAMPLERS, tooltip="ComfyUI's sampler."),
                io.Combo.Input("scheduler", options=comfy.samplers.KSampler.SCHEDULERS, tooltip="ComfyUI's scheduler."),
                io.Int.Input("width", default=512, min=64, max=8192, step=8, tooltip="Width of each picture."),
                io.Int.Input("height", default=512, min=64, max=8192, step=8, tooltip="Height of each picture."),
            ],
            outputs=[io.Image.Output("grid", display_name="grid", tooltip="The labelled grid.")],
            is_output_node=True)

    @classmethod
    def fingerprint_inputs(cls, name: str | None, prompt: str | None = "", negative: str | None = "", **others):
        """A LoRA that was trained again under the same name makes the node run again."""
        from .loras import versions

        try:
            return versions(prompt, negative, steps_of=name)
        except (ValueError, OSError):
            return float("nan")  # never equal to itself: the node runs and says what is wrong

    @classmethod
    def execute(cls, name: str, weights: str, max_rows: int, **request) -> io.NodeOutput:
        from .grids import compare

        grid = compare(name, weights, max_rows, **request)
        return io.NodeOutput(grid, ui=ui.PreviewImage(grid, cls=cls))
