"""The backend without a host: Stable Diffusion 1.x, 2.x and XL, and the embedded base, through diffusers."""
from __future__ import annotations

import difflib
import gc
import hashlib
import logging
import traceback
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Iterator

import torch
from PIL import Image
from torch import nn

from ..backend import SampleRequest, stack_text
from ..checkpointing import set_checkpointing
from ..config import TrainConfig
from ..frozen import borrowed, frozen_forward, safe_attention
from ..lora_keys import UNetLayout, layout_of, ldm_path, text_path
from ..memory import is_out_of_memory
from ..objective import Prediction
from ..offloading import StreamedWeights
from ..paths import path_of
from ..precision import has_bf16
from .fingerprint import sha256_of
from .folder import load_folder
from .parts import Parts
from .sampling import draw
from .single_file import load_single_file

DEMO_DIR = Path(__file__).parent.parent / "demo" / "base"
ATTENTIONS = ("Attention", "CLIPAttention", "CLIPSdpaAttention")
"""Classes that call torch's attention; matched by name, as diffusers is not imported here."""
TILE = 512
"""Pixels along a side of what an autoencoder decodes at a time where memory is short."""
PICKLES = {".ckpt", ".pt", ".pth", ".bin", ".pkl"}
log = logging.getLogger(__name__)


def load_base(base_model: str, device: str = "auto", dtype: torch.dtype | str | None = None) -> StandaloneBackend:
    """Load a base: "demo" (the embedded one), a `.safetensors` file in the original layout, or a diffusers folder.

    `dtype` is that of the denoiser's and the text encoders' weights; None takes float32 on a CPU and Apple's MPS, and half
    precision on a GPU. Never uses the network. Raises ValueError, in one sentence, for whatever cannot be loaded.
    """
    chosen, path = pick_device(device), existing_base(base_model)
    weights = pick_dtype(dtype, chosen)
    parts = (load_folder if path.is_dir() else load_single_file)(path, chosen, weights)
    if base_model == "demo":
        parts.name = "demo"
    return StandaloneBackend(parts, chosen, weights)


def existing_base(base_model: str) -> Path:
    """The file or folder of a base; ValueError, before anything is read, when it is not there or of no kind that is loaded."""
    if base_model == "demo":
        if not (DEMO_DIR / "model_index.json").is_file():
            raise ValueError("the embedded base is missing; "
                             "get the whole repository, or make it with `python train.py train-base`")
        return DEMO_DIR
    path = path_of(base_model)
    if path.suffix.lower() in PICKLES:
        raise ValueError(f"{path} is a pickle, which can run any code when it is opened, and is not read; "
                         "use the .safetensors version of the model or convert it in a program that you trust")
    if not path.exists():
        raise ValueError(f"base_model {base_model} does not exist{_did_you_mean(path)}")
    if path.is_dir():
        if not (path / "model_index.json").is_file():
            raise ValueError(f"{path} is a folder without model_index.json, so it is no diffusers model{_holds(path)}")
    elif path.suffix.lower() != ".safetensors":
        raise ValueError(f"{path} is not a .safetensors file; base_model is \"demo\", a .safetensors file or a diffusers folder")
    return path


def base_of_run(config: TrainConfig, device: str | None = None) -> StandaloneBackend:
    """The base that a run's settings name, in float32 with `mixed_precision: no`; `device` instead of theirs where one is given."""
    return load_base(config.base_model, device or config.device, "no" if config.mixed_precision == "no" else None)


class StandaloneBackend:
    """A base in diffusers' modules; see `trainer.backend.Backend` for what each member means."""

    size_step = 64

    def __init__(self, parts: Parts, device: torch.device, dtype: torch.dtype) -> None:
        self.parts, self.device, self.dtype = parts, device, dtype
        self.family, self.name, self.resolution, self.scheduler = parts.family, parts.name, parts.resolution, parts.scheduler
        self.unet, self.vae = parts.unet, parts.vae
        self.latent_channels: int = self.vae.config["latent_channels"]
        self.latent_factor: int = 2 ** (len(self.vae.config["block_out_channels"]) - 1)
        self.default_guidance = 3.0 if self.family == "demo" else 7.0
        # On a CPU a larger batch rounds differently and wins little, so there pictures are drawn one by one.
        self.sample_batch = 1 if device.type == "cpu" else 4
        told = self.scheduler.config["prediction_type"]
        kind = {"epsilon": "eps", "v_prediction": "v"}.get(told)
        if kind is None:
            raise ValueError(f"{self.name} predicts {told!r}; only epsilon and v_prediction can be trained")
        self.prediction = Prediction(kind=kind, alphas_cumprod=self.scheduler.alphas_cumprod.detach().clone().float())
        self._checkpointing = self._borrowed = self._interrupted = self._warned_of_cut = self._denoiser_away = False
        self._streamed = StreamedWeights(self.unet, device)

    @cached_property
    def base_hash(self) -> str:
        return sha256_of(self.parts.files)

    @property
    def file_hash(self) -> str:
        return self.base_hash

    @cached_property
    def encoder_id(self) -> str:
        config = self.vae.config
        return _hash_of_weights([self.vae], config["scaling_factor"], config.get("shift_factor"))

    @cached_property
    def text_id(self) -> str:
        encoders = self.parts.text_encoders
        limits = [encoder.max_tokens for encoder in encoders]
        return _hash_of_weights([encoder.module for encoder in encoders], limits, self.dtype)

    @cached_property
    def _layout(self) -> UNetLayout:
        return layout_of(path for path, _ in self.unet.named_modules())

    @torch.no_grad()
    def encode_image(self, x_B3HW: torch.Tensor) -> torch.Tensor:
        self.vae.to(self.device)
        with _no_autocast(self.device):
            z_BCHW = self.vae.encode(x_B3HW.to(self.device, torch.float32)).latent_dist.mode()
        return (z_BCHW - self._shift) * self.vae.config["scaling_factor"]

    @torch.no_grad()
    def decode_image(self, z_BCHW: torch.Tensor) -> torch.Tensor:
        """Scaled latents to pixels `(B, 3, H, W)`, about [-1, 1]. Where they do not fit, what is not used meanwhile leaves the device, and
        then they are decoded tile by tile, with seams blended."""
        for make_room in (self.offload_texts, self._tile, self.offload_denoiser, None):
            try:
                return self._decode(z_BCHW)
            except Exception as error:
                if not is_out_of_memory(error) or make_room is None:
                    raise
                traceback.clear_frames(error.__traceback__)
            make_room()
            self.free_memory()
        raise AssertionError("the last try returns or raises")

    def _decode(self, z_BCHW: torch.Tensor) -> torch.Tensor:
        self.vae.to(self.device)
        with _no_autocast(self.device), self._tiling() if self._tiles else nullcontext():
            return self.vae.decode(z_BCHW.to(self.device, torch.float32) / self.vae.config["scaling_factor"] + self._shift).sample

    _tiles = False

    def _tile(self) -> None:
        """From now on: where it was needed once it will be needed again."""
        self._tiles = True
        log.warning("the memory is full: pictures are decoded tile by tile")

    @contextmanager
    def _tiling(self) -> Iterator[None]:
        sizes = {"tile_sample_min_size": TILE, "tile_latent_min_size": TILE // self.latent_factor}
        before = {name: getattr(self.vae, name) for name in sizes}
        self.vae.enable_tiling()
        try:
            for name, size in sizes.items():
                setattr(self.vae, name, size)
            yield
        finally:
            self.vae.disable_tiling()
            for name, size in before.items():
                setattr(self.vae, name, size)

    @property
    def _shift(self) -> float:
        return self.vae.config.get("shift_factor") or 0.0

    def encode_text(self, captions: list[str], grad: bool = False) -> dict[str, torch.Tensor]:
        self._warn_of_cut(captions)
        hidden, pooled = [], None
        with nullcontext() if grad else torch.no_grad():
            for encoder in self.parts.text_encoders:
                encoder.module.to(self.device)
                hidden_BLD, pooled = encoder(list(captions))
                hidden.append(hidden_BLD)
        cond = {"hidden_BLD": torch.cat(hidden, dim=-1)}
        return cond if pooled is None else {**cond, "pooled_BD": pooled}

    def batch_text(self, rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        return stack_text(rows)

    def token_count(self, caption: str) -> tuple[int, int]:
        encoder = self.parts.text_encoders[0]
        return encoder.count(caption), encoder.max_tokens

    def _warn_of_cut(self, captions: list[str]) -> None:
        if self._warned_of_cut:
            return
        for caption in captions:
            count, limit = self.token_count(caption)
            if count > limit:
                self._warned_of_cut = True
                log.warning("a caption of %d tokens is cut off after %d, others may be too: %.60s...", count, limit, caption)
                return

    def components(self) -> dict[str, nn.Module]:
        encoders = [encoder.module for encoder in self.parts.text_encoders]
        names = ["te"] if len(encoders) == 1 else ["te1", "te2"]
        return {"unet": self.unet, **dict(zip(names, encoders))}

    def predict(self, z_t_BCHW: torch.Tensor, t_B: torch.Tensor, cond: dict[str, torch.Tensor],
                size_B6: torch.Tensor) -> torch.Tensor:
        added = {}
        if self._denoiser_away:
            self._streamed.load()
            self._denoiser_away = False
        if "pooled_BD" in cond:
            # Sizes stay in float32: bfloat16 has no odd numbers above 256.
            added["added_cond_kwargs"] = {"text_embeds": cond["pooled_BD"].to(self.device, self.dtype),
                                          "time_ids": size_B6.to(self.device, torch.float32)}
        out_BCHW = self.unet(z_t_BCHW.to(self.device, self.dtype), t_B.to(self.device),
                             encoder_hidden_states=cond["hidden_BLD"].to(self.device, self.dtype), **added).sample
        return out_BCHW.float()

    @contextmanager
    def borrow(self) -> Iterator[None]:
        modules = self.components().values()
        with ExitStack() as stack:
            for module in modules:
                stack.enter_context(borrowed(module, _forward_for))
                module.eval()
            self._borrowed = True
            try:
                self._apply_checkpointing(self._checkpointing)
                yield
            finally:
                self._apply_checkpointing(False)
                self._borrowed = False
                self._end_streaming()

    def set_checkpointing(self, on: bool) -> None:
        self._checkpointing = on
        if self._borrowed:
            self._apply_checkpointing(on)

    def _apply_checkpointing(self, on: bool) -> None:
        for module in self.components().values():
            set_checkpointing(module, on)

    def lora_key(self, component: str, path: str) -> str:
        """As kohya's sd-scripts names them: an SDXL denoiser in the original spelling, others in that of diffusers."""
        if component != "unet":
            path = text_path(path)
        elif self.family == "sdxl":
            path = ldm_path(path, self._layout)
        return f"lora_{component}_{path.replace('.', '_')}"

    def sample(self, request: SampleRequest) -> list[Image.Image]:
        try:
            return draw(self, request)
        except Exception as error:
            if not is_out_of_memory(error) or self.device.type == "cpu":
                raise
            traceback.clear_frames(error.__traceback__)
        self.free_memory()
        return draw(self, request, sparing=True)

    def interrupt(self) -> None:
        """What a signal handler calls; nothing else stops a run here, as there is no host with a button."""
        self._interrupted = True

    def interrupted(self) -> bool:
        return self._interrupted

    def wanted(self) -> bool:
        return False

    def offload_encoders(self) -> None:
        for module in (self.vae, *(encoder.module for encoder in self.parts.text_encoders)):
            module.to("cpu")
        self.free_memory()

    def offload_texts(self) -> None:
        for encoder in self.parts.text_encoders:
            encoder.module.to("cpu")

    def offload_denoiser(self) -> bool:
        if self.device.type == "cpu" or self._denoiser_away:
            return False
        self.unet.to("cpu")
        self._denoiser_away = True
        self.free_memory()
        return True

    def stream_weights(self, share: float) -> bool:
        if self.device.type == "cpu" or not self._borrowed:
            return False
        self._is_streaming = self._streamed.send(share) > 0
        return self._is_streaming

    _is_streaming = False

    def _end_streaming(self) -> None:
        """The weights go back to the device; where it has no room for them, they go there when they are used next."""
        if self._is_streaming:
            self._is_streaming = False
            self.free_memory()
            try:
                self._streamed.bring_back()
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                self.offload_denoiser()

    def host_needs(self) -> int:
        return 0

    def free_memory(self) -> None:
        gc.collect()
        if self.device.type in ("cuda", "xpu", "mps"):
            getattr(torch, self.device.type).empty_cache()


class _SafeAttention:
    """Forward of an attention of diffusers or transformers."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, *args, **kwargs):
        with safe_attention(args[0] if args else kwargs["hidden_states"]):
            return type(self.module).forward(self.module, *args, **kwargs)


def _forward_for(module: nn.Module):
    return _SafeAttention(module) if type(module).__name__ in ATTENTIONS else frozen_forward(module)


def pick_device(name: str) -> torch.device:
    """A device by torch's own name; "auto" takes the first of cuda (NVIDIA and ROCm), xpu, mps and cpu that is there."""
    present = {"cuda": torch.cuda.is_available(), "xpu": hasattr(torch, "xpu") and torch.xpu.is_available(),
               "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, there in present.items() if there))
    kind = name.split(":")[0]
    if not present.get(kind):
        raise ValueError(f"device {name!r} is not available to this torch ({torch.__version__}); "
                         f"use auto or one of {', '.join(k for k, there in present.items() if there)}")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device {name!r} is not a device name of torch; use auto, {kind} or {kind}:0") from error


def pick_dtype(name: torch.dtype | str | None, device: torch.device) -> torch.dtype:
    names = {"fp32": torch.float32, "no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    if isinstance(name, torch.dtype):
        return name
    if name in names:
        return names[name]
    if name not in (None, "auto"):
        raise ValueError(f"dtype {name!r} is unknown; use auto, {', '.join(names)}")
    if device.type == "cuda":
        return torch.bfloat16 if has_bf16(device) else torch.float16
    return torch.bfloat16 if device.type == "xpu" else torch.float32


def _no_autocast(device: torch.device):
    """The autoencoder stays in float32 even when a session draws or encodes under autocast."""
    return torch.autocast(device.type, enabled=False) if device.type in ("cuda", "cpu", "xpu") else nullcontext()


def _did_you_mean(path: Path) -> str:
    if not path.parent.is_dir():
        return f"; there is no folder {path.parent} either"
    names = [entry.name for entry in path.parent.iterdir() if entry.is_dir() or entry.suffix.lower() == ".safetensors"]
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(str(path.parent / n) for n in near)}?" if near else "; give \"demo\", a file or a folder"


def _holds(folder: Path) -> str:
    files = sorted(folder.glob("*.safetensors"))
    return f"; did you mean {files[0]}?" if files else "; give a .safetensors file or a folder that has one"


def _hash_of_weights(modules: list[nn.Module], *settings: object) -> str:
    digest = hashlib.sha256(repr(settings).encode())
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:32]
