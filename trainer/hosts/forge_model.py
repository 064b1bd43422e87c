"""What a checkpoint that Forge or reForge holds has in common, seen as a backend."""
from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import Any, ContextManager, Iterator

import torch
from modules import prompt_parser
from PIL import Image
from torch import nn

from .fingerprint import fingerprint
from .forge_objects import bare_objects, check_plain
from .webui_model import INPAINTING, NO_CHECKPOINT, WebuiModel
from .webui_queue import queue
from ..backend import SampleRequest
from ..checkpointing import set_checkpointing
from ..frozen import plain_tensors

STEP_BYTES = 2 << 30
"""Memory that the host is asked to keep free beside the weights; its own estimate covers drawing only."""


class ForgeModel(WebuiModel):
    """See `trainer.backend.Backend`; what starts with an underscore and does nothing here is each host's own."""

    packed: str
    """The sentence for weights that cannot be trained, with a place for the layer."""
    _taken: ExitStack | None = None

    def __init__(self, family: str, kind: str, alphas_cumprod_T: torch.Tensor, dtype: torch.dtype) -> None:
        super().__init__(family, kind, alphas_cumprod_T, dtype)
        self.base_hash: str = self.file_hash or fingerprint(self.unet, originals=self._originals(self._patcher, "diffusion_model."))

    @property
    def _patcher(self) -> Any:
        """The denoiser without any LoRA."""
        return self.model.forge_objects_original.unet

    @property
    def unet(self) -> nn.Module:
        return self._patcher.model.diffusion_model

    def _backup(self, patcher: Any) -> dict[str, torch.Tensor]:
        """What a patcher's tensors were before LoRAs were merged into them, by name."""
        raise NotImplementedError

    def _originals(self, patcher: Any, prefix: str = "") -> dict[str, torch.Tensor]:
        """Those of the backup below a prefix, named without it."""
        return {name.removeprefix(prefix): x for name, x in self._backup(patcher).items() if name.startswith(prefix)}

    @property
    def _embedder(self) -> Any:
        """What SDXL makes of sizes: a number becomes `2 * half` numbers."""
        raise NotImplementedError

    def _load(self) -> None:
        """Have the host load the bare denoiser."""
        raise NotImplementedError

    def _mean(self) -> ContextManager[None]:
        """The autoencoder gives the mean of what it finds, not a sample."""
        raise NotImplementedError

    def _plain_texts(self) -> ContextManager[None]:
        """Captions are texts."""
        raise NotImplementedError

    def _prepared(self) -> tuple[ContextManager[None], ...]:
        """Layers and attention for training."""
        raise NotImplementedError

    def _predicting(self) -> tuple[Any, str, Any]:
        """What has to be set for the host to draw with our `prediction`, as `draw` takes it."""
        raise NotImplementedError

    @torch.inference_mode()
    def encode_image(self, x_B3HW: torch.Tensor) -> torch.Tensor:
        self._lend()
        with bare_objects(self.model), self._mean():
            z_BCHW = torch.cat([self.model.encode_first_stage(x_3HW[None].float().cpu()) for x_3HW in x_B3HW])
        with torch.inference_mode(False):
            return z_BCHW.clone().to(self.device).float()

    def encode_text(self, captions: list[str], grad: bool = False) -> dict[str, torch.Tensor]:
        assert not grad, "the text encoder is not trained inside Forge"
        self._lend()
        model = self.model
        with torch.inference_mode(), bare_objects(model), self._plain_texts():
            rows = [model.get_learned_conditioning(prompt_parser.SdConditioning([caption])) for caption in captions]
        rows = [row if isinstance(row, dict) else {"crossattn": row} for row in rows]
        conds = [{"hidden_BLD": row["crossattn"][0].clone().to(self.device).float()} for row in rows]
        if "vector" in rows[0]:
            width = rows[0]["vector"].shape[1] - self._embedder(torch.zeros(6)).numel()
            conds = [{**cond, "pooled_BD": row["vector"][0, :width].clone().to(self.device).float()} for cond, row in zip(conds, rows)]
        return self.batch_text(conds)

    def predict(self, z_t_BCHW: torch.Tensor, t_B: torch.Tensor, cond: dict[str, torch.Tensor], size_B6: torch.Tensor) -> torch.Tensor:
        self._take()
        more = {}
        if "pooled_BD" in cond:
            sizes_BE = self._embedder(size_B6.float().flatten()).view(len(size_B6), -1)
            more["y"] = torch.cat([cond["pooled_BD"].to(self.device), sizes_BE.to(self.device)], 1)
        return self.unet(z_t_BCHW.to(self.device).float(), t_B.to(self.device).float(), context=cond["hidden_BLD"].to(self.device),
                         transformer_options={}, **more).float()

    @contextmanager
    def borrow(self) -> Iterator[None]:
        with queue.held(), torch.inference_mode(False), ExitStack() as stack:
            self._check_base()
            unet = self.unet
            for prepared in (bare_objects(self.model), *self._prepared()):
                stack.enter_context(prepared)
            unet.eval()
            stack.callback(set_checkpointing, unet, False)
            set_checkpointing(unet, self._checkpointing)
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
            self._load()
        check_plain(self.unet, self.packed)
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
            return self._draw(request, *self._predicting())

    def offload_encoders(self) -> None:
        """The host moves what it needs room for by itself."""


def family_of(model: Any, packed: str) -> str:
    """"sd15", "sd2" or "sdxl". ValueError for no model, and for one that cannot be trained."""
    if getattr(model, "forge_objects_original", None) is None:
        raise ValueError(NO_CHECKPOINT)
    name = model.sd_checkpoint_info.name_for_extra
    if not (model.is_sd1 or model.is_sd2 or model.is_sdxl):
        raise ValueError(f"{name} is of a kind ({type(model).__name__}) that cannot be trained here; use one of SD 1.x, 2.x or XL")
    unet = model.forge_objects_original.unet.model.diffusion_model
    check_plain(unet, packed)
    if not hasattr(unet, "input_blocks"):
        raise ValueError(f"{name} has a denoiser ({type(unet).__name__}) that cannot be trained here; use one of SD 1.x, 2.x or XL")
    if unet.input_blocks[0][0].in_channels != 4:
        raise ValueError(INPAINTING.format(name))
    return "sd15" if model.is_sd1 else "sd2" if model.is_sd2 else "sdxl"
