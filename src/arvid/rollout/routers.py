"""Routers: who makes a block, and whether a draft is good enough.

Knows: block indices, scores of drafts, thresholds. Does not know: how blocks are made, repaired or committed, how
scores come about. A router's spec is a frozen dataclass (ROUTERS). Every router but `target` and `draft` gives block 0
to the target: that anchor explains most of what routing gains (SDVG, 2604.17397).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from arvid.rollout.pace import affordable
from arvid.rollout.specs import ACCEPTED, DRAFT, FRAME, REFINED, REMEDY, TARGET, Check, Scores, Spec, decide
from arvid.rollout.thresholds import keeping, quantile
from arvid.rollout.verify import MEASURES, RIVALS
from arvid.types import Verdict

# ---------------------------------------------------------------- by rule


@dataclass(frozen=True, kw_only=True)
class Target(Spec):
    """Everything by the target (the baseline)."""

    @property
    def asks_drafter(self) -> bool:
        """Never."""
        return False

    def pick(self, index: int, seed: int) -> str:
        """Always the target."""
        return TARGET


@dataclass(frozen=True, kw_only=True)
class Draft(Spec):
    """Everything by the drafter."""

    @property
    def asks_target(self) -> bool:
        """Never."""
        return False

    def pick(self, index: int, seed: int) -> str:
        """Always the drafter."""
        return DRAFT


@dataclass(frozen=True, kw_only=True)
class First(Spec):
    """Block 0 by the target, the rest drafted, no scoring."""


@dataclass(frozen=True, kw_only=True)
class Random(Spec):
    """Block 0 by the target, then each draft is kept with probability `p`, keyed by (seed, block)."""

    p: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.p <= 1:
            raise ValueError(f"p={self.p} must lie in [0, 1]; it is the share of drafts that are kept")

    def pick(self, index: int, seed: int) -> str:
        """Draft with probability p."""
        if index == 0:
            return TARGET
        return DRAFT if random.Random(f"{seed}/{index}").random() < self.p else self.unpicked()


@dataclass(frozen=True, kw_only=True)
class Stride(Spec):
    """Every `k`-th block is not a plain draft: no drafted run is longer than k - 1 (StrideAR)."""

    k: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k < 1:
            raise ValueError(f"stride k={self.k} must be at least 1")

    def pick(self, index: int, seed: int) -> str:
        """Blocks 0, k, 2k, ... are not drafts."""
        if index == 0:
            return TARGET
        return self.unpicked() if index % self.k == 0 else DRAFT


@dataclass(frozen=True, kw_only=True)
class Refine(Spec):
    """No judge: every draft is re-noised to `levels[0]` and walked down by the target."""

    levels: tuple[float, ...] = (0.8,)

    def __post_init__(self) -> None:
        if not self.levels:
            raise ValueError("refine needs at least one level, like levels=0.8")
        if self.refine not in ((), self.levels):
            raise ValueError(
                f"refine={_spelt(self.refine)} to a router that mends every draft from levels={_spelt(self.levels)}; "
                f"leave it out, or write levels={_spelt(self.refine)}"
            )
        object.__setattr__(self, "refine", self.levels)
        super().__post_init__()

    def pick(self, index: int, seed: int) -> str:
        """Block 0 by the target, the rest mended."""
        return TARGET if index == 0 else REMEDY


def _spelt(levels: tuple[float, ...]) -> str:
    """Levels as a spec string has them."""
    return "+".join(f"{level:g}" for level in levels)


# ---------------------------------------------------------------- by score


@dataclass(frozen=True, kw_only=True)
class Scored(Spec):
    """Routers that score drafts. `by=frame`: the worst frame's reward; else the judge of whole blocks of that name
    (`latent`, `reading` and `marking` need no pixels, the others do), where one is loaded. `by=latent+reading`:
    the product of what several say, as each sees what another misses."""

    by: str = FRAME

    @property
    def asks(self) -> tuple[str, ...]:
        """The judges named by `by`."""
        return tuple(self.by.split("+"))

    def scored(self, scores: Scores) -> tuple[float, int]:
        """The score of the whole draft, and how many frames were looked at."""
        said = [self._said(name, scores) for name in self.asks]
        return math.prod(score for score, _ in said), max(count for _, count in said)

    @staticmethod
    def _said(name: str, scores: Scores) -> tuple[float, int]:
        if name != FRAME:
            return scores.whole(name)
        return float(scores.of(list(range(scores.count))).min()), scores.count


@dataclass(frozen=True, kw_only=True)
class RewardRouter(Scored):
    """SDVG: a draft is kept when the worst (`min`) or mean frame reward reaches `tau`. With `refine=a+b` the score may
    also say how much is mended: a rejected draft that reaches `once` gets the pass from level a only."""

    tau: float
    aggregate: str = "min"
    once: float = math.inf

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.aggregate not in ("min", "mean"):
            raise ValueError(f"aggregate={self.aggregate!r}; known: min, mean")
        if self.aggregate == "mean" and self.by != FRAME:
            raise ValueError(f"aggregate=mean with by={self.by}, which gives one score per block; leave aggregate out")
        if self.once != math.inf and (len(self.refine) < 2 or self.once > self.tau):
            raise ValueError(
                f"once={self.once} with refine={self.refine} and tau={self.tau}: it must be at most tau, and refine "
                "must have levels to save, like tau=0.6,once=0.3,refine=0.8+0.4"
            )

    def judge(self, scores: Scores, history: list[float]) -> Verdict:
        """Score the draft, compare with tau."""
        if self.aggregate == "mean":
            score, count = float(scores.of(list(range(scores.count))).mean()), scores.count
        else:
            score, count = self.scored(scores)
        return Verdict("repair", score, count) if self.once <= score < self.tau else decide(score, self.tau, count)


@dataclass(frozen=True, kw_only=True)
class Ranked(Scored):
    """Routers that compare a draft with those before it: the threshold is a running quantile of their scores, and that
    of a Gaussian prior (`mean`, `deviation`) while fewer than five are known."""

    mean: float = 0.5
    deviation: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.deviation <= 0:
            raise ValueError(f"deviation={self.deviation} of the prior must be above 0")

    def ranked(self, scores: Scores, history: list[float], accept: float) -> Verdict:
        """Keep the draft when it is among the best share `accept`."""
        score, count = self.scored(scores)
        return decide(score, quantile(history, 1 - accept, self.mean, self.deviation), count)


@dataclass(frozen=True, kw_only=True)
class Quantile(Ranked):
    """Keeps the share `accept` of drafts."""

    accept: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.accept < 1:
            raise ValueError(f"accept={self.accept} must lie between 0 and 1")

    def judge(self, scores: Scores, history: list[float]) -> Verdict:
        """Compare with the quantile of what came before."""
        return self.ranked(scores, history, self.accept)


@dataclass(frozen=True, kw_only=True)
class Hold(Ranked):
    """Holds a frame rate: as many drafts are mended as the time allows in which `fps` frames a second are due, counted
    from the moment the first block is out; what was gained or lost so far is made good over `horizon` blocks. Which
    blocks those are depends on the speed of the machine: the only router of which that is true."""

    fps: float
    horizon: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.fps > 0 or not self.horizon >= 1:
            raise ValueError(f"fps={self.fps} must be above 0 and horizon={self.horizon} at least 1 block")

    def judge(self, scores: Scores, history: list[float]) -> Verdict:
        """Keep the share of drafts that cannot be mended in time; without scoring where that is all or none."""
        share = 1 - affordable(scores.pace, self.fps, self.horizon)
        if share >= 1:
            return ACCEPTED
        return Verdict("redo") if share <= 0 else self.ranked(scores, history, share)


@dataclass(frozen=True, kw_only=True)
class HoldQuality(Scored):
    """Holds a quality: as many drafts are kept as leave the mean score of all drafted blocks so far at `quality`,
    mended ones counted as `worth`. Means what it says where the judge is calibrated."""

    quality: float
    worth: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.quality <= self.worth:
            raise ValueError(f"quality={self.quality} is above worth={self.worth}, what a mended block counts for")

    def judge(self, scores: Scores, history: list[float]) -> Verdict:
        """Compare with the lowest threshold that would have held the quality so far."""
        score, count = self.scored(scores)
        return decide(score, keeping([*history, score], self.quality, self.worth), count)


@dataclass(frozen=True, kw_only=True)
class Cascade(Spec):
    """Scores `frames` evenly spaced frames first. Their minimum below tau is already an exact reject (more frames can
    only lower it); at tau + delta it is an accept; in between the rest is scored too."""

    tau: float
    delta: float = 0.1
    frames: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.frames < 1 or self.delta < 0:
            raise ValueError(f"frames={self.frames} must be at least 1 and delta={self.delta} at least 0")

    @property
    def asks(self) -> tuple[str, ...]:
        """Single frames."""
        return (FRAME,)

    def judge(self, scores: Scores, history: list[float]) -> Verdict:
        """Few frames, then all."""
        few = sorted({round(i * (scores.count - 1) / max(self.frames - 1, 1)) for i in range(self.frames)})
        score = float(scores.of(few).min())
        if score < self.tau:
            return Verdict("redo", score, len(few))
        if score >= self.tau + self.delta:
            return Verdict("accept", score, len(few))
        rest = [frame for frame in range(scores.count) if frame not in few]
        score = min(score, float(scores.of(rest).min())) if rest else score
        return decide(score, self.tau, scores.count)


# ---------------------------------------------------------------- by the target itself


@dataclass(frozen=True, kw_only=True)
class Verify(Spec):
    """The target judges: every draft is re-noised to `level` and gets one pass of the target, whose agreement with the
    draft (`measure`, see `rollout.verify`) is the score. The pass is never lost. A draft that reaches `tau` leaves
    with the target's estimate (`keep=estimate`) or as it is (`keep=draft`); for any other it was the first step of
    `refine`, which therefore begins at `level` and by default has no more than this step. `level` is that of the
    pass; clean commits are made at 0. `repair` is refused: it would begin elsewhere."""

    level: float = 0.8
    tau: float
    keep: str = "estimate"
    measure: str = "place"

    def __post_init__(self) -> None:
        if not 0 < self.level < 1:
            raise ValueError(f"level={self.level} must lie between 0 and 1: a draft is judged by a pass from there")
        if self.repair >= 0:
            raise ValueError(
                f"repair={self.repair} with a router whose own pass begins the repair; leave it out, further passes "
                f"are refine={self.level:g}+..."
            )
        if not self.refine:
            object.__setattr__(self, "refine", (self.level,))
        if self.refine[0] != self.level:
            raise ValueError(
                f"refine={self.refine} begins elsewhere than the pass that judges; begin it with {self.level:g} or set "
                f"level={self.refine[0]:g}"
            )
        if self.keep not in ("estimate", "draft") or self.measure not in MEASURES:
            raise ValueError(
                f"keep={self.keep!r}, measure={self.measure!r}; known: estimate and draft, {', '.join(MEASURES)}"
            )
        super().__post_init__()

    @property
    def check(self) -> Check:
        """One pass of the target, and one of the drafter where the measure compares the two."""
        return Check(self.keep == "estimate", self.measure in RIVALS)

    @property
    def commit_level(self) -> float:
        """Clean."""
        return 0.0

    def judge(self, scores: Scores, history: list[float]) -> Verdict:
        """Compare the agreement with tau."""
        return decide(scores.agreement(self.measure), self.tau)


@dataclass(frozen=True, kw_only=True)
class VerifyCommit(Verify):
    """`verify`, and the keys of the target's last pass over a draft are what it remembers of the block: no block but
    those made from noise costs it a clean pass. The lower `level`, the cleaner those keys."""

    def adopts(self, source: str) -> bool:
        """Keys of passes over re-noised drafts; all of them with commit=last."""
        return source == REFINED or super().adopts(source)


ROUTERS: dict[str, Callable[..., Spec]] = {
    "target": Target, "draft": Draft, "first": First, "random": Random, "stride": Stride, "refine": Refine,
    "reward": RewardRouter, "quantile": Quantile, "hold": Hold, "hold-quality": HoldQuality, "cascade": Cascade,
    "verify": Verify, "verify-commit": VerifyCommit,
}  # fmt: skip
"""Routers by the name a spec string uses."""
