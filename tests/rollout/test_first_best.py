"""The best of several first blocks: each is what its noise alone would have given, and one of them is gone on with."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from arvid.caches.policies import POLICIES
from arvid.pipeline import Pipeline, Request
from arvid.rollout.judging import chooser
from arvid.rollout.stage import Clock
from arvid.rollout.timeline import Entry
from arvid.samplers.noise import CANDIDATE, Antiphase, SeededNoise
from arvid.spec import build
from arvid.types import Candidate, Condition
from rollout.rig import (
    BLOCK,
    BLOCKS,
    CONDITION,
    LISTENING,
    SHAPE,
    STEPS_EACH,
    Run,
    assert_alike,
    fresh,
    run,
    same,
    written,
)


class Swapped:
    """Noise whose first block begins from that of a candidate."""

    def __init__(self, number: int) -> None:
        self.number, self.inner = number, SeededNoise(3)

    def draw(self, block: int, step: int, shape: tuple[int, ...]) -> Tensor:
        return self.inner.draw(block, CANDIDATE + self.number if (block, step) == (0, 0) else step, shape)


class Picked:
    """Chooses a number, and keeps what it was shown."""

    def __init__(self, number: int) -> None:
        self.number, self.seen = number, torch.zeros(0)

    def __call__(self, blocks_NTCHW: Tensor, condition: Condition) -> int:
        assert len(condition.text_BLD) == len(blocks_NTCHW)
        self.seen = blocks_NTCHW
        return self.number


@pytest.mark.parametrize("router", ["target", "first", "refine:levels=0.8", "first:commit=last", "draft"])
@pytest.mark.parametrize(("number", "look"), [(1, 0), (2, 0), (1, 1), (2, STEPS_EACH - 1), (1, STEPS_EACH)])
def test_the_chosen_one_is_what_its_noise_alone_gives(router: str, number: int, look: int) -> None:
    options = f"first_best=3,first_look={look}"
    best = Run(f"{router}{',' if ':' in router else ':'}{options}", "euler", choose=Picked(number))
    alone = Run(router, "euler", noise=Swapped(number))
    torch.testing.assert_close(best.latents, alone.latents, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(best.remembered(), alone.remembered(), strict=True):
        for pair, expected in zip(ours, theirs, strict=True):
            for one, other in zip(pair, expected, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert best.sources == alone.sources


@pytest.mark.parametrize("past", LISTENING)
@pytest.mark.parametrize("look", [0, 1])
def test_a_past_that_listens_forgets_the_candidates_that_were_not_chosen(past: str, look: int) -> None:
    """It has heard all of them, or the chosen one from the middle on: it has a clean pass over that one instead."""
    policy, text = build(past, POLICIES, "past"), f"target:commit=last,first_best=3,first_look={look}"
    ours = Run(text, "euler", BLOCK, past=policy, choose=Picked(1))
    ours.remembered()
    assert_alike(ours.pasts[0].snapshot(), written(ours.target.inner, [ours.latents], fresh(past)).snapshot())
    whole = Run(text, "euler", past=policy, choose=Picked(1))
    assert whole.passes("target_commit") == [0, 1, *[0] * (BLOCKS - 2)], "later blocks are of one walk"


def test_the_first_candidate_is_the_block_without_a_choice() -> None:
    best = Run("target:first_best=2", "euler", choose=Picked(0))
    torch.testing.assert_close(best.latents, run("target", "euler").latents, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(best.latents, Run("target:first_best=2", "euler", choose=Picked(1)).latents, atol=1e-2)


def test_one_candidate_asks_nobody() -> None:
    def never(blocks_NTCHW: Tensor, condition: Condition) -> int:
        raise AssertionError

    assert same(Run("first:first_best=1", choose=never), run("first"))


def test_every_candidate_counts_as_passes_and_later_blocks_have_one() -> None:
    picked = Picked(2)
    made = Run("target:first_best=4", choose=picked)
    assert picked.seen.shape == (4, BLOCK, *SHAPE[1:])
    assert len({float(block.sum()) for block in picked.seen}) == 4
    assert made.passes("target") == [4 * STEPS_EACH] + [STEPS_EACH] * (BLOCKS - 1)
    assert all(z_BTCHW.shape[0] == 1 for start, _, z_BTCHW in made.target.passes if start)


def test_candidates_that_are_looked_at_early_cost_no_more_passes() -> None:
    early, late = Picked(1), Picked(1)
    made = Run("target:first_best=4,first_look=1", "euler", choose=early)
    Run("target:first_best=4", "euler", choose=late)
    assert made.passes("target")[0] == 4 * 1 + STEPS_EACH - 1
    assert made.blocks[0].latents_BTCHW.shape == early.seen[:1].shape == late.seen[:1].shape
    assert not torch.allclose(early.seen, late.seen, atol=1e-3)


class Says:
    """A judge of blocks that says what it was told to say."""

    def __init__(self, *scores: float, lookback: int = 0) -> None:
        self.scores, self.lookback = scores, lookback

    def score_block(self, candidate: Candidate) -> Tensor:
        if self.lookback:
            candidate.frames()
        return torch.tensor(self.scores)


def test_the_best_has_the_largest_product_of_scores() -> None:
    blocks, clock = torch.zeros(3, *SHAPE), Clock()
    one, other, pixels = Says(0.9, 0.5, 0.6), Says(0.1, 0.5, 0.45), Says(0.0, 0.0, 1.0, lookback=4)
    for judges, best in [({"a": one}, 0), ({"a": other}, 1), ({"a": one, "b": other}, 2), ({"a": one, "c": pixels}, 0)]:
        choose = chooser(judges, clock)
        assert choose is not None
        assert choose(blocks, CONDITION) == best
    assert chooser({"c": pixels}, clock) is None
    assert clock.seconds["score"] > 0


def test_noise_of_candidates_is_initial_noise_of_its_kind() -> None:
    shape = (1, 6, 2, 2, 2)
    plain, leaning = SeededNoise(4), Antiphase(SeededNoise(4), -0.9)
    assert not torch.equal(leaning.draw(0, CANDIDATE + 1, shape), plain.draw(0, CANDIDATE + 1, shape))
    assert torch.equal(leaning.draw(0, 1, shape), plain.draw(0, 1, shape))


@pytest.mark.parametrize(("count", "found"), [(0, "first_best=0 candidates"), (65, "first_best=65 candidates")])
def test_impossible_numbers_are_refused(count: int, found: str) -> None:
    with pytest.raises(ValueError, match=found):
        run(f"target:first_best={count}")


def test_an_early_look_needs_something_to_look_at() -> None:
    with pytest.raises(ValueError, match="first_look=2 without candidates; give first_best="):
        run("target:first_look=2")


def test_a_choice_needs_somebody_who_chooses() -> None:
    with pytest.raises(ValueError, match="first_best=3 needs a judge of blocks that reads latents"):
        Run("target:first_best=3")


@pytest.mark.parametrize(("how", "passes"), [("cut", 12), ("recache", 4)])
@pytest.mark.parametrize("router", ["target:first_best=3", "first:first_best=3", "draft:first_best=3"])
def test_a_block_that_opens_a_scene_is_chosen_too(how: str, passes: int, router: str) -> None:
    """Three candidates at block 0 and behind a cut; a new prompt in a scene that goes on is one walk."""
    request = Request("a red circle rests", 2.2, 3, router, timeline=(Entry(1.2, "a green star rests on white", how),))
    made = list(Pipeline.embedded().stream(request))
    first, before, changed = (block.passes.get("target", 0) + block.passes.get("drafter", 0) for block in made[:3])
    assert (first, before, changed) == (12, 4, passes)


@pytest.mark.parametrize(("how", "passes"), [("cut", 4), ("recache", 1)])
def test_a_block_that_opens_a_scene_has_the_passes_of_a_first_one(how: str, passes: int) -> None:
    told = (Entry(1.2, "a green star rests on white", how),)
    request = Request("a red circle rests", 2.2, 3, "target:steps=1,first_steps=4", timeline=told)
    blocks = list(Pipeline.embedded().stream(request))
    assert [block.passes["target"] for block in blocks] == [4, 1, passes, 1]


def test_the_shipped_judges_choose_a_first_block() -> None:
    pipeline = Pipeline.embedded()
    made = pipeline.generate(Request("a red circle on a blue background", 0.75, router="target:first_best=3"))
    assert made.blocks[0].passes["target"] == 12
    assert {"target", "score"} <= set(made.blocks[0].seconds)
    deaf = Pipeline(replace(pipeline.family, judges={}))
    with pytest.raises(ValueError, match="chooses among 3 first blocks, but embedded has no judge"):
        deaf.check(Request("a red circle", 1.0, router="target:first_best=3"))
