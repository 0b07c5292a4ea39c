"""The stage of a rollout: turns decided latents into frames and keeps the clock.

Knows: the streaming decoder's state (a value: the old one is kept until a block is decided), wall-clock per stage and
per block, who listens. Does not know: who made a block or why it was accepted.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from arvid.rollout.devices import brought, device_of
from arvid.types import Block, Decoder, DecoderState, Listener, Move, Proposal, Verdict

RECENT = 16
"""How many blocks back a pace looks."""


@dataclass(frozen=True)
class Lap:
    """A finished block: its pixel frames, its seconds of wall-clock, and those of them that the target took."""

    frames: int
    seconds: float
    target: float


@dataclass(frozen=True)
class Pace:
    """How fast a rollout is: its first lap and up to RECENT recent ones (the first not among them), `frames` and
    `seconds` of all laps behind the first, `spent` seconds in the block that is being made."""

    first: Lap | None = None
    recent: tuple[Lap, ...] = ()
    frames: int = 0
    seconds: float = 0.0
    spent: float = 0.0


class Clock:
    """Seconds and counts by name since the last `reset`, and the pace of the blocks so far. Shared by the parts of one
    rollout. `now` gives seconds that never fall; where work is only begun when a call returns, `devices.settled`."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self.seconds: dict[str, float] = {}
        self.passes: dict[str, int] = {}
        self._begin = now()
        self._first: Lap | None = None
        self._recent: deque[Lap] = deque(maxlen=RECENT)
        self._frames, self._total = 0, 0.0

    def reset(self) -> None:
        """Start a block."""
        self.seconds, self.passes = {}, {}
        self._begin = self._now()

    def lap(self, frames: int) -> None:
        """The block is finished and has `frames` pixel frames."""
        done = Lap(frames, self._now() - self._begin, self.seconds.get("target", 0.0))
        if self._first is None:
            self._first = done
            return
        self._recent.append(done)
        self._frames, self._total = self._frames + frames, self._total + done.seconds

    @property
    def pace(self) -> Pace:
        """How fast the rollout is at this moment."""
        return Pace(self._first, tuple(self._recent), self._frames, self._total, self._now() - self._begin)

    def count(self, name: str, passes: int) -> None:
        """Add model passes."""
        if passes:
            self.passes[name] = self.passes.get(name, 0) + passes

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Add the time spent inside to `name`."""
        begin = self._now()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + self._now() - begin


def shown(decoder: Decoder, z_BTCHW: Tensor, state: DecoderState | None, opens: bool) -> tuple[Tensor, DecoderState]:
    """Frames of the next latents of a stream, and its state after them. A block that `opens` a scene is decoded behind
    its own first latent, as if that had stood there all along: a decoder that looks back would show what it was made
    without."""
    if opens and state is not None:
        _, state = decoder.decode(z_BTCHW[:, :1])
    return decoder.decode(z_BTCHW, state)


class Stage:
    """Decodes, times and announces the blocks of one rollout; `done` carries a block's frames."""

    def __init__(self, decoder: Decoder, clock: Clock, listeners: tuple[Listener, ...] = ()) -> None:
        self._decoder, self._clock, self._listeners = decoder, clock, listeners
        self.state: DecoderState | None = None
        self._decoded: tuple[Proposal, Tensor, DecoderState] | None = None
        self._rejection: Verdict | None = None

    def restore(self, state: DecoderState | None) -> None:
        """Go back to a state."""
        self.state = state

    def brought(self, state: DecoderState | None) -> DecoderState | None:
        """A state that was read at home, where the decoder is."""
        found: DecoderState | None = brought(state, device_of(self._decoder))
        return found

    def begin(self, move: Move) -> None:
        """A block starts."""
        self._clock.reset()
        self._decoded = self._rejection = None
        self._tell("begun", {"block": move.index})

    def preview(self, proposal: Proposal) -> Callable[[], Tensor]:
        """Frames of a candidate on demand; decoded at most once and reused when it is accepted."""
        return lambda: self._decode(proposal)[0]

    def _decode(self, proposal: Proposal) -> tuple[Tensor, DecoderState]:
        if self._decoded is None or self._decoded[0] is not proposal:
            with self._clock.measure("decode"):
                frames, state = shown(self._decoder, proposal.block_BTCHW, self.state, proposal.opens)
            self._decoded = (proposal, frames, state)
        return self._decoded[1], self._decoded[2]

    def rejected(self, proposal: Proposal, verdict: Verdict) -> Proposal:
        """A candidate was sent back: the candidate with the verdict. Its score stays with the block."""
        self._rejection = verdict
        self._tell("rejected", {"source": proposal.source, "score": verdict.score, "decision": verdict.decision})
        return replace(proposal, verdict=verdict)

    def emit(self, move: Move, proposal: Proposal, verdict: Verdict) -> Block:
        """The block is decided: decode it (unless it was) and advance the decoder. Its verdict carries the score that
        decided it: that of the draft, also when the draft was sent back."""
        frames, self.state = self._decode(proposal)
        self._clock.lap(frames.shape[1])
        if self._rejection is not None:
            verdict = replace(verdict, score=self._rejection.score, frames_scored=self._rejection.frames_scored)
        block = Block(
            move, proposal.block_BTCHW, frames, proposal.source, verdict,
            dict(self._clock.seconds), dict(self._clock.passes), proposal.opens,
        )  # fmt: skip
        told = {"block": move.index, "source": proposal.source, "score": verdict.score, "frames_BTCHW": frames}
        self._tell("done", told)
        return block

    def _tell(self, event: str, payload: dict[str, Any]) -> None:
        for listener in self._listeners:
            listener.on(event, payload)
