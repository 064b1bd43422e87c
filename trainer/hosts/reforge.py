"""The backend inside reForge: borrows the checkpoint that is loaded. Nothing is read from disk or copied."""
from __future__ import annotations

from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, ContextManager, Iterator

import ldm_patched.ldm.modules.attention as host_attention
import torch
from ldm_patched.modules import model_base, model_management, model_sampling, ops
from modules import shared

from .attributes import set_for_now
from .fingerprint import fingerprint
from .forge_model import STEP_BYTES, ForgeModel, family_of
from .forge_objects import attention_with_backward, layer_forward
from .webui_model import REFINER, count_tokens, plain_captions, user_embeddings
from .webui_queue import queue
from ..frozen import frozen_forwards

KINDS = {model_sampling.EPS.calculate_denoised: "eps", model_sampling.V_PREDICTION.calculate_denoised: "v"}
TYPES = {"eps": model_base.ModelType.EPS, "v": model_base.ModelType.V_PREDICTION}
PACKED = "the checkpoint is held in a packed form ({}), which cannot be trained; use a checkpoint file that is not packed (GGUF, NF4, scaled float8)"


class ReforgeBackend(ForgeModel):
    """The checkpoint that reForge holds when this is made; see `trainer.backend.Backend` for what each member means.

    Raises ValueError when there is no checkpoint, or one that cannot be trained. `prediction` is "auto", "eps" or "v".
    """

    packed = PACKED

    def __init__(self, prediction: str = "auto") -> None:
        with queue.held():
            family = reforge_family(shared.sd_model)
        sampling = self._patcher.model.model_sampling
        kind = KINDS[type(sampling).calculate_denoised] if prediction == "auto" else prediction
        super().__init__(family, kind, 1 / (1 + sampling.sigmas.detach().cpu().double() ** 2), next(self.unet.parameters()).dtype)

    @property
    def encoder_id(self) -> str:
        objects = self.model.forge_objects_original
        scale = objects.unet.model.process_latent_in(torch.ones(1, self.latent_channels, 1, 1)).flatten().tolist()
        return fingerprint(objects.vae.first_stage_model, scale)

    @property
    def text_id(self) -> str:
        """With all that the host lets change what a text becomes: CLIP skip, where long texts are cut, and the user's own embeddings."""
        patcher, opts = self.model.forge_objects_original.clip.patcher, shared.opts
        return fingerprint(patcher.model, int(opts.CLIP_stop_at_last_layers), opts.comma_padding_backtrack, user_embeddings(), "reforge",
                           originals=self._originals(patcher))

    def token_count(self, caption: str) -> tuple[int, int]:
        """reForge encodes captions of any length in pieces, so what fits is all of it."""
        return count_tokens(caption)

    def _backup(self, patcher: Any) -> dict[str, torch.Tensor]:
        return {name: kept.weight for name, kept in patcher.backup.items()}

    @property
    def _embedder(self) -> Any:
        return self._patcher.model.embedder

    def _load(self) -> None:
        model_management.load_models_gpu([self._patcher], memory_required=STEP_BYTES)

    @contextmanager
    def _mean(self) -> Iterator[None]:
        with ExitStack() as stack:
            # small stand-ins for the autoencoder have none, and give no sample either
            set_for_now(stack, getattr(self.model.forge_objects_original.vae.first_stage_model, "regularization", None), "sample", False)
            yield

    def _plain_texts(self) -> ContextManager[None]:
        return plain_captions()

    def _prepared(self) -> tuple[ContextManager[None], ...]:
        attention = attention_with_backward(host_attention, ("optimized_attention", "optimized_attention_masked"), host_attention.attention_pytorch)
        return attention, frozen_forwards(self.unet, partial(layer_forward, operations=ops))

    def _predicting(self) -> tuple[Any, str, Any]:
        model = self._patcher.model
        own = KINDS[type(model.model_sampling).calculate_denoised] == self.prediction.kind
        return model, "model_sampling", model.model_sampling if own else model_base.model_sampling(model.model_config, TYPES[self.prediction.kind])


def reforge_family(model: Any) -> str:
    """As `family_of`, of a checkpoint in reForge."""
    family = family_of(model, PACKED)
    name, sampling = model.sd_checkpoint_info.name_for_extra, model.forge_objects_original.unet.model.model_sampling
    if family == "sdxl" and "aesthetic_score" in [getattr(embedder, "input_key", None) for embedder in model.conditioner.embedders]:
        raise ValueError(REFINER.format(name))
    if type(sampling).calculate_denoised not in KINDS or not isinstance(sampling, model_sampling.ModelSamplingDiscrete):
        raise ValueError(f"{name} predicts neither noise nor velocity ({type(sampling).__mro__[1].__name__}), and cannot be trained in reForge")
    return family
