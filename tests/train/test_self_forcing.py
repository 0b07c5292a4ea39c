"""Self-Forcing: which pass carries the gradient, counted and in closed form; windows; the rollout is generation's."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from arvid.caches.full import Full
from arvid.caches.store import Policy, Store
from arvid.caches.window import Window
from arvid.models.wan.transformer import CausalWan, WanConfig
from arvid.rollout.flow import FlowWalker
from arvid.rollout.stage import Clock
from arvid.samplers.grids import few_step
from arvid.samplers.noise import SeededNoise
from arvid.samplers.plans import sequential
from arvid.samplers.steps import Step, euler, renoise
from arvid.train.self_forcing import LAST, Drawn, Horizon, SelfForcing, ended
from arvid.types import Condition, Estimate, Span, View

BLOCK, CHANNELS, SIDE = 3, 2, 2
SHAPE = (CHANNELS, SIDE, SIDE)
LEVELS = few_step(4)


class Toy(nn.Module):
    """flow = own x + past (mean of what the past holds), and the past holds write x. Remembers its passes: first frame,
    level, frames on view, whether the answer and the past carry a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.past, self.write = (nn.Parameter(torch.tensor(value)) for value in (0.5, 0.25, 0.75))
        self.passes: list[tuple[int, float, tuple[int, ...], bool, bool]] = []

    def read_text(self, text_BSD: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
        return ()

    def flow(self, z_BTCHW: Tensor, sigma_BT: Tensor, context: object, view: View, frames: tuple[int, ...]) -> Estimate:
        held = view.read(0, lambda keys, places: keys)
        mean = held[1].mean(1).unflatten(-1, SHAPE) if held else torch.zeros(1, 1, *SHAPE)
        flow = self.own.float() * z_BTCHW + self.past.float() * mean
        here = (self.write.float() * z_BTCHW).flatten(2)[:, :, None]
        carries = bool(held) and held[1].requires_grad
        self.passes.append((frames[0], float(sigma_BT[0, 0]), view.frames, flow.requires_grad, carries))
        return Estimate(flow, ((here, here),))


def text(size: int = 2) -> Tensor:
    return torch.zeros(size, 1, 1)


def forcing(model: nn.Module, horizon: Horizon, policy: Policy | None = None, **options: object) -> SelfForcing:
    return SelfForcing(model, policy or Window(4), horizon, SHAPE, LEVELS, **options)


# ---------------------------------------------------------------- the gradient


@pytest.mark.parametrize(("part", "start"), [(0.0, 0), (0.3, 3), (0.6, 0), (0.99, 6)])
def test_one_pass_of_every_block_of_the_window_carries_a_gradient(part: float, start: int) -> None:
    toy, window = Toy(), Span(start, start + 6)
    blocks = list(forcing(toy, Horizon(6, 12, BLOCK)).blocks(Drawn(window, part, 1), text()))
    steps = int(part * 4) + 1
    assert Counter(frame for frame, *_ in toy.passes) == {
        frame: steps + (frame < window.stop - BLOCK) for frame in range(0, window.stop, BLOCK)
    }, "the walk, and one pass to write all but the last block"
    graded = [(frame, level) for frame, level, _, graded, _ in toy.passes if graded]
    assert graded == [(frame, pytest.approx(LEVELS[steps - 1])) for frame in range(start, window.stop, BLOCK)]
    assert [block.latents_BTCHW.requires_grad for block in blocks] == [b.move.span.start >= start for b in blocks]
    assert not any(carries for *_, carries in toy.passes), "nothing the past holds carries one"


@pytest.mark.parametrize("deep", [1, 2, 4, 9])
def test_the_last_passes_carry_the_gradient_of_a_deeper_rollout(deep: int) -> None:
    toy = Toy()
    list(forcing(toy, Horizon(3, 6, BLOCK), deep=deep, part=LAST).blocks(Drawn(Span(3, 6), LAST, 1), text()))
    graded = [(frame, pytest.approx(level)) for frame, level, _, graded, _ in toy.passes if graded]
    assert graded == [(3, level) for level in LEVELS[max(4 - deep, 0) : 4]]


def test_a_part_that_is_given_is_not_drawn() -> None:
    maker, generator = forcing(Toy(), Horizon(3, 6, BLOCK), part=LAST), torch.Generator().manual_seed(0)
    assert {ended(LEVELS, maker.draw(generator).part) for _ in range(50)} == {LEVELS}


def test_no_gradient_reaches_an_earlier_block() -> None:
    first, second = forcing(Toy(), Horizon(6, 6, BLOCK)).blocks(Drawn(Span(0, 6), 0.6, 1), text())
    assert torch.autograd.grad(second.latents_BTCHW.sum(), first.latents_BTCHW, allow_unused=True) == (None,)


@pytest.mark.parametrize("part", [0.0, 0.6])
def test_the_gradient_is_that_of_the_last_pass_alone(part: float) -> None:
    """x0 = x - s (own x + past m) with x and m constants: by hand, in a loop that knows no store and no walker."""
    toy, drawn = Toy(), Drawn(Span(3, 12), part, 7)
    blocks = list(forcing(toy, Horizon(9, 12, BLOCK)).blocks(drawn, text()))
    torch.cat([block.latents_BTCHW for block in blocks], 1).sum().backward()
    noise, done, own, past = SeededNoise(7), torch.zeros(2, 0, *SHAPE), 0.0, 0.0
    for index, start in enumerate(range(0, 12, BLOCK)):
        seen = 0.75 * done[:, max(0, start - 4) : start]
        mean = seen.mean(1, keepdim=True) if start else torch.zeros(2, 1, *SHAPE)
        x = noise.draw(index, 0, (2, BLOCK, *SHAPE))
        for step, (sigma, following) in enumerate(pairwise(LEVELS[: int(part * 4) + 1])):
            x0 = x - sigma * (0.5 * x + 0.25 * mean)
            x = (1 - following) * x0 + following * noise.draw(index, step + 1, (2, BLOCK, *SHAPE))
        sigma = LEVELS[int(part * 4)]
        if start >= 3:
            own, past = own - sigma * float(x.sum()), past - sigma * float(mean.expand_as(x).sum())
        x0 = x - sigma * (0.5 * x + 0.25 * mean)
        torch.testing.assert_close(blocks[index].latents_BTCHW.detach(), x0)
        done = torch.cat([done, x0], 1)
    # Gradients of several passes are summed in half precision.
    assert float(toy.own.grad) == pytest.approx(own, rel=1e-2)
    assert float(toy.past.grad) == pytest.approx(past, rel=1e-2)
    assert toy.write.grad is None


def test_the_lead_of_a_later_window_is_context_only() -> None:
    for start, frames in ((0, [0, 3, 6]), (3, [6, 9])):
        toy = Toy()
        horizon = Horizon(9, 12, BLOCK, lead=3)
        list(forcing(toy, horizon).blocks(Drawn(Span(start, start + 9), 0.0, 1), text()))
        assert [frame for frame, *_, graded, _ in toy.passes if graded] == frames


def test_a_caller_may_switch_gradients_off() -> None:
    toy = Toy()
    with torch.no_grad():
        window = forcing(toy, Horizon(6, 12, BLOCK))(text(), torch.Generator().manual_seed(0))
    assert not window.requires_grad
    assert not any(graded for *_, graded, _ in toy.passes)


# ---------------------------------------------------------------- windows and ends


def test_windows_and_ends_are_uniform() -> None:
    maker, generator = forcing(Toy(), Horizon(6, 17, BLOCK)), torch.Generator().manual_seed(0)
    drawn = [maker.draw(generator) for _ in range(4000)]
    starts, ends = Counter(d.window.start for d in drawn), Counter(len(ended(LEVELS, d.part)) - 1 for d in drawn)
    assert set(starts) == {0, 3, 6, 9}, "whole windows within 17 frames"
    assert set(ends) == {1, 2, 3, 4}
    for count in (*starts.values(), *ends.values()):
        assert count / 4000 == pytest.approx(0.25, abs=0.03)
    assert all(len(d.window) == 6 for d in drawn)
    assert len({d.seed for d in drawn}) == 4000


def test_one_end_for_all_blocks_and_the_same_part_of_another_list() -> None:
    maker = forcing(Toy(), Horizon(9, 9, BLOCK), first=few_step(2))
    for part, first, rest in ((0.1, 1, 1), (0.3, 1, 2), (0.5, 2, 3), (0.9, 2, 4)):
        plan = maker.plan(Drawn(Span(0, 9), part, 0))
        assert [move.steps for move in plan] == [first, rest, rest]
        assert plan[1].sigmas == (*LEVELS[:rest], 0.0)


def test_a_minute_long_rollout_keeps_the_graph_of_its_window_only() -> None:
    """240 latent frames are 60 s at 16 frames per second. The past rolls as in generation."""
    toy = Toy()
    blocks = list(forcing(toy, Horizon(6, 240, BLOCK)).blocks(Drawn(Span(234, 240), 0.3, 1), text(1)))
    assert len(blocks) == 80
    assert [frame for frame, *_, graded, _ in toy.passes if graded] == [234, 237]
    for frame, _, seen, *_ in toy.passes:
        assert seen == tuple(range(max(0, frame - 4), frame))


def test_the_window_is_the_end_of_the_rollout() -> None:
    maker = forcing(Toy(), Horizon(6, 17, BLOCK))
    for seed in range(4):
        window = maker(text(), torch.Generator().manual_seed(seed))
        drawn = maker.draw(torch.Generator().manual_seed(seed))
        whole = torch.cat([block.latents_BTCHW for block in maker.blocks(drawn, text())], 1)
        assert whole.shape[1] == drawn.window.stop
        assert torch.equal(window, whole[:, drawn.window.start :])


def test_horizons_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="windows of 7 frames"):
        Horizon(7, 21, 3)
    with pytest.raises(ValueError, match="in rollouts of 3 "):
        Horizon(6, 3, 3)
    with pytest.raises(ValueError, match="lead of 6 frames"):
        Horizon(6, 21, 3, lead=6)
    with pytest.raises(ValueError, match="must fall strictly"):
        SelfForcing(Toy(), Full(), Horizon(6, 6, 3), SHAPE, (1.0, 0.5))


# ---------------------------------------------------------------- training = generation


@pytest.mark.parametrize("step", [renoise, euler])
@pytest.mark.parametrize("deep", [1, 3])
@pytest.mark.parametrize("policy", [Full(), Window(4, sink=2)], ids=str)
def test_a_training_rollout_that_walks_to_the_end_is_the_rollout_of_inference(
    policy: Policy, deep: int, step: Step
) -> None:
    """Bit for bit: a model in bf16, walked by the engine through all levels."""
    model = CausalWan(WanConfig(24, 48, 2, 2, 8, 5, CHANNELS, CHANNELS, 16)).eval()
    words = torch.randn(2, 5, 8)
    with torch.no_grad():
        drawn = Drawn(Span(3, 9), 0.9, 5)
        maker = forcing(model, Horizon(6, 9, BLOCK), policy, step=step, deep=deep)
        rolled = [b.latents_BTCHW for b in maker.blocks(drawn, words)]
        walker = FlowWalker("target", model.to(torch.bfloat16), Store(policy, BLOCK), step, Clock())
        condition, noise = Condition("words", words), SeededNoise(5)
        for move, block in zip(sequential(9, BLOCK, LEVELS), rolled, strict=True):
            x = noise.draw(move.index, 0, (2, BLOCK, *SHAPE))
            made = walker.walk(move, x, move.sigmas, condition, noise).block_BTCHW
            assert torch.equal(made, block)
            walker.remember(move, made, condition)


def test_every_weight_learns_in_fp32() -> None:
    model = CausalWan(WanConfig(24, 48, 2, 2, 8, 5, CHANNELS, CHANNELS, 16))
    window = forcing(model, Horizon(6, 12, BLOCK))(torch.randn(2, 5, 8), torch.Generator().manual_seed(3))
    window.square().mean().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.dtype == torch.float32
        assert p.grad.isfinite().all()
