"""A sliding window: the most recent frames, and optionally the first ones for good (attention sink).

Knows: frame indices. Does not know: keys, values, models.
"""

from __future__ import annotations

from dataclasses import dataclass

from arvid.caches.policy import Policy


@dataclass(frozen=True)
class Window(Policy):
    """The last `frames` latent frames before a block, and the first `sink` frames of the video (StreamingLLM,
    2309.17453; LongLive). The block itself is not counted."""

    frames: int
    sink: int = 0

    def __post_init__(self) -> None:
        if self.frames < 1 or self.sink < 0:
            raise ValueError(f"window of {self.frames} frames with sink {self.sink}; needs frames >= 1 and sink >= 0")

    @property
    def room(self) -> int:
        """Window and sink."""
        return self.frames + self.sink

    @property
    def reach(self) -> int | None:
        """The window, without a sink."""
        return None if self.sink else self.frames

    def visible(self, committed: tuple[int, ...], start: int) -> tuple[int, ...]:
        """Frames in [start - frames, start) and below `sink`."""
        return tuple(f for f in committed if f < start and (f >= start - self.frames or f < self.sink))
