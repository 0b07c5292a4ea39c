"""The full past: everything that was ever committed is on view.

Knows: frame indices. Does not know: keys, values, models.
"""

from __future__ import annotations

from dataclasses import dataclass

from arvid.caches.policy import Policy


@dataclass(frozen=True)
class Full(Policy):
    """Every committed frame."""

    def visible(self, committed: tuple[int, ...], start: int) -> tuple[int, ...]:
        """All frames before `start`."""
        return tuple(frame for frame in committed if frame < start)
