"""Blocks that wait to be written: which of them can be forgotten, and that nothing depends on it."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from arvid.caches.full import Full
from arvid.caches.positions import POSITIONS
from arvid.caches.store import Policy, Store
from arvid.caches.window import Window
from arvid.rollout.flow import ROOM, TOGETHER, FlowWalker
from arvid.rollout.reach import Reach
from arvid.rollout.stage import Clock
from arvid.samplers.noise import SeededNoise
from arvid.samplers.steps import STEPS
from arvid.spec import build
from arvid.types import Condition, Estimate, Move, Places, Positions, Span, View
from rollout.rig import BLOCK, CONDITION, FULL, Run, model

LONG = 40


def scribble(z_BTCHW: Tensor, sigma_BT: Tensor, condition: Condition, view: View, span: Span) -> Estimate:
    """A denoiser of no cost that remembers its input."""
    kept = z_BTCHW.flatten(2)[..., None]
    return Estimate(torch.zeros_like(z_BTCHW), ((kept, kept),))


def spans(count: int) -> list[Span]:
    return [Span(n * BLOCK, (n + 1) * BLOCK) for n in range(count)]


@pytest.mark.parametrize("policy", [Window(3), Window(4, sink=3), Window(7, sink=1)], ids=str)
def test_a_draft_run_of_two_thousand_blocks_keeps_a_short_queue(policy: Policy) -> None:
    layers = 4
    walker = FlowWalker("target", scribble, Store(policy, BLOCK), STEPS["euler"], Clock(), Reach(policy, layers))
    longest, z = 0, torch.zeros(1, BLOCK, 1, 1, 1)
    for index, span in enumerate(spans(2000)):
        walker.remember(Move(index, span, (1.0, 0.0)), z, CONDITION)
        longest = max(longest, len(walker.pending))
    needed = layers * (-(-policy.frames // BLOCK) + 1) + 2
    assert longest <= 2 * needed + ROOM
    assert walker.pending[-1][0].index == 1999
    if policy.sink:
        sunk = -(-policy.sink // BLOCK)
        assert [move.index for move, _, _ in walker.pending[:sunk]] == list(range(sunk))
        assert walker.pending[sunk][0].index > 1900


def test_a_full_past_keeps_all() -> None:
    walker = FlowWalker("target", scribble, Store(Full(), BLOCK), STEPS["euler"], Clock(), Reach(Full(), 30))
    for index, span in enumerate(spans(300)):
        walker.remember(Move(index, span, (1.0, 0.0)), torch.zeros(1, BLOCK, 1, 1, 1), CONDITION)
    assert len(walker.pending) == 300


def late(
    policy: Policy, reach: Reach | None, together: int = TOGETHER, positions: Positions | None = None
) -> tuple[Tensor, dict[str, int], int]:
    """The target's first block after LONG drafts that it was told of, the passes it took, how many blocks waited."""
    clock, noise, past = Clock(), SeededNoise(5), Store(policy, BLOCK, positions)
    walker = FlowWalker("target", model(2, 2, 0), past, STEPS["euler"], clock, reach, together=together)
    z = torch.randn(1, BLOCK * LONG, 4, 4, 4, generator=torch.Generator().manual_seed(6))
    for index, span in enumerate(spans(LONG)):
        walker.remember(Move(index, span, (1.0, 0.0)), z[:, span.start : span.stop], CONDITION)
    waiting = len(walker.pending)
    move = Move(LONG, Span(BLOCK * LONG, BLOCK * LONG + BLOCK), (1.0, 0.5, 0.0))
    with torch.no_grad():
        block = walker.walk(move, noise.draw(LONG, 0, (1, BLOCK, 4, 4, 4)), move.sigmas, CONDITION, noise)
    return block.block_BTCHW, clock.passes, waiting


@pytest.mark.parametrize("policy", [Window(2), Window(3), Window(5), Window(3, sink=1), Window(4, sink=3)], ids=str)
def test_a_target_that_is_called_late_makes_the_same_block(policy: Policy) -> None:
    (bounded, passes, waiting), (expected, more, all_of_them) = late(policy, Reach(policy, 2)), late(policy, None)
    torch.testing.assert_close(bounded, expected, rtol=1e-5, atol=1e-5)
    assert all_of_them == LONG
    assert waiting < LONG == more["target_commit"]
    felt = Reach(policy, 2).felt(spans(LONG), BLOCK * LONG)
    assert passes["target_commit"] == sum(felt)


def test_what_is_kept_is_no_more_than_what_acts() -> None:
    """Through two layers a window of 2 frames reaches two views back: forgetting the second view changes the block."""
    policy = Window(2)
    (short, _, _), (expected, _, _) = late(policy, Reach(policy, 1)), late(policy, None)
    assert (short - expected).abs().max() > 1e-4
    assert Reach(policy, 1).felt(spans(6), 12) == [False] * 5 + [True]
    assert Reach(policy, 2).felt(spans(6), 12) == [False] * 4 + [True] * 2
    assert Reach(Window(3), 2).felt(spans(6), 12) == [False] * 2 + [True] * 4
    assert Reach(Window(2, sink=1), 2).felt(spans(6), 12) == [True, False, False, False, True, True]
    assert Reach(Full(), 1).felt(spans(6), 12) == [True] * 6


@pytest.mark.parametrize("text", ["stride:k=7", "first", "reward:tau=0.2", "verify-commit:level=0.5,tau=0.2"])
@pytest.mark.parametrize("policy", [Window(2), Window(3, sink=1)], ids=str)
def test_a_rollout_does_not_depend_on_what_is_forgotten(text: str, policy: Policy) -> None:
    kept, bounded = (Run(text, frames=30, past=policy, layers=layers) for layers in (0, 2))
    torch.testing.assert_close(bounded.latents, kept.latents, rtol=1e-4, atol=1e-4)
    assert bounded.sources == kept.sources


def test_many_blocks_are_written_a_few_at_a_time() -> None:
    made = Run("stride:k=20", frames=42, past=FULL)
    written = [z.shape[1] // BLOCK for _, level, z in made.target.passes if level == 0]
    assert sum(written) == 20
    assert max(written) == TOGETHER


@dataclass
class Standing:
    """Positions, and every place at which a pass stood."""

    inner: Positions
    own: list[float] = field(default_factory=list)

    @property
    def fixed(self) -> bool:
        return self.inner.fixed

    def place(self, past: tuple[tuple[float, float], ...], own: tuple[int, ...]) -> Places:
        places = self.inner.place(past, own)
        self.own += places.own
        return places


@pytest.mark.parametrize("text", ["relative:limit=6", "rephase", "flex:trained=6", "cyclic:period=8"])
def test_blocks_that_would_stand_elsewhere_together_are_written_one_by_one(text: str) -> None:
    policy, where = Window(4), Standing(build(text, POSITIONS, "positions"))
    block, _, _ = late(policy, Reach(policy, 2), TOGETHER, where)
    assert torch.equal(block, late(policy, Reach(policy, 2), 1, build(text, POSITIONS, "positions"))[0])
    if text.startswith("relative"):
        assert min(where.own) >= 0 and max(where.own) < 6


class EveryThird:
    """A policy that counts what it is shown, so that what is missing changes what is seen."""

    def visible(self, committed: tuple[int, ...], start: int) -> tuple[int, ...]:
        return tuple(frame for frame in committed if frame < start)[::-3][:3]


def test_a_policy_that_counts_frames_keeps_all() -> None:
    assert Reach(EveryThird(), 1).felt(spans(9), 18) == [True] * 9


def test_a_model_without_layers_is_an_error() -> None:
    with pytest.raises(ValueError, match="a model of 0 layers"):
        Reach(Full(), 0)
