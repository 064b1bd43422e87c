"""What the model learns: noise levels, noisy latents, targets, loss weights. Each small function cites its paper.

Symbols: z0 clean latents, a(t) = alphas_cumprod[t], SNR(t) = a / (1 - a). Timesteps of eps and v models are whole numbers
0 to T - 1; those of flow models are sigmas between 0 (clean) and 1 (pure noise).
"""
from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from . import randomness

if TYPE_CHECKING:
    from .config import TrainConfig

log = logging.getLogger(__name__)
LEVELS = 1000
"""min_timestep and max_timestep count in this many levels, and flow models are told sigma times this."""
SMALLEST_SIGMA = 1e-5


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a base predicts ("eps", "v" or "flow") and, for eps and v, its noise schedule `alphas_cumprod` `(T,)`."""

    kind: str
    alphas_cumprod: Tensor | None = None

    def __post_init__(self) -> None:
        assert self.kind in ("eps", "v", "flow"), self.kind
        if self.kind == "flow":
            assert self.alphas_cumprod is None, "a flow model needs no table: its noise levels are the sigmas themselves"
        else:
            a_T = self.alphas_cumprod
            assert a_T is not None and a_T.ndim == 1, "eps and v need alphas_cumprod of shape (T,)"
            assert bool(((a_T >= 0) & (a_T <= 1)).all()), "alphas_cumprod must lie in [0, 1]"


def zero_terminal_snr(prediction: Prediction) -> Prediction:
    """The schedule shifted and scaled so that the last timestep is pure noise (2305.08891, algorithm 1).

    Raises ValueError for any base that is not v-prediction.
    """
    if prediction.kind == "flow":
        raise ValueError("zero_terminal_snr is true, but this base is a flow model and goes up to pure noise anyway; remove it")
    if prediction.kind == "eps":
        raise ValueError("zero_terminal_snr is true, but this base predicts the noise (eps), and in pure noise that is the input "
                         "itself, so there is nothing to learn; remove it or use a v-prediction base")
    root_T = prediction.alphas_cumprod.double().sqrt()
    first, last = root_T[0].clone(), root_T[-1].clone()
    root_T = (root_T - last) * first / (first - last)
    return Prediction("v", (root_T**2).to(prediction.alphas_cumprod.dtype))


def prediction_of_run(config: TrainConfig, prediction: Prediction) -> Prediction:
    """The base's prediction as the settings want it. ValueError for settings that do not fit the base, and a base that cannot be trained."""
    if config.zero_terminal_snr:
        prediction = zero_terminal_snr(prediction)
    if prediction.kind == "eps" and prediction.alphas_cumprod.min() == 0:
        raise ValueError("this base predicts the noise (eps), but its schedule ends in pure noise, where that teaches "
                         "nothing; use it as a v-prediction base if it is one")
    return prediction


def logit_normal_cdf(sigma: float) -> float:
    """Share of logit-normal noise levels (location 0, scale 1) below `sigma` in [0, 1]."""
    return float(torch.special.ndtr(torch.special.logit(torch.tensor(sigma, dtype=torch.float64))))


def logit_normal(u_B: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Uniform numbers in [0, 1) to logit-normal ones between `low` and `high` (2403.03206, eq. 19 with m = 0, s = 1).

    By the inverse of the distribution function; with bounds it is the distribution cut off there.
    """
    share_low, share_high = logit_normal_cdf(low), logit_normal_cdf(high)
    return torch.sigmoid(torch.special.ndtri(share_low + u_B.double() * (share_high - share_low)))


def min_snr_weight(a_B: Tensor, gamma: float, kind: str) -> Tensor:
    """min(SNR, gamma) as the weight of the error in z0 (2303.09556), stated for the loss in eps or in v.

    eps: min(SNR, gamma) / SNR; v: min(SNR, gamma) / (SNR + 1). Both are written without a division by zero: at zero SNR the v
    weight is 0, so pure noise is not trained; set min_snr_gamma to 0 (off) to train it.
    """
    if kind == "eps":
        return torch.clamp(gamma * (1 - a_B) / a_B, max=1.0)
    return torch.minimum(a_B, gamma * (1 - a_B))


def debiased_weight(a_B: Tensor, kind: str) -> Tensor:
    """Debiased estimation: weight 1 / sqrt(SNR) on the loss in eps (2310.08442, eq. 10).

    The v loss is (SNR + 1) / SNR times the eps loss, so the same weighting is sqrt(SNR) / (SNR + 1) = sqrt(a (1 - a)) there,
    which is 0 and not infinite at zero SNR.
    """
    if kind == "eps":
        return torch.sqrt((1 - a_B) / a_B)
    return torch.sqrt(a_B * (1 - a_B))


def elementwise_loss(out: Tensor, target: Tensor, loss_type: str, huber_delta: float) -> Tensor:
    """Squared error, or Huber's loss (Huber 1964) scaled to equal it for errors up to `huber_delta`. Always float32."""
    if loss_type == "huber":
        return 2 * F.huber_loss(out.float(), target.float(), reduction="none", delta=huber_delta)
    return F.mse_loss(out.float(), target.float(), reduction="none")


def mean_inside(error_BCHW: Tensor, mask_B1HW: Tensor | None) -> Tensor:
    """Mean per sample `(B,)`, over the masked-in part alone; mask values 0 to 1.

    A part smaller than one latent pixel counts as one pixel, so an empty mask gives 0 and not NaN.
    """
    if mask_B1HW is None:
        return error_BCHW.flatten(1).mean(1)
    mask_B1HW = mask_B1HW.to(error_BCHW)
    return (error_BCHW.mean(1, keepdim=True) * mask_B1HW).flatten(1).sum(1) / mask_B1HW.flatten(1).sum(1).clamp(min=1)


class Objective:
    """The loss of one run, from the user's settings and the base's `Prediction`.

    `debiased` replaces min-SNR: the two are rival weights, min_snr_gamma has a default, and who sets debiased means it.
    A flow model gets no weight (its timestep sampling does that work), so both are without effect there.
    Timesteps may stay on the CPU while latents are on a device, which spares the device a wait in each step.
    Raises ValueError for settings that do not fit the base.
    """

    def __init__(self, config: TrainConfig, prediction: Prediction) -> None:
        prediction = prediction_of_run(config, prediction)
        if prediction.kind == "flow" and config.debiased:
            log.warning("debiased has no effect: this base is a flow model, which weights by how often a noise level is drawn")
        self.config = config
        self.prediction = prediction
        sampling = config.timestep_sampling
        self.sampling = ("logit_normal" if prediction.kind == "flow" else "uniform") if sampling == "auto" else sampling

    def timesteps(self, u_B: Tensor) -> Tensor:
        """Timesteps for numbers `u_B` uniform in [0, 1): int64 in [min_timestep, max_timestep), or float32 sigmas in (0, 1)."""
        low, high = self.config.min_timestep / LEVELS, self.config.max_timestep / LEVELS
        level_B = logit_normal(u_B, low, high) if self.sampling == "logit_normal" else low + u_B.double() * (high - low)
        if self.prediction.kind == "flow":
            return level_B.clamp(SMALLEST_SIGMA, 1 - SMALLEST_SIGMA).float()
        count = len(self.prediction.alphas_cumprod)
        # Rounding may carry a number over the edge of the range; the small shift keeps whole products whole (0.29 * 1000).
        first, last = int(low * count + 1e-6), max(int(low * count + 1e-6), int(high * count + 1e-6) - 1)
        return (level_B * count + 1e-9).long().clamp(first, last)

    def model_timestep(self, t_B: Tensor) -> Tensor:
        """What the model is told: the timestep itself, or 1000 times sigma for flow."""
        return t_B * LEVELS if self.prediction.kind == "flow" else t_B

    def noise(self, z_shape: Sequence[int], seed: int, step: int, samples: Sequence[int]) -> Tensor:
        """Noise for latents of shape `z_shape` `(B, C, H, W)`, float32 on the CPU; row j depends on `samples[j]` alone.

        noise_offset adds one normal number per channel (Guttenberg 2023, "Diffusion with offset noise"); it is part of the
        noise everywhere, so also of the target.
        """
        assert len(z_shape) == 4 and z_shape[0] == len(samples), f"{len(samples)} samples for latents of shape {tuple(z_shape)}"
        noise_BCHW = torch.stack([randomness.noise(z_shape[1:], seed, step, sample) for sample in samples])
        if self.config.noise_offset:
            offset_BC11 = torch.stack([randomness.noise((z_shape[1], 1, 1), seed, step, sample, "noise offset")
                                       for sample in samples])
            noise_BCHW += self.config.noise_offset * offset_BC11
        return noise_BCHW

    def noisy(self, z0_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """z_t = sqrt(a) z0 + sqrt(1 - a) noise (2006.11239, eq. 4); flow: (1 - sigma) z0 + sigma noise (2209.03003, eq. 1)."""
        signal_B111, noise_B111 = self._rates(t_B, z0_BCHW.device)
        return signal_B111 * z0_BCHW + noise_B111 * noise_BCHW

    def target(self, z0_BCHW: Tensor, noise_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """eps: the noise (2006.11239); v: sqrt(a) noise - sqrt(1 - a) z0 (2202.00512); flow: noise - z0 (2209.03003)."""
        if self.prediction.kind == "eps":
            return noise_BCHW
        if self.prediction.kind == "flow":
            return noise_BCHW - z0_BCHW
        signal_B111, noise_B111 = self._rates(t_B, z0_BCHW.device)
        return signal_B111 * noise_BCHW - noise_B111 * z0_BCHW

    def clean(self, z_t_BCHW: Tensor, out_BCHW: Tensor, t_B: Tensor) -> Tensor:
        """The clean latents that a prediction means: `target` solved for z0. eps has no answer in pure noise."""
        signal_B111, noise_B111 = self._rates(t_B, z_t_BCHW.device)
        if self.prediction.kind == "eps":
            return (z_t_BCHW - noise_B111 * out_BCHW) / signal_B111
        if self.prediction.kind == "flow":
            return z_t_BCHW - noise_B111 * out_BCHW
        return signal_B111 * z_t_BCHW - noise_B111 * out_BCHW

    def weight(self, t_B: Tensor) -> Tensor:
        """Weight of each sample's loss, float32 `(B,)`: debiased, else min-SNR, else 1; always 1 for flow."""
        kind, gamma = self.prediction.kind, self.config.min_snr_gamma
        if kind == "flow" or not (self.config.debiased or gamma):
            return torch.ones(t_B.shape, dtype=torch.float32, device=t_B.device)
        a_B = self._alphas(t_B)
        return (debiased_weight(a_B, kind) if self.config.debiased else min_snr_weight(a_B, gamma, kind)).float()

    def loss(self, out: Tensor, target: Tensor, t_B: Tensor, mask: Tensor | None = None,
             sample_weight: Tensor | None = None) -> Tensor:
        """Loss of each sample, float32 `(B,)`, of outputs and targets `(B, C, H, W)`.

        `mask` `(B, 1, H, W)` in [0, 1] limits the loss to a part of the picture; `sample_weight` `(B,)` multiplies it, as
        prior_loss_weight does for the pictures of reg_data_dir (prior preservation, 2208.12242, eq. 2).
        """
        assert out.shape == target.shape, f"output {tuple(out.shape)} and target {tuple(target.shape)} differ in shape"
        error_BCHW = elementwise_loss(out, target, self.config.loss_type, self.config.huber_delta)
        loss_B = mean_inside(error_BCHW, mask) * self.weight(t_B).to(out.device)
        return loss_B if sample_weight is None else loss_B * sample_weight.to(loss_B)

    def _alphas(self, t_B: Tensor) -> Tensor:
        """a(t) in float64, as 1 - a of the first timesteps loses four digits in float32; on the CPU, as MPS has no float64."""
        return self.prediction.alphas_cumprod.cpu().double()[t_B.cpu()]

    def _rates(self, t_B: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """What clean latents and noise are multiplied with, float32 `(B, 1, 1, 1)`."""
        if self.prediction.kind == "flow":
            signal_B, noise_B = 1 - t_B, t_B
        else:
            a_B = self._alphas(t_B)
            signal_B, noise_B = a_B.sqrt(), (1 - a_B).sqrt()
        return tuple(rate_B.float().to(device).view(-1, 1, 1, 1) for rate_B in (signal_B, noise_B))
