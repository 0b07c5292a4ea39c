"""The stage of a rollout: turns decided latents into frames and keeps the clock.

Knows: the streaming decoder's state (a value: the old one is kept until a block is decided), wall-clock per stage,
who listens. Does not know: who made a block or why it was accepted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor

from arvid.types import Block, Decoder, DecoderState, Listener, Move, Proposal, Verdict


class Clock:
    """Seconds and counts by name since the last `reset`. Shared by the parts of one rollout."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.passes: dict[str, int] = {}

    def reset(self) -> None:
        """Start a block."""
        self.seconds, self.passes = {}, {}

    def count(self, name: str, passes: int) -> None:
        """Add model passes."""
        if passes:
            self.passes[name] = self.passes.get(name, 0) + passes

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Add the time spent inside to `name`."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin


class Stage:
    """Decodes, times and announces the blocks of one rollout."""

    def __init__(self, decoder: Decoder, clock: Clock, listeners: tuple[Listener, ...] = ()) -> None:
        self._decoder, self._clock, self._listeners = decoder, clock, listeners
        self.state: DecoderState | None = None
        self._decoded: tuple[Proposal, Tensor, DecoderState] | None = None
        self._rejection: Verdict | None = None

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
                frames, state = self._decoder.decode(proposal.block_BTCHW, self.state)
            self._decoded = (proposal, frames, state)
        return self._decoded[1], self._decoded[2]

    def rejected(self, proposal: Proposal, verdict: Verdict) -> None:
        """A candidate was sent back; its score stays with the block."""
        self._rejection = verdict
        self._tell("rejected", {"source": proposal.source, "score": verdict.score, "decision": verdict.decision})

    def emit(self, move: Move, proposal: Proposal, verdict: Verdict) -> Block:
        """The block is decided: decode it (unless it was) and advance the decoder. Its verdict carries the score that
        decided it: that of the draft, also when the draft was sent back."""
        frames, self.state = self._decode(proposal)
        if self._rejection is not None:
            verdict = replace(verdict, score=self._rejection.score, frames_scored=self._rejection.frames_scored)
        block = Block(
            move, proposal.block_BTCHW, frames, proposal.source, verdict,
            dict(self._clock.seconds), dict(self._clock.passes),
        )  # fmt: skip
        self._tell("done", {"block": move.index, "source": proposal.source, "score": verdict.score})
        return block

    def _tell(self, event: str, payload: dict[str, Any]) -> None:
        for listener in self._listeners:
            listener.on(event, payload)
