"""The control for every policy that chooses: the same budget, chosen by chance.

Knows: frame indices and a seed. Does not know: keys, values, models.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from arvid.caches.policy import Policy


@dataclass(frozen=True)
class Chance(Policy):
    """At most `frames` latent frames: the `recent` last ones, the others a uniform sample of all older frames. Every
    frame has a lot, a pure function of (seed, frame), and the highest lots stay: what was dropped never comes back."""

    frames: int = 9
    recent: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.recent <= self.frames:
            raise ValueError(f"{self.frames} frames, {self.recent} of them recent; needs 1 <= recent <= frames")

    @property
    def room(self) -> int:
        """The budget."""
        return self.frames

    def visible(self, committed: tuple[int, ...], start: int) -> tuple[int, ...]:
        """Frames in [start - recent, start), and of the older ones those with the highest lots."""
        older = sorted((f for f in committed if f < start - self.recent), key=self._lot, reverse=True)
        drawn = frozenset(older[: self.frames - self.recent])
        return tuple(f for f in committed if f < start and (f >= start - self.recent or f in drawn))

    def _lot(self, frame: int) -> bytes:
        return hashlib.blake2b(f"{self.seed}/{frame}".encode(), digest_size=8).digest()
