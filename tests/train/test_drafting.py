"""A drafter behind its own drafts: what they are, which frames of the past they replace, which levels are learned."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from arvid.caches.store import Store
from arvid.caches.window import Window
from arvid.models.wan.transformer import CausalWan, WanConfig
from arvid.train.drafting import DraftForcing
from arvid.train.flow import FlowBatch
from arvid.train.guidance import GuidedForcing
from arvid.types import Condition, Span

FRAMES, BLOCK, CHANNELS, SIDE = 9, 3, 4, 4
POLICY = Window(4)


def wan() -> CausalWan:
    torch.manual_seed(0)
    model = CausalWan(WanConfig(24, 48, 2, 2, 8, 5, CHANNELS, CHANNELS, 16))
    torch.nn.init.normal_(model.head.head.weight, 0.0, 0.3)
    return model.to(torch.bfloat16).float()  # passes of training round the weights so


def batch(clips: int = 2) -> FlowBatch:
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(clips, FRAMES, CHANNELS, SIDE, SIDE, generator=generator)
    return FlowBatch(z, torch.randn(clips, 5, 8, generator=generator))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def forcing(**options: float) -> DraftForcing:
    return DraftForcing(wan(), FRAMES, BLOCK, POLICY, **options)


@torch.no_grad()
def by_hand(given: FlowBatch, noise_BTCHW: Tensor) -> Tensor:
    """A pass at level 1 over every block, behind a store into which the clean clip was written block by block."""
    model, past, made = wan().to(torch.bfloat16), Store(POLICY, BLOCK), []
    said = Condition("", given.text_BSD.to(torch.bfloat16))
    for start in range(0, FRAMES, BLOCK):
        span = Span(start, start + BLOCK)
        z, noise = (x[:, start : span.stop] for x in (given.latents_BTCHW, noise_BTCHW))
        levels = torch.ones(len(z), BLOCK)
        made.append(noise - model(noise, levels, said, past.view(span), span).flow_BTCHW.float())
        past.commit(span, model(z, 0 * levels, said, past.view(span), span).memory)
    return torch.cat(made, 1)


def test_a_draft_is_one_pass_behind_the_true_past() -> None:
    given = batch()
    ours = forcing().drafts(given, generator())
    noise = torch.randn(given.latents_BTCHW.shape, generator=generator())
    torch.testing.assert_close(ours, by_hand(given, noise), rtol=0.05, atol=0.05)
    assert not ours.requires_grad
    assert (ours - given.latents_BTCHW).square().mean() > 0.1


def test_the_share_of_drafts_and_what_they_replace() -> None:
    given = batch(400)
    plain, told = GuidedForcing(wan(), FRAMES, BLOCK, POLICY)._past(given, generator())
    none = forcing(drafted=0.0)._past(given, generator())
    assert torch.equal(none[0], plain)
    assert torch.equal(none[1], told)
    some, same_told = forcing(drafted=0.25)._past(given, generator())
    assert torch.equal(same_told, told), "nothing is told of drafts"
    other_BT = (some != plain).flatten(2).any(-1)
    assert not other_BT[told > 0].any(), "frames that are told to be noisy stay what they are"
    blocks = other_BT.unflatten(1, (-1, BLOCK))
    assert torch.equal(blocks.all(-1), blocks.any(-1)), "whole blocks"
    assert float(other_BT[(told == 0).all(1)].float().mean()) == pytest.approx(0.25, abs=0.05)


def test_single_clips_are_learned_at_level_one() -> None:
    levels = forcing(single=0.5)._levels(400, generator())
    alone = (levels == 1).all(1)
    assert float(alone.float().mean()) == pytest.approx(0.5, abs=0.08)
    assert not (levels[~alone] == 1).any()
    assert (forcing(single=1.0)._levels(5, generator()) == 1).all()


def test_it_learns_and_the_drafts_carry_no_gradient() -> None:
    objective = forcing()
    numbers = objective(batch(), generator())
    numbers["loss"].backward()
    assert torch.isfinite(numbers["loss"])
    assert objective.model.head.head.weight.grad.abs().sum() > 0  # type: ignore[attr-defined]


@pytest.mark.parametrize("options", [{"drafted": 1.5}, {"single": -0.1}])
def test_shares_are_shares(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"both must lie in \[0, 1\]"):
        forcing(**options)
