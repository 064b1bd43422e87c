"""What "auto" takes on graphics cards of several ages, which no machine of ours has all of: torch is told what they answer."""
from __future__ import annotations

import pytest
import torch

from hotlora.trainer.hosts.standalone import pick_dtype
from hotlora.trainer.precision import has_bf16, pick_precision

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


@pytest.fixture(params=[(8, 0), (7, 5), (6, 1)], ids=["Ampere", "Turing", "Pascal"])
def capability(request, monkeypatch):
    """torch says of all three that bfloat16 can be had, as it counts what it emulates."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: request.param)
    monkeypatch.setattr(torch.version, "hip", None)
    return request.param


def test_emulated_bfloat16_is_not_taken_and_half_precision_gets_its_scaler(capability):
    own = capability >= (8, 0)
    assert has_bf16(CUDA) is own
    assert pick_dtype(None, CUDA) is (torch.bfloat16 if own else torch.float16)
    assert pick_precision("auto", CUDA, torch.float16) == ("bf16" if own else "fp16")
    assert pick_precision("auto", CUDA, torch.float32) == ("bf16" if own else "no")
    assert pick_precision("auto", CUDA) == "bf16"


def test_what_is_set_is_what_is_done(capability):
    for setting, dtype in (("no", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16)):
        assert pick_precision(setting, CUDA, torch.float16) == setting and pick_dtype(setting, CUDA) is dtype


def test_a_cpu_computes_in_single_precision_and_says_what_it_cannot_do():
    assert pick_precision("auto", CPU, torch.float16) == "no" and pick_dtype(None, CPU) is torch.float32
    with pytest.raises(ValueError, match="mixed_precision is fp16, which needs a CUDA or ROCm GPU, but the device is cpu; use no or bf16"):
        pick_precision("fp16", CPU)


def test_a_rocm_gpu_has_it_whatever_its_number(monkeypatch, capability):
    monkeypatch.setattr(torch.version, "hip", "6.2")
    assert has_bf16(CUDA)
