"""Frozen layers of ComfyUI: its casts, its streamed weights and its patches, with a gradient for the input alone."""
from __future__ import annotations

from typing import Callable

import comfy.ops
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from ..frozen import FrozenForward, compute_dtype, conv2d_input, frozen_forward, has_plain_weight, is_conv2d, is_linear


class _HostLinear(torch.autograd.Function):
    """Asks the host for the weight in forward and again in backward: in between it may stream away or be overwritten."""

    @staticmethod
    def forward(ctx, x, module):
        ctx.module = module
        with comfy.ops.CastBiasWeightContext(module, x, offloadable=True) as (weight, bias):
            return F.linear(x, _dense(weight), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, gy):
        with comfy.ops.CastBiasWeightContext(ctx.module, gy, offloadable=True) as (weight, _):
            return gy.matmul(_dense(weight)), None


class _HostConv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, module):
        ctx.module, ctx.shape = module, x.shape
        with comfy.ops.CastBiasWeightContext(module, x, offloadable=True) as (weight, bias):
            return F.conv2d(x, weight, bias, module.stride, module.padding, module.dilation, module.groups)

    @staticmethod
    @once_differentiable
    def backward(ctx, gy):
        module = ctx.module
        with comfy.ops.CastBiasWeightContext(module, gy, offloadable=True) as (weight, _):
            return conv2d_input(ctx.shape, weight, gy, module.stride, module.padding, module.dilation, module.groups), None


def _dense(weight: torch.Tensor) -> torch.Tensor:
    return weight.dequantize() if hasattr(weight, "dequantize") and type(weight) not in (torch.Tensor, nn.Parameter) else weight


class HostForward:
    """The forward of a layer whose weight only the host can hand out: quantized, streamed, or patched at each call."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        x = x.to(compute_dtype(x))
        return _HostLinear.apply(x, self.module) if is_linear(self.module) else _HostConv2d.apply(x, self.module)


def comfy_forward(module: nn.Module) -> Callable | None:
    """The frozen forward of a layer in ComfyUI; None for a layer that is left as it is."""
    if not isinstance(module, comfy.ops.CastWeightBiasOp):
        return frozen_forward(module)
    if type(module).forward.__module__ != comfy.ops.__name__ or not (is_linear(module) or _is_usual_conv(module)):
        return None
    streamed = hasattr(module, "_v") or len(module.weight_function) or len(module.bias_function)
    return FrozenForward(module) if has_plain_weight(module) and not streamed else HostForward(module)


def _is_usual_conv(module: nn.Module) -> bool:
    return is_conv2d(module) and module.padding_mode == "zeros" and not isinstance(module.padding, str)
