"""How much a server does for whom.

Knows: the numbers and their defaults. Does not know: who is counted, how it is counted.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Work:
    """Of one block, for which all others wait. `side` pixels of a frame, passes of models until it comes out, as a
    multiple of the family's own, and latent frames of its past, as a multiple of the family's training length."""

    side: int = 2048
    passes: float = 4.0
    past: float = 4.0

    def __post_init__(self) -> None:
        if not min(self.side, self.passes, self.past) > 0:
            raise ValueError(f"limits must be above 0, got {self}")


@dataclass(frozen=True)
class Limits:
    """Of a server. `seconds` of the longest video and `live_seconds` of the longest live session, `prompt` characters,
    `upload` bytes of a request, the work of a `block`, `queue` unfinished jobs and `sessions` live ones in all.
    `save_seconds` lie between two saved states of a job, `idle_seconds` is how long a live session waits for somebody,
    and a job that was begun `attempts` times without a new saved state is given up."""

    seconds: float = 120.0
    live_seconds: float = 1200.0
    prompt: int = 4000
    upload: int = 32 * 2**20
    block: Work = field(default_factory=Work)
    queue: int = 1000
    sessions: int = 32
    save_seconds: float = 10.0
    idle_seconds: float = 60.0
    attempts: int = 10

    def __post_init__(self) -> None:
        smallest = min(self.seconds, self.live_seconds, self.idle_seconds, self.prompt, self.upload)
        if smallest <= 0 or self.save_seconds < 0 or min(self.queue, self.sessions, self.attempts) < 1:
            raise ValueError(f"limits must be above 0, got {self}")


@dataclass(frozen=True)
class Allowance:
    """Of one key: requests a minute (0: as many as come), unfinished jobs, and live sessions at the same time."""

    requests: int = 0
    jobs: int = 200
    sessions: int = 16

    def __post_init__(self) -> None:
        if self.requests < 0 or self.jobs < 0 or self.sessions < 0:
            raise ValueError(f"allowances must be at least 0, got {self}")
