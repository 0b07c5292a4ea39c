"""Routers: who makes a block, and whether a draft is good enough.

Knows: block indices, scores of frames, thresholds. Does not know: how blocks are made, repaired or committed.
A router's spec is a frozen dataclass (ROUTERS); `Routing` is one rollout's judge by it. Every router but
`target` and `draft` gives block 0 to the target: that anchor explains most of what routing gains (SDVG, 2604.17397).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from arvid.rollout.stage import Clock
from arvid.types import Condition, Move, Proposal, Reward, Verdict

TARGET, DRAFT, REMEDY = "target", "draft", "remedy"
ACCEPTED = Verdict("accept")


@dataclass(frozen=True, kw_only=True)
class Spec:
    """Options every router has. `repair=k`: a rejected block resumes from the draft after k steps (T-Stitch order;
    -1 redoes it from noise). `refine=a+b`: instead, the draft is re-noised to level a and walks a, b, 0.
    `steps`, `first_steps`, `draft_steps`: passes of the target, of the target on block 0, of the drafter (0: the
    model's own). `commit=last` keeps the keys of the last pass instead of paying a clean one; `level` is the noise
    level of clean commits."""

    repair: int = -1
    refine: tuple[float, ...] = ()
    steps: int = 0
    first_steps: int = 0
    draft_steps: int = 0
    commit: str = "clean"
    level: float = 0.0

    def __post_init__(self) -> None:
        if self.commit not in ("clean", "last"):
            raise ValueError(f"commit={self.commit!r}; known: clean, last")
        if not all(0 < level <= 1 for level in self.refine) or list(self.refine) != sorted(set(self.refine))[::-1]:
            raise ValueError(f"refine levels {self.refine} must fall from at most 1 to above 0, like 0.8+0.4")
        if self.repair < -1:
            raise ValueError(f"repair={self.repair} must be at least 0 steps of the draft (-1: redo from noise)")
        if self.repair > 0 and self.draft_steps:
            raise ValueError(
                f"repair={self.repair} needs drafts on the target's levels; leave out draft_steps={self.draft_steps}"
            )
        if self.refine and self.repair >= 0:
            raise ValueError(f"repair={self.repair} and refine={self.refine} exclude each other; give one")
        if min(self.steps, self.first_steps, self.draft_steps) < 0 or not 0 <= self.level < 1:
            raise ValueError(f"steps must be at least 0 and level in [0, 1); got {self}")

    @property
    def remedies(self) -> bool:
        """Whether a rejected draft is mended rather than redone."""
        return bool(self.refine) or self.repair >= 0

    def pick(self, index: int, seed: int) -> str:
        """Who makes block `index`: target, draft (then judged) or remedy (a draft that is mended unseen)."""
        return TARGET if index == 0 else DRAFT

    def judge(self, scores: Scores, history: list[float]) -> Verdict:
        """Decide about a draft; `history` holds the scores of earlier blocks of this rollout."""
        return ACCEPTED

    def unpicked(self) -> str:
        """What a block that shall not be a plain draft becomes."""
        return REMEDY if self.remedies else TARGET


class Scores(Protocol):
    """Scores of a draft's frames, made on demand."""

    @property
    def count(self) -> int:
        """Number of frames."""
        ...

    def of(self, frames: list[int]) -> Tensor:
        """Scores [len(frames)] of some frames."""
        ...


def reject(score: float | None = None, frames: int = 0) -> Verdict:
    """A draft that is not good enough."""
    return Verdict("redo", score, frames)


@dataclass(frozen=True, kw_only=True)
class Target(Spec):
    """Everything by the target (the baseline)."""

    def pick(self, index: int, seed: int) -> str:
        """Always the target."""
        return TARGET


@dataclass(frozen=True, kw_only=True)
class Draft(Spec):
    """Everything by the drafter."""

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
        object.__setattr__(self, "refine", self.levels)
        super().__post_init__()

    def pick(self, index: int, seed: int) -> str:
        """Block 0 by the target, the rest mended."""
        return TARGET if index == 0 else REMEDY


@dataclass(frozen=True, kw_only=True)
class RewardRouter(Spec):
    """SDVG: a draft is kept when the worst (`min`) or mean frame reward reaches `tau`."""

    tau: float
    aggregate: str = "min"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.aggregate not in ("min", "mean"):
            raise ValueError(f"aggregate={self.aggregate!r}; known: min, mean")

    def judge(self, scores: Scores, history: list[float]) -> Verdict:
        """Score every frame, compare with tau."""
        found = scores.of(list(range(scores.count)))
        score = float(found.min() if self.aggregate == "min" else found.mean())
        return Verdict("accept", score, scores.count) if score >= self.tau else reject(score, scores.count)


@dataclass(frozen=True, kw_only=True)
class Quantile(Spec):
    """Keeps the share `accept` of drafts: the threshold is the running quantile of worst-frame scores, and that of a
    Gaussian prior (`mean`, `deviation`) while fewer than five are known."""

    accept: float
    mean: float = 0.5
    deviation: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.accept < 1:
            raise ValueError(f"accept={self.accept} must lie between 0 and 1")
        if self.deviation <= 0:
            raise ValueError(f"deviation={self.deviation} of the prior must be above 0")

    def judge(self, scores: Scores, history: list[float]) -> Verdict:
        """Compare the worst frame with the quantile of what came before."""
        score = float(scores.of(list(range(scores.count))).min())
        known = 5
        if len(history) < known:
            prior = torch.distributions.Normal(self.mean, self.deviation)
            threshold = float(prior.icdf(torch.tensor(1 - self.accept)))
        else:
            threshold = float(torch.tensor(history).quantile(1 - self.accept))
        return Verdict("accept", score, scores.count) if score >= threshold else reject(score, scores.count)


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

    def judge(self, scores: Scores, history: list[float]) -> Verdict:
        """Few frames, then all."""
        few = sorted({round(i * (scores.count - 1) / max(self.frames - 1, 1)) for i in range(self.frames)})
        score = float(scores.of(few).min())
        if score < self.tau:
            return reject(score, len(few))
        if score >= self.tau + self.delta:
            return Verdict("accept", score, len(few))
        rest = [frame for frame in range(scores.count) if frame not in few]
        score = min(score, float(scores.of(rest).min())) if rest else score
        return Verdict("accept", score, scores.count) if score >= self.tau else reject(score, scores.count)


ROUTERS: dict[str, Callable[..., Spec]] = {
    "target": Target, "draft": Draft, "first": First, "random": Random, "stride": Stride, "refine": Refine,
    "reward": RewardRouter, "quantile": Quantile, "cascade": Cascade,
}  # fmt: skip
"""Routers by the name a spec string uses."""


class FrameScores:
    """The frames of one draft, scored in one batch when a router asks (see `Scores`)."""

    def __init__(self, frames: Callable[[], Tensor], reward: Reward | None, prompt: str, clock: Clock) -> None:
        self._frames, self._reward, self._prompt, self._clock = frames, reward, prompt, clock

    @property
    def count(self) -> int:
        """Number of frames of the draft."""
        return self._frames().shape[1]

    def of(self, frames: list[int]) -> Tensor:
        """Scores [len(frames)]. Raises ValueError when the pipeline has no reward model."""
        if self._reward is None:
            raise ValueError(
                "this router scores frames, but no reward model is loaded; give one or use first or stride"
            )
        pixels = self._frames()[:, frames]
        with self._clock.measure("score"):
            return self._reward.score(pixels, self._prompt)[0].float()


class Routing:
    """The judge of one rollout (see `arvid.types.Judge`): asks the spec, remembers scores."""

    def __init__(self, spec: Spec, reward: Reward | None, clock: Clock) -> None:
        self._spec, self._reward, self._clock = spec, reward, clock
        self._history: list[float] = []

    def judge(self, move: Move, proposal: Proposal, frames: Callable[[], Tensor], condition: Condition) -> Verdict:
        """Only plain drafts are judged; what the target touched is accepted."""
        if proposal.source != DRAFT:
            return ACCEPTED
        verdict = self._spec.judge(FrameScores(frames, self._reward, condition.prompt, self._clock), self._history)
        if verdict.score is not None:
            self._history.append(verdict.score)
        return verdict
