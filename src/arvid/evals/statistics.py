"""Intervals for paired numbers: every policy has made the same videos, so what is resampled are the prompts.

Knows: numbers that belong to prompts, and how far they would move with other prompts. Does not know: what the numbers
mean, who made them. Videos of one prompt (its seeds) are drawn together: they are not independent of each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 10_000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % interval. `value` is None where it is not defined (a ratio to nothing), `low` and `high`
    are None where there is no interval (fewer than two prompts)."""

    value: float | None
    low: float | None = None
    high: float | None = None

    @property
    def ci95(self) -> list[float] | None:
        """[low, high] for reports, None when there is no interval."""
        return None if self.low is None or self.high is None else [round(self.low, 6), round(self.high, 6)]

    @property
    def positive(self) -> bool:
        """Whether the whole interval lies above zero."""
        return self.low is not None and self.low > 0


class PairedBootstrap:
    """The percentile bootstrap over prompts (Efron and Tibshirani 1993, chapter 13). `prompts` labels the videos, in
    the order of every array given later; all statistics share one set of resamples, drawn from `seed`.

    Raises ValueError when there are no videos.
    """

    def __init__(self, prompts: Sequence[str], resamples: int = RESAMPLES, seed: int = 0) -> None:
        if not prompts:
            raise ValueError("0 videos to compare; at least one is needed")
        names = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
        self._owner = np.array([names[prompt] for prompt in prompts])
        self._count = len(names)
        draws = np.random.default_rng(seed).multinomial(self._count, [1 / self._count] * self._count, size=resamples)
        self._draws: NDArray[np.float64] = draws.astype(np.float64)

    def ratio(self, above: ArrayLike, below: ArrayLike) -> Interval:
        """sum(above) / sum(below) over all videos. Undefined when sum(below) is 0; resamples in which it is 0 do not
        count."""
        tops, bottoms = self._sums(above), self._sums(below)
        if bottoms.sum() == 0:
            return Interval(None)
        drawn = self._draws @ bottoms
        kept = drawn != 0
        return self._interval(float(tops.sum() / bottoms.sum()), (self._draws @ tops)[kept] / drawn[kept])

    def difference(self, first: ArrayLike, second: ArrayLike) -> Interval:
        """mean(first - second) over all videos; the same videos are drawn for both."""
        gaps = self._sums(np.asarray(first, float) - np.asarray(second, float))
        sizes = self._sums(np.ones(len(self._owner)))
        return self._interval(float(gaps.sum() / sizes.sum()), (self._draws @ gaps) / (self._draws @ sizes))

    def _sums(self, values: ArrayLike) -> NDArray[np.float64]:
        """Sums by prompt [prompts] of values [videos]."""
        numbers = np.asarray(values, float)
        if numbers.shape != self._owner.shape:
            raise ValueError(f"values of shape {list(numbers.shape)} for {len(self._owner)} videos; give one per video")
        return np.bincount(self._owner, numbers, self._count).astype(np.float64)

    def _interval(self, value: float, drawn: NDArray[np.float64]) -> Interval:
        if self._count < 2 or not len(drawn):
            return Interval(value)
        low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return Interval(value, float(low), float(high))
