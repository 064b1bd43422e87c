"""Counter-based randomness: repeatable, independent for each of its four inputs, and the same for any batching."""
from __future__ import annotations

import itertools
import math

import pytest
import torch

from hotlora.trainer import randomness


def test_the_same_four_inputs_give_the_same_numbers():
    assert torch.equal(randomness.noise((4, 8, 8), 3, 5, 7), randomness.noise((4, 8, 8), 3, 5, 7))
    assert randomness.python_random(3, "crop", 5, 7).random() == randomness.python_random(3, "crop", 5, 7).random()


def test_known_values_so_that_a_run_started_with_an_older_version_can_be_resumed():
    assert randomness.hashed_seed(0, "noise", 0, 0) == 0xf361cc4c9ade1d3e
    assert randomness.hashed_seed(2**63 - 1, "bildgröße", 10**9, 3) == 0x4a3f5f0ba4d4795e


@pytest.mark.parametrize("other", [(4, "noise", 5, 7), (3, "flip", 5, 7), (3, "noise", 6, 7), (3, "noise", 5, 8)])
def test_each_input_matters(other):
    numbers = torch.randn(64, generator=randomness.generator(3, "noise", 5, 7))
    assert not torch.equal(numbers, torch.randn(64, generator=randomness.generator(*other)))
    assert randomness.python_random(3, "noise", 5, 7).random() != randomness.python_random(*other).random()


def test_inputs_do_not_run_into_each_other():
    inputs = list(itertools.product(range(12), ("a", "a|1", "1"), range(12), range(12)))
    assert len({randomness.hashed_seed(*each) for each in inputs}) == len(inputs)


def test_global_state_neither_matters_nor_changes():
    torch.manual_seed(1)
    first = randomness.noise((1, 4, 4), 0, 0, 0)
    after = torch.rand(())
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(()))
    assert torch.equal(first, randomness.noise((1, 4, 4), 0, 0, 0))


def test_neighbouring_draws_are_not_correlated():
    rows = torch.stack([randomness.noise((1, 32, 32), 0, step, sample).flatten() for step in range(8) for sample in range(4)])
    correlation = torch.corrcoef(rows) - torch.eye(len(rows))
    assert correlation.abs().max() < 5 / math.sqrt(rows.shape[1])
    assert abs(rows.mean()) < 5 / math.sqrt(rows.numel()) and abs(rows.std() - 1) < 0.02


def test_uniform_fills_the_interval_evenly_and_row_by_row():
    u_B = randomness.uniform(1, "timestep", 2, range(4000))
    assert u_B.dtype == torch.float64 and u_B.min() >= 0 and u_B.max() < 1
    gap = (u_B.sort().values - (torch.arange(4000) + 0.5) / 4000).abs().max()
    assert gap < 1.95 / math.sqrt(4000), "Kolmogorov-Smirnov at one in a thousand"
    assert torch.equal(randomness.uniform(1, "timestep", 2, [5, 3]), u_B[[5, 3]])
