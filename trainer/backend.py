"""The contract between the core and a backend: what a session needs to know about a host, and nothing more."""
from __future__ import annotations

from dataclasses import dataclass, field
from math import lcm
from typing import TYPE_CHECKING, Callable, ContextManager, Protocol

import torch
from PIL import Image
from torch import nn

if TYPE_CHECKING:
    from .objective import Prediction


@dataclass(frozen=True)
class SampleRequest:
    """Pictures to draw, one per prompt, with the live adapter applied.

    The starting noise of each picture is a function of its own seed alone and is drawn on the CPU, so a picture starts the
    same whatever it is batched with. `seeds` gives one seed per prompt; without it every prompt starts from `seed`, so that
    a grid compares prompts and weights and not noises. `guidance`, `width` and `height` (pixels) default to the base's own.
    `batch` pictures are drawn at once; None is the host's choice. A larger batch is faster, but rounds differently: on a CPU a
    picture is bit-identical whatever else is drawn only when it is drawn alone, so that is the choice there. `cancelled` is asked
    in every sampling step, in the thread that draws: once it says so, the drawing ends, with the pictures that are finished.
    """

    prompts: tuple[str, ...]
    negative: str = ""
    seed: int = 0
    steps: int = 25
    guidance: float | None = None
    width: int | None = None
    height: int | None = None
    seeds: tuple[int, ...] | None = None
    batch: int | None = None
    cancelled: Callable[[], bool] = field(default=lambda: False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompts", tuple(self.prompts))
        if self.seeds is not None:
            object.__setattr__(self, "seeds", tuple(self.seeds))
        if not self.prompts:
            raise ValueError("there is no prompt to draw; give at least one")
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; a picture needs at least 1 step, 20 to 30 are usual")
        if self.batch is not None and self.batch < 1:
            raise ValueError(f"batch is {self.batch}; at least 1 picture is drawn at once")
        if self.seeds is not None and len(self.seeds) != len(self.prompts):
            raise ValueError(f"{len(self.seeds)} seeds were given for {len(self.prompts)} prompts; give one seed per prompt")

    def seed_of(self, index: int) -> int:
        """The seed of picture `index`."""
        return self.seed if self.seeds is None else self.seeds[index]


class BaseChanged(ValueError):
    """The host holds another base now than the one that the run was made for; the message says which.

    What names the former base (`family`, `name`, `base_hash`, `file_hash`, `lora_key`) still answers, so that what was learned can be saved.
    """


class Backend(Protocol):
    """A base model as one host holds it. Latents are float32 and scaled, pixels lie in [-1, 1], channels come first."""

    family: str
    """"demo", "sd15", "sd2", "sdxl", ...: for metadata and defaults."""
    name: str
    """File or folder name of the base, without its suffix; empty where the host does not know it."""
    prediction: Prediction
    device: torch.device
    dtype: torch.dtype
    """Of the denoiser's weights."""
    resolution: int
    """Side of the square, in pixels, that the base was made for."""
    size_step: int
    """Sides of a picture must be multiples of this many pixels."""
    latent_channels: int
    latent_factor: int
    """Pixels along a side for each latent."""
    encoder_id: str
    """Changes with the weights or the scaling of the autoencoder; keys the latent cache."""
    text_id: str
    """Changes with the weights of the text encoders or the token limit; keys the text cache."""
    base_hash: str
    """Changes with the weights of the base, and with nothing that nodes or tags put on top of them."""
    file_hash: str
    """SHA-256 (hex) of the base's file or files; empty where the host has not taken it, as reading them once more takes seconds."""

    def encode_image(self, x_B3HW: torch.Tensor) -> torch.Tensor:
        """Pixels to scaled latents `(B, C, h, w)` in float32, the mean of the posterior, without a graph."""

    def encode_text(self, captions: list[str], grad: bool = False) -> dict[str, torch.Tensor]:
        """Everything the denoiser needs of the captions, batch first; with a graph through the adapters when `grad`."""

    def batch_text(self, rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """What `encode_text` gave for single captions, each without its batch dimension, as one batch.

        What a caption says must not depend on the others in its batch: the loss of a batch is that of its pictures one by one.
        """

    def token_count(self, caption: str) -> tuple[int, int]:
        """Tokens that the caption takes and tokens that fit, start and end marks included in both."""

    def components(self) -> dict[str, nn.Module]:
        """The host's own modules, not copies: `unet`, and `te` or `te1` and `te2`."""

    def predict(self, z_t_BCHW: torch.Tensor, t_B: torch.Tensor, cond: dict[str, torch.Tensor],
                size_B6: torch.Tensor) -> torch.Tensor:
        """The raw output of the denoiser, differentiable with respect to attached adapters.

        `t_B` is what the model calls a timestep; `size_B6` is (original height, width, crop top, left, target height, width).
        """

    def borrow(self) -> ContextManager[None]:
        """Make the base ready for training on enter; put everything back exactly as it was on exit.

        Raises BaseChanged on enter when the host has loaded another base since.
        """

    def lora_key(self, component: str, path: str) -> str:
        """Prefix of a layer's keys in a LoRA file, e.g. `lora_unet_mid_block_attentions_0_proj_in`."""

    def sample(self, request: SampleRequest) -> list[Image.Image]:
        """Draw pictures with the host's own sampler and whatever adapter is attached; fewer than asked for when it was cancelled."""

    def interrupted(self) -> bool:
        """Whether the user asked the host to stop."""

    def wanted(self) -> bool:
        """Whether somebody else waits for the host: a session leaves `borrow()` after the step then, and enters it again."""

    def set_checkpointing(self, on: bool) -> None:
        """Trade time for memory: compute activations again in the backward pass. For this `borrow()` and those that follow."""

    def offload_encoders(self) -> None:
        """Move the autoencoder and the text encoders out of the device's memory; they come back when used."""

    def offload_denoiser(self) -> bool:
        """Move the denoiser out of the device's memory until it is used next; False where only the host itself does so, or nobody."""

    def stream_weights(self, share: float) -> bool:
        """While the base is borrowed this share of the denoiser's weights lies in main memory and is copied for each use; 0 is none, which
        each `borrow` begins with. False where that cannot be had."""

    def host_needs(self) -> int:
        """Bytes of the device that the host wants to be left free for itself."""

    def free_memory(self) -> None:
        """Give unused memory of the device back."""


def stack_text(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Embeddings of single captions as one batch, for a backend whose captions are all of one length."""
    shapes = {key: {tuple(row[key].shape) for row in rows} for key in rows[0]}
    assert all(len(found) == 1 for found in shapes.values()), f"captions of different lengths need a batch_text of their own: {shapes}"
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


def repeat_text(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Embeddings of captions of different lengths as one batch: each `hidden_LD` is repeated until all are as long.

    Cross-attention gives the same for a text and for the same text repeated, as all weights are divided by the number of repeats.
    """
    length = lcm(*(row["hidden_BLD"].shape[0] for row in rows))
    return stack_text([{**row, "hidden_BLD": row["hidden_BLD"].repeat(length // row["hidden_BLD"].shape[0], 1)} for row in rows])
