"""HotLoRA Prompt: text with <lora:name:weight> tags, as in stable-diffusion-webui."""
from __future__ import annotations

from comfy_api.latest import io


class HotLoRAPrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HotLoRAPrompt", display_name="HotLoRA Prompt", category="HotLoRA",
            description="Applies the LoRAs that the tags name and encodes the rest of the text. "
                        "<lora:name:weight>, <lora:name:text encoder:unet>, te=... and unet=... are understood; several tags add up.",
            inputs=[
                io.Model.Input("model", tooltip="The model that the LoRAs are applied to."),
                io.Clip.Input("clip", tooltip="The text encoder that the LoRAs are applied to."),
                io.String.Input("text", multiline=True, dynamic_prompts=True, default="a photo of sks <lora:my_lora:0.8>", tooltip=(
                    "The prompt. A LoRA is found by its name in any sub-folder of the LoRA folders.")),
            ],
            outputs=[
                io.Model.Output("model_out", display_name="model", tooltip="The model with the LoRAs applied."),
                io.Clip.Output("clip_out", display_name="clip", tooltip="The text encoder with the LoRAs applied."),
                io.Conditioning.Output("conditioning", display_name="conditioning", tooltip="The text without its tags, encoded."),
                io.String.Output("plain", display_name="text", tooltip="The text without its tags."),
            ])

    @classmethod
    def fingerprint_inputs(cls, text: str | None, **others):
        """A LoRA that was trained again under the same name makes the node run again."""
        from .loras import versions

        try:
            return versions(text)
        except (ValueError, OSError):
            return float("nan")  # never equal to itself: the node runs and says what is wrong

    @classmethod
    def execute(cls, model, clip, text: str) -> io.NodeOutput:
        from .loras import apply_tags
        from ..trainer.live import parse_prompt

        plain, tags = parse_prompt(text)
        model, clip = apply_tags(model, clip, tags)
        return io.NodeOutput(model, clip, clip.encode_from_tokens_scheduled(clip.tokenize(plain)), plain)
