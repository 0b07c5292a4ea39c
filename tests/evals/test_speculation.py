"""The protocol on a maker that makes nothing: who takes a turn when, on what, and what ends a run."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest

from arvid.evals import speculation
from arvid.evals.speculation import BlockRun, Calibration, Run, Work
from arvid.worlds.captions import is_held_out
from arvid.worlds.grammar import parse
from arvid.worlds.oracle import WorldScore

POLICIES = ("target", "first", "draft")
VERIFY = "verify:tau=-inf,level=0.7,draft_steps=1"


class Paper:
    """A maker of grey frames that writes down what it was asked."""

    def __init__(self, pause: float = 0.0) -> None:
        self.asked: list[tuple[str, str, int, int]] = []
        self.pause = pause

    def __call__(self, policy: str, prompt: str, seed: int, blocks: int = 0) -> Run:
        self.asked.append((policy, prompt, seed, blocks))
        time.sleep(self.pause)
        told = {speculation.ACCEPT_ALL: 0.1, VERIFY: 0.3}
        scores = [None, told[policy] * len(prompt), 0.2] if policy in told else [None, None, None]
        made = tuple(BlockRun(0.5, "draft" if score else "target", score) for score in scores)
        return Run(np.full((9, 4, 4, 3), 128, np.uint8), made, 1.5)


def grey(frames: np.ndarray, prompt: str) -> WorldScore:
    return WorldScore(float(frames.mean()) / 256, 1.0, 0.5, {"flicker": 1.0})


def test_every_policy_makes_every_video_and_opens_equally_often() -> None:
    make = Paper()
    work = Work(POLICIES, ("a", "b", "c"), seeds=2)
    videos = list(speculation.measure(make, work, grey))
    assert Counter(video.policy for video in videos) == dict.fromkeys(POLICIES, 6)
    by_policy = [{(v.prompt, v.seed) for v in videos if v.policy == policy} for policy in POLICIES]
    assert by_policy[0] == by_policy[1] == by_policy[2]
    assert len(by_policy[0]) == 6 and len({seed for _, seed in by_policy[0]}) == 6
    opened = Counter(make.asked[i][0] for i in range(0, len(make.asked), 3))
    assert opened == dict.fromkeys(POLICIES, 2)
    for i in range(0, len(make.asked), 3):
        assert len({asked[1:] for asked in make.asked[i : i + 3]}) == 1
    assert videos[0].score == pytest.approx(0.5) and videos[0].strip.shape == (4, 32, 3)


def test_no_round_begins_that_would_end_too_late() -> None:
    make = Paper(pause=0.02)
    work = Work(POLICIES, tuple("abcdefghijklmnop"))
    videos = list(speculation.measure(make, work, grey, until=time.monotonic() + 0.2))
    assert 0 < len(videos) < 3 * 16 and len(videos) % 3 == 0
    late = list(speculation.measure(make, work, grey, until=time.monotonic() - 1))
    assert len(late) == 3, "one round is always made"


def test_only_complete_rounds_are_kept() -> None:
    videos = list(speculation.measure(Paper(), Work(POLICIES, ("a", "b")), grey))
    assert len(speculation.complete(videos[:-1], POLICIES)) == 3
    assert speculation.complete(videos[:2], POLICIES) == []


def test_warm_up_is_short_and_reaches_everybody() -> None:
    make = Paper()
    assert list(speculation.warm_up(make, POLICIES, "x")) == [*POLICIES]
    assert {blocks for *_, blocks in make.asked} == {speculation.WARM_BLOCKS}


def test_prompts_are_held_out_different_and_repeatable() -> None:
    test = speculation.draw_prompts(40, (1, 2), "test")
    other = speculation.draw_prompts(16, (1, 2), "calibration", test)
    assert test == speculation.draw_prompts(40, (1, 2), "test")
    assert test[:8] == speculation.draw_prompts(8, (1, 2), "test"), "a shorter run is the beginning of a longer one"
    assert len({*test, *other}) == 56
    for prompt in (*test, *other):
        assert is_held_out(parse(prompt).acts[0])
    with pytest.raises(ValueError, match="0 prompts"):
        speculation.draw_prompts(0, (1,), "test")


def test_thresholds_come_from_the_drafts_of_the_calibration() -> None:
    named = ("first", "reward:tau=q50", "cascade:tau=q50,delta=0.1", "reward:tau=0.2", "target", "reward:tau=-inf")
    found = speculation.calibrate(Paper(), ("a", "bbb"), named)
    assert sorted(found.scores[speculation.ACCEPT_ALL]) == pytest.approx([0.1, 0.2, 0.2, 0.3])
    assert found.tau("reward:tau=q50", 50) == pytest.approx(0.2)
    assert speculation.resolve(named, found) == (
        "target", "first", "reward:tau=0.2", "cascade:tau=0.2,delta=0.1", "reward:tau=-inf",
    )  # fmt: skip
    with pytest.raises(ValueError, match="give tau a number"):
        speculation.resolve(named, None)
    with pytest.raises(ValueError, match="scored no draft"):
        speculation.calibrate(
            lambda *_: Run(np.zeros((1, 4, 4, 3), np.uint8), (BlockRun(1, "target"),), 1.0), ("a",), named
        )


def test_a_quantile_is_that_of_the_policys_own_scores() -> None:
    make = Paper()
    named = ("reward:tau=q50", "verify:level=0.7,tau=q50,draft_steps=1,refine=0.7+0.4", "verify:level=0.7,tau=0.9")
    found = speculation.calibrate(make, ("a", "bbb"), named)
    assert [(policy, prompt) for policy, prompt, *_ in make.asked] == [
        (policy, prompt) for policy in (speculation.ACCEPT_ALL, VERIFY) for prompt in ("a", "bbb")
    ]
    # Scores of verify: 0.3, 0.2, 0.9, 0.2.
    assert speculation.resolve(named, found)[1:] == (
        "reward:tau=0.2", "verify:level=0.7,tau=0.25,draft_steps=1,refine=0.7+0.4", "verify:level=0.7,tau=0.9",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("policy", "scorer"),
    [
        ("reward:tau=q50,repair=2", "reward:tau=-inf"),
        ("reward:tau=q50,refine=0.8+0.4,once=0.2", "reward:tau=-inf"),
        ("reward:by=latent,tau=q50", "reward:tau=-inf,by=latent"),
        ("cascade:tau=q50,delta=0.2,frames=3,draft_steps=2", "reward:tau=-inf,draft_steps=2"),
        (
            "verify-commit:tau=q50,level=0.6,keep=draft,measure=both",
            "verify-commit:tau=-inf,level=0.6,keep=draft,measure=both",
        ),
    ],
)
def test_who_scores_as_a_policy_does_and_keeps_everything(policy: str, scorer: str) -> None:
    from arvid import spec
    from arvid.rollout.routers import ROUTERS

    assert speculation.scorers((policy, policy, "first")) == (scorer,)
    router = spec.build(scorer, ROUTERS, "router")
    assert vars(router)["tau"] == -np.inf
    assert spec.build(*speculation.sampled((policy,)), ROUTERS, "router") is not None


@pytest.mark.parametrize("video", [0.1, 1.0, 3.0, 20.0])
def test_a_quick_run_is_fitted_into_its_time(video: float) -> None:
    policies, seconds = speculation.fit(90.0, video, 5.0, speculation.QUICK_POLICIES)
    assert policies[0] == "target" and len(policies) >= speculation.FEWEST_POLICIES
    assert seconds <= 5.0
    if seconds > 1:
        # What a video costs grows at least with its length.
        assert len(policies) * speculation.FEWEST_ROUNDS * video * seconds / 5.0 <= 90.0


def test_the_first_policies_are_the_baselines_and_every_name_is_there_once() -> None:
    for policies in (speculation.DEFAULT_POLICIES, speculation.QUICK_POLICIES):
        assert policies[0] == "target" and {"first", "draft", "target:steps=2"} < {*policies}
        scores = dict.fromkeys(speculation.scorers(policies), tuple(np.linspace(0, 1, 101)))
        resolved = speculation.resolve(policies, Calibration((), scores))
        assert len(resolved) == len(policies) == len({*policies})
