"""A real ComfyUI on a GPU: each way in which it keeps a model there, with its gradients and its next picture.

    python -m pytest -m "host and gpu" tests/hosts/test_comfyui_gpu.py
"""
from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hotlora.tests.hosts.comfy_server import write_model
from hotlora.tests.hosts.test_comfyui import inside

pytestmark = [pytest.mark.host, pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")]
EXACT = ["gpu", "--force-fp32"]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    base = tmp_path_factory.mktemp("comfy")
    write_model(base)
    return base


@pytest.mark.parametrize("arguments", [
    ["--highvram"], ["--lowvram", "upstream"], ["--novram"], ["--novram", "upstream"], ["dynamic"], ["dynamic", "upstream"], ["dynamic", "squeezed", "upstream"],
    ["dynamic", "v"]], ids=" ".join)
def test_gradients_equal_plain_autograd_in_every_memory_mode(base, root, arguments):
    found = inside(root, base, [*EXACT, *arguments])
    assert found["restored"] and found["redrawn"] and found["layers"] > 20, found
    # with dynamic memory ComfyUI rounds what a LoRA upstream makes of a weight to the file's 16 bits
    limit = 5e-3 if {"dynamic", "upstream"} <= set(arguments) else 1e-4
    assert found["gradient_error"] < limit and found["loss_error"] < limit, found


@pytest.mark.parametrize("arguments", [["--bf16-unet"], ["dynamic"]], ids=" ".join)
def test_at_the_precision_that_comfyui_chooses_the_gradients_are_near(base, root, arguments):
    """bfloat16 keeps 8 bits: what is compared went through some 50 layers of it."""
    found = inside(root, base, ["gpu", *arguments])
    assert found["restored"] and found["redrawn"], found
    assert found["gradient_error"] < 0.15 and found["loss_error"] < 0.05, found
