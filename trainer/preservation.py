"""Differential output preservation (Jaret Burkett's ai-toolkit): the class keeps looking as the base draws it.

Beside the picture's own loss each sample asks the adapter for the same noisy picture with the class word in place of the trigger word, and
its error there is the distance to what the base alone says. So `sks` learns to be one dog and `dog` stays any dog, without a second set
of pictures as prior preservation (2208.12242) needs it. It costs one forward and backward more per sample, and one forward of the base.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from .gallery import without_trigger
from .validate import adapter_off

if TYPE_CHECKING:
    from .session import Session


def preservation_loss(session: Session, data: dict[str, Any], z_t_BCHW: torch.Tensor, t_B: torch.Tensor) -> torch.Tensor:
    """Summed over the samples of a batch whose captions have the trigger word, weighted; 0 where none has."""
    config, dataset, backend = session.config, session.dataset, session.backend
    captions = [without_trigger(caption, config.trigger, config.class_word) for caption in data["captions"]]
    chosen = [i for i, (before, after) in enumerate(zip(data["captions"], captions)) if before != after]
    if not chosen:
        return torch.zeros((), device=backend.device)
    z_t_BCHW, t_B, size_B6 = z_t_BCHW[chosen], t_B[chosen], data["size_B6"][chosen].to(backend.device)
    captions = [captions[i] for i in chosen]

    def predict() -> torch.Tensor:
        with session.precision.autocast():
            cond = dataset.condition(captions)
            return backend.predict(z_t_BCHW, session.objective.model_timestep(t_B), cond, size_B6).float()

    with torch.no_grad(), adapter_off(session.adapter):
        base_BCHW = predict()
    return config.preservation_weight * session.objective.loss(predict(), base_BCHW, t_B).sum()
