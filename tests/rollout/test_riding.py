"""Writing a block in the first pass of the next one changes which passes there are, and nothing else."""

import pytest
import torch

from arvid import spec
from arvid.caches.policies import POLICIES
from arvid.caches.positions import POSITIONS
from arvid.caches.store import Store
from arvid.models.wan.transformer import CausalWan, WanConfig
from arvid.rollout.flow import FlowWalker
from arvid.rollout.stage import Clock
from arvid.samplers.noise import SeededNoise
from arvid.samplers.steps import renoise
from arvid.types import Condition, Estimate, Move, Span

SIGMAS = (1.0, 0.8, 0.5, 0.0)
CONFIG = WanConfig(dim=24, ffn_dim=32, num_heads=2, num_layers=2, text_dim=8, text_len=4, in_dim=4, out_dim=4)


class Counting:
    """A model that notes the span of every pass."""

    def __init__(self, model: CausalWan) -> None:
        self.model = model
        self.spans: list[Span] = []

    def __call__(self, z, sigma, condition, view, span) -> Estimate:
        self.spans.append(span)
        return self.model(z, sigma, condition, view, span)


def model() -> CausalWan:
    made = CausalWan(CONFIG).eval()
    generator = torch.Generator().manual_seed(0)
    for p in made.parameters():
        torch.nn.init.normal_(p, 0.0, 0.15, generator=generator)
    return made.requires_grad_(False)


def walked(
    past: str, riding: bool, lengths: tuple[int, ...], prompts: int = 1, positions: str = "absolute",
    cuts: frozenset[int] = frozenset(),
):  # fmt: skip
    """Blocks made one after the other, and the spans of all passes."""
    denoiser = Counting(model())
    store = Store(spec.build(past, POLICIES, "past"), 3, spec.build(positions, POSITIONS, "positions"))
    walker = FlowWalker("target", denoiser, store, renoise, Clock(), riding=riding)
    store.cut(cuts)
    noise, start, made = SeededNoise(3), 0, []
    conditions = [Condition("", torch.full((1, 4, 8), 0.1 * k)) for k in range(1, prompts + 1)]
    for index, length in enumerate(lengths):
        move = Move(index, Span(start, start + length), SIGMAS)
        condition = conditions[index % prompts]
        x = noise.draw(index, 0, (1, length, 4, 4, 4))
        made.append(walker.walk(move, x, SIGMAS, condition, noise).block_BTCHW)
        walker.remember(move, made[-1], condition)
        start += length
    return torch.cat(made, 1), denoiser.spans


@pytest.mark.parametrize("past", ["full", "window:frames=6", "sink:frames=6,sink=3"])
@pytest.mark.parametrize("lengths", [(3, 3, 3, 3), (3, 3, 3, 2)])
def test_blocks_are_the_same(past: str, lengths: tuple[int, ...]) -> None:
    alone, passes = walked(past, False, lengths)
    riding, fewer = walked(past, True, lengths)
    torch.testing.assert_close(riding, alone, atol=1e-5, rtol=1e-5)
    assert len(passes) == 4 * 3 + 3 and len(fewer) == 4 * 3
    assert fewer[3] == Span(0, 6) and fewer[4] == Span(3, 6)


def test_under_another_prompt_a_block_is_written_by_itself() -> None:
    alone, passes = walked("full", False, (3, 3, 3), prompts=2)
    riding, same = walked("full", True, (3, 3, 3), prompts=2)
    assert torch.equal(alone, riding) and passes == same


def test_a_cut_stops_riding_at_its_own_block_and_the_next() -> None:
    """Neither may the block before be written in its first pass, nor it in that of the block behind."""
    alone, passes = walked("full", False, (3,) * 6, cuts=frozenset({6}))
    riding, fewer = walked("full", True, (3,) * 6, cuts=frozenset({6}))
    torch.testing.assert_close(riding, alone, atol=1e-5, rtol=1e-5)
    plain, _ = walked("full", False, (3,) * 6)
    assert torch.equal(alone[:, :6], plain[:, :6]) and (alone[:, 6:9] - plain[:, 6:9]).abs().max() > 1e-4
    assert len(passes) == 6 * 3 + 5 and len(fewer) == 6 * 3 + 2
    assert [span for span in fewer if len(span) == 6] == [Span(0, 6), Span(9, 15), Span(12, 18)]


@pytest.mark.parametrize("past, positions", [("full", "relative:limit=6"), ("deep:frames=9,sink=3", "absolute")])
def test_where_blocks_read_differently_together_nothing_rides(past: str, positions: str) -> None:
    _, passes = walked(past, False, (3, 3, 3), positions=positions)
    _, same = walked(past, True, (3, 3, 3), positions=positions)
    assert passes == same
