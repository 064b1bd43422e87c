"""The backend inside Forge: borrows the checkpoint that is loaded. Nothing is read from disk or copied."""
from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import Any, Iterator

import torch
from backend import memory_management
from modules import prompt_parser, shared
from PIL import Image
from torch import nn

from .fingerprint import fingerprint
from .forge_state import (attention_with_backward, bare_objects, check_trainable, engines, forge_forward, mean_of_the_posterior, plain_texts)
from .webui_model import WebuiModel
from .webui_queue import queue
from ..backend import SampleRequest
from ..checkpointing import set_checkpointing
from ..frozen import frozen_forwards, plain_tensors

KINDS = {"epsilon": "eps", "v_prediction": "v"}
STEP_BYTES = 2 << 30
"""Memory that Forge is asked to keep free beside the weights; its own estimate covers drawing only."""


class ForgeBackend(WebuiModel):
    """The checkpoint that Forge holds when this is made; see `trainer.backend.Backend` for what each member means.

    Raises ValueError when there is no checkpoint, or one that cannot be trained. `prediction` is "auto", "eps" or "v".
    """

    def __init__(self, prediction: str = "auto") -> None:
        with queue.held():
            model = self.model
            family = family_of(model)
        predictor = model.forge_objects_original.unet.model.predictor
        kind = KINDS[predictor.prediction_type] if prediction == "auto" else prediction
        super().__init__(family, kind, predictor.alphas_cumprod, next(self.unet.parameters()).dtype)
        self.base_hash: str = self.file_hash or fingerprint(self.unet, originals=_unpatched(self._patcher, "diffusion_model."))
        self._taken: ExitStack | None = None

    @property
    def _patcher(self) -> Any:
        """The denoiser without any LoRA."""
        return self.model.forge_objects_original.unet

    @property
    def unet(self) -> nn.Module:
        return self._patcher.model.diffusion_model

    @property
    def encoder_id(self) -> str:
        vae = self.model.forge_objects_original.vae.first_stage_model
        return fingerprint(vae, float(vae.scaling_factor), float(vae.shift_factor or 0))

    @property
    def text_id(self) -> str:
        """With all that the host lets change what a text becomes: CLIP skip and the user's own embeddings."""
        embeddings = sorted((name, str(embedding.shorthash)) for engine in engines(self.model)
                            for name, embedding in engine.embeddings.word_embeddings.items())
        patcher = self.model.forge_objects_original.clip.patcher
        return fingerprint(patcher.model, int(shared.opts.CLIP_stop_at_last_layers), embeddings, "forge", originals=_unpatched(patcher))

    @torch.inference_mode()
    def encode_image(self, x_B3HW: torch.Tensor) -> torch.Tensor:
        self._lend()
        model = self.model
        with bare_objects(model), mean_of_the_posterior(model.forge_objects.vae):
            z_BCHW = torch.cat([model.encode_first_stage(x_3HW[None].float().cpu()) for x_3HW in x_B3HW])
        with torch.inference_mode(False):
            return z_BCHW.clone().to(self.device).float()

    def encode_text(self, captions: list[str], grad: bool = False) -> dict[str, torch.Tensor]:
        assert not grad, "the text encoder is not trained inside Forge"
        self._lend()
        model = self.model
        with torch.inference_mode(), bare_objects(model), plain_texts(model):
            rows = [model.get_learned_conditioning(prompt_parser.SdConditioning([caption])) for caption in captions]
        rows = [row if isinstance(row, dict) else {"crossattn": row} for row in rows]
        conds = [{"hidden_BLD": row["crossattn"][0].clone().to(self.device).float()} for row in rows]
        if "vector" in rows[0]:
            width = rows[0]["vector"].shape[1] - 6 * model.embedder.dim
            conds = [{**cond, "pooled_BD": row["vector"][0, :width].clone().to(self.device).float()} for cond, row in zip(conds, rows)]
        return self.batch_text(conds)

    def token_count(self, caption: str) -> tuple[int, int]:
        """Forge encodes captions of any length in pieces, so what fits is all of it."""
        with plain_texts(self.model):
            count = engines(self.model)[0].process_texts([caption])[1] + 2
        return count, count

    def predict(self, z_t_BCHW: torch.Tensor, t_B: torch.Tensor, cond: dict[str, torch.Tensor], size_B6: torch.Tensor) -> torch.Tensor:
        self._take()
        more = {}
        if "pooled_BD" in cond:
            sizes_BE = self.model.embedder(size_B6.float().flatten()).view(len(size_B6), -1)
            more["y"] = torch.cat([cond["pooled_BD"].to(self.device), sizes_BE.to(self.device)], 1)
        return self.unet(z_t_BCHW.to(self.device).float(), t_B.to(self.device).float(), context=cond["hidden_BLD"].to(self.device),
                         transformer_options={}, **more).float()

    @contextmanager
    def borrow(self) -> Iterator[None]:
        with queue.held(), torch.inference_mode(False), ExitStack() as stack:
            self._check_base()
            unet = self.unet
            for prepared in (bare_objects(self.model), attention_with_backward(), frozen_forwards(unet, forge_forward)):
                stack.enter_context(prepared)
            unet.eval()
            stack.callback(set_checkpointing, unet, False)
            if self._checkpointing:
                set_checkpointing(unet, True)
            stack.callback(self._lend)
            self._borrowed = True
            try:
                yield
            finally:
                self._borrowed = False

    def _take(self) -> None:
        """Have the bare denoiser loaded by the host, and put stand-ins that autograd can use in place of its tensors."""
        assert self._borrowed, "predict outside of borrow()"
        if self._taken is not None:
            return
        with torch.inference_mode():  # as when it loads by itself, so that what it leaves behind is of one kind
            memory_management.load_models_gpu([self._patcher], memory_required=STEP_BYTES, hard_memory_preservation=STEP_BYTES)
        check_trainable(self.unet, self.name)
        with ExitStack() as stack:
            stack.enter_context(plain_tensors(self.unet))
            self._taken = stack.pop_all()

    def _lend(self) -> None:
        """Put the host's own back: whatever it does itself may load, move and patch models, the denoiser too."""
        if self._taken is not None:
            self._taken.close()
            self._taken = None

    def sample(self, request: SampleRequest) -> list[Image.Image]:
        """Draw with the host's own sampler and whatever adapter is attached."""
        assert self._borrowed, "sample outside of borrow()"
        self._lend()
        with torch.inference_mode():
            return self._draw(request, self._patcher.model.predictor, "prediction_type", {kind: name for name, kind in KINDS.items()}[self.prediction.kind])

    def offload_encoders(self) -> None:
        """Forge moves what it needs room for by itself."""


def family_of(model: Any) -> str:
    """"sd15", "sd2" or "sdxl". ValueError for no model, and for one that cannot be trained."""
    if getattr(model, "forge_objects_original", None) is None:
        raise ValueError("no checkpoint is loaded; choose one at the top left of the webui")
    name = model.sd_checkpoint_info.name_for_extra
    if not (model.is_sd1 or model.is_sd2 or model.is_sdxl):
        raise ValueError(f"{name} is of a kind ({type(model).__name__}) that cannot be trained in Forge; use one of SD 1.x, 2.x or XL")
    if model.is_sdxl and not hasattr(model, "text_processing_engine_l"):
        raise ValueError(f"{name} is an SDXL refiner; train on the SDXL base")
    unet = model.forge_objects_original.unet.model
    check_trainable(unet.diffusion_model, name)
    inputs = unet.diffusion_model.input_blocks[0][0].in_channels
    if model.is_inpaint or inputs != 4:
        raise ValueError(f"{name} is made for inpainting, depth or editing, and its denoiser takes more than a picture; use the base that it was made from")
    if unet.predictor.prediction_type not in KINDS or not hasattr(unet.predictor, "alphas_cumprod"):
        raise ValueError(f"{name} predicts neither noise nor velocity ({unet.predictor.prediction_type}), and cannot be trained in Forge")
    return "sd15" if model.is_sd1 else "sd2" if model.is_sd2 else "sdxl"


def _unpatched(patcher: Any, prefix: str = "") -> dict[str, torch.Tensor]:
    """What a patcher's tensors are without the LoRAs that are merged into them at the moment, by name."""
    return {key.removeprefix(prefix): x for key, x in patcher.lora_loader.backup.items() if key.startswith(prefix)}
