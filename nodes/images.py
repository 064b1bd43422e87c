"""Pictures as ComfyUI's IMAGE."""
from __future__ import annotations

from typing import Sequence

import numpy as np
import torch
from PIL import Image


def as_images(pictures: Sequence[Image.Image]) -> torch.Tensor:
    """Pictures of one size as `(B, H, W, 3)`, float32 in [0, 1]."""
    return torch.stack([torch.from_numpy(np.array(p.convert("RGB"), dtype=np.float32) / 255) for p in pictures])
