"""What is asked for: one video, as plain data.

Knows: the fields of a request and what each may be by itself. Does not know: families, whether a request can be met
(`Pipeline.check`), what spec strings mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from arvid.rollout.timeline import Entry


@dataclass(frozen=True)
class Request:
    """What is asked for: a prompt, how many seconds are made, a seed, and how to make them. `router`, `past`,
    `positions`, `guard` and `noise` are spec strings (empty: the family's own, as in training, none, white); `size` is
    (width, height) in pixels (None: the family's own); `timeline` says what the video shows later, and what it begins
    with where `prompt` is empty."""

    prompt: str
    seconds: float = 5.0
    seed: int = 0
    router: str = ""
    past: str = ""
    size: tuple[int, int] | None = None
    timeline: tuple[Entry, ...] = ()
    guard: str = ""
    positions: str = ""
    noise: str = ""

    def __post_init__(self) -> None:
        """Raises ValueError for fields that are something else than they should be."""
        texts = (self.prompt, self.router, self.past, self.guard, self.positions, self.noise)
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"prompt, router, past, guard, positions and noise are text; got {texts}")
        if isinstance(self.seconds, bool) or not isinstance(self.seconds, (int, float)):
            raise ValueError(f"seconds={self.seconds!r}; give a number, like 5.0")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise ValueError(f"seed={self.seed!r}; give a whole number of at least 0")
        if self.size is not None and not _is_size(self.size):
            raise ValueError(f"size={self.size!r}; give two whole numbers (width, height)")
        if not all(isinstance(entry, Entry) for entry in self.timeline):
            raise ValueError("the timeline holds something that is no entry; make them by arvid.Entry(at, prompt, how)")

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Request:
        """The request that `asdict` made plain."""
        size = None if plain["size"] is None else (int(plain["size"][0]), int(plain["size"][1]))
        return cls(**{**plain, "size": size, "timeline": tuple(Entry(**entry) for entry in plain["timeline"])})


def _is_size(size: object) -> bool:
    return isinstance(size, tuple) and len(size) == 2 and all(isinstance(side, int) for side in size)
