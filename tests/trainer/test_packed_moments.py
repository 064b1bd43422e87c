"""Moments in 8 bits: small, close to what they were, and without a step that goes astray."""
import pytest
import torch

from hotlora.trainer.packed_moments import BLOCK, PACKED, PackedMoments, dequantize, quantize
from hotlora.trainer.optimizers import EMA
from hotlora.trainer.memory import Undo


def problem(seed=0):
    """Least squares with layers of very different scales, as the two matrices of a LoRA have them."""
    torch.manual_seed(seed)
    parameters = [torch.nn.Parameter(torch.randn(shape) * scale) for shape, scale in (((16, 320), 0.05), ((320, 16), 1e-3), ((7, 3), 1.0))]
    goals = [p.detach() + 0.1 * torch.randn_like(p) * p.detach().abs().mean() for p in parameters]
    return parameters, goals


def steps(parameters, goals, optimizer, count, moments=None):
    for _ in range(count):
        for p, goal in zip(parameters, goals):
            p.grad = (p - goal).detach() + 0.01 * torch.randn_like(p) * p.detach().abs().mean()
        if moments:
            moments.unpack()
        optimizer.step()
        if moments:
            moments.pack()


@pytest.mark.parametrize("signed", [True, False])
def test_numbers_come_back_nearly_as_they_were(signed):
    torch.manual_seed(0)
    x_NK = torch.randn(500, BLOCK) * torch.logspace(-30, 3, 500)[:, None]
    x_NK[3] = 0
    x_NK = x_NK if signed else x_NK.abs()
    codes_NK, scale_N1 = quantize(x_NK, signed)
    y_NK = dequantize(codes_NK, scale_N1, signed)
    assert codes_NK.dtype == torch.uint8 and torch.isfinite(y_NK).all()
    assert ((x_NK - y_NK).norm(dim=1) <= 0.02 * x_NK.norm(dim=1)).all()
    again_NK, scale_again_N1 = quantize(y_NK, signed)
    assert torch.equal(again_NK, codes_NK) and torch.equal(scale_again_N1, scale_N1)


def test_adam_learns_as_with_moments_in_full():
    found = []
    for packing in (False, True):
        parameters, goals = problem()
        optimizer = torch.optim.AdamW(parameters, lr=1e-3)
        moments = PackedMoments(optimizer) if packing else None
        torch.manual_seed(1)
        steps(parameters, goals, optimizer, 60, moments)
        found.append((parameters, [((p - goal).norm() / goal.norm()).item() for p, goal in zip(parameters, goals)]))
    (full, full_errors), (packed, packed_errors) = found
    start = [((p - goal).norm() / goal.norm()).item() for p, goal in zip(*problem())]
    for p, q, first, a, b in zip(full, packed, start, full_errors, packed_errors):
        assert ((p - q).norm() / p.norm()).item() < 0.02
        assert a < 0.8 * first and b < 0.8 * first


def test_a_quarter_of_the_bytes_and_nothing_else_changes():
    parameters, goals = problem()
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    moments = PackedMoments(optimizer)
    assert moments.can_pack()
    steps(parameters, goals, optimizer, 3)
    whole = {id(p): dict(state) for p, state in optimizer.state.items()}
    size = sum(2 * 4 * p.numel() for p in parameters)
    moments.pack()
    assert moments.can_pack() and all("exp_avg" not in state for state in optimizer.state.values())
    assert moments.bytes() == pytest.approx(PACKED * size, rel=0.1)
    saved = moments.state_dict()
    for number, p in enumerate(parameters):
        for name, x in whole[id(p)].items():
            found = saved["state"][number][name]
            assert found.shape == x.shape and (found - x).norm() <= 0.03 * x.norm(), name
    assert all("exp_avg" not in state for state in optimizer.state.values())
    other = torch.optim.AdamW(parameters, lr=1e-3)
    other.load_state_dict(saved)
    moments.unpack()
    assert all(torch.equal(other.state[p][name], x) for p, state in optimizer.state.items() for name, x in state.items())
    assert moments.bytes() == 0


def test_a_step_that_fails_while_packing_is_taken_back(monkeypatch):
    parameters, goals = problem()
    optimizer, ema = torch.optim.AdamW(parameters, lr=1e-3), EMA(parameters, 0.9)
    moments = PackedMoments(optimizer)
    steps(parameters, goals, optimizer, 2, moments)
    moments.unpack()
    before = [p.detach().clone() for p in parameters], [dict(optimizer.state[p]) for p in parameters]
    before = before[0], [{name: x.clone() for name, x in state.items()} for state in before[1]]
    undo = Undo(parameters, optimizer, ema)

    def full(*_, **__):
        raise torch.cuda.OutOfMemoryError("on purpose")

    monkeypatch.setattr("hotlora.trainer.packed_moments.quantize", full)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        steps(parameters, goals, optimizer, 1, moments)
    undo.restore()
    for p, weights, state in zip(parameters, *before):
        assert torch.equal(p, weights) and all(torch.equal(optimizer.state[p][name], x) for name, x in state.items())


@pytest.mark.parametrize("kind, can", [(torch.optim.SGD, False), (torch.optim.Adagrad, False), (torch.optim.AdamW, True)])
def test_which_optimizers_have_moments(kind, can):
    parameters, goals = problem()
    optimizer = kind(parameters, lr=1e-3)
    moments = PackedMoments(optimizer)
    assert moments.can_pack() is can
    steps(parameters, goals, optimizer, 1, moments)
    assert moments.can_pack() is can and (moments.bytes() > 0) is can
