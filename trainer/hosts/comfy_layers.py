"""Frozen layers of ComfyUI: its casts, its streamed weights and its patches, with a gradient for the input alone.

ComfyUI hands a weight out for one use. In its low memory modes it lies on another device and is copied into a buffer that the
next layer overwrites, with the LoRAs of nodes upstream added on the way; a quantized weight is unpacked. Autograd must not keep
what was handed out: each operation here asks for it in forward and again in backward. How a layer's weight is held can change
whenever ComfyUI moves models, so that is looked at in each call.
"""
from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Callable, Iterator

import comfy.ops
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from ..frozen import FrozenForward, compute_dtype, conv2d_input, frozen_forward, has_plain_weight, is_linear, is_usual_conv2d, no_view


@contextmanager
def handed_out(module: nn.Module, like: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
    """Weight and bias in the dtype and on the device of `like`, patches applied; not to be kept.

    The host's buffers are inference tensors once it has drawn a picture, and may be written to in inference mode alone.
    """
    with torch.inference_mode():
        weight, bias, lent = comfy.ops.cast_bias_weight(module, like, offloadable=True)
    try:
        with torch.inference_mode():
            plain = weight.dequantize() if _is_packed(weight) else weight
        yield plain, bias
    finally:
        comfy.ops.uncast_bias_weight(module, weight, bias, lent)


def _is_packed(weight: Any) -> bool:
    return hasattr(weight, "dequantize") and type(weight) not in (torch.Tensor, nn.Parameter)


class _HostLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, module):
        ctx.module = module
        with handed_out(module, x) as (weight, bias):
            return no_view(F.linear(x, weight, bias))

    @staticmethod
    @once_differentiable
    def backward(ctx, gy):
        with handed_out(ctx.module, gy) as (weight, _):
            return gy.matmul(weight), None


class _HostConv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, module):
        ctx.module, ctx.shape = module, x.shape
        with handed_out(module, x) as (weight, bias):
            return F.conv2d(x, weight, bias, module.stride, module.padding, module.dilation, module.groups)

    @staticmethod
    @once_differentiable
    def backward(ctx, gy):
        module = ctx.module
        with handed_out(module, gy) as (weight, _):
            return conv2d_input(ctx.shape, weight, gy, module.stride, module.padding, module.dilation, module.groups), None


class _HostAffine(torch.autograd.Function):
    """Weight and bias of a norm, applied to what is normalised already: `shape` is theirs, made to fit `x`."""

    @staticmethod
    def forward(ctx, x, module, shape):
        ctx.module, ctx.shape = module, shape
        with handed_out(module, x) as (weight, bias):
            y = x * weight.view(shape)
            return y if bias is None else y.add_(bias.view(shape))

    @staticmethod
    @once_differentiable
    def backward(ctx, gy):
        with handed_out(ctx.module, gy) as (weight, _):
            return gy * weight.view(ctx.shape), None, None


def is_lent(module: nn.Module, device: torch.device | None = None) -> bool:
    """Whether only the host can hand this layer's weight out: it is packed, patched at each use, or not on the device."""
    if hasattr(module, "_v") or len(module.weight_function) or len(module.bias_function):
        return True
    weight = module.weight
    return weight is not None and (_is_packed(weight) or weight.is_meta or device is not None and weight.device != device)


class HostForward(FrozenForward):
    """Forward of a linear or convolution layer: the frozen operation where the weight lies ready, else with what the host hands out."""

    def has_weight_at_hand(self, device: torch.device) -> bool:
        return not is_lent(self.module, device) and has_plain_weight(self.module)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self.has_weight_at_hand(x.device):
            return super().__call__(x)
        x = x.to(compute_dtype(x))
        return _HostLinear.apply(x, self.module) if is_linear(self.module) else _HostConv2d.apply(x, self.module)


class HostNorm:
    """Forward of a norm: the host's own where weight and bias lie ready, else normalised here and scaled by what the host hands out."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        module = self.module
        if module.weight is None or not torch.is_grad_enabled() or not (is_lent(module, x.device) or module.weight.is_inference()):
            return type(module).forward(module, x)
        if isinstance(module, nn.GroupNorm):
            return _HostAffine.apply(F.group_norm(x, module.num_groups, None, None, module.eps), module, (-1, *[1] * (x.dim() - 2)))
        if isinstance(module, nn.LayerNorm):
            return _HostAffine.apply(F.layer_norm(x, module.normalized_shape, None, None, module.eps), module, module.normalized_shape)
        return _HostAffine.apply(F.rms_norm(x, module.normalized_shape, None, module.eps), module, module.normalized_shape)


NORMS = (nn.GroupNorm, nn.LayerNorm, *([nn.RMSNorm] if hasattr(nn, "RMSNorm") else []))


def comfy_forward(module: nn.Module) -> Callable | None:
    """What is put over a layer of ComfyUI while it is trained; None for a layer that is left as it is."""
    if not isinstance(module, comfy.ops.CastWeightBiasOp):
        return frozen_forward(module)
    if type(module).forward.__module__ != comfy.ops.__name__:
        return None
    if is_linear(module) or is_usual_conv2d(module):
        return HostForward(module)
    return HostNorm(module) if isinstance(module, NORMS) else None


def keeps_its_tensors(module: nn.Module) -> bool:
    """Whether this layer's own tensors stay in place: autograd never meets them, and a stand-in would lack the host's notes on them."""
    return isinstance(module, comfy.ops.CastWeightBiasOp) and getattr(module, "weight", None) is not None and is_lent(module)


def check_trainable(model: nn.Module, device: torch.device | None = None) -> None:
    """ValueError for a model with a layer whose gradient would be wrong; with `device` for one that is loaded."""
    for path, module in model.named_modules():
        if not isinstance(module, comfy.ops.CastWeightBiasOp) or getattr(module, "weight", None) is None:
            continue
        if getattr(module, "pre_quant_scale", None) is not None:
            raise ValueError(f"the layer {path} is quantized with smoothing (pre_quant_scale), which cannot be trained; use another version of this model")
        if is_lent(module, device) and not isinstance(module, nn.Embedding) and comfy_forward(module) is None:
            raise ValueError(f"the layer {path} ({type(module).__name__}) is quantized or streamed from memory, which training cannot do for this kind "
                             "of layer; start ComfyUI without --lowvram and --novram, or use another version of this model")
