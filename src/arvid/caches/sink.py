"""Window and sink at one budget: the first frames for good, the rest of the budget for the most recent.

Knows: frame indices. Does not know: keys, values, models.
"""

from __future__ import annotations

from dataclasses import dataclass

from arvid.caches.policy import Policy


@dataclass(frozen=True)
class Sink(Policy):
    """At most `frames` latent frames: the first `sink` of the video and the most recent others (LongLive, 2509.22622:
    12 with the block of 3, 3 of them sink). The block itself is not counted."""

    frames: int = 9
    sink: int = 3

    def __post_init__(self) -> None:
        if not 0 <= self.sink < self.frames:
            raise ValueError(f"{self.frames} frames with sink {self.sink}; needs 0 <= sink < frames")

    @property
    def room(self) -> int:
        """The budget."""
        return self.frames

    @property
    def reach(self) -> int | None:
        """The budget, without a sink."""
        return None if self.sink else self.frames

    def visible(self, committed: tuple[int, ...], start: int) -> tuple[int, ...]:
        """Frames below `sink` and in [start - (frames - sink), start)."""
        return tuple(f for f in committed if f < start and (f < self.sink or f >= start - (self.frames - self.sink)))
