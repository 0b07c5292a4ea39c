"""Attention: the formula that training uses on a CPU is the kernel that inference uses, with masks and without."""

from __future__ import annotations

import pytest
import torch

from arvid.layers.attention import attend


@pytest.mark.parametrize("masked", [False, True])
def test_training_and_inference_see_the_same(masked: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, length, 3, 8, generator=generator) for length in (5, 7, 7))
    mask = torch.rand(5, 7, generator=generator) < 0.5
    mask[:, 0] = True
    plain = attend(q, k, v, mask if masked else None)
    q.requires_grad_()
    learned = attend(q, k, v, mask if masked else None)
    assert learned.requires_grad
    torch.testing.assert_close(learned.detach(), plain)
    if masked:
        (gradient,) = torch.autograd.grad(attend(q, k.requires_grad_(), v, mask)[0, 2].sum(), k)
        assert gradient[0][mask[2]].abs().sum() > 0
        assert not gradient[0][~mask[2]].any(), "what is hidden teaches nothing"
