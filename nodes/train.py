"""HotLoRA Train: trains on the MODEL, CLIP and VAE of the graph, and hands on both with the new LoRA applied."""
from __future__ import annotations

from comfy_api.latest import io

from .gallery import GALLERY
from .settings import SETTINGS_TYPE
from ..trainer.presets import PRESETS, preset_name


class HotLoRATrain(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HotLoRATrain", display_name="HotLoRA Train", category="HotLoRA",
            description="Trains a LoRA on the model that is already loaded. Cancel stops after the step and keeps what was learned; "
                        "run again to go on. Only the model is trained, not its text encoder.",
            inputs=[
                io.Model.Input("model", tooltip="The model to train on. LoRAs that are applied to it stay in force."),
                io.Clip.Input("clip", tooltip="The text encoder of the same checkpoint. It reads the captions and is not trained."),
                io.Vae.Input("vae", tooltip="The VAE of the same checkpoint."),
                GALLERY.Input("gallery", tooltip="The pictures, from HotLoRA Gallery."),
                io.String.Input("name", default="my_lora", tooltip="Name of the LoRA, as used in <lora:name:1>. An older one of this name is kept as name-v1."),
                io.String.Input("trigger", default="sks", tooltip="The word that calls up what was learned; it is put first in every caption that lacks it."),
                io.Combo.Input("preset", options=list(PRESETS), default="balanced", tooltip=(
                    "Values for steps, rank and learning rate where they are 0, and for what HotLoRA Settings leaves as it is, by the gallery's purpose.")),
                io.Int.Input("steps", default=0, min=0, max=1_000_000, tooltip="Length of the training; 0 takes it from the preset and the number of pictures."),
                io.Int.Input("rank", default=0, min=0, max=1024, tooltip="Size of the LoRA; 0 takes it from the preset."),
                io.Float.Input("learning_rate", default=0.0, min=0.0, max=10.0, step=0.00001, round=False, tooltip="How far each step changes the LoRA; 0 takes it from the preset."),
                io.Int.Input("resolution", default=0, min=0, max=4096, step=32, tooltip="Side of the square whose area the training pictures get; 0 is the model's own size."),
                io.Int.Input("seed", default=0, min=0, max=2**53, control_after_generate=False, tooltip="The same seed gives the same run."),
                SETTINGS_TYPE.Input("settings", optional=True, tooltip="Everything else, from HotLoRA Settings."),
            ],
            outputs=[
                io.Model.Output("model_out", display_name="model", tooltip="The model with the new LoRA applied."),
                io.Clip.Output("clip_out", display_name="clip", tooltip="The text encoder, for the same prompt."),
                io.String.Output("tag", display_name="tag", tooltip="The tag for HotLoRA Prompt."),
                io.Image.Output("loss", display_name="loss", tooltip="The loss of each step, smoothed."),
                io.Image.Output("previews", display_name="previews", tooltip="The preview pictures, or the loss when none were asked for."),
            ],
            hidden=[io.Hidden.unique_id])

    @classmethod
    def validate_inputs(cls, name: str | None, preset: str | None) -> bool | str:
        """Turns a bad name or preset down before anything is loaded; None is one that another node will give. Graphs of before have presets' former names."""
        from ..trainer.names import check_name

        try:
            return (name is None or bool(check_name(name))) and (preset is None or bool(preset_name(preset)))
        except ValueError as error:
            return str(error)

    @classmethod
    def fingerprint_inputs(cls, name: str | None = None, **others):
        """A LoRA that somebody else has removed or written anew makes the node run again."""
        from .finished import changes_of

        return changes_of(name)

    @classmethod
    def execute(cls, model, clip, vae, gallery, name, trigger, preset, steps, rank, learning_rate, resolution, seed, settings=None) -> io.NodeOutput:
        from .run import run_session

        values = {**(settings or {}), **gallery, "name": name, "trigger": trigger, "seed": seed, "resolution": resolution or None,
                  "steps": steps or None, "lora_rank": rank or None, "learning_rate": learning_rate or None}
        result = run_session(model, clip, vae, values, preset, cls.hidden.unique_id)
        return io.NodeOutput(result.model, result.clip, f"<lora:{name}:1>", result.loss_plot, result.previews, ui={"text": [result.message]})
