"""Forward and backward through frozen layers, without copying their weights and without autograd saving them.

A host's weights can be inference tensors, which autograd refuses to save, or half or 8-bit floats, which autograd would keep
as a cast copy per layer until the backward pass. The operations here hold the weight outside of autograd and cast it again
in the backward pass. They also save no activation: with a frozen weight the gradient of the input needs none, while
autograd's own convolution keeps its input.
"""
from __future__ import annotations

from contextlib import contextmanager, nullcontext
from typing import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """The dtype of the active autocast on a kind of device; None when there is none."""
    try:
        return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else None
    except (AttributeError, TypeError):  # torch before 2.4 has one pair of functions per kind of device
        if device_type == "cuda":
            return torch.get_autocast_gpu_dtype() if torch.is_autocast_enabled() else None
        if device_type == "cpu":
            return torch.get_autocast_cpu_dtype() if torch.is_autocast_cpu_enabled() else None
        return None


def compute_dtype(x: torch.Tensor) -> torch.dtype:
    """The dtype in which a layer computes: autocast's where it is on (it leaves float64 alone), else that of `x`."""
    if x.dtype == torch.float64:
        return x.dtype
    return autocast_dtype(x.device.type) or x.dtype


def without_autocast(device_type: str):
    """A context in which autocast changes nothing: a backward pass computes in the dtypes that its forward chose."""
    return torch.autocast(device_type, enabled=False) if autocast_dtype(device_type) else nullcontext()


def safe_attention(x: torch.Tensor):
    """A context for torch's attention over `x`. On a CPU in bfloat16 the backward of torch 2.1's fast kernel writes beyond its memory as
    soon as there are two threads (2.2 and 2.3 do not), so the plain one is taken there."""
    if x.device.type == "cpu" and compute_dtype(x) == torch.bfloat16 and torch.__version__.startswith("2.1."):
        return torch.backends.cuda.sdp_kernel(enable_flash=False, enable_math=True, enable_mem_efficient=False)
    return nullcontext()


def alias(x: torch.Tensor) -> torch.Tensor:
    """A normal tensor over the same memory as `x`; `x` itself unless it is an inference tensor."""
    if not x.is_inference():
        return x
    return torch.empty(0, dtype=x.dtype, device=x.device).set_(x.untyped_storage(), x.storage_offset(), x.size(), x.stride())


def no_view(x: torch.Tensor) -> torch.Tensor:
    """`x` as the result of a custom operation: hosts add to it in place, which autograd refuses for a view, as a product with a bias is."""
    return torch.ops.aten._unsafe_view(x, x.shape) if x._is_view() else x


def cast(x: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor | None:
    """`x` in the dtype and on the device of `like`; no copy where it already is. A GPU copies from main memory when its work comes to it."""
    return None if x is None else x.to(device=like.device, dtype=like.dtype, non_blocking=like.is_cuda)


FEW_PIXELS, MANY_WEIGHTS = 64, 1 << 20


def conv2d_input(shape: torch.Size, weight: torch.Tensor, gy: torch.Tensor, stride=1, padding=0, dilation=1, groups: int = 1) -> torch.Tensor:
    """Gradient of a 2D convolution's input, as `torch.nn.grad.conv2d_input`.

    On a CPU, torch brings the weight into another layout at each call. Where there are few pixels and many weights, as in the deep
    levels of a UNet, that costs more than the convolution; there it is a product with the weight as it lies, folded back.
    """
    pixels = gy.shape[0] * gy.shape[2] * gy.shape[3]
    if gy.device.type != "cpu" or groups != 1 or pixels > FEW_PIXELS or weight.numel() < MANY_WEIGHTS:
        return nn.grad.conv2d_input(shape, weight, gy, stride, padding, dilation, groups)
    gy_ON = gy.transpose(0, 1).reshape(gy.shape[1], pixels)
    columns_KN = weight.flatten(1).t() @ gy_ON
    columns_BKL = columns_KN.view(-1, gy.shape[0], pixels // gy.shape[0]).transpose(0, 1)
    return F.fold(columns_BKL, shape[2:], weight.shape[2:], dilation, padding, stride)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, held):
        ctx.held = held
        return no_view(F.linear(x, cast(held[0], x), cast(held[1], x)))

    @staticmethod
    @once_differentiable
    def backward(ctx, gy):
        with without_autocast(gy.device.type):
            return gy.matmul(cast(ctx.held[0], gy)), None


class _Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, held, geometry):
        ctx.held, ctx.geometry, ctx.shape = held, geometry, x.shape
        return F.conv2d(x, cast(held[0], x), cast(held[1], x), *geometry)

    @staticmethod
    @once_differentiable
    def backward(ctx, gy):
        with without_autocast(gy.device.type):
            return conv2d_input(ctx.shape, cast(ctx.held[0], gy), gy, *ctx.geometry), None, None


# The weight travels in a tuple, in which autograd does not look: as an argument an inference tensor would be turned down.
def frozen_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`x W^T + b` for `x (..., in)`, `weight (out, in)`, `bias (out,)`, with a gradient for `x` alone.

    Computes in autocast's dtype where that is on, else in the dtype of `x`; the weight may have any floating dtype, on any
    device, and may be an inference tensor. It must not change between forward and backward.
    """
    return _Linear.apply(x.to(compute_dtype(x)), (weight, bias))


def frozen_conv2d(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, stride=1, padding=0, dilation=1,
                  groups: int = 1) -> torch.Tensor:
    """2D convolution of `x (B, in, H, W)` with `weight (out, in / groups, kh, kw)`; otherwise as `frozen_linear`.

    `padding` is in pixels: the names that torch knows ("same", "valid") are not taken.
    """
    assert not isinstance(padding, str), "frozen_conv2d takes its padding in pixels"
    return _Conv2d.apply(x.to(compute_dtype(x)), (weight, bias), (stride, padding, dilation, groups))


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer by what it has, not by its class: hosts bring classes of their own."""
    return hasattr(module, "weight") and hasattr(module, "in_features") and hasattr(module, "out_features")


def is_conv2d(module: nn.Module) -> bool:
    """Whether a module is a 2D convolution by what it has; `nn.ConvTranspose2d` is none."""
    return (hasattr(module, "weight") and hasattr(module, "in_channels") and hasattr(module, "out_channels")
            and len(getattr(module, "kernel_size", ())) == 2 and not getattr(module, "transposed", False))


def is_usual_conv2d(module: nn.Module) -> bool:
    """Whether a module is a 2D convolution with what `frozen_conv2d` knows of geometry."""
    return is_conv2d(module) and module.padding_mode == "zeros" and not isinstance(module.padding, str)


def has_plain_weight(module: nn.Module) -> bool:
    """Whether the weight is an ordinary floating tensor of the expected number of sides: not packed, quantized or absent."""
    weight = module.weight
    return (isinstance(weight, torch.Tensor) and type(weight) in (torch.Tensor, nn.Parameter) and weight.is_floating_point()
            and weight.dim() == (2 if is_linear(module) else 4))


class FrozenForward:
    """The frozen operation in place of a torch linear or convolution layer's forward; reads the layer's weight at each call."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def has_weight_at_hand(self, device: torch.device) -> bool:
        """Whether `module.weight` is what the layer computes with on `device`. A host's layer may have it elsewhere, now and then."""
        return True

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        module = self.module
        if is_linear(module):
            return frozen_linear(x, module.weight, module.bias)
        return frozen_conv2d(x, module.weight, module.bias, module.stride, module.padding, module.dilation, module.groups)

    @staticmethod
    def fits(module: nn.Module) -> bool:
        """Whether the layer computes what torch's own does. A forward that a host has replaced for one layer is respected."""
        if "forward" in module.__dict__:
            return False
        if type(module).forward is nn.Linear.forward:
            return has_plain_weight(module)
        return type(module).forward is nn.Conv2d.forward and has_plain_weight(module) and is_usual_conv2d(module)


class HalfNorm:
    """Forward of a norm whose weights are in half precision or on another device: computed in float32, given back in the dtype of its input."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        module = self.module
        weight, bias = (None if p is None else p.to(x.device, torch.float32) for p in (module.weight, module.bias))
        if isinstance(module, nn.GroupNorm):
            return F.group_norm(x.float(), module.num_groups, weight, bias, module.eps).to(x.dtype)
        return F.layer_norm(x.float(), module.normalized_shape, weight, bias, module.eps).to(x.dtype)


def frozen_forward(module: nn.Module) -> FrozenForward | None:
    """What `borrowed` puts over a layer: the frozen operation where the layer computes what torch's own does."""
    return FrozenForward(module) if FrozenForward.fits(module) else None


@contextmanager
def borrowed(module: nn.Module, forward_for: Callable[[nn.Module], Callable | None] = frozen_forward) -> Iterator[nn.Module]:
    """Make a frozen module usable with autograd; on exit every forward, parameter, buffer, flag and mode is what it was.

    Linear and convolution layers with torch's own forward go through the frozen operations. Parameters and buffers that are
    inference tensors are stood in for by aliases: same memory, nothing copied. `requires_grad` is off for all. Enter it
    outside of inference mode; nothing else may use or move the module meanwhile, and what is attached inside comes off
    before the exit. May be nested. `forward_for` chooses the forward of a layer, for hosts with layers of their own; None
    leaves it as it is.
    """
    assert not torch.is_inference_mode_enabled(), "borrow a module outside of inference mode"
    with frozen_forwards(module, forward_for), plain_tensors(module):
        yield module


@contextmanager
def frozen_forwards(module: nn.Module, forward_for: Callable[[nn.Module], Callable | None] = frozen_forward) -> Iterator[None]:
    """The forwards and modes of `borrowed`, without its tensors."""
    undo = []
    try:
        for part in module.modules():
            undo.append((setattr, part, "training", part.training))
            forward = None if "forward" in part.__dict__ else forward_for(part)
            if forward is not None:
                undo.append((lambda part, name, _: part.__dict__.pop(name, None), part, "forward", None))
                part.__dict__["forward"] = forward
        yield
    finally:
        _undo(undo)


@contextmanager
def plain_tensors(module: nn.Module, keep: Callable[[nn.Module], bool] = lambda part: False) -> Iterator[None]:
    """The tensors of `borrowed`, without its forwards. Those of parts for which `keep` is true are left as they are."""
    undo = []
    stand_ins: dict[int, torch.Tensor] = {}
    try:
        for part in module.modules():
            if not keep(part):
                _alias_tensors(part, stand_ins, undo)
        yield
    finally:
        _undo(undo)


def _undo(steps: list) -> None:
    for restore, owner, name, value in reversed(steps):
        restore(owner, name, value)


def _alias_tensors(part: nn.Module, stand_ins: dict[int, torch.Tensor], undo: list) -> None:
    for tensors in (part._parameters, part._buffers):
        for name, x in list(tensors.items()):
            if x is None:
                continue
            if x.is_inference() and type(x) in (torch.Tensor, nn.Parameter):
                undo.append((dict.__setitem__, tensors, name, x))
                if id(x) not in stand_ins:  # layers that share a weight go on sharing it
                    plain = alias(x)
                    stand_ins[id(x)] = nn.Parameter(plain, requires_grad=False) if isinstance(x, nn.Parameter) else plain
                tensors[name] = stand_ins[id(x)]
            elif x.requires_grad and not x.is_inference() and x.is_leaf:
                undo.append((setattr, x, "requires_grad", True))
                x.requires_grad_(False)
