"""One LoRA layer: its parameters, its formula, and its forward and backward as one operation.

LoRA (2106.09685): y = W x + b + s B A x, with s = alpha / rank, or alpha / sqrt(rank) for rsLoRA (2312.03732). LoCon is the
same for convolutions: A has the layer's kernel, B is 1x1. DoRA (2402.09353): W is replaced by m (W + s B A) / |W + s B A|,
the norm over each input's column (equation 5), and treated as a constant by the gradient (section 4.3). PEFT takes it over each output's
row instead; such files are read, and not made, as no host of ours works one out rightly.
"""
from __future__ import annotations

import hashlib
import math
from typing import Sequence

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from .frozen import alias, cast, compute_dtype, conv2d_input, frozen_conv2d, frozen_linear, has_plain_weight, is_linear, no_view, without_autocast


class _LoRALinear(torch.autograd.Function):
    """`x W^T + b + s (x A^T) B^T`, or the last term alone when `held` is None. Saves x and x A^T; W stays outside."""

    @staticmethod
    def forward(ctx, x, down, up, scale, held):
        x_NI = x.reshape(-1, x.shape[-1])
        h_NR = x_NI @ down.t()
        if held is None:
            y_NO = (h_NR @ up.t()).mul_(scale)
        else:
            # in the shape of x, as the layer itself computes it: a LoRA that is still zero then changes not one bit
            y_NO = F.linear(x, cast(held[0], x), cast(held[1], x)).view(-1, up.shape[0]).addmm_(h_NR, up.t(), alpha=scale)
        ctx.scale, ctx.held = scale, held
        ctx.save_for_backward(x, h_NR, down, up)
        return no_view(y_NO.view(*x.shape[:-1], up.shape[0]))

    @staticmethod
    @once_differentiable
    def backward(ctx, gy):
        x, h_NR, down, up = ctx.saved_tensors
        gx = g_down = g_up = None
        with without_autocast(gy.device.type):
            gy_NO = gy.reshape(-1, gy.shape[-1])
            gh_NR = (gy_NO @ up).mul_(ctx.scale)
            if ctx.needs_input_grad[1]:
                g_down = gh_NR.t() @ x.reshape(-1, x.shape[-1])
            if ctx.needs_input_grad[2]:
                g_up = (gy_NO.t() @ h_NR).mul_(ctx.scale)
            if ctx.needs_input_grad[0]:
                gx_NI = gh_NR @ down if ctx.held is None else (gy_NO @ cast(ctx.held[0], gy)).addmm_(gh_NR, down)
                gx = gx_NI.view(x.shape)
        return gx, g_down, g_up, None, None


class _LoRAConv2d(torch.autograd.Function):
    """The same for a convolution: `W * x + b + s B (A * x)`, B of 1x1. Saves x and A * x; W stays outside."""

    @staticmethod
    def forward(ctx, x, down, up, scale, held, geometry):
        h_BRHW = F.conv2d(x, down, None, *geometry)
        y_BOHW = F.conv2d(x, cast(held[0], x), cast(held[1], x), *geometry)
        if y_BOHW.is_contiguous():
            y_BOHW.flatten(2).baddbmm_(up.flatten(1).expand(len(x), -1, -1), h_BRHW.flatten(2), alpha=scale)
        else:  # channels last, as a host may have them
            y_BOHW.add_(F.conv2d(h_BRHW, up), alpha=scale)
        ctx.scale, ctx.held, ctx.geometry = scale, held, geometry
        ctx.save_for_backward(x, h_BRHW, down, up)
        return y_BOHW

    @staticmethod
    @once_differentiable
    def backward(ctx, gy_BOHW):
        x, h_BRHW, down, up = ctx.saved_tensors
        gx = g_down = g_up = None
        with without_autocast(gy_BOHW.device.type):
            gy_BON = gy_BOHW.flatten(2)
            gh_BRHW = (up.flatten(1).t() @ gy_BON).mul_(ctx.scale).view_as(h_BRHW)
            if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
                gx, g_down, _ = torch.ops.aten.convolution_backward(
                    gh_BRHW, x, down, None, *ctx.geometry, False, [0, 0], 1, (ctx.needs_input_grad[0], ctx.needs_input_grad[1], False))
            if ctx.needs_input_grad[0]:
                gx.add_(conv2d_input(x.shape, cast(ctx.held[0], gy_BOHW), gy_BOHW, *ctx.geometry))
            if ctx.needs_input_grad[2]:
                g_up = (gy_BON @ h_BRHW.flatten(2).transpose(1, 2)).sum(0).mul_(ctx.scale).view_as(up)
        return gx, g_down, g_up, None, None, None


def lora_linear(x: torch.Tensor, down: torch.Tensor, up: torch.Tensor, scale: float, weight: torch.Tensor | None = None,
                bias: torch.Tensor | None = None) -> torch.Tensor:
    """`x W^T + b + scale (x A^T) B^T` for `x (..., in)`, `down (rank, in)`, `up (out, rank)`, `weight (out, in)`.

    Without a weight, the LoRA term alone. Gradients for `x`, `down` and `up`. Dtypes as in `frozen_linear`.
    """
    x = alias(x.to(compute_dtype(x)))
    # cast here, where autograd sees it: the gradients come back in the parameters' own dtype
    return _LoRALinear.apply(x, cast(down, x), cast(up, x), scale, None if weight is None else (weight, bias))


def lora_conv2d(x: torch.Tensor, down: torch.Tensor, up: torch.Tensor, scale: float, weight: torch.Tensor, bias: torch.Tensor | None = None,
                stride=1, padding=0, dilation=1) -> torch.Tensor:
    """`W * x + b + scale B (A * x)` for `x (B, in, H, W)`, `down (rank, in, kh, kw)`, `up (out, rank, 1, 1)`, `weight (out, in, kh, kw)`.

    Gradients for `x`, `down` and `up`. Dtypes and padding as in `frozen_conv2d`.
    """
    x = alias(x.to(compute_dtype(x)))
    geometry = tuple([side] * 2 if isinstance(side, int) else list(side) for side in (stride, padding, dilation))
    return _LoRAConv2d.apply(x, cast(down, x), cast(up, x), scale, (weight, bias), geometry)


class LoRALayer(nn.Module):
    """The trained matrices of one layer, in float32.

    `down (rank, in)` and `up (out, rank)`; for a convolution `(rank, in, kh, kw)` and `(out, rank, 1, 1)`.
    `alpha` is in the sense of the LoRA file: the scale is alpha / rank. `dora_scale (1, in)`, or `(1, in, 1, 1)`, is DoRA's
    magnitude, `(out, 1)` or `(out, 1, 1, 1)` that of PEFT, and None without DoRA. `multiplier` weights the whole change, as in `<lora:name:multiplier>`.
    """

    def __init__(self, down: torch.Tensor, up: torch.Tensor, alpha: float, dora_scale: torch.Tensor | None = None,
                 dropout: float = 0.0) -> None:
        super().__init__()
        self.down = nn.Parameter(down.to(torch.float32, copy=True))
        self.up = nn.Parameter(up.to(torch.float32, copy=True))
        self.dora_scale = None if dora_scale is None else nn.Parameter(dora_scale.to(torch.float32, copy=True))
        self.rank = down.shape[0]
        self.alpha = float(alpha)
        self.dropout = dropout
        self.multiplier = 1.0

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def change(self) -> torch.Tensor:
        """`s B A` in the shape of the layer's weight, float32, without DoRA and multiplier."""
        return self.scale * (self.up.flatten(1) @ self.down.flatten(1)).view(self.up.shape[0], *self.down.shape[1:])

    def fused(self, x: torch.Tensor, layer: nn.Module) -> torch.Tensor:
        """Output of a plain `layer` with this LoRA, in one operation."""
        scale = self.multiplier * self.scale
        if is_linear(layer):
            return lora_linear(x, self.down, self.up, scale, layer.weight, layer.bias)
        geometry = layer.stride, layer.padding, layer.dilation
        return lora_conv2d(x, self.down, self.up, scale, layer.weight, layer.bias, *geometry)

    def delta(self, x: torch.Tensor, layer: nn.Module) -> torch.Tensor:
        """What this LoRA adds to the output of `layer` for the input `x`."""
        x = alias(x.to(compute_dtype(x)))
        if self.dora_scale is None:
            return self._low_rank(self._dropped(x), layer, self.multiplier * self.scale)
        gain = cast(self._gain(layer).view(-1, *[1] * (self.dora_scale.ndim - 2)), x)
        if self.dora_scale.shape[0] == 1:
            scaled = x * gain
            return self.multiplier * (self._bare(scaled - x, layer) + self._low_rank(self._dropped(scaled), layer, self.scale))
        return self.multiplier * ((gain - 1) * self._bare(x, layer) + gain * self._low_rank(self._dropped(x), layer, self.scale))

    def _dropped(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, self.dropout) if self.training and self.dropout else x

    def _bare(self, x: torch.Tensor, layer: nn.Module) -> torch.Tensor:
        """The layer without its bias."""
        if is_linear(layer):
            return frozen_linear(x, layer.weight)
        return frozen_conv2d(x, layer.weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)

    def _low_rank(self, x: torch.Tensor, layer: nn.Module, scale: float) -> torch.Tensor:
        if is_linear(layer):
            return lora_linear(x, self.down, self.up, scale)
        h = F.conv2d(x, cast(self.down, x), None, layer.stride, layer.padding, layer.dilation)
        return F.conv2d(h, cast(scale * self.up, x))

    def _gain(self, layer: nn.Module) -> torch.Tensor:
        """DoRA's `m / |W + s B A|`, in the shape of m."""
        with torch.no_grad():
            norm = norm_like(cast(layer.weight, self.up) + self.change(), self.dora_scale.shape)
        return self.dora_scale / norm


def norm_like(weight: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Length of a weight over the dimensions that are 1 in `shape`: `(1, in[, 1, 1])` is over each input's column, `(out, 1[, 1, 1])` each output's row."""
    return torch.linalg.vector_norm(weight, dim=[d for d, side in enumerate(shape) if side == 1], keepdim=True)


def new_layer(layer: nn.Module, rank: int, alpha: float, seed_text: str, rslora: bool = False, dora: bool = False,
              dropout: float = 0.0) -> LoRALayer:
    """A LoRA that changes nothing yet: `down` uniform in +-1/sqrt(fan-in) (Kaiming with a = sqrt 5, as nn.Linear), `up` zero.

    The start is a function of `seed_text` alone. With `rslora` the stored alpha is `alpha sqrt(rank)`, so that every reader
    of a LoRA file, which divides by the rank, gets the scale alpha / sqrt(rank). Raises ValueError for `dora` on a layer
    whose weight is quantized or absent.
    """
    if is_linear(layer):
        down_shape, up_shape = (rank, layer.in_features), (layer.out_features, rank)
    else:
        down_shape, up_shape = (rank, layer.in_channels, *layer.kernel_size), (layer.out_channels, rank, 1, 1)
    bound = 1 / math.sqrt(math.prod(down_shape[1:]))
    seed = int.from_bytes(hashlib.blake2b(seed_text.encode(), digest_size=8).digest(), "little") >> 1
    down = torch.empty(down_shape).uniform_(-bound, bound, generator=torch.Generator().manual_seed(seed))
    magnitude = None
    if dora:
        if not has_plain_weight(layer):
            raise ValueError(f"DoRA needs the numbers of the weights, and those of a {type(layer).__name__} are packed or absent; "
                             "turn dora off for this base")
        with torch.no_grad():
            magnitude = norm_like(layer.weight.detach().float(), (1, down_shape[1], *[1] * (len(down_shape) - 2)))
    made = LoRALayer(down, torch.zeros(up_shape), alpha * math.sqrt(rank) if rslora else alpha, magnitude, dropout)
    device = layer.weight.device if isinstance(layer.weight, torch.Tensor) else torch.device("cpu")
    return made.to(device)
