"""Gradient checkpointing changes what is kept in memory, never a number."""
from __future__ import annotations

import pytest
import torch
from torch import nn

from hotlora.trainer.checkpointing import set_checkpointing


class ResBlock(nn.Module):
    """Named as in the original code."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.runs = 0

    def forward(self, x, shift=None):
        self.runs += 1
        return x + torch.dropout(torch.tanh(self.layer(x) + shift).exp(), 0.5, True)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([ResBlock(), ResBlock()])

    def forward(self, x):
        for block in self.blocks:
            x = block(x, shift=x.mean())
        return x


def gradients(net):
    torch.manual_seed(1)
    net.zero_grad()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        loss = net(torch.linspace(-1, 1, 12).view(2, 6)).square().sum()
    loss.backward()
    return [p.grad.clone() for p in net.parameters()], sum(kept)


def test_same_gradients_with_frozen_inputs_and_dropout_and_less_kept():
    net = Net()
    plain, kept = gradients(net)
    set_checkpointing(net, True)
    set_checkpointing(net, True)
    assert net.blocks[0].runs == 1
    again, kept_again = gradients(net)
    assert [block.runs for block in net.blocks] == [3, 3], "each block ran twice"
    assert all(torch.equal(a, b) for a, b in zip(plain, again))
    assert kept_again < kept / 2


class BasicTransformerBlock(nn.Module):
    """As ComfyUI's: looks up by the options which block of the model it is, for patches that change some blocks alone."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x, transformer_options):
        patch = transformer_options["patches_replace"].get(transformer_options["block"], torch.tanh)
        return x + patch(self.layer(x))


class NumberedNet(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([BasicTransformerBlock() for _ in range(3)])

    def forward(self, x):
        options = {"patches_replace": {1: lambda y: y.sin() * y.exp()}}
        for options["block"], block in enumerate(self.blocks):
            x = block(x, options)
        return x


def test_a_block_that_is_told_by_a_dictionary_which_it_is_hears_the_same_again():
    net = NumberedNet()
    plain, _ = gradients(net)
    set_checkpointing(net, True)
    again, _ = gradients(net)
    assert all(torch.equal(a, b) for a, b in zip(plain, again))


def test_off_puts_the_forwards_back_and_inference_does_not_run_twice():
    net = Net()
    host_forward = net.blocks[1].__dict__["forward"] = lambda x, shift: x
    set_checkpointing(net, True)
    with torch.no_grad():
        net(torch.zeros(2, 6))
    assert net.blocks[0].runs == 1
    set_checkpointing(net, False)
    set_checkpointing(net, False)
    assert "forward" not in net.blocks[0].__dict__ and net.blocks[1].__dict__["forward"] is host_forward


def test_a_module_without_known_blocks_is_named():
    with pytest.raises(ValueError, match="Linear.*gradient_checkpointing off"):
        set_checkpointing(nn.Linear(2, 2), True)
