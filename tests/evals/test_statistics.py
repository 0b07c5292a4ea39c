"""The bootstrap against all of its resamples, listed, and against how often it is right."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from arvid.evals.statistics import PairedBootstrap


def listed_quantiles(values: list[float]) -> tuple[float, float]:
    ordered = sorted(values)
    return ordered[int(0.025 * len(ordered))], ordered[int(0.975 * len(ordered))]


def test_a_ratio_is_that_of_the_sums_and_its_interval_that_of_all_resamples() -> None:
    above, below = [0.9, 0.2, 0.5, 0.7], [1.0, 0.4, 0.5, 0.9]
    found = PairedBootstrap(list("abcd"), resamples=40_000).ratio(above, below)
    every = [
        sum(above[i] for i in drawn) / sum(below[i] for i in drawn) for drawn in itertools.product(range(4), repeat=4)
    ]
    low, high = listed_quantiles(every)
    assert found.value == pytest.approx(2.3 / 2.8)
    assert found.low == pytest.approx(low, abs=1e-9)
    assert found.high == pytest.approx(high, abs=1e-9)


def test_a_difference_is_paired_and_its_interval_that_of_all_resamples() -> None:
    first, second = [0.9, 0.2, 0.5, 0.7], [0.7, 0.1, 0.55, 0.3]
    found = PairedBootstrap(list("abcd"), resamples=40_000).difference(first, second)
    gaps = [a - b for a, b in zip(first, second, strict=True)]
    low, high = listed_quantiles([sum(drawn) / 4 for drawn in itertools.product(gaps, repeat=4)])
    assert found.value == pytest.approx(sum(gaps) / 4)
    assert (found.low, found.high) == (pytest.approx(low, abs=1e-9), pytest.approx(high, abs=1e-9))


def test_seeds_of_a_prompt_are_drawn_together() -> None:
    gains = [0.3, -0.3, 0.1, -0.1, 0.2, -0.2]
    together = PairedBootstrap(list("aabbcc")).difference(gains, [0.0] * 6)
    alone = PairedBootstrap(list("abcdef")).difference(gains, [0.0] * 6)
    assert (together.low, together.high) == (pytest.approx(0, abs=1e-12), pytest.approx(0, abs=1e-12))
    assert alone.low is not None and alone.low < -0.05


def test_a_policy_against_itself_is_one_and_zero() -> None:
    bootstrap, scores = PairedBootstrap(list("abc")), [0.3, 0.6, 0.9]
    same = bootstrap.ratio(scores, scores)
    assert (same.value, same.low, same.high) == (1, 1, 1)
    assert bootstrap.difference(scores, scores).ci95 == [0, 0]


def test_one_prompt_gives_a_value_and_no_interval() -> None:
    found = PairedBootstrap(["a", "a"]).ratio([1.0, 2.0], [2.0, 4.0])
    assert (found.value, found.ci95, found.positive) == (0.5, None, False)


def test_a_ratio_to_nothing_is_not_a_number() -> None:
    assert PairedBootstrap(list("ab")).ratio([1.0, 2.0], [0.0, 0.0]).value is None


def test_the_same_seed_gives_the_same_interval() -> None:
    numbers = np.random.default_rng(3).uniform(size=(2, 20))
    names = [str(i) for i in range(20)]
    one, same = (PairedBootstrap(names, seed=7).ratio(*numbers) for _ in range(2))
    assert one == same
    assert one != PairedBootstrap(names, seed=8).ratio(*numbers)


def test_the_interval_holds_the_truth_about_95_times_of_100() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        target = rng.uniform(0.6, 1.0, 48)
        scores = 0.9 * target + rng.normal(0, 0.1, 48)
        found = PairedBootstrap([str(i) for i in range(48)], resamples=600).ratio(scores, target)
        assert found.low is not None and found.high is not None
        held += found.low <= 0.9 <= found.high
    assert 0.89 <= held / 200 <= 0.985


def test_wrong_input_is_named() -> None:
    with pytest.raises(ValueError, match="0 videos"):
        PairedBootstrap([])
    with pytest.raises(ValueError, match=r"shape \[2\] for 3 videos"):
        PairedBootstrap(list("abc")).ratio([1.0, 2.0], [1.0, 2.0, 3.0])
