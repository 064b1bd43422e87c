"""The backend inside Forge: borrows the checkpoint that is loaded. Nothing is read from disk or copied."""
from __future__ import annotations

from typing import Any, ContextManager

import torch
from backend import attention, memory_management
from backend.nn import unet as host_unet
from modules import shared

from .fingerprint import fingerprint
from .forge_model import STEP_BYTES, ForgeModel, family_of
from .forge_objects import attention_with_backward
from .forge_state import PACKED, engines, forge_forward, mean_of_the_posterior, plain_texts
from .webui_model import REFINER
from .webui_queue import queue
from ..frozen import frozen_forwards

KINDS = {"epsilon": "eps", "v_prediction": "v"}


class ForgeBackend(ForgeModel):
    """The checkpoint that Forge holds when this is made; see `trainer.backend.Backend` for what each member means.

    Raises ValueError when there is no checkpoint, or one that cannot be trained. `prediction` is "auto", "eps" or "v".
    """

    packed = PACKED

    def __init__(self, prediction: str = "auto") -> None:
        with queue.held():
            family = forge_family(self.model)
        predictor = self._patcher.model.predictor
        kind = KINDS[predictor.prediction_type] if prediction == "auto" else prediction
        super().__init__(family, kind, predictor.alphas_cumprod, next(self.unet.parameters()).dtype)

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
        return fingerprint(patcher.model, int(shared.opts.CLIP_stop_at_last_layers), embeddings, "forge", originals=self._originals(patcher))

    def token_count(self, caption: str) -> tuple[int, int]:
        """Forge encodes captions of any length in pieces, so what fits is all of it."""
        with plain_texts(self.model):
            count = engines(self.model)[0].process_texts([caption])[1] + 2
        return count, count

    def _backup(self, patcher: Any) -> dict[str, torch.Tensor]:
        return patcher.lora_loader.backup

    @property
    def _embedder(self) -> Any:
        return self.model.embedder

    def _load(self) -> None:
        memory_management.load_models_gpu([self._patcher], memory_required=STEP_BYTES, hard_memory_preservation=STEP_BYTES)

    def _mean(self) -> ContextManager[None]:
        return mean_of_the_posterior(self.model.forge_objects_original.vae)

    def _plain_texts(self) -> ContextManager[None]:
        return plain_texts(self.model)

    def _prepared(self) -> tuple[ContextManager[None], ...]:
        return attention_with_backward(host_unet, ("attention_function",), attention.attention_pytorch), frozen_forwards(self.unet, forge_forward)

    def _predicting(self) -> tuple[Any, str, Any]:
        return self._patcher.model.predictor, "prediction_type", {kind: name for name, kind in KINDS.items()}[self.prediction.kind]


def forge_family(model: Any) -> str:
    """As `family_of`, of a checkpoint in Forge."""
    family = family_of(model, PACKED)
    name, predictor = model.sd_checkpoint_info.name_for_extra, model.forge_objects_original.unet.model.predictor
    if family == "sdxl" and not hasattr(model, "text_processing_engine_l"):
        raise ValueError(REFINER.format(name))
    if predictor.prediction_type not in KINDS or not hasattr(predictor, "alphas_cumprod"):
        raise ValueError(f"{name} predicts neither noise nor velocity ({predictor.prediction_type}), and cannot be trained in Forge")
    return family
