"""What a router is: the options all of them have, the questions they answer, what they may ask for in return.

Knows: block indices, who may make a block, the options common to all routers. Does not know: any router's rule, how
blocks are made, how scores come about.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Protocol

from torch import Tensor

from arvid.rollout.stage import Pace
from arvid.types import Condition, Verdict

TARGET, DRAFT, REMEDY = "target", "draft", "remedy"
"""Answers of `Spec.pick`. The first two are also the names of who made a block, as are the next three."""
REFINED, REPAIRED, VERIFIED = "refined", "repaired", "verified"
ACCEPTED = Verdict("accept")
MOST_STEPS = 1000
"""Passes of one walk: a timestep each on the scale that networks are told."""
MOST_CANDIDATES = 64
"""First blocks that are made in one pass, to choose among."""
MOST_AHEAD = 16
"""Blocks that are mended in one pass: its mask grows with their square."""
LIMITS = ("delta", "once", "tau")
"""Options that may be infinite: each then means what another router does."""
FRAME = "frame"
"""The judge that scores single frames; all others score whole blocks."""
Chooser = Callable[[Tensor, Condition], int]
"""(first blocks [N, T, C, H, W], what they were asked to show, N times) -> the number of the best."""


class Scores(Protocol):
    """What a router may learn about a draft, made when it asks."""

    @property
    def count(self) -> int:
        """Number of frames."""
        ...

    def of(self, frames: list[int]) -> Tensor:
        """Scores [len(frames)] of some frames."""
        ...

    def whole(self, judge: str) -> tuple[float, int]:
        """The score of the block by a judge of whole blocks, and how many of its frames that judge looked at."""
        ...

    def agreement(self, measure: str) -> float:
        """How far the target's estimate of a re-noised draft agrees with the draft, in (0, 1]."""
        ...

    @property
    def pace(self) -> Pace:
        """How fast the rollout is so far."""
        ...


@dataclass(frozen=True)
class Check:
    """What happens to a draft before it is judged by the target: `estimate` says that the target's estimate is what is
    kept, `rival` that the drafter estimates the same re-noised draft too."""

    estimate: bool
    rival: bool


@dataclass(frozen=True, kw_only=True)
class Making:
    """How blocks are made from noise. `steps`, `first_steps`, `draft_steps`: passes of the target, of the target on
    block 0 and on what opens a scene, of the drafter; 0 takes the levels of the plan, which are the model's own unless
    `steps` says otherwise. `first_best=n`: block 0, and one that opens a scene alone in its move, is the best of n,
    each from noise of its own (see `Chooser`), chosen after `first_look` passes (0: when they are finished).
    `temperature`: how wide the noise is that blocks behind a past are made from, and drafts mended from, where 1 is as
    in training (as flows are sampled, Glow, 1807.03039); 0 takes the family's own (`Card.spread`). Raises ValueError
    for what cannot be."""

    steps: int = 0
    first_steps: int = 0
    first_best: int = 1
    first_look: int = 0
    draft_steps: int = 0
    temperature: float = 0.0

    def __post_init__(self) -> None:
        counts = (self.steps, self.first_steps, self.first_look, self.draft_steps)
        if not all(0 <= count <= MOST_STEPS for count in counts):
            raise ValueError(f"steps must be from 0 to {MOST_STEPS}; got {self}")
        if not 0 <= self.temperature <= 1:
            raise ValueError(f"temperature={self.temperature} of the noise; give above 0 to 1 (0: the family's own)")
        if not 1 <= self.first_best <= MOST_CANDIDATES:
            raise ValueError(f"first_best={self.first_best} candidates; give 1 (no choice) to {MOST_CANDIDATES}")
        if self.first_look and self.first_best == 1:
            raise ValueError(f"first_look={self.first_look} without candidates; give first_best=, or leave it out")


@dataclass(frozen=True, kw_only=True)
class Spec(Making):
    """Options every router has. `repair=k`: a rejected block resumes from the draft after k steps (T-Stitch order;
    all of them keep the draft, -1 redoes it from noise). `refine=a+b`: instead, the draft is re-noised to level a and
    walks a, b, 0. `ahead=n`: behind block 0, n blocks are drafted one after the other, then judged and mended together:
    one pass of the target looks at all of them (speculative decoding, 2211.17192). `commit=last` keeps the keys of the
    last pass instead of paying a clean one; `level` is the noise level of clean commits. Numbers are finite, but for
    LIMITS. Raises ValueError for what cannot be."""

    repair: int = -1
    refine: tuple[float, ...] = ()
    ahead: int = 1
    commit: str = "clean"
    level: float = 0.0

    def __post_init__(self) -> None:
        for name, value in ((field.name, getattr(self, field.name)) for field in fields(self)):
            if isinstance(value, float) and not math.isfinite(value) and (math.isnan(value) or name not in LIMITS):
                raise ValueError(f"{name}={value} is not finite; give a number ({', '.join(LIMITS)} may be infinite)")
        super().__post_init__()
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
        if not 0 <= self.level < 1:
            raise ValueError(f"level={self.level} of clean commits; give a number in [0, 1)")
        if not 1 <= self.ahead <= MOST_AHEAD:
            raise ValueError(f"ahead={self.ahead} blocks drafted before the target looks; give 1 to {MOST_AHEAD}")

    @property
    def remedies(self) -> bool:
        """Whether a rejected draft is mended rather than redone."""
        return bool(self.refine) or self.repair >= 0

    def check_repair(self, steps: int) -> None:
        """Raises ValueError when drafts of so many passes end before a repair would begin."""
        if self.repair > steps:
            raise ValueError(
                f"repair={self.repair} of a draft of {steps} steps; give at most {steps} (which keeps the draft), "
                "or -1 to redo it from noise"
            )

    @property
    def check(self) -> Check | None:
        """How the target looks at a draft before it is judged; None: not at all."""
        return None

    @property
    def asks(self) -> tuple[str, ...]:
        """The judges whose scores the router needs: `frame`, and names of judges of whole blocks."""
        return ()

    @property
    def asks_target(self) -> bool:
        """Whether the target may make a block at all. Where it may not, nobody else has it make one."""
        return True

    @property
    def asks_drafter(self) -> bool:
        """Whether the drafter may make a block at all. Where it may not, it remembers nothing."""
        return True

    @property
    def commit_level(self) -> float:
        """Noise level of clean commits."""
        return self.level

    def adopts(self, source: str) -> bool:
        """Whether the keys of the last pass of `source` over a block are what is remembered of the block."""
        return self.commit == "last"

    def pick(self, index: int, seed: int) -> str:
        """Who makes block `index`: target, draft (then judged) or remedy (a draft that is mended unseen)."""
        return TARGET if index == 0 else DRAFT

    def judge(self, scores: Scores, history: list[float]) -> Verdict:
        """Decide about a draft; `history` holds the scores of earlier blocks of this rollout."""
        return ACCEPTED

    def unpicked(self) -> str:
        """What a block that shall not be a plain draft becomes."""
        return REMEDY if self.remedies else TARGET


def decide(score: float, threshold: float, frames: int = 0) -> Verdict:
    """Accept what reaches the threshold; the rest is redone."""
    return Verdict("accept" if score >= threshold else "redo", score, frames)
