"""What a checkpoint that stable-diffusion-webui or one of its forks holds has in common, seen as a backend."""
from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import Any, Iterator

import torch
from modules import devices, sd_hijack, sd_models, shared
from PIL import Image
from torch import nn

from .webui_drawing import draw
from .webui_queue import queue
from ..backend import BaseChanged, SampleRequest, repeat_text
from ..checkpointing import set_checkpointing
from ..lora_keys import diffusers_path, layout_of
from ..objective import Prediction

NO_CHECKPOINT = "no checkpoint is loaded; choose one at the top left of the webui"
INPAINTING = "{} is made for inpainting, depth or editing, and its denoiser takes more than a picture; use the base that it was made from"
REFINER = "{} is an SDXL refiner; train on the SDXL base"


class WebuiModel:
    """The part of a `trainer.backend.Backend` that is the same in these hosts. The model object is looked up anew each time: the host may
    have loaded the same file again."""

    size_step = 64
    latent_factor = 8
    _borrowed = _checkpointing = False

    def __init__(self, family: str, kind: str, alphas_cumprod_T: torch.Tensor, dtype: torch.dtype) -> None:
        info = self.model.sd_checkpoint_info
        self.family, self.dtype = family, dtype
        self.name, self._file = info.name_for_extra, (info.filename, info.sha256)
        self.device: torch.device = torch.device(devices.device)
        self.prediction = Prediction(kind, alphas_cumprod_T.detach().float().cpu().clone())
        self.resolution = {"sd15": 512, "sd2": 768 if kind == "v" else 512, "sdxl": 1024}[family]
        self.latent_channels = 4
        self.default_guidance = 7.0
        self.file_hash: str = info.sha256 or ""
        self._layout = layout_of(path for path, _ in self.unet.named_modules())

    @property
    def model(self) -> Any:
        return sd_models.model_data.sd_model

    @property
    def unet(self) -> nn.Module:
        raise NotImplementedError

    def batch_text(self, rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """The host itself fills up shorter texts with empty ones, which changes what they say; a picture is drawn with one text alone."""
        return repeat_text(rows)

    def components(self) -> dict[str, nn.Module]:
        return {"unet": self.unet}

    def _check_base(self) -> None:
        info = getattr(self.model, "sd_checkpoint_info", None)
        if info is None:
            raise BaseChanged(f"the webui holds no checkpoint any more, and this run trains on {self.name}; choose it again, then resume")
        if (info.filename, info.sha256) != self._file:
            raise BaseChanged(f"the webui has loaded {info.name_for_extra}, and this run trains on {self.name}; choose that one again, then resume")

    def set_checkpointing(self, on: bool) -> None:
        self._checkpointing = on
        if self._borrowed:
            set_checkpointing(self.unet, on)

    def lora_key(self, component: str, path: str) -> str:
        """As kohya's sd-scripts names them: SD 1.x and 2.x in diffusers' spelling, SDXL in the model's own."""
        if self.family != "sdxl":
            path = diffusers_path(path, self._layout)
        return f"lora_{component}_{path.replace('.', '_')}"

    def _draw(self, request: SampleRequest, *prediction: Any) -> list[Image.Image]:
        """The pictures by the host's own sampler (Euler); prompts are what one types in txt2img, without tags. `prediction` as `draw` takes it."""
        guidance = self.default_guidance if request.guidance is None else request.guidance
        size = request.width or self.resolution, request.height or self.resolution
        pictures = [draw(self.model, request, i, guidance, *size, self.latent_channels, prediction)
                    for i in range(len(request.prompts)) if not request.cancelled()]
        return [picture for picture in pictures if picture is not None]

    def interrupted(self) -> bool:
        """The webui's Interrupt button is about the picture being drawn; a run is stopped on HotLoRA's own page."""
        return False

    def wanted(self) -> bool:
        return queue.wanted()

    def offload_denoiser(self) -> bool:
        """The host does so by itself where it is told to: with --medvram, and Forge always."""
        return False

    def stream_weights(self, share: float) -> bool:
        """The host's ways for it can only be chosen by the user: --lowvram when it starts, and Forge's "GPU Weights"."""
        return False

    def host_needs(self) -> int:
        """A picture is drawn while a run waits, when what a step takes is free again."""
        return 0

    def free_memory(self) -> None:
        devices.torch_gc()


def count_tokens(caption: str) -> tuple[int, int]:
    """Tokens of a caption with start and end marks, and as many that fit: long ones are encoded in pieces."""
    with plain_captions():
        count = sd_hijack.model_hijack.get_prompt_lengths(caption)[0] + 2
    return count, count


def user_embeddings() -> list[tuple[str, str]]:
    """Names and hashes of the user's own embeddings, which change what a text becomes."""
    return sorted((name, str(embedding.shorthash)) for name, embedding in sd_hijack.model_hijack.embedding_db.word_embeddings.items())


@contextmanager
def plain_captions() -> Iterator[None]:
    """Captions are texts: parentheses are parentheses, and no word is a command."""
    with ExitStack() as stack:
        for name, value in (("emphasis", "None"), ("enable_emphasis", False)):
            if name in getattr(shared.opts, "data_labels", {}):
                had, before = name in shared.opts.data, shared.opts.data.get(name)
                stack.callback(shared.opts.data.__setitem__ if had else lambda key, _: shared.opts.data.pop(key, None), name, before)
                shared.opts.data[name] = value
        yield
