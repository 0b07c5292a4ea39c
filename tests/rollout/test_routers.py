"""Routers: who is picked, what a judge decides, and what cannot be asked for."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from arvid.rollout.judging import Evidence, Routing
from arvid.rollout.routers import ROUTERS, Cascade, HoldQuality, Quantile, RewardRouter, Verify, VerifyCommit
from arvid.rollout.specs import DRAFT, REMEDY, TARGET, Spec
from arvid.rollout.stage import Clock, Pace
from arvid.spec import build
from arvid.types import Candidate, Condition, Move, Proposal, Span

CONDITION = Condition("words", torch.zeros(1, 1, 1))
MOVE = Move(1, Span(3, 6), (1.0, 0.0))


class Written:
    """Scores that are given, and which of them were asked for."""

    def __init__(self, values: list[float]) -> None:
        self.values = values
        self.asked: list[int] = []

    @property
    def count(self) -> int:
        return len(self.values)

    def of(self, frames: list[int]) -> Tensor:
        self.asked += frames
        return torch.tensor([self.values[frame] for frame in frames], dtype=torch.float64)

    def whole(self, judge: str) -> tuple[float, int]:
        return {"latent": (0.7, 0), "block": (0.3, 12)}[judge]

    def agreement(self, measure: str) -> float:
        return {"place": 0.6, "rival": 0.4}[measure]

    @property
    def pace(self) -> Pace:
        return Pace()


scores = st.lists(st.floats(0, 1), min_size=1, max_size=13)


def picks(text: str, blocks: int = 12, seed: int = 0) -> list[str]:
    router = build(text, ROUTERS, "router")
    return [router.pick(index, seed) for index in range(blocks)]


# ---------------------------------------------------------------- picking


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("target", [TARGET] * 12),
        ("draft", [DRAFT] * 12),
        ("first", [TARGET] + [DRAFT] * 11),
        ("reward:tau=0.5", [TARGET] + [DRAFT] * 11),
        ("quantile:accept=0.5", [TARGET] + [DRAFT] * 11),
        ("cascade:tau=0.5", [TARGET] + [DRAFT] * 11),
        ("hold:fps=24", [TARGET] + [DRAFT] * 11),
        ("hold-quality:quality=0.5", [TARGET] + [DRAFT] * 11),
        ("verify:tau=0.5", [TARGET] + [DRAFT] * 11),
        ("verify-commit:tau=0.5", [TARGET] + [DRAFT] * 11),
        ("random:p=1", [TARGET] + [DRAFT] * 11),
        ("random:p=0", [TARGET] * 12),
        ("random:p=0,repair=2", [TARGET] + [REMEDY] * 11),
        ("stride:k=1", [TARGET] * 12),
        ("stride:k=3", [TARGET, DRAFT, DRAFT] * 4),
        ("stride:k=3,refine=0.8", [TARGET, DRAFT, DRAFT] + [REMEDY, DRAFT, DRAFT] * 3),
        ("refine:levels=0.8+0.4", [TARGET] + [REMEDY] * 11),
    ],
)
def test_who_makes_which_block(text: str, expected: list[str]) -> None:
    assert picks(text) == expected


@given(st.floats(0, 1), st.integers(0, 50))
def test_a_random_draft_that_is_kept_is_kept_at_every_higher_p(p: float, seed: int) -> None:
    low, high = picks(f"random:p={p / 2}", 40, seed), picks(f"random:p={p}", 40, seed)
    assert all(b == DRAFT for a, b in zip(low, high, strict=True) if a == DRAFT)
    assert high == picks(f"random:p={p}", 40, seed)


def test_random_keeps_its_share_and_depends_on_the_seed() -> None:
    drawn = [picks("random:p=0.3", 401, seed)[1:] for seed in range(5)]
    assert sum(row.count(DRAFT) for row in drawn) / 2000 == pytest.approx(0.3, abs=0.05)
    assert drawn[0] != drawn[1]


# ---------------------------------------------------------------- judging


@given(scores, st.floats(0, 1))
def test_reward_compares_the_worst_frame_or_the_mean(values: list[float], tau: float) -> None:
    worst = RewardRouter(tau=tau).judge(Written(values), [])
    assert (worst.decision == "accept") == all(value >= tau for value in values)
    assert worst.score == min(values)
    assert worst.frames_scored == len(values)
    mean = RewardRouter(tau=-1.0, aggregate="mean").judge(Written(values), [])
    assert mean.score == pytest.approx(math.fsum(values) / len(values))


@given(scores, st.floats(0, 1), st.floats(0, 0.5), st.integers(1, 15))
def test_a_cascade_is_the_reward_router_except_where_it_accepts_early(
    values: list[float], tau: float, delta: float, frames: int
) -> None:
    asked = Written(values)
    verdict = Cascade(tau=tau, delta=delta, frames=frames).judge(asked, [])
    exact = min(values) >= tau
    assert sorted(set(asked.asked)) == sorted(asked.asked), "no frame is scored twice"
    assert verdict.frames_scored == len(asked.asked)
    assert verdict.score == min(values[frame] for frame in asked.asked)
    if verdict.decision == "accept":
        assert exact or (verdict.score >= tau + delta and len(asked.asked) < len(values))
    else:
        assert not exact, "a reject by a few frames is a reject by all"


@given(scores, st.floats(0, 1), st.integers(1, 15))
def test_a_cascade_that_never_accepts_early_is_the_reward_router(values: list[float], tau: float, frames: int) -> None:
    cascade = Cascade(tau=tau, delta=math.inf, frames=frames).judge(Written(values), [])
    assert cascade.decision == RewardRouter(tau=tau).judge(Written(values), []).decision


def test_a_cascade_looks_at_both_ends_first() -> None:
    asked = Written([0.1] * 9)
    assert Cascade(tau=0.5, frames=3).judge(asked, []).decision == "redo"
    assert asked.asked == [0, 4, 8]


@pytest.mark.parametrize("accept", [0.2, 0.5, 0.9])
def test_quantile_keeps_its_share_whatever_the_scale_of_scores(accept: float) -> None:
    drawn, history, kept = random.Random(1), [], 0
    for _ in range(1500):
        verdict = Quantile(accept=accept).judge(Written([7 + 100 * drawn.random() ** 2]), history)
        assert verdict.score is not None
        history.append(verdict.score)
        kept += verdict.decision == "accept"
    assert kept / 1500 == pytest.approx(accept, abs=0.04)


def test_quantile_begins_with_its_prior() -> None:
    """The upper quarter of N(0.5, 0.2) begins at 0.5 + 0.67449 * 0.2; five known scores replace it."""
    edge, router = 0.5 + 0.67449 * 0.2, Quantile(accept=0.25, mean=0.5, deviation=0.2)
    for history in ([], [0.0] * 4):
        assert router.judge(Written([edge + 0.001]), history).decision == "accept"
        assert router.judge(Written([edge - 0.001]), history).decision == "redo"
    assert router.judge(Written([edge - 0.001]), [0.0] * 5).decision == "accept"


@pytest.mark.parametrize(
    ("score", "decision"), [(0.9, "accept"), (0.6, "accept"), (0.59, "repair"), (0.3, "repair"), (0.29, "redo")]
)
def test_a_score_decides_how_much_is_mended(score: float, decision: str) -> None:
    router = RewardRouter(tau=0.6, once=0.3, refine=(0.8, 0.4))
    assert router.judge(Written([score]), []).decision == decision


def test_a_judge_of_whole_blocks_takes_the_place_of_frames() -> None:
    asked = Written([0.1] * 9)
    latent = RewardRouter(tau=0.5, by="latent").judge(asked, [])
    assert (latent.decision, latent.score, latent.frames_scored) == ("accept", 0.7, 0)
    block = RewardRouter(tau=0.5, by="block").judge(asked, [])
    assert (block.decision, block.score, block.frames_scored) == ("redo", 0.3, 12)
    assert Quantile(accept=0.5, by="latent").judge(asked, [0.6] * 9).decision == "accept"
    assert asked.asked == []


def test_several_judges_say_the_product_of_what_each_says() -> None:
    asked = Written([0.9, 0.8, 0.5])
    verdict = RewardRouter(tau=0.2, by="latent+block").judge(asked, [])
    assert (verdict.decision, verdict.frames_scored) == ("accept", 12)
    assert verdict.score == pytest.approx(0.7 * 0.3)
    assert asked.asked == [], "nobody asked for frames"
    verdict = RewardRouter(tau=0.2, by="frame+latent").judge(asked, [])
    assert verdict.score == pytest.approx(0.5 * 0.7)
    assert verdict.frames_scored == 3


def test_the_targets_agreement_is_compared_with_tau() -> None:
    assert Verify(tau=0.6).judge(Written([]), []).decision == "accept"
    assert Verify(tau=0.61).judge(Written([]), []).decision == "redo"
    assert VerifyCommit(tau=0.5, measure="rival").judge(Written([]), []).score == 0.4


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.floats(0, 1))
def test_a_quality_is_held_with_as_few_repairs_as_possible(values: list[float], quality: float) -> None:
    """The last draft is judged knowing those before: over all, kept ones at their score and others at 1."""
    *before, last = values
    verdict = HoldQuality(quality=quality).judge(Written([last]), before)
    ordered = sorted(values, reverse=True)
    held = [k for k in range(len(values) + 1) if sum(ordered[:k]) + len(values) - k >= len(values) * quality - 1e-9]
    threshold = ordered[max(held) - 1] if max(held) else math.inf
    assert (verdict.decision == "accept") == (last >= threshold) or abs(last - threshold) < 1e-6
    if verdict.decision == "accept":
        kept = [value for value in values if value >= last]
        assert (sum(kept) + len(values) - len(kept)) / len(values) >= quality - 1e-6 or ordered.count(last) > 1


def test_a_held_quality_is_the_mean_of_what_comes_out() -> None:
    drawn, history, out = random.Random(2), [], []
    for _ in range(600):
        score = drawn.random()
        verdict = HoldQuality(quality=0.8).judge(Written([score]), history)
        history.append(score)
        out.append(score if verdict.decision == "accept" else 1.0)
    assert sum(out) / len(out) == pytest.approx(0.8, abs=0.02)


class Brightness:
    """A reward: the mean of a frame."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def score(self, v_BTCHW: Tensor, prompt: str) -> Tensor:
        assert prompt == "words"
        self.batches.append(v_BTCHW.shape[1])
        return v_BTCHW.mean((2, 3, 4))


def film(values: list[float]) -> Callable[[], Tensor]:
    return lambda: torch.tensor(values).view(1, -1, 1, 1, 1).expand(1, -1, 3, 2, 2)


def test_frames_are_scored_in_one_batch_and_what_the_target_touched_is_not() -> None:
    reward = Brightness()
    judge = Routing(RewardRouter(tau=0.3), reward, Clock())
    draft = Proposal(torch.zeros(1), source="draft")
    assert judge.judge(MOVE, draft, film([0.5, 0.2, 0.9]), CONDITION).decision == "redo"
    assert judge.judge(MOVE, draft, film([0.5, 0.4, 0.9]), CONDITION).decision == "accept"
    assert reward.batches == [3, 3]

    def unseen() -> Tensor:
        raise AssertionError("the target's blocks are not decoded to be judged")

    for source in ("target", "repaired", "refined"):
        assert judge.judge(MOVE, Proposal(torch.zeros(1), source=source), unseen, CONDITION).decision == "accept"


def test_history_holds_kept_and_rejected_scores_of_this_rollout() -> None:
    seen: list[list[float]] = []

    class Watching(Quantile):
        def judge(self, scores: Written, history: list[float]):  # type: ignore[no-untyped-def,override]
            seen.append(list(history))
            return super().judge(scores, history)

    judge = Routing(Watching(accept=0.5), Brightness(), Clock())
    for value in (0.9, 0.1, 0.8):
        judge.judge(MOVE, Proposal(torch.zeros(1), source="draft"), film([value]), CONDITION)
    assert [len(history) for history in seen] == [0, 1, 2]
    assert seen[2] == pytest.approx([0.9, 0.1])


class Continuity:
    """A judge of whole blocks: how near a block begins to where the one before it ended."""

    def __init__(self, lookback: int) -> None:
        self.lookback = lookback
        self.seen: list[Candidate] = []

    def score_block(self, candidate: Candidate) -> Tensor:
        self.seen.append(candidate)
        if self.lookback:
            assert candidate.frames_before_BTCHW is not None
            gap = candidate.frames()[:, 0] - candidate.frames_before_BTCHW[:, -1]
        else:
            assert candidate.before_BTCHW is not None
            gap = candidate.block_BTCHW[:, 0] - candidate.before_BTCHW[:, -1]
        return 1 - gap.abs().mean((1, 2, 3))


def latents(value: float) -> Tensor:
    return torch.full((1, 3, 1, 2, 2), value)


@pytest.mark.parametrize("by", ["block", "latent"])
def test_a_block_judge_sees_the_block_before_whoever_made_it(by: str) -> None:
    chosen = Continuity(2 if by == "block" else 0)
    judge = Routing(RewardRouter(tau=0.75, by=by), None, Clock(), {by: chosen})
    made = [("target", 0.2), ("draft", 0.9), ("target", 0.4), ("draft", 0.5), ("draft", 0.6), ("draft", 0.1)]
    decisions = [
        judge.judge(MOVE, Proposal(latents(v), source=source), film([v] * 4), CONDITION).decision for source, v in made
    ]
    assert decisions == ["accept", "redo", "accept", "accept", "accept", "redo"]
    assert len(chosen.seen) == 4
    for candidate, before in zip(chosen.seen, (0.2, 0.4, 0.5, 0.6), strict=True):
        assert candidate.before_BTCHW is not None
        assert candidate.before_BTCHW[0, 0, 0, 0, 0] == pytest.approx(before)
        if by == "block":
            assert candidate.frames_before_BTCHW is not None
            assert candidate.frames_before_BTCHW.shape[1] == 2
        else:
            assert candidate.frames_before_BTCHW is None


class Pleased(Continuity):
    """One that likes everything, what begins included."""

    def score_block(self, candidate: Candidate) -> Tensor:
        self.seen.append(candidate)
        return torch.ones(1)


def test_a_draft_that_opens_a_scene_is_judged_without_the_old_one() -> None:
    chosen = Pleased(2)
    judge = Routing(RewardRouter(tau=0.0, by="block"), None, Clock(), {"block": chosen})
    for opens in (False, True, False):
        judge.judge(MOVE, Proposal(latents(0.5), source="draft", opens=opens), film([0.5] * 4), CONDITION)
    assert [candidate.before_BTCHW is None for candidate in chosen.seen] == [True, True, False]
    assert [candidate.frames_before_BTCHW is None for candidate in chosen.seen] == [True, True, False]


def test_judges_that_are_asked_together_see_what_each_would_see_alone() -> None:
    pair = {"latent": Continuity(0), "block": Continuity(2)}
    judge = Routing(RewardRouter(tau=0.5, by="latent+block"), None, Clock(), pair)
    for source, value in (("target", 0.2), ("draft", 0.5)):
        verdict = judge.judge(MOVE, Proposal(latents(value), source=source), film([value] * 4), CONDITION)
    assert verdict.score == pytest.approx(0.7 * 0.7)
    assert [len(other.seen) for other in pair.values()] == [1, 1]


def test_a_latent_judge_has_nothing_decoded() -> None:
    def unseen() -> Tensor:
        raise AssertionError("nothing is decoded for a judge of latents")

    judge = Routing(RewardRouter(tau=0.5, by="latent"), None, Clock(), {"latent": Continuity(0)})
    for source in ("target", "draft", "draft"):
        assert judge.judge(MOVE, Proposal(latents(0.3), source=source), unseen, CONDITION).decision == "accept"


def test_what_a_judge_remembers_is_a_value() -> None:
    judge = Routing(Quantile(accept=0.5, by="latent"), None, Clock(), {"latent": Continuity(0)})
    for value in (0.1, 0.2, 0.3):
        judge.judge(MOVE, Proposal(latents(value), source="target"), film([0.0]), CONDITION)
        judge.judge(MOVE, Proposal(latents(value), source="draft"), film([0.0]), CONDITION)
    held = judge.snapshot()
    after = [judge.judge(MOVE, Proposal(latents(v), source="draft"), film([0.0]), CONDITION) for v in (0.5, 0.9)]
    judge.restore(held)
    again = [judge.judge(MOVE, Proposal(latents(v), source="draft"), film([0.0]), CONDITION) for v in (0.5, 0.9)]
    assert after == again
    assert len(held[0]) == 3


def evidence(clock: Clock) -> Evidence:
    draft = Proposal(latents(0.1), source="draft")
    return Evidence(draft, Candidate(draft.block_BTCHW, None, film([0.1]), None, CONDITION), clock)


def test_scores_without_a_judge_are_an_error() -> None:
    with pytest.raises(ValueError, match="no reward model is loaded; give one or use first or stride"):
        evidence(Clock()).of([0])
    with pytest.raises(ValueError, match="by=latent asks a judge of blocks that is not loaded; loaded: none"):
        evidence(Clock()).whole("latent")
    with pytest.raises(ValueError, match="the target has made no pass over this draft"):
        evidence(Clock()).agreement("place")


# ---------------------------------------------------------------- what cannot be asked for


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rewards:tau=1", "unknown router 'rewards'; known: cascade, draft, first"),
        ("reward", "needs tau="),
        ("reward:tau=0.5,aggregate=max", "known: min, mean"),
        ("stride:k=0", "at least 1"),
        ("random:p=1.5", r"p=1.5 must lie in \[0, 1\]"),
        ("quantile:accept=1", "between 0 and 1"),
        ("quantile:accept=0.5,deviation=0", "deviation=0.0 of the prior must be above 0"),
        ("cascade:tau=0.5,frames=0", "frames=0 must be at least 1"),
        ("cascade:tau=0.5,delta=-1", "delta=-1.0 at least 0"),
        ("first:commit=never", "known: clean, last"),
        ("first:level=1", r"level=1.0 of clean commits; give a number in \[0, 1\)"),
        ("first:steps=-1", "from 0 to 1000"),
        ("target:steps=99999999999999", "from 0 to 1000"),
        ("reward:tau=1,repair=-2", "repair=-2 must be at least 0"),
        ("reward:tau=1,repair=1,refine=0.5", "exclude each other"),
        ("reward:tau=1,repair=1,draft_steps=2", "leave out draft_steps=2"),
        ("refine:levels=0.4+0.8", "must fall"),
        ("refine:levels=1.2", "must fall"),
        ("refine:refine=0.4", "refine=0.4 to a router .* from levels=0.8; leave it out, or write levels=0.4"),
        ("refine:levels=0.7+0.3,refine=0.3", r"refine=0\.3 to a router .* from levels=0\.7\+0\.3"),
        ("refine:levels=0.5+0.5", "must fall"),
        ("refine:levels=0.5+0", "must fall"),
        ("reward:tau=0.5,once=0.3", "refine must have levels to save"),
        ("reward:tau=0.5,once=0.6,refine=0.8+0.4", "must be at most tau"),
        ("reward:tau=0.5,aggregate=mean,by=latent", "leave aggregate out"),
        ("hold:fps=0", "fps=0.0 must be above 0"),
        ("hold:fps=24,horizon=0", "horizon=0.0 at least 1 block"),
        ("hold:fps=inf", r"fps=inf is not finite; give a number \(delta, once, tau may be infinite\)"),
        ("hold:fps=nan", "fps='nan' is not a number"),
        ("hold:fps=24,horizon=inf", "horizon=inf is not finite"),
        ("hold:fps=24,mean=-inf", "mean=-inf is not finite"),
        ("hold-quality:quality=-inf", "quality=-inf is not finite"),
        ("hold-quality:quality=0.5,worth=inf", "worth=inf is not finite"),
        ("quantile:accept=0.5,deviation=inf", "deviation=inf is not finite"),
        ("random:p=-inf", "p=-inf is not finite"),
        ("first:level=inf", "level=inf is not finite"),
        ("refine:levels=inf", "must fall"),
        ("verify:level=inf,tau=1", "level=inf must lie between 0 and 1"),
        ("hold-quality:quality=1.1", "quality=1.1 is above worth=1.0"),
        ("verify:level=0.5", "needs tau="),
        ("verify:level=0,tau=1", "level=0.0 must lie between 0 and 1"),
        ("verify:level=1,tau=1", "level=1.0 must lie between 0 and 1"),
        ("verify:level=0.8,tau=1,repair=1", r"repair=1 with a router .* further passes are refine=0.8\+"),
        ("verify:level=0.8,tau=1,refine=0.6+0.3", "begin it with 0.8 or set level=0.6"),
        ("verify:level=0.8,tau=1,refine=0.8+0.9", "must fall"),
        ("verify-commit:tau=1,keep=both", "known: estimate and draft, place, rival, both"),
        ("verify-commit:tau=1,measure=raw", "known: estimate and draft, place, rival, both"),
    ],
)
def test_what_cannot_be_asked_for(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        build(text, ROUTERS, "router")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["reward:tau=inf", "cascade:tau=-inf,delta=inf", "verify:tau=-inf"])
def test_exact_limits_may_be_asked_for(text: str) -> None:
    assert isinstance(build(text, ROUTERS, "router"), Spec)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("reward", {"tau": math.nan}, "tau=nan is not finite"),
        ("reward", {"tau": 1.0, "once": math.nan, "refine": (0.8, 0.4)}, "once=nan is not finite"),
        ("cascade", {"tau": 1.0, "delta": math.nan}, "delta=nan is not finite"),
        ("quantile", {"accept": 0.5, "mean": math.nan}, "mean=nan is not finite"),
        ("hold", {"fps": math.nan}, "fps=nan is not finite"),
    ],
)
def test_what_is_no_number_is_refused_from_python_too(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ROUTERS[name](**options)


def test_a_refine_router_without_levels_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one level"):
        ROUTERS["refine"](levels=())


@pytest.mark.parametrize("name", sorted(ROUTERS))
def test_every_router_has_all_common_options(name: str) -> None:
    needed = {
        "random": "p=0.5,", "stride": "k=2,", "reward": "tau=0,", "quantile": "accept=0.5,", "cascade": "tau=0,",
        "hold": "fps=24,", "hold-quality": "quality=0.5,", "verify": "tau=0,", "verify-commit": "tau=0,",
    }  # fmt: skip
    common = "steps=3,first_steps=4,draft_steps=2,commit=last,level=0.1"
    router = build(f"{name}:{needed.get(name, '')}{common}", ROUTERS, "router")
    assert isinstance(router, Spec)
    assert (router.steps, router.first_steps, router.draft_steps, router.commit, router.level) == (3, 4, 2, "last", 0.1)
