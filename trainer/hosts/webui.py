"""The backend inside stable-diffusion-webui: borrows the checkpoint that is loaded. Nothing is read from disk or copied."""
from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import Any, Iterator

import ldm.modules.distributions.distributions
import sgm.modules.distributions.distributions
import torch
from modules import devices, lowvram, prompt_parser, shared
from PIL import Image
from torch import nn

from .fingerprint import fingerprint
from .webui_model import INPAINTING, NO_CHECKPOINT, REFINER, WebuiModel, count_tokens, plain_captions, user_embeddings
from .webui_queue import queue
from .webui_state import attention_with_backward, no_checkpointing, own_unet, pin_unet, webui_forward, whole_attention, without_loras
from ..backend import BaseChanged, SampleRequest
from ..checkpointing import set_checkpointing
from ..frozen import frozen_forwards, plain_tensors

POSTERIORS = (ldm.modules.distributions.distributions.DiagonalGaussianDistribution,
              sgm.modules.distributions.distributions.DiagonalGaussianDistribution)
SIZES = {"original_size_as_tuple": (0, 1), "crop_coords_top_left": (2, 3), "target_size_as_tuple": (4, 5)}
"""Inputs of SDXL's conditioner, and where they are in (original height, width, crop top, left, target height, width)."""


class WebuiBackend(WebuiModel):
    """The checkpoint that the webui holds when this is made; see `trainer.backend.Backend` for what each member means.

    Raises ValueError when there is no checkpoint, or one that cannot be trained. `prediction` is "auto", "eps" or "v".
    """

    _offloading = False

    def __init__(self, prediction: str = "auto") -> None:
        with queue.held():
            model = shared.sd_model
        family = family_of(model)
        table = getattr(model, "alphas_cumprod_original", model.alphas_cumprod)
        super().__init__(family, model.parameterization if prediction == "auto" else prediction, table,
                         next(model.model.diffusion_model.parameters()).dtype)
        self.base_hash: str = self.file_hash or fingerprint(model.model.diffusion_model)

    @property
    def unet(self) -> nn.Module:
        return self.model.model.diffusion_model

    @property
    def encoder_id(self) -> str:
        return fingerprint(self.model.first_stage_model, float(self.model.scale_factor))

    @property
    def text_id(self) -> str:
        """With all that the host lets change what a text becomes: CLIP skip, where long texts are cut, and the user's own embeddings."""
        opts = shared.opts
        return fingerprint(self.model.cond_stage_model, opts.CLIP_stop_at_last_layers, getattr(opts, "sdxl_clip_l_skip", False),
                           opts.comma_padding_backtrack, user_embeddings())

    def encode_image(self, x_B3HW: torch.Tensor) -> torch.Tensor:
        model = self.model
        with torch.no_grad(), ExitStack() as stack:
            for posterior in POSTERIORS:
                stack.callback(setattr, posterior, "sample", posterior.sample)
                posterior.sample = posterior.mode
            self._bring_back(model.first_stage_model)
            model.first_stage_model.to(devices.dtype_vae)
            z_BCHW = _encode(model, x_B3HW.to(self.device, devices.dtype_vae))
            if not torch.isfinite(z_BCHW).all() and devices.dtype_vae != torch.float32:
                stack.callback(model.first_stage_model.to, devices.dtype_vae)
                model.first_stage_model.to(torch.float32)
                z_BCHW = _encode(model, x_B3HW.to(self.device, torch.float32))
        return z_BCHW.float()

    def encode_text(self, captions: list[str], grad: bool = False) -> dict[str, torch.Tensor]:
        assert not grad, "the text encoder is not trained inside the webui"
        model = self.model
        with torch.no_grad(), devices.autocast(), plain_captions():
            self._bring_back(model.cond_stage_model)
            rows = [model.get_learned_conditioning(prompt_parser.SdConditioning([caption])) for caption in captions]
            rows = [row if isinstance(row, dict) else {"crossattn": row} for row in rows]
        conds = [{"hidden_BLD": row["crossattn"][0].float()} for row in rows]
        if "vector" in rows[0]:
            width = rows[0]["vector"].shape[1] - sum(2 * embedder.outdim for embedder in _size_embedders(model))
            conds = [{**cond, "pooled_BD": row["vector"][0, :width].float()} for cond, row in zip(conds, rows)]
        return self.batch_text(conds)

    def token_count(self, caption: str) -> tuple[int, int]:
        """The webui encodes captions of any length in pieces, so what fits is all of it."""
        return count_tokens(caption)

    def predict(self, z_t_BCHW: torch.Tensor, t_B: torch.Tensor, cond: dict[str, torch.Tensor], size_B6: torch.Tensor) -> torch.Tensor:
        assert self._borrowed, "predict outside of borrow()"
        pin_unet(self.model, self.device)
        more = {}
        if "pooled_BD" in cond:
            sizes = [embedder(size_B6[:, list(SIZES[embedder.input_key])].to(self.device).float()) for embedder in _size_embedders(self.model)]
            more["y"] = torch.cat([cond["pooled_BD"].to(self.device), *(size.float() for size in sizes)], 1)
        return self.unet(z_t_BCHW.to(self.device).float(), t_B.to(self.device), context=cond["hidden_BLD"].to(self.device), **more).float()

    @contextmanager
    def borrow(self) -> Iterator[None]:
        with queue.held(), ExitStack() as stack:
            self._check_base()
            model, unet = self.model, self.unet
            for prepared in (own_unet(), without_loras(model), attention_with_backward(), whole_attention(model), no_checkpointing(unet),
                             plain_tensors(unet), frozen_forwards(unet, webui_forward)):
                stack.enter_context(prepared)
            unet.eval()
            stack.callback(set_checkpointing, unet, False)
            set_checkpointing(unet, self._checkpointing)
            stack.callback(self._bring_back, model.first_stage_model, model.cond_stage_model)
            self._borrowed = True
            try:
                self._send_away()
                yield
            finally:
                self._borrowed = False

    def _check_base(self) -> None:
        super()._check_base()
        if self.device.type != "cpu" and not lowvram.is_enabled(self.model) and next(self.unet.parameters()).device.type == "cpu":
            raise BaseChanged(f"the checkpoint {self.name} was unloaded from the GPU; load it again in Settings, Actions, then resume")

    def sample(self, request: SampleRequest) -> list[Image.Image]:
        """Draw with the host's own sampler and whatever adapter is attached."""
        assert self._borrowed, "sample outside of borrow()"
        self._bring_back(self.model.first_stage_model, self.model.cond_stage_model)
        pictures = self._draw(request, self.model, "parameterization", self.prediction.kind)
        self._send_away()
        return pictures

    def offload_encoders(self) -> None:
        """With --medvram the host does so by itself; else they are moved away while the model is borrowed."""
        self._offloading = self.device.type != "cpu"
        if self._borrowed:
            self._send_away()

    def _send_away(self) -> None:
        model = self.model
        if self._offloading and not lowvram.is_enabled(model):
            for module in (model.first_stage_model, model.cond_stage_model):
                module.to(devices.cpu)
            self.free_memory()

    def _bring_back(self, *modules: nn.Module) -> None:
        if self._offloading and not lowvram.is_enabled(self.model):
            for module in modules:
                module.to(self.device)


def family_of(model: Any) -> str:
    """"sd15", "sd2" or "sdxl". ValueError for no model, and for one that cannot be trained."""
    if model is None:
        raise ValueError(NO_CHECKPOINT)
    if shared.cmd_opts.lowvram:
        raise ValueError("--lowvram moves the model to the GPU piece by piece, and training needs it as a whole; start the webui with --medvram instead")
    name = model.sd_checkpoint_info.name_for_extra
    if getattr(model, "is_sd3", False):
        raise ValueError(f"{name} is a Stable Diffusion 3 model, which cannot be trained in the webui; use one of SD 1.x, 2.x or XL")
    unet = model.model.diffusion_model
    if unet.in_channels != 4 or unet.out_channels != 4 or model.model.conditioning_key not in ("crossattn", None):
        raise ValueError(INPAINTING.format(name))
    if not model.is_sdxl:
        return "sd2" if model.is_sd2 else "sd15"
    keys = [getattr(embedder, "input_key", None) for embedder in model.conditioner.embedders]
    if "aesthetic_score" in keys:
        raise ValueError(REFINER.format(name))
    if [key for key in keys if key != "txt"] != list(SIZES):
        raise ValueError(f"{name} has a text conditioner that is not SDXL's; use an SDXL base")
    return "sdxl"


def _encode(model: Any, x_B3HW: torch.Tensor) -> torch.Tensor:
    with devices.without_autocast():
        return torch.cat([model.get_first_stage_encoding(model.encode_first_stage(x_3HW[None])) for x_3HW in x_B3HW])


def _size_embedders(model: Any) -> list[nn.Module]:
    return [embedder for embedder in model.conditioner.embedders if getattr(embedder, "input_key", None) in SIZES]
