"""Limits of the drift guard, measured: how large its numbers become on films in which nothing drifts.

Knows: true films of the shapes world, cut into blocks as a rollout has them, and the guard that looks at them. Does
not know: models, what a guard does about drift. A limit above what truth reaches never cries wolf; how far above is a
choice (`docs/long.md` has the numbers the defaults rest on).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from arvid.rollout.guard import Guard, Warn
from arvid.rollout.stage import Clock
from arvid.types import Condition, Move, Proposal, Span, Verdict
from arvid.worlds import shapes

BLOCK, STRIDE = 3, 4
NUMBERS = ("colour", "sharpness", "seam", "motion")
UNITS = Warn(colour=1.0, sharpness=2.0, seam=2.0, motion=2.0)
"""Limits that the guard's numbers are told in; a number times its limit is the number itself."""


class _Accepting:
    """A judge that lets everything pass."""

    def judge(self, move: Move, proposal: Proposal, frames: Callable[[], Tensor], condition: Condition) -> Verdict:
        return Verdict("accept")

    def snapshot(self) -> None:
        return None

    def restore(self, snapshot: Any) -> None:
        return None


def looks(frames_THWC: np.ndarray, block: int = BLOCK) -> Iterator[dict[str, float]]:
    """What the guard finds in every block of a film (uint8), in the units its limits have: colour a distance, the
    others factors. The first block is the anchor and tells nothing."""
    found: list[dict[str, Any]] = []
    guard = Guard(_Accepting(), UNITS, lambda name, value: None, lambda event, told: found.append(told), Clock())
    condition = Condition("", torch.zeros(1, 1, 1))
    v_TCHW = torch.from_numpy(frames_THWC).movedim(-1, 1).float() / 127.5 - 1
    edges = [0, *range(1 + STRIDE * (block - 1), len(v_TCHW) + 1, STRIDE * block)]
    for index, (start, stop) in enumerate(pairwise(edges)):
        move = Move(index, Span(block * index, block * index + block), (1.0, 0.0))
        part = v_TCHW[start:stop]
        proposal = Proposal(torch.zeros(1, block, 1, 1, 1))
        guard.judge(move, proposal, lambda part=part: part[None], condition)  # type: ignore[misc]
        yield {name: found[-1][name] * getattr(UNITS, name) for name in NUMBERS if name in found[-1]}


def measure(
    prompts: Iterable[str],
    frames: int = 333,
    films: Callable[[str, int, int], np.ndarray] | None = None,
    shares: tuple[float, ...] = (0.5, 0.99, 0.999, 1.0),
) -> dict[str, dict[str, float]]:
    """Quantiles of each number over all blocks of true films of `frames` frames, the seed of prompt i being i; `films`
    renders others (prompt, seed, frames). Keys are the shares as text."""
    make = films or shapes.render
    rows = [row for seed, prompt in enumerate(prompts) for row in looks(make(prompt, seed, frames))]
    found = {name: np.array([row[name] for row in rows if name in row]) for name in NUMBERS}
    return {
        name: {str(share): round(float(np.quantile(values, share)), 4) for share in shares}
        for name, values in found.items()
        if len(values)
    }
