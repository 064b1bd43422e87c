"""The backend inside ComfyUI: borrows the MODEL, CLIP and VAE that a graph has loaded. Nothing is read from disk or copied."""
from __future__ import annotations

from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Iterator

import comfy.model_management as mm
import comfy.model_sampling
import comfy.ops
import comfy.sample
import comfy.samplers
import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from PIL import Image
from torch import nn

from .attributes import set_for_now
from .comfy_layers import check_trainable, comfy_forward, keeps_its_tensors
from .fingerprint import fingerprint
from ..backend import SampleRequest, repeat_text, stack_text
from ..checkpointing import set_checkpointing
from ..frozen import frozen_forwards, plain_tensors
from ..lora_keys import diffusers_path, layout_of
from ..objective import Prediction
from ..pixels import to_picture

FAMILIES = {"SD15": ("sd15", 512), "SD15_instructpix2pix": ("sd15", 512), "SD20": ("sd2", 512), "SD21UnclipL": ("sd2", 768),
            "SDXL": ("sdxl", 1024), "SSD1B": ("sdxl", 1024), "Segmind_Vega": ("sdxl", 1024), "KOALA_700M": ("sdxl", 1024),
            "KOALA_1B": ("sdxl", 1024)}
NATIVE_STEP_BYTES = 2 << 30
"""Memory that ComfyUI is asked to keep free beside the weights; its own estimate covers inference only."""


class ComfyBackend:
    """A base that ComfyUI has loaded; see `trainer.backend.Backend` for what each member means.

    `model` is a ModelPatcher, `clip` and `vae` are ComfyUI's own objects. LoRAs and other patches that nodes upstream put on
    the model stay in force: what is trained comes on top of them. Raises ValueError for a model that cannot be trained.
    """

    size_step = 64
    file_hash = ""

    def __init__(self, model: Any, clip: Any, vae: Any, name: str = "") -> None:
        if vae is None or getattr(vae, "first_stage_model", None) is None:
            raise ValueError("the VAE is missing, or its file has no VAE in it; connect the VAE of the checkpoint, or a VAE loader")
        if clip is None:
            raise ValueError("the CLIP is missing; connect the CLIP of the checkpoint, or a CLIP loader")
        self.model, self.clip, self.vae, self.name = model.clone(), clip, vae, name or file_name(model)
        self.device: torch.device = self.model.load_device
        check_trainable(self.unet)
        self._use_trainable_precision()
        config = type(self.model.model.model_config).__name__
        self.family, self.resolution = FAMILIES.get(config, (config.lower(), 1024))
        latent_format = self.model.get_model_object("latent_format")
        if latent_format.latent_dimensions != 2:
            raise ValueError(f"{config} makes video, and only models of still pictures can be trained")
        self.latent_channels: int = latent_format.latent_channels
        self.latent_factor: int = latent_format.spacial_downscale_ratio
        self.default_guidance = 7.0
        self.prediction = _prediction(self.model.get_model_object("model_sampling"))
        if self.family == "sd2" and self.prediction.kind == "v":
            self.resolution = 768
        self._checkpointing = False

    def _use_trainable_precision(self) -> None:
        """Half precision without a loss scaler loses small gradients: compute in bfloat16 where the device can, else in float32."""
        # through the patcher, as the shared model still has what the last run set until the host loads it for itself
        if (self.model.get_model_object("manual_cast_dtype") or self.model.model.get_dtype()) == torch.float16:
            self.model.set_model_compute_dtype(torch.bfloat16 if mm.should_use_bf16(self.device) else torch.float32)

    @property
    def unet(self) -> nn.Module:
        return self.model.model.diffusion_model

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype

    @cached_property
    def base_hash(self) -> str:
        prefix = "diffusion_model."
        originals = {key.removeprefix(prefix): kept.weight for key, kept in self.model.backup.items() if key.startswith(prefix)}
        return fingerprint(self.unet, originals=originals)

    @cached_property
    def encoder_id(self) -> str:
        scale = self.model.model.process_latent_in(torch.ones(1, self.latent_channels, 1, 1)).flatten().tolist()
        return fingerprint(self.vae.first_stage_model, scale)

    @cached_property
    def text_id(self) -> str:
        patches = str(self.clip.patcher.patches_uuid) if self.clip.patcher.patches else ""
        return fingerprint(self.clip.cond_stage_model, self.clip.layer_idx, patches, self.clip.tokenizer_options, "captions as written")

    def encode_image(self, x_B3HW: torch.Tensor) -> torch.Tensor:
        self._lend()
        with layers_finish(), torch.inference_mode():
            z_BCHW = self.vae.encode(((x_B3HW + 1) / 2).movedim(1, -1).cpu())
            z_BCHW = self.model.model.process_latent_in(z_BCHW.float())
        return z_BCHW.clone().to(self.device)

    def encode_text(self, captions: list[str], grad: bool = False) -> dict[str, torch.Tensor]:
        assert not grad, "the text encoder is not trained inside ComfyUI"
        self._lend()
        rows = []
        with layers_finish(), torch.inference_mode():
            for caption in captions:
                [[hidden_1LD, more]] = self.clip.encode_from_tokens_scheduled(self._tokens(caption), show_pbar=False)
                if more.get("attention_mask") is not None:
                    raise ValueError(f"{self.family} tells its text apart by attention masks, which cannot be trained yet")
                pooled_1D = more.get("pooled_output")
                rows.append({"hidden_BLD": hidden_1LD[0], **({} if pooled_1D is None else {"pooled_BD": pooled_1D[0]})})
        return self.batch_text([{key: x.float().clone() for key, x in row.items()} for row in rows])

    def _tokens(self, caption: str) -> dict[str, list]:
        """Captions are texts: parentheses are parentheses. ComfyUI reads those of a prompt as weights, except with a backslash before."""
        return self.clip.tokenize(caption.replace("(", "\\(").replace(")", "\\)"))

    def batch_text(self, rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Raises ValueError for texts of different lengths where the model reads text and picture in one sequence."""
        if isinstance(self.unet, UNetModel):  # it reads the text by cross-attention alone
            return repeat_text(rows)
        lengths = sorted({row["hidden_BLD"].shape[0] for row in rows})
        if len(lengths) > 1:
            raise ValueError(f"captions of {lengths[0]} and {lengths[-1]} tokens are in one batch, which {self.family} cannot take together; "
                             "set batch_size to 1, or make the captions shorter")
        return stack_text(rows)

    def token_count(self, caption: str) -> tuple[int, int]:
        """ComfyUI encodes captions of any length in pieces, so what fits is all of it."""
        pieces = next(iter(self._tokens(caption).values()))
        count = sum(len(piece) for piece in pieces)
        return count, count

    def components(self) -> dict[str, nn.Module]:
        return {"unet": self.unet}

    def predict(self, z_t_BCHW: torch.Tensor, t_B: torch.Tensor, cond: dict[str, torch.Tensor],
                size_B6: torch.Tensor) -> torch.Tensor:
        """The denoiser alone, as `BaseModel._apply_model` calls it: what it is given and gives is not scaled by sigma here."""
        self._take()
        base = self.model.model
        dtype = base.get_dtype_inference()
        x_BCHW, t_B = z_t_BCHW.to(self.device, dtype), t_B.to(self.device).float()
        if self.prediction.kind == "flow":
            sigma_B = t_B / 1000
            t_B = base.model_sampling.timestep(sigma_B)
        else:
            sigma_B = base.model_sampling.sigma(t_B)
        extra = self._extra(x_BCHW, cond, size_B6, dtype)
        context, around_BCHW = extra.pop("c_crossattn", None), extra.pop("c_concat", None)
        if around_BCHW is not None:
            x_BCHW = torch.cat([x_BCHW, around_BCHW], 1)
        t_B = base.process_timestep(t_B, x=x_BCHW, **extra)
        out_BCHW = self.unet(x_BCHW, t_B, context=context, control=None, transformer_options={**self._options, "sigmas": sigma_B}, **extra)
        if not torch.is_tensor(out_BCHW):
            raise ValueError(f"{self.family} returns more than a picture, and cannot be trained yet")
        return out_BCHW.float()

    def _extra(self, x_BCHW: torch.Tensor, cond: dict[str, torch.Tensor], size_B6: torch.Tensor, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """What the model asks for beside latents and timestep, each picture with its own text, sizes and crop. One for inpainting is told that
        all is to be drawn."""
        rows: list[dict] = []
        with torch.no_grad():
            for i, (height, width, top, left, target_height, target_width) in enumerate(size_B6.tolist()):
                pooled = {"pooled_output": cond["pooled_BD"][i:i + 1]} if "pooled_BD" in cond else {}
                x_1CHW = x_BCHW[i:i + 1]
                rows.append(self.model.model.extra_conds(
                    cross_attn=cond["hidden_BLD"][i:i + 1].to(self.device), noise=x_1CHW, latent_image=torch.zeros_like(x_1CHW), device=self.device,
                    width=width, height=height, crop_w=left, crop_h=top, target_width=target_width, target_height=target_height, **pooled))
            found = {key: rows[0][key].concat([row[key] for row in rows[1:]]) for key in rows[0]}
        return {key: x.to(self.device, dtype) if torch.is_tensor(x) and x.is_floating_point() else x for key, x in found.items()}

    @contextmanager
    def borrow(self) -> Iterator[None]:
        with torch.inference_mode(False), ExitStack() as stack:
            stack.enter_context(frozen_forwards(self.unet, comfy_forward))
            self.unet.eval()
            options = self.model.model_options.get("transformer_options", {})
            self._options = {**options, "cond_or_uncond": [0], "optimized_attention_override": _attention}
            stack.callback(self._apply_checkpointing, False)
            self._apply_checkpointing(self._checkpointing)
            stack.callback(self._lend)
            self._borrowed = True
            try:
                yield
            finally:
                self._borrowed = False

    _borrowed = False

    def _take(self) -> None:
        """Have the denoiser loaded by the host, and put stand-ins that autograd can use in place of its tensors."""
        assert self._borrowed, "predict outside of borrow()"
        if self._taken is not None:
            return
        with torch.inference_mode():  # as when it loads by itself, so that what it leaves behind is of one kind
            mm.load_models_gpu([self.model], memory_required=NATIVE_STEP_BYTES + self._streamed_bytes)
        check_trainable(self.unet, self.device)
        with ExitStack() as stack:
            set_for_now(stack, mm, "in_training", True)
            stack.enter_context(layers_finish())
            stack.enter_context(plain_tensors(self.unet, keeps_its_tensors))
            self._taken = stack.pop_all()

    def _lend(self) -> None:
        """Put the host's own back: whatever it does itself may load, move and patch models, the denoiser too."""
        if self._taken is not None:
            self._taken.close()
            self._taken = None

    _taken: ExitStack | None = None
    _cancelled = False

    def set_checkpointing(self, on: bool) -> None:
        self._checkpointing = on
        if self._borrowed:
            self._apply_checkpointing(on)

    def _apply_checkpointing(self, on: bool) -> None:
        set_checkpointing(self.unet, on)

    @cached_property
    def _layout(self):
        return layout_of(path for path, _ in self.unet.named_modules())

    def lora_key(self, component: str, path: str) -> str:
        """As kohya's sd-scripts names them: SD 1.x and 2.x in diffusers' spelling, all others in the model's own."""
        if self.family in ("sd15", "sd2"):
            path = diffusers_path(path, self._layout)
        return f"lora_{component}_{path.replace('.', '_')}"

    def sample(self, request: SampleRequest) -> list[Image.Image]:
        """Draw with ComfyUI's own sampler (euler) and whatever adapter is attached; prompts are plain text.

        The cancel button ends the drawing at once, and the run after it: only the finished pictures are returned.
        """
        factor = self.latent_factor
        width, height = request.width or self.resolution, request.height or self.resolution
        shape = (1, self.latent_channels, height // factor, width // factor)
        guidance = self.default_guidance if request.guidance is None else request.guidance
        pictures: list[Image.Image] = []

        def step_taken(*_) -> None:
            if request.cancelled():
                raise mm.InterruptProcessingException

        self._lend()
        try:
            with torch.inference_mode():
                negative = self.clip.encode_from_tokens_scheduled(self.clip.tokenize(request.negative), show_pbar=False)
                for i, prompt in enumerate(request.prompts):
                    positive = self.clip.encode_from_tokens_scheduled(self.clip.tokenize(prompt), show_pbar=False)
                    empty = torch.zeros(shape)
                    noise = comfy.sample.prepare_noise(empty, request.seed_of(i))
                    z_BCHW = comfy.sample.sample(self.model, noise, request.steps, guidance, "euler", "normal", positive, negative, empty,
                                                 callback=step_taken, disable_pbar=True, seed=request.seed_of(i))
                    pictures += [to_picture(x_3HW) for x_3HW in self.vae.decode(z_BCHW).movedim(-1, 1) * 2 - 1]
        except mm.InterruptProcessingException:
            if not request.cancelled():
                if not self._borrowed:
                    raise
                self._cancelled = True
        return pictures

    def interrupted(self) -> bool:
        return self._cancelled or mm.processing_interrupted()

    def wanted(self) -> bool:
        """ComfyUI runs one prompt after the other; whoever wants to draw meanwhile presses cancel, and the run goes on later."""
        return False

    def offload_encoders(self) -> None:
        """ComfyUI moves what it needs room for by itself."""

    def offload_denoiser(self) -> bool:
        """ComfyUI moves what it needs room for by itself."""
        return False

    def stream_weights(self, share: float) -> bool:
        """ComfyUI's own way with a model that does not fit: what it has loaded of it makes room, and the rest is loaded beside what a step takes."""
        if self.device.type == "cpu" or not self._borrowed:
            return False
        more = int(share * self.model.model_size())
        if more > self._streamed_bytes:
            self._lend()
            with torch.inference_mode():
                mm.free_memory(mm.get_free_memory(self.device) + more - self._streamed_bytes, self.device)
        self._streamed_bytes = more
        return True

    _streamed_bytes = 0

    def host_needs(self) -> int:
        """What ComfyUI never fills, for other programs and the display, less what it would unload when a step needs room."""
        others = sum(loaded.model_loaded_memory() for loaded in mm.current_loaded_models
                     if loaded.model is not None and loaded.device == self.device and loaded.model.model is not self.model.model)
        return mm.extra_reserved_memory() - (others if self.device.type != "cpu" else 0)

    def free_memory(self) -> None:
        mm.soft_empty_cache()


@contextmanager
def layers_finish() -> Iterator[None]:
    """Every layer of ComfyUI looks for the cancel button and raises in the middle of its work; a session stops after the step instead."""
    with ExitStack() as stack:
        set_for_now(stack, comfy.ops, "run_every_op", _do_nothing)
        yield


def _do_nothing() -> None:
    pass


def _attention(chosen, *args, **kwargs):
    """torch's attention in place of the host's choice: others have no backward, or a slow one."""
    return attention_pytorch(*args, **kwargs)


def file_name(model: Any) -> str:
    """Of the file that one of ComfyUI's own loaders has read the ModelPatcher from, without folder and suffix; empty for what came another way."""
    made_by = getattr(model, "cached_patcher_init", None)
    given = made_by[1][0] if made_by and made_by[1] else None
    return Path(given).stem if isinstance(given, str) else ""


def _prediction(sampling: Any) -> Prediction:
    """What the model predicts, from the host's model_sampling, patches of nodes upstream included."""
    known = comfy.model_sampling
    kinds = {known.EPS.calculate_denoised: "eps", known.V_PREDICTION.calculate_denoised: "v", known.CONST.calculate_denoised: "flow"}
    # by the method that tells them apart: classes that predict something else are derived from these
    kind = kinds.get(type(sampling).calculate_denoised)
    if kind == "flow":
        return Prediction("flow")
    sigmas_T = getattr(sampling, "sigmas", None)
    if isinstance(sampling, known.ModelSamplingDiscrete) and sampling.num_timesteps != len(sigmas_T):
        raise ValueError(f"a model that is distilled to {len(sigmas_T)} timesteps, as by ModelSamplingDiscrete with lcm, cannot be trained; "
                         "connect the model from before that node")
    if kind is None or not isinstance(sampling, known.ModelSamplingDiscrete):
        names = ", ".join(base.__name__ for base in type(sampling).__mro__[1:] if base.__module__ == known.__name__)
        raise ValueError(f"a model sampled by {names} cannot be trained yet; eps, v-prediction and flow models can")
    return Prediction(kind, (1 / (1 + sigmas_T.detach().cpu().double() ** 2)).float().clone())
