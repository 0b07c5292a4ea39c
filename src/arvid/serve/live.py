"""A live session: a directed rollout, what it has made so far, and how far ahead of its viewer it may be.

Knows: playhead, lead, what a control does to the record. Does not know: sockets, when other sessions have their turn.

Blocks are made while the record ends less than `lead` seconds after the playhead, which only moves over what was really
sent. So nothing waits in memory for a slow viewer: it is not made. Methods are called by the engine's thread, except
where they say otherwise.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

from arvid.serve.direction import Direction
from arvid.serve.fragments import Fragmenter
from arvid.serve.knobs import with_fps, with_tau
from arvid.serve.logs import LOGGER
from arvid.serve.protocol import Branch, Control, Knob, Pause, Play, Prompt, Rewind, Seek
from arvid.serve.record import Record
from arvid.types import Block

DECISIONS = {"target": "target", "draft": "accepted", "given": "given"}
"""What became of a block, by its source; any other source is a mended draft."""
Told = dict[str, Any]


class Live:
    """See the module. `lead` and `seen` are seconds; the clock never falls."""

    def __init__(
        self,
        name: str,
        owner: str,
        direction: Direction,
        stream: tuple[Fragmenter, Record],
        films: Executor,
        lead: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name, self.owner, self.lead = name, owner, lead
        self.fragments, self.record = stream
        self.playhead, self.sent = 0.0, 0.0
        self.paused, self.failed, self.closed = False, "", ""
        self.on_change: Callable[[], None] | None = None
        self._direction, self._films, self._clock = direction, films, clock
        self._ends = [0]
        self._filming: Future[None] | None = None
        self._cut: int | None = None
        self._lock = threading.Lock()
        self.begun = self.seen = clock()
        self.shown = False

    # ------------------------------------------------------------ making

    @property
    def ahead(self) -> float:
        """Seconds that are made beyond the playhead."""
        return self._ends[-1] / self.fragments.fps - self.playhead

    @property
    def wants(self) -> bool:
        """Whether another block should be made now."""
        return self.active and self.ahead < self.lead

    @property
    def active(self) -> bool:
        """Whether it takes part of the machine's time: somebody watches, and there is something left to be made."""
        return not (self.paused or self.failed or self.closed or self.on_change is None or self._direction.done)

    @property
    def done(self) -> bool:
        """Whether the whole video is made."""
        return self._direction.done

    @property
    def blocks(self) -> int:
        """How many blocks the whole video has."""
        return len(self._direction.plan)

    @property
    def seconds(self) -> float:
        """How long the whole video is."""
        return self._direction.request.seconds

    def second_of(self, block: int) -> float:
        """When a block begins that is made or comes next."""
        return self._ends[min(block, len(self._ends) - 1)] / self.fragments.fps

    def step(self, sharing: int = 1) -> Block | None:
        """Make the next block and have it encoded, with `sharing` sessions taking turns; None when it was only made
        again on the way back."""
        self._direction.sharing = sharing
        block = self._direction.step()
        if block is None:
            return None
        self._filmed()
        first = self._ends[-1]
        self._ends.append(first + block.frames_BTCHW.shape[1])
        self._filming = self._films.submit(self._write, block, first, self._about(block))
        return block

    def _about(self, block: Block) -> Told:
        return {
            "source": block.source,
            "decision": DECISIONS.get(block.source, "repaired"),
            "score": block.verdict.score,
            "prompt": self._direction.prompt_at(block.move.index),
            "router": self._direction.router,
            "took": {name: round(seconds, 4) for name, seconds in block.seconds.items()},
        }

    def _write(self, block: Block, first: int, told: Told) -> None:
        index, fps, frames = block.move.index, self.fragments.fps, block.frames_BTCHW[0]
        data = self.fragments.fragment(frames, first, index + 1)
        self.record.add(index, first / fps, len(frames) / fps, data, told)
        self.changed()

    def _filmed(self) -> None:
        if self._filming is not None:
            filming, self._filming = self._filming, None
            filming.result()

    def fail(self, message: str) -> None:
        """Make nothing any more."""
        self.failed = message
        self.changed()

    def expired(self, seconds: float) -> bool:
        """Whether nobody has said anything for a while."""
        return self._clock() - self.seen > seconds

    def heard(self) -> None:
        """The viewer has said something. For any thread."""
        self.seen = self._clock()

    def leave(self, why: str) -> None:
        """It is about to be closed: its viewer is told now, and nothing more is made. For any thread."""
        self.closed = why
        self.changed()

    def close(self, why: str) -> None:
        """End the session and forget what was made."""
        try:
            self._filmed()
        except Exception:
            LOGGER.exception("live session %s", self.name)
        self.closed = why
        self.record.close()
        self.changed()

    def changed(self) -> None:
        """Wake whoever sends to the viewer. For any thread."""
        if (tell := self.on_change) is not None:
            tell()

    # ------------------------------------------------------------ controls

    def apply(self, control: Control) -> Told:
        """Carry out a control; the receipt says which block is the first to show it, and at which second that is.
        Raises ValueError for what cannot be done, and then nothing has changed."""
        block = self._applied(control)
        self.changed()
        second = self.second_of(block)
        return {"type": "control.receipt", "id": control.id, "control": control.type, "block": block, "second": second}

    def _applied(self, control: Control) -> int:
        direction = self._direction
        if isinstance(control, Prompt):
            soon = self.record.at(self.playhead) + 1
            if control.now and soon < direction.block:
                return self._back(soon, control.prompt, None, control.how)
            return direction.prompt(control.prompt, control.how, control.blocks)
        if isinstance(control, Rewind):
            return self._back(control.block)
        if isinstance(control, Branch):
            return self._back(control.block, control.prompt, control.seed, control.how)
        if isinstance(control, Knob):
            return direction.route(self._routed(control))
        if isinstance(control, Seek):
            return self.seek(control.second)
        if isinstance(control, (Pause, Play)):
            self.paused = isinstance(control, Pause)
        return direction.block

    def _routed(self, knob: Knob) -> str:
        if knob.tau is not None:
            return with_tau(self._direction.router, knob.tau)
        if knob.fps is not None:
            return with_fps(self._direction.router, knob.fps)
        return knob.router or ""

    def _back(self, block: int, prompt: str = "", seed: int | None = None, how: str = "recache") -> int:
        self._direction.back(block, prompt, seed, how)
        self._filmed()
        self._forget(block, self.record.version + 1)
        return block

    def _forget(self, block: int, version: int) -> None:
        """Forget what was made from a block on; the record without it is of that version."""
        while self.record.version < version:
            self.record.cut(block)
        del self._ends[block + 1 :]
        with self._lock:
            self._cut = block if self._cut is None else min(self._cut, block)
            begins = self._ends[-1] / self.fragments.fps
            self.playhead, self.sent = min(self.playhead, begins), min(self.sent, begins)

    # ------------------------------------------------------------ the viewer (its own thread)

    def take_cut(self) -> int | None:
        """The first block that has become another since the last call; None when none has."""
        with self._lock:
            cut, self._cut = self._cut, None
        return cut

    def has_sent(self, second: float, version: int) -> None:
        """The viewer has been sent everything up to a second, if the record is still of that version."""
        with self._lock:
            if version == self.record.version:
                self.sent = max(self.sent, second)

    def ack(self, second: float) -> None:
        """The viewer sees what is shown at a second."""
        with self._lock:
            self.playhead = min(max(second, 0.0), self.sent)

    def seek(self, second: float) -> int:
        """The viewer wants to see what is shown at a second; the block that shows it."""
        with self._lock:
            self.playhead = min(max(second, 0.0), self.record.end)
            self.sent = self.playhead
        return self.record.at(self.playhead)
