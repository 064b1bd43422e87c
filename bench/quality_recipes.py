"""What is compared: the plain recipe, sd-scripts' usual defaults, our presets, and what the literature offers, one change at a time."""
from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

from quality_starts import aligned, masked_ranks, one_step
from quality_tries import high_noise, late_decay, low_noise, spread_timesteps, wider_average

ATTENTION = ["to_q", "to_k", "to_v", "to_out"]
SCALE = 20
"""The embedded base is small: rates that suit Stable Diffusion are multiplied with this for every recipe."""
_SMALL = {"batch_size": 4, "lora_rank": 32, "learning_rate": 1e-4 * SCALE}


@dataclass(frozen=True)
class Recipe:
    """`changes` are settings of TrainConfig; `prepare` may change a session before its first step."""

    name: str
    steps: int
    changes: dict[str, Any]
    prior: bool = False
    watched: bool = False
    prepare: Callable[[Any], None] = field(default=lambda session: None)

    def settings(self, folder: Path, concept) -> dict[str, Any]:
        prior = {"reg_data_dir": str(folder / "prior")} if self.prior else {}
        return {"steps": self.steps, **_SMALL, **self.changes, **prior}


PLAIN = {"min_snr_gamma": 0.0, "timestep_sampling": "uniform", "lr_scheduler": "constant", "unet_target_modules": ATTENTION, "caption_dropout": 0.0}
SD_SCRIPTS = {"min_snr_gamma": 0.0, "lr_scheduler": "cosine_with_restarts", "lora_alpha": 16, "caption_dropout": 0.0,
              "text_encoder_target_modules": ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"], "text_encoder_lr": 1e-5 * SCALE}
"""SD-Trainer's settings for sd-scripts: alpha half the rank, text encoder at a tenth of the rate, cosine with one cycle."""
OURS = {"min_snr_gamma": 0.0, "lr_scheduler": "inverse_sqrt", "lr_warmup_steps": 5, "learning_rate": 2e-4 * SCALE, "conv_rank": 16, "ema_decay": 0.95,
        "weight_decay": 1.0}
"""The embedded base's balanced preset: all linear layers and convolutions, a high start that calms down whatever the run's length, averaged weights, and weights
that are pulled back strongly."""
FORMER = {"min_snr_gamma": 0.0, "lr_scheduler": "constant", "lr_warmup_steps": 20, "ema_decay": 0.98}
"""What `balanced` was before: all linear layers, a constant rate and averaged weights. The changes one at a time were tried on it."""
LENGTH = 100
"""About where a concept first scores well (batch 4, 12 pictures); the long runs are five times that."""

RECIPES = {recipe.name: recipe for recipe in (
    Recipe("balanced x5", 5 * LENGTH, OURS, watched=True),
    Recipe("balanced", 2 * LENGTH, OURS),
    Recipe("plain", 4 * LENGTH, PLAIN),
    Recipe("sd-scripts", 4 * LENGTH, SD_SCRIPTS),
    Recipe("weight decay 2", 5 * LENGTH, {**OURS, "weight_decay": 2.0}, watched=True),
    Recipe("weight decay 0.01", 5 * LENGTH, {**OURS, "weight_decay": 0.01}, watched=True),
    Recipe("with prior pictures", 3 * LENGTH, {**OURS, "weight_decay": 0.01}, prior=True, watched=True),
    Recipe("with preservation", 3 * LENGTH, {**OURS, "weight_decay": 0.01, "preservation_weight": 1.0}, watched=True),
    Recipe("spread timesteps", 2 * LENGTH, OURS, prepare=spread_timesteps),
    Recipe("wider average", 2 * LENGTH, OURS, prepare=wider_average),
    Recipe("late decay", 2 * LENGTH, OURS, prepare=late_decay),
    Recipe("double rank", 2 * LENGTH, {**OURS, "lora_rank": 64, "conv_rank": 32}),
    Recipe("no dropout", 2 * LENGTH, {**OURS, "caption_dropout": 0.0}),
    Recipe("dropout 0.2", 2 * LENGTH, {**OURS, "caption_dropout": 0.2}),
    Recipe("noise offset", 2 * LENGTH, {**OURS, "noise_offset": 0.3}),
    Recipe("noise offset x5", 5 * LENGTH, {**OURS, "noise_offset": 0.3}, watched=True),
    Recipe("high noise", 2 * LENGTH, OURS, prepare=high_noise),
    Recipe("low noise", 2 * LENGTH, OURS, prepare=low_noise),
    Recipe("Huber", 2 * LENGTH, {**OURS, "loss_type": "huber"}),
    Recipe("Huber x5", 5 * LENGTH, {**OURS, "loss_type": "huber"}, watched=True),
    Recipe("Muon", 2 * LENGTH, {**OURS, "optimizer": "quality_tries.Muon", "weight_decay": 0.01}),
    Recipe("Muon x5", 2 * LENGTH, {**OURS, "optimizer": "quality_tries.Muon", "weight_decay": 0.01, "learning_rate": 1e-3 * SCALE}),
    Recipe("former", 2 * LENGTH, FORMER),
    Recipe("no EMA", 2 * LENGTH, {**FORMER, "ema_decay": 0.0}),
    Recipe("cosine", 2 * LENGTH, {**FORMER, "ema_decay": 0.0, "lr_scheduler": "cosine"}),
    Recipe("prior pictures", 2 * LENGTH, FORMER, prior=True),
    Recipe("LoRA+ 4", 2 * LENGTH, {**FORMER, "learning_rate": 1e-3, "lora_plus_ratio": 4.0}),
    Recipe("rsLoRA", 2 * LENGTH, {**FORMER, "learning_rate": 1e-3, "rslora": True}),
    Recipe("min-SNR 5", 2 * LENGTH, {**FORMER, "min_snr_gamma": 5.0}),
    Recipe("debiased", 2 * LENGTH, {**FORMER, "debiased": True}),
    Recipe("convolutions", 2 * LENGTH, {**FORMER, "conv_rank": 16}),
    Recipe("aligned start", 2 * LENGTH, FORMER, prepare=aligned),
    Recipe("LoRA-One", 2 * LENGTH, FORMER, prepare=one_step),
    Recipe("T-LoRA", 2 * LENGTH, FORMER, prepare=masked_ranks),
    Recipe("rate x2", 2 * LENGTH, {**FORMER, "learning_rate": 2e-4 * SCALE}),
    Recipe("convolutions x2", 2 * LENGTH, {**FORMER, "conv_rank": 16, "learning_rate": 2e-4 * SCALE}),
    Recipe("text encoder", 2 * LENGTH, {**FORMER, "text_encoder_target_modules": SD_SCRIPTS["text_encoder_target_modules"], "text_encoder_lr": 1e-5 * SCALE}),
)}
