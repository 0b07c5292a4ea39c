"""Where frames stand in time when a block reads them: one small answer per method.

Knows: first frames and lengths of the pieces on view, the frames of the pass. Does not know: keys, angles, which pieces
a policy keeps. Keys are stored unrotated and turned when they are read, so a frame may stand elsewhere for every block,
and any policy goes with any answer that is not `Bounded` (`arvid.caches.policies.remember` has those checked). Only
distances matter to attention, so all of these agree while nothing was dropped and nothing is out of the trained range
(`cyclic` until its first turn is over).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

from arvid.types import Places, Positions, Stretch

Extents = tuple[tuple[float, float], ...]
"""(first frame, length in frames) of pieces, in order of time."""


@runtime_checkable
class Bounded(Protocol):
    """Positions that have room for so many frames only."""

    def check(self, reach: int | None, longest: int) -> None:
        """Raises ValueError where they have no room for a pass of `longest` frames, which reads from `reach` frames
        before it on (None: nothing bounds that)."""
        ...


def closed_up(past: Extents, start: float) -> tuple[float, ...]:
    """Where pieces stand one behind the other, the last one ending at `start`: no gaps, whatever was dropped."""
    places, cursor = [], start
    for _, length in reversed(past):
        cursor -= length
        places.append(cursor)
    return tuple(reversed(places))


@dataclass(frozen=True)
class Absolute:
    """Every frame at its own index, as in training."""

    fixed: ClassVar[bool] = True

    def place(self, past: Extents, own: tuple[int, ...]) -> Places:
        """First frames as they are."""
        return Places(tuple(start for start, _ in past), own)


@dataclass(frozen=True)
class Rephased:
    """The block at its own index, the past closed up behind it: gaps of dropped frames vanish, a packed piece keeps its
    length (Deep Forcing, 2512.05081, for its sink; PackForcing, 2603.25730, for every piece)."""

    fixed: ClassVar[bool] = False

    def place(self, past: Extents, own: tuple[int, ...]) -> Places:
        """Closed up before the first frame of the pass."""
        return Places(closed_up(past, own[0]), own)


@dataclass(frozen=True)
class Relative:
    """Block-relativistic positions (Infinity-RoPE, 2511.20649): no position is ever `limit` or more. The block moves up
    to the end of that range and stays there, the past is closed up behind it, and what would fall below 0 stands at
    0."""

    fixed: ClassVar[bool] = False
    limit: int = 21

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise ValueError(f"positions below {self.limit}; needs limit >= 1, best the frames of the training clips")

    def check(self, reach: int | None, longest: int) -> None:
        """See `Bounded`: the pass itself must fit, the past always does."""
        if longest > self.limit:
            raise ValueError(
                f"{longest} frames in one pass do not fit below position {self.limit}; take limit={longest} or more, "
                "or fewer blocks ahead"
            )

    def place(self, past: Extents, own: tuple[int, ...]) -> Places:
        """Own frames end below `limit`."""
        first = max(0, min(own[0], self.limit - len(own)))
        return Places(
            tuple(max(0, place) for place in closed_up(past, first)), tuple(first + frame - own[0] for frame in own)
        )


@dataclass(frozen=True)
class Flex:
    """Frequency-aware modulation (FLEX, 2602.14027; the ramp is that of YaRN, 2309.00071, since FLEX's own is not
    published): indices as in training, but where the past on view reaches back further than the `trained` frames, slow
    channels turn slower by that ratio and fast ones as ever. `low` and `high` are turns within the trained frames."""

    fixed: ClassVar[bool] = False
    trained: int = 21
    low: float = 1.0
    high: float = 4.0

    def __post_init__(self) -> None:
        if self.trained < 1 or not 0 <= self.low < self.high:
            raise ValueError(
                f"flex with trained={self.trained}, low={self.low:g}, high={self.high:g}; needs trained >= 1 and "
                "0 <= low < high"
            )

    def place(self, past: Extents, own: tuple[int, ...]) -> Places:
        """First frames as they are; a stretch once the reach is longer than the trained frames."""
        reach = own[-1] + 1 - min((start for start, _ in past), default=own[0])
        scale = reach / self.trained
        stretch = Stretch(scale, self.trained, self.low, self.high) if scale > 1 else None
        return Places(tuple(start for start, _ in past), own, stretch)


@dataclass(frozen=True)
class Decay:
    """Indices as in training, and `slope` taken off the logits per frame of distance (FlexRoPE of FAR, 2503.19325, as
    its code has it; one slope for all heads)."""

    fixed: ClassVar[bool] = True
    slope: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.slope < math.inf:
            raise ValueError(f"a decay of {self.slope:g} per frame; needs a finite slope of at least 0")

    def place(self, past: Extents, own: tuple[int, ...]) -> Places:
        """First frames as they are."""
        return Places(tuple(start for start, _ in past), own, decay=self.slope)


@dataclass(frozen=True)
class Cyclic:
    """Indices modulo `period` (Ca2-VDM, 2411.16375: 33): positions stay in range, at the price that the past stands
    after the block around each turn. From the oldest frame on view to the end of the pass there may be at most
    `period` frames to keep them apart, dropped ones included: a window without a sink, as published, sees to that."""

    fixed: ClassVar[bool] = False
    period: int = 33

    def __post_init__(self) -> None:
        if self.period < 1:
            raise ValueError(f"a cycle of {self.period} positions; needs period >= 1")

    def check(self, reach: int | None, longest: int) -> None:
        """See `Bounded`: no frame of the past may fall on another one's place, or on the pass's."""
        if reach is None or reach + longest > self.period:
            past = "any number of" if reach is None else reach
            raise ValueError(
                f"{past} frames of the past and a pass of {longest} share places in a cycle of {self.period}; take a "
                f"window without a sink, window:frames=N, and period=N+{longest} or more"
            )

    def place(self, past: Extents, own: tuple[int, ...]) -> Places:
        """First frames modulo the period."""
        return Places(tuple(start % self.period for start, _ in past), tuple(frame % self.period for frame in own))


POSITIONS: dict[str, Callable[..., Positions]] = {
    "absolute": Absolute,
    "cyclic": Cyclic,
    "decay": Decay,
    "flex": Flex,
    "relative": Relative,
    "rephase": Rephased,
}
"""Name of an answer in a spec string (`relative:limit=21`) and what builds it."""
