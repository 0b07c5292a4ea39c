"""Thresholds that follow the scores seen so far.

Knows: numbers. Does not know: what they score, what becomes of a draft.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch

KNOWN = 5
"""So many scores replace the prior."""


def quantile(history: Sequence[float], share: float, mean: float, deviation: float) -> float:
    """The score below which `share` (in [0, 1]) of `history` lies; of a Gaussian prior while it is short."""
    if len(history) < KNOWN:
        return float(torch.distributions.Normal(mean, deviation).icdf(torch.tensor(share)))
    return float(torch.tensor(history).quantile(share))


def keeping(scores: Sequence[float], quality: float, worth: float) -> float:
    """The lowest of `scores` (at least one) that may be kept, best first, while their mean stays at `quality` when each
    of the others counts as `worth`; infinity when none may."""
    best = sorted((min(score, worth) for score in scores), reverse=True)
    lost = list(accumulate(worth - score for score in best))
    kept = sum(loss <= len(best) * (worth - quality) for loss in lost)
    return best[kept - 1] if kept else float("inf")
