"""How good a judge of drafts is: its ranking, its calibration, and what choosing by it would gain.

Knows: scores of a judge and labels of an oracle for the same blocks, and which prompt each block belongs to.
Does not know: judges, oracles, how a block was made. Intervals are 95 % percentile bootstrap over prompts; the blocks
of one are drawn together, as they are not independent of each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from arvid.evals.statistics import LEVEL, RESAMPLES, Interval

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Bin:
    """Blocks with scores in [low, high): how many, their mean score and mean label (None of none)."""

    low: float
    high: float
    count: int
    score: float | None
    label: float | None


@dataclass(frozen=True)
class Lift:
    """Keeping the best-scored `share` of blocks: the mean label of those kept, and how much that is above the mean of
    all, which is what a random choice of as many would keep."""

    share: float
    label: float
    gain: Interval


class Judged:
    """Scores in [0, 1] of `prompts`' blocks beside labels in [0, 1].

    Raises ValueError for arrays of different lengths, no blocks, or values outside [0, 1].
    """

    def __init__(
        self, scores: ArrayLike, labels: ArrayLike, prompts: Sequence[str], resamples: int = RESAMPLES, seed: int = 0
    ) -> None:
        self.scores, self.labels = np.asarray(scores, float), np.asarray(labels, float)
        if not len(prompts) or self.scores.shape != (len(prompts),) or self.labels.shape != (len(prompts),):
            raise ValueError(
                f"{self.scores.shape} scores and {self.labels.shape} labels for {len(prompts)} blocks; give one of "
                "each for every block, and at least one block"
            )
        for name, values in (("scores", self.scores), ("labels", self.labels)):
            if not ((values >= 0) & (values <= 1)).all():
                raise ValueError(f"{name} from {values.min()} to {values.max()}; expected them in [0, 1]")
        names = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
        self._owner, self._count = np.array([names[prompt] for prompt in prompts]), len(names)
        draws = np.random.default_rng(seed).multinomial(self._count, [1 / self._count] * self._count, size=resamples)
        self._draws: Floats = draws.astype(float)

    def auc(self, good: float = 0.5) -> Interval:
        """The chance that a block with a label of at least `good` scores above one with a lower label; ties count half.
        Undefined when all blocks are on one side."""
        sound = self.labels >= good
        wins = np.zeros((self._count, self._count))
        gap = self.scores[sound][:, None] - self.scores[~sound][None]
        pairs = np.broadcast_arrays(self._owner[sound][:, None], self._owner[~sound][None])
        np.add.at(wins, (pairs[0], pairs[1]), (gap > 0) + 0.5 * (gap == 0))
        ups, downs = self._sums(sound), self._sums(~sound)
        if not sound.any() or sound.all():
            return Interval(None)
        drawn = (self._draws @ ups) * (self._draws @ downs)
        won = np.einsum("rp,pq,rq->r", self._draws, wins, self._draws, optimize=True)
        return self._interval(wins.sum() / (ups.sum() * downs.sum()), won[drawn > 0] / drawn[drawn > 0])

    def calibration(self, bins: int = 10) -> list[Bin]:
        """The calibration curve over equal parts of [0, 1]."""
        placed = self._places(bins)
        found = []
        for number in range(bins):
            inside = placed == number
            means = [float(values[inside].mean()) if inside.any() else None for values in (self.scores, self.labels)]
            found.append(Bin(number / bins, (number + 1) / bins, int(inside.sum()), means[0], means[1]))
        return found

    def calibration_error(self, bins: int = 10) -> Interval:
        """The expected calibration error (1706.04599): the mean over blocks of the distance between mean score and mean
        label of their bin. Its interval lies high when bins hold few blocks, as the error itself does."""
        placed = self._places(bins)
        gaps = np.stack([self._sums(np.where(placed == n, self.scores - self.labels, 0.0)) for n in range(bins)], 1)
        sizes = self._sums(np.ones(len(placed)))
        drawn = np.abs(self._draws @ gaps).sum(1) / (self._draws @ sizes)
        return self._interval(float(np.abs(gaps.sum(0)).sum() / sizes.sum()), drawn)

    def lift(self, shares: Sequence[float] = (0.25, 0.5, 0.75)) -> list[Lift]:
        """What is kept, and gained over a random choice, when the best share of all blocks is kept. Blocks that tie
        with the last one kept are kept in the part that fills the share.

        Raises ValueError for shares outside (0, 1].
        """
        return [self._lift(share) for share in shares]

    def _lift(self, share: float) -> Lift:
        if not 0 < share <= 1:
            raise ValueError(f"share {share} of the blocks; it must be above 0 and at most 1")
        wanted = share * len(self.scores)
        edge = np.sort(self.scores)[::-1][int(np.ceil(wanted)) - 1]
        above, level = self.scores > edge, self.scores == edge
        kept = above + level * (wanted - above.sum()) / level.sum()
        tops, sizes = self._sums(kept * self.labels), self._sums(kept)
        all_tops, all_sizes = self._sums(self.labels), self._sums(np.ones(len(kept)))
        value = tops.sum() / sizes.sum()
        some = (self._draws @ sizes) > 0
        drawn = (self._draws @ tops)[some] / (self._draws @ sizes)[some]
        drawn = drawn - (self._draws @ all_tops)[some] / (self._draws @ all_sizes)[some]
        return Lift(share, float(value), self._interval(float(value - all_tops.sum() / all_sizes.sum()), drawn))

    def _places(self, bins: int) -> NDArray[np.int64]:
        """The bin of every score; the last bin holds 1 too."""
        placed: NDArray[np.int64] = np.minimum((self.scores * bins).astype(np.int64), bins - 1)
        return placed

    def _sums(self, values: NDArray[np.generic]) -> Floats:
        """Sums by prompt [prompts]."""
        return np.bincount(self._owner, values.astype(float), self._count).astype(np.float64)

    def _interval(self, value: float, drawn: Floats) -> Interval:
        if self._count < 2 or not len(drawn):
            return Interval(float(value))
        low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return Interval(float(value), float(low), float(high))
