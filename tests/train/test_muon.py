"""Muon over filter banks makes the update torch's Muon makes of the same numbers laid out as a matrix."""

import pytest
import torch
from torch import nn

from arvid.train.muon import Muon


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_filter_bank_is_stepped_as_a_matrix(layout: torch.memory_format) -> None:
    generator = torch.Generator().manual_seed(0)
    start, gradient = torch.randn(2, 6, 4, 3, 3, generator=generator)
    bank = nn.Parameter(start.clone().contiguous(memory_format=layout))
    order = (0, 2, 3, 1) if layout == torch.channels_last else (0, 1, 2, 3)
    matrix = nn.Parameter(start.permute(order).flatten(1).clone())
    ours = Muon([bank], 0.01, 0.1)
    theirs = torch.optim.Muon([matrix], 0.01, 0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        bank.grad, matrix.grad = gradient.clone(), gradient.permute(order).flatten(1).clone()
        ours.step()
        theirs.step()
    torch.testing.assert_close(bank.permute(order).flatten(1), matrix)
    assert not torch.equal(bank, start)


def test_gradients_are_forgotten() -> None:
    weight = nn.Parameter(torch.ones(3, 2))
    ours = Muon([weight], 0.01, 0.0)
    weight.grad = torch.ones(3, 2)
    ours.step()
    ours.zero_grad()
    assert weight.grad is None
