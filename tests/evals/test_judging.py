"""Numbers about judges against closed forms and against all resamples, listed."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from arvid.evals.judging import Judged

GAP = 1.3


def of(scores: list[float], labels: list[float], prompts: str | list[str] = "", resamples: int = 2000) -> Judged:
    return Judged(scores, labels, list(prompts) or [str(n) for n in range(len(scores))], resamples)


# ---------------------------------------------------------------- ranking


def test_auc_counts_pairs() -> None:
    assert of([0.9, 0.8, 0.2, 0.1], [1, 1, 0, 0]).auc().value == 1
    assert of([0.1, 0.2, 0.8, 0.9], [1, 1, 0, 0]).auc().value == 0
    assert of([0.5] * 4, [1, 0, 1, 0]).auc().value == 0.5
    assert of([0.9, 0.3, 0.3, 0.1, 0.6], [1, 1, 0, 0, 0]).auc().value == pytest.approx((3 + 1 + 0.5) / 6)
    graded = of([0.9, 0.8, 0.2], [0.6, 0.5, 0.4])
    assert (graded.auc().value, graded.auc(0.55).value) == (1, 1)
    assert graded.auc(0.7).value is None
    assert graded.auc(0.0).value is None


def test_auc_of_two_normals_is_that_of_their_distance() -> None:
    """The chance that N(GAP, 1) exceeds N(0, 1) is Phi(GAP / sqrt 2); 95 % intervals hold it about as often."""
    exact, drawn = 0.5 * (1 + math.erf(GAP / 2)), np.random.default_rng(1)
    found = []
    for _ in range(40):
        values = np.concatenate([drawn.normal(GAP, 1, 200), drawn.normal(0, 1, 200)])
        prompts = [str(n % 100) for n in range(400)]
        found.append(Judged(1 / (1 + np.exp(-values)), np.repeat([1.0, 0.0], 200), prompts, 400).auc())
    assert np.mean([one.value for one in found]) == pytest.approx(exact, abs=0.01)
    held = [one.low is not None and one.high is not None and one.low < exact < one.high for one in found]
    assert 33 <= sum(held) <= 40


def listed(values: list[float]) -> tuple[float, float]:
    return float(np.quantile(values, 0.025)), float(np.quantile(values, 0.975))


SCORES = [0.9, 0.3, 0.7, 0.5, 0.4, 0.2, 0.8, 0.35]
LABELS = [1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0]
PROMPTS = list("aabbccdd")


def resampled(number) -> list[float]:  # type: ignore[no-untyped-def]
    """A number of the blocks of all 256 equally likely draws of four prompts."""
    found = []
    for drawn in itertools.product("abcd", repeat=4):
        rows = [n for prompt in drawn for n in range(8) if PROMPTS[n] == prompt]
        found.append(number(np.array(SCORES)[rows], np.array(LABELS)[rows]))
    return found


def naive_auc(scores: np.ndarray, labels: np.ndarray) -> float:
    pairs = [(g > b) + 0.5 * (g == b) for g in scores[labels == 1] for b in scores[labels == 0]]
    return float(np.mean(pairs))


def naive_error(scores: np.ndarray, labels: np.ndarray) -> float:
    places = [min(int(score * 5), 4) for score in scores]
    total = 0.0
    for place in set(places):
        rows = [n for n, other in enumerate(places) if other == place]
        total += len(rows) * abs(scores[rows].mean() - labels[rows].mean())
    return total / len(scores)


def test_intervals_are_those_of_all_resamples_of_prompts() -> None:
    found = Judged(SCORES, LABELS, PROMPTS, 40_000)
    for interval, number in ((found.auc(), naive_auc), (found.calibration_error(5), naive_error)):
        low, high = listed(resampled(number))
        assert interval.value == pytest.approx(number(np.array(SCORES), np.array(LABELS)))
        assert interval.low == pytest.approx(low, abs=0.01)
        assert interval.high == pytest.approx(high, abs=0.01)


def test_one_prompt_gives_no_interval() -> None:
    found = of([0.9, 0.1], [1, 0], "aa")
    assert (found.auc().value, found.auc().low) == (1, None)


# ---------------------------------------------------------------- calibration


def test_the_calibration_curve_by_hand() -> None:
    found = of([0.05, 0.15, 0.55, 0.6, 1.0], [0, 1, 0.5, 1, 1]).calibration(2)
    assert [(part.low, part.high, part.count) for part in found] == [(0, 0.5, 2), (0.5, 1, 3)]
    assert found[0].score == pytest.approx(0.1)
    assert found[0].label == pytest.approx(0.5)
    assert found[1].score == pytest.approx(2.15 / 3)
    assert found[1].label == pytest.approx(2.5 / 3)
    empty = of([0.9], [1]).calibration(2)[0]
    assert (empty.count, empty.score, empty.label) == (0, None, None)
    assert of([0.05, 0.15, 0.55, 0.6, 1.0], [0, 1, 0.5, 1, 1]).calibration_error(2).value == pytest.approx(
        (2 * 0.4 + 3 * (0.35 / 3)) / 5
    )


def test_a_calibrated_judge_has_a_small_error_and_a_boastful_one_its_boast() -> None:
    drawn = np.random.default_rng(2)
    scores = drawn.random(20_000)
    labels = (drawn.random(20_000) < scores).astype(float)
    prompts = [str(n % 50) for n in range(20_000)]
    honest = Judged(scores, labels, prompts, 200).calibration_error()
    assert honest.value is not None and honest.value < 0.02
    boast = Judged(0.5 + 0.5 * scores, labels, prompts, 200).calibration_error()
    assert boast.value == pytest.approx(float((0.5 - 0.5 * scores).mean()), abs=0.02)


# ---------------------------------------------------------------- gain


def test_what_is_gained_over_a_random_choice() -> None:
    best = of([0.9, 0.8, 0.2, 0.1], [1, 1, 0, 0]).lift([0.5, 1.0])
    assert [(part.label, part.gain.value) for part in best] == [(1.0, 0.5), (0.5, 0.0)]
    assert of([0.5] * 4, [1, 1, 0, 0]).lift([0.25])[0].gain.value == pytest.approx(0)
    tied = of([0.9, 0.5, 0.5, 0.1], [1, 1, 0, 0]).lift([0.5])[0]
    assert tied.label == pytest.approx(0.75)
    assert tied.gain.value == pytest.approx(0.25)


def test_a_blind_judge_gains_nothing_beyond_its_interval_and_a_seeing_one_does() -> None:
    drawn = np.random.default_rng(3)
    labels, prompts = drawn.random(600), [str(n // 6) for n in range(600)]
    blind = Judged(drawn.random(600), labels, prompts, 1000).lift([0.5])[0].gain
    assert blind.low is not None and blind.high is not None
    assert blind.low < 0 < blind.high
    seeing = Judged(labels, labels, prompts, 1000).lift([0.5])[0].gain
    assert seeing.positive
    assert seeing.value == pytest.approx(0.25, abs=0.03), "the upper half of a uniform label has mean 3/4"


@pytest.mark.parametrize(
    ("scores", "labels", "prompts", "said"),
    [
        ([0.1], [0.1, 0.2], ["a", "b"], "for 2 blocks; give one of each"),
        ([], [], [], "at least one block"),
        ([1.2], [0.5], ["a"], r"scores from 1.2 to 1.2; expected them in \[0, 1\]"),
        ([0.2], [float("nan")], ["a"], "labels from nan"),
    ],
)
def test_what_cannot_be_judged(scores: list[float], labels: list[float], prompts: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Judged(scores, labels, prompts)


def test_a_share_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="share 0 of the blocks"):
        of([0.5], [1]).lift([0])
