"""Guidance learned: where a free estimate settles, and what is pushed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from arvid.caches.window import Window
from arvid.models.wan.transformer import CausalWan, WanConfig
from arvid.train.flow import first_blocks
from arvid.train.guidance import GuidedForcing

BLOCK, CHANNELS, SIDE = 3, 4, 4


def wan() -> CausalWan:
    torch.manual_seed(0)
    model = CausalWan(WanConfig(24, 48, 2, 2, 8, 5, CHANNELS, CHANNELS, 16))
    torch.nn.init.normal_(model.head.head.weight, 0.0, 0.3)
    return model


def clips() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, BLOCK, CHANNELS, SIDE, SIDE, generator=generator), torch.randn(4, 5, 8, generator=generator)


def pushed(model: CausalWan, scale: float, text: Tensor) -> Tensor:
    forcing = GuidedForcing(model, 9, BLOCK, Window(6), scale=scale)
    return forcing.firsts(clips()[0], text, torch.Generator().manual_seed(2))


def test_scale_one_is_the_plain_flow() -> None:
    model, (z, text) = wan(), clips()
    plain = first_blocks(model, z, text, 5.0, torch.Generator().manual_seed(2))
    torch.testing.assert_close(pushed(model, 1.0, text), plain)
    assert (pushed(model, 3.0, text) - plain).abs() > 1e-3


def test_clips_without_text_are_pushed_nowhere() -> None:
    model, (z, text) = wan(), clips()
    plain = first_blocks(model, z, torch.zeros_like(text), 5.0, torch.Generator().manual_seed(2))
    torch.testing.assert_close(pushed(model, 3.0, torch.zeros_like(text)), plain)


@pytest.mark.parametrize("scale", [1.0, 1.5, 2.0, 4.0])
def test_the_gradient_vanishes_exactly_at_guidance_of_that_scale(scale: float) -> None:
    """A model whose told flow is free: pulled to its target again and again, it settles at untold + s (v - untold)."""
    untold, true, told = torch.tensor(0.3), torch.tensor(-0.7), torch.tensor(0.0)
    push = GuidedForcing(wan(), 9, BLOCK, Window(6), scale=scale).push
    for _ in range(300):
        told = true + push * (told - untold)
    torch.testing.assert_close(told, untold + scale * (true - untold))


def test_a_scale_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"guidance of scale 0\.5; give 1"):
        GuidedForcing(wan(), 9, BLOCK, Window(6), scale=0.5)
