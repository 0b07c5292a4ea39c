"""The drift guard: one look at every block before it is let go, and what is done about one that has drifted.

Knows: colour, sharpness, motion and seams of frames, an anchor to compare them with, an order of remedies.
Does not know: who makes blocks, how pasts are refreshed (rollout/steered.py carries its orders out), what is asked for.

A guard is a judge around the judge (see `arvid.types.Judge`): it sees the decoded candidate that leaves anyway, on a
coarse grid, so that it costs next to nothing. The anchor is the first block, and the second one under another
condition, when that has been taken up. The numbers of a block are in units of what is allowed: above 1 it has drifted.

    colour      distance of mean and deviation of the channels from the anchor's, over `colour`
    sharpness   how many times the mean gradient is above or below the anchor's, over `sharpness`
    seam        the step into the block over the largest step inside it, over `seam`; not behind a drifted block
    motion      how many times less moves than in the anchor, over `motion`
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from arvid.rollout.specs import DRAFT, TARGET, Spec
from arvid.rollout.stage import Clock
from arvid.rollout.steered import ANCHOR, REFRESH, TARGET_NEXT, statistics
from arvid.types import Condition, Move, Proposal, Verdict

GRID = 64
"""Frames are looked at on a grid of about this many points along their smaller side."""
FAINT = 0.01
"""Mean changes of pixels (of 2, black to white) that nobody sees: smaller steps and gradients count as this."""
STILL = 0.0005
"""Mean change from frame to frame below which an anchor does not move, and nothing can come to a stand."""
STEADY, WARNED, REJECTED = "steady", "warned", "rejected"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What is allowed before a block counts as drifted: `colour` a distance in pixel values from 0 to 2, the others
    factors. True films in which nothing happens reach 0.08, 1.13, 1.03 and 1.37 (docs/long.md). Raises ValueError
    unless colour is above 0 and every factor above 1."""

    colour: float = 0.25
    sharpness: float = 2.0
    seam: float = 2.0
    motion: float = 4.0

    def __post_init__(self) -> None:
        if self.colour <= 0 or min(self.sharpness, self.seam, self.motion) <= 1:
            raise ValueError(
                f"guard limits colour={self.colour:g}, sharpness={self.sharpness:g}, seam={self.seam:g}, "
                f"motion={self.motion:g}; colour must be above 0, the others are factors above 1"
            )

    def check_router(self, router: Spec) -> None:
        """Raises ValueError for a router that does not go with the guard; whoever only looks goes with all."""


@dataclass(frozen=True, kw_only=True)
class Off(Limits):
    """No guard."""


@dataclass(frozen=True, kw_only=True)
class Warn(Limits):
    """Looks and tells."""


@dataclass(frozen=True, kw_only=True)
class Act(Limits):
    """A drifted draft is sent back. A drifted block that stays has the target make the next one; the second in a row
    has the frames on view run again, every further one gives them the anchor's statistics before."""

    def check_router(self, router: Spec) -> None:
        """Raises ValueError for one that never asks the target, which is to make what has drifted."""
        if not router.asks_target:
            name = type(router).__name__.lower()
            raise ValueError(
                f"guard act has the target make what drifted, and router {name} never asks it; use guard warn, or a "
                "router that asks it, like first"
            )


GUARDS: dict[str, Callable[..., Limits]] = {"off": Off, "warn": Warn, "act": Act}
"""Guards by the name a spec string uses."""


@dataclass(frozen=True)
class Sight:
    """What the guard remembers of a block: channel statistics (three means, three deviations), mean gradient, mean
    step between frames (None: a single frame)."""

    colours: tuple[float, ...]
    gradient: float
    motion: float | None


class Inner(Protocol):
    """The judge around which a guard stands."""

    def judge(self, move: Move, proposal: Proposal, frames: Callable[[], Tensor], condition: Condition) -> Verdict:
        """See `arvid.types.Judge`."""
        ...

    def snapshot(self) -> Any:
        """What `restore` brings back."""
        ...

    def restore(self, snapshot: Any) -> None:
        """Go back to a snapshot."""
        ...


class Guard:
    """See the module. `order` takes orders for the next block (`Steered.order`), `tell` a record of every block."""

    def __init__(
        self,
        inner: Inner,
        limits: Limits,
        order: Callable[[str, Tensor | None], None],
        tell: Callable[[str, dict[str, Any]], None],
        clock: Clock,
    ) -> None:
        self._inner, self._limits, self._order, self._tell, self._clock = inner, limits, order, tell, clock
        self._anchor: tuple[Sight, Tensor] | None = None
        self._last_CHW: Tensor | None = None
        self._condition: Condition | None = None
        self._wait, self._strikes = 0, 0

    def judge(self, move: Move, proposal: Proposal, frames: Callable[[], Tensor], condition: Condition) -> Verdict:
        """The inner verdict; an accepted candidate is looked at."""
        verdict = self._inner.judge(move, proposal, frames, condition)
        if verdict.decision != "accept":
            return verdict
        v_TCHW = frames()[0]
        with self._clock.measure("guard"):
            coarse_TCHW = _coarse(v_TCHW)
            seen = look(coarse_TCHW)
            found = self._compared(seen, coarse_TCHW) if condition is self._condition else {}
            decision = self._decide(found, proposal)
            if decision == REJECTED:
                verdict = Verdict("redo", verdict.score, verdict.frames_scored)
            else:
                self._accept(seen, coarse_TCHW[-1], proposal, condition)
        worst = max(found, key=lambda name: found[name]) if found else None
        told = {name: round(value, 4) for name, value in found.items()}
        self._tell("guard", {"block": move.index, "decision": decision, "worst": worst, **told})
        return verdict

    def snapshot(self) -> tuple[Any, ...]:
        """Anchor, last frame and counts, as a value that `restore` brings back."""
        own = (self._anchor, self._last_CHW, self._condition, self._wait, self._strikes)
        return own, self._inner.snapshot()

    def restore(self, snapshot: tuple[Any, ...]) -> None:
        """Go back to a snapshot."""
        own, inner = snapshot
        self._anchor, self._last_CHW, self._condition, self._wait, self._strikes = own
        self._inner.restore(inner)

    def _compared(self, seen: Sight, coarse_TCHW: Tensor) -> dict[str, float]:
        """Each number in units of its limit; none while there is no anchor."""
        if self._anchor is None:
            return {}
        anchor, limits = self._anchor[0], self._limits
        pairs = zip(seen.colours, anchor.colours, strict=True)
        found = {
            "colour": sum((a - b) ** 2 for a, b in pairs) ** 0.5 / limits.colour,
            "sharpness": _times(seen.gradient, anchor.gradient) / limits.sharpness,
        }
        if self._last_CHW is not None and seen.motion is not None and not self._strikes:
            inside = float((coarse_TCHW[1:] - coarse_TCHW[:-1]).abs().mean((1, 2, 3)).max())
            # A last frame that was read from disk stands where latents do, and frames may stand elsewhere.
            step = float((coarse_TCHW[0] - self._last_CHW.to(coarse_TCHW.device)).abs().mean())
            found["seam"] = step / max(inside, FAINT) / limits.seam
        if seen.motion is not None and anchor.motion is not None and anchor.motion > STILL:
            found["motion"] = anchor.motion / max(seen.motion, 1e-6) / limits.motion
        return found

    def _decide(self, found: dict[str, float], proposal: Proposal) -> str:
        """What to do about a block, with the orders it takes."""
        if not found or max(found.values()) <= 1:
            self._strikes = 0
            return STEADY
        if isinstance(self._limits, Act) and proposal.source == DRAFT:
            return REJECTED
        self._strikes += 1
        if not isinstance(self._limits, Act):
            return WARNED
        if self._strikes == 1 and proposal.source != TARGET:
            self._order(TARGET_NEXT, None)
            return TARGET_NEXT
        if self._strikes <= 2 or self._anchor is None:
            self._order(REFRESH, None)
            return REFRESH
        self._order(ANCHOR, self._anchor[1])
        return ANCHOR

    def _accept(self, seen: Sight, last_CHW: Tensor, proposal: Proposal, condition: Condition) -> None:
        """Remember a block that stays."""
        if condition is not self._condition:
            self._wait = 0 if self._condition is None else 1
            self._anchor, self._condition = None, condition
        if self._anchor is None and self._wait == 0:
            self._anchor = (seen, statistics(proposal.block_BTCHW))
        self._wait = max(0, self._wait - 1)
        self._last_CHW = last_CHW


def look(v_TCHW: Tensor) -> Sight:
    """What a guard remembers of frames in [-1, 1]."""
    deviation, mean = torch.std_mean(v_TCHW, (0, 2, 3), correction=0)
    across = (v_TCHW[..., 1:] - v_TCHW[..., :-1]).abs().mean()
    down = (v_TCHW[..., 1:, :] - v_TCHW[..., :-1, :]).abs().mean()
    steps = (v_TCHW[1:] - v_TCHW[:-1]).abs()
    motion = steps.mean() if len(steps) else torch.zeros(())
    numbers = torch.cat([mean, deviation, torch.stack([(across + down) / 2, motion.to(mean)])]).tolist()
    return Sight(tuple(numbers[:6]), numbers[6], numbers[7] if len(steps) else None)


def _coarse(v_TCHW: Tensor) -> Tensor:
    """Frames in fp32 on a grid of about GRID points along the smaller side."""
    stride = max(1, min(v_TCHW.shape[-2:]) // GRID)
    return v_TCHW[..., ::stride, ::stride].float()


def _times(value: float, other: float) -> float:
    """How many times one is above or below the other, at least 1; what nobody sees counts as equal."""
    low, high = sorted((max(value, FAINT), max(other, FAINT)))
    return high / low
