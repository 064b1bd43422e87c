"""Starts and masks from the literature, for bench/quality.py alone: LoRA from one full gradient over the gallery, and T-LoRA's ranks by noise level.

None of them is in the product, because none of them helped enough (bench/QUALITY.md).
"""
from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from hotlora.trainer.adapter import LoRAForward
from hotlora.trainer.frozen import is_linear
from hotlora.trainer.lora_layer import LoRALayer
from hotlora.trainer.optimizers import EMA

PASSES = 8
"""Noise levels at which each picture is seen for the gradient."""


def full_gradients(session: Any) -> dict[str, torch.Tensor]:
    """Gradient of the run's own loss for the whole weight of each trained layer, `(out, in)` or `(out, in * kh * kw)`, by the layer's key: the mean over
    as many of the run's own steps as show each picture `PASSES` times. The adapter is still zero, so it is the base's."""
    modules = {key: session.backend.components()[key[0]].get_submodule(key[1]) for key in session.adapter.layers}
    sums: dict[Any, torch.Tensor] = {}
    hooks = [module.register_forward_hook(_collector(key, sums)) for key, module in modules.items()]
    order, steps = session.dataset.order, PASSES * session.dataset.order.steps_per_epoch
    try:
        with session.backend.borrow(), session.adapter.attached(session.backend.components()):
            for step in range(steps):
                session.step = step
                for batch in order.batches(step, session.config.batch_size):
                    (session._loss(batch) / order.group / steps).backward()
    finally:
        session.step = 0
        session.optimizer.zero_grad(set_to_none=True)
        for hook in hooks:
            hook.remove()
    return sums


def _restart_average(session: Any) -> None:
    if session.ema:
        session.ema = EMA(session.parameters, session.config.ema_decay)


def _collector(key: Any, sums: dict[Any, torch.Tensor]):
    def forward(module, inputs, output):
        x = inputs[0].detach()

        def backward(gy):
            if is_linear(module):
                g_OI = gy.reshape(-1, gy.shape[-1]).t() @ x.reshape(-1, x.shape[-1])
            else:
                g_OI = torch.nn.grad.conv2d_weight(x, module.weight.shape, gy, module.stride, module.padding, module.dilation).flatten(1)
            sums[key] = sums.get(key, 0) + g_OI
        if output.requires_grad:
            output.register_hook(backward)
    return forward


def aligned(session: Any) -> None:
    """LoRA-GA (2407.05000) without its offset of the base, which a LoRA file cannot hold: `down` spans the gradient's first right singular vectors, with
    the length that it has at random, and `up` stays zero."""
    for key, g_OI in full_gradients(session).items():
        layer = session.adapter.layers[key]
        v_RI = torch.linalg.svd(g_OI, full_matrices=False).Vh[:layer.rank]
        with torch.no_grad():
            layer.down[:len(v_RI)] = (v_RI * layer.down.flatten(1).norm(dim=1).mean()).view(-1, *layer.down.shape[1:])
    _restart_average(session)


def one_step(session: Any, gamma: float = 128.0) -> None:
    """LoRA-One (2502.01235, algorithm 1, without preconditioner): down and up are `(S / S_1)^(1/2)` of the gradient's first singular vectors on either side,
    over `sqrt(gamma)`, against the gradient."""
    for key, g_OI in full_gradients(session).items():
        layer = session.adapter.layers[key]
        u_OR, s_R, v_RI = torch.linalg.svd(g_OI, full_matrices=False)
        root_R = (s_R / s_R[0]).sqrt()[:layer.rank] / gamma ** 0.5
        n = len(root_R)
        with torch.no_grad():
            layer.down[:n] = (root_R[:, None] * v_RI[:n]).view(n, *layer.down.shape[1:])
            layer.up[:, :n] = (-u_OR[:, :n] * root_R).view(-1, n, *layer.up.shape[2:])
    _restart_average(session)


def masked_ranks(session: Any, least: float = 0.5) -> None:
    """T-LoRA (2507.05964, eq. 4): from the lowest to the highest noise level the ranks in use fall from all to `least` of them. Orthogonal start of `down`.
    Pictures are drawn with the same mask, as the paper does, so that no stock program can use such a file."""
    now: dict[str, torch.Tensor] = {}
    backend, levels = session.backend, len(session.objective.prediction.alphas_cumprod)
    predict = backend.predict

    def told(z_t, t, cond, size):
        now["share_B"] = 1 - (1 - least) * torch.as_tensor(t).float().reshape(-1) / levels
        return predict(z_t, t, cond, size)

    backend.predict = told
    for layer in session.adapter.layers.values():
        layer.__class__ = _Masked
        object.__setattr__(layer, "now", now)
        with torch.no_grad():
            down = layer.down.flatten(1)
            length = down.norm(dim=1).mean()
            torch.nn.init.orthogonal_(down, generator=torch.Generator().manual_seed(down.numel()))
            layer.down.copy_((down * length / down.norm(dim=1, keepdim=True)).view_as(layer.down))
    _restart_average(session)


class _Masked(LoRALayer):
    """A layer whose last ranks are off at high noise."""

    def fused(self, x, layer):
        return LoRAForward.base(layer.__dict__["forward"], x) + self.delta(x, layer)

    def _low_rank(self, x, layer, scale):
        share_B = self.now["share_B"]
        mask_BR = (torch.arange(self.rank) < (share_B * self.rank).round().clamp(min=1)[:, None]).to(x)
        if len(mask_BR) != len(x):
            mask_BR = mask_BR.repeat(len(x) // len(mask_BR), 1)
        if is_linear(layer):
            h = F.linear(x, self.down)
            return scale * F.linear(h * mask_BR.view(len(x), *[1] * (h.dim() - 2), self.rank), self.up)
        h = F.conv2d(x, self.down, None, layer.stride, layer.padding, layer.dilation)
        return F.conv2d(h * mask_BR[:, :, None, None], scale * self.up)
