"""Pictures as tensors and back. RGB, values from -1 to 1, channels first."""
from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .output_files import write_atomically


def to_tensor(picture: Image.Image) -> torch.Tensor:
    """An RGB picture as float32 `(3, H, W)` in [-1, 1]."""
    x_HW3 = np.array(picture, dtype=np.float32)
    assert x_HW3.ndim == 3 and x_HW3.shape[2] == 3, f"expected an RGB picture, got mode {picture.mode}"
    return torch.from_numpy(x_HW3 / 127.5 - 1).permute(2, 0, 1).contiguous()


def to_picture(x_3HW: torch.Tensor) -> Image.Image:
    """`(3, H, W)` in [-1, 1] as an RGB picture; values outside are clipped."""
    x_HW3 = ((x_3HW.detach().float().cpu().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0)
    return Image.fromarray(x_HW3.numpy())


def write_png(path: Path, picture: Image.Image) -> None:
    """Write a picture in one step. OutputError when that cannot be done."""
    data = BytesIO()
    picture.save(data, "PNG")
    write_atomically(path, data.getvalue())
