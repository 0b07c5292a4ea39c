"""A live session of a replica, as the server shows it to its viewer.

Knows: what the replica has told (fragments, cuts, the end) and what it must be told (playhead, pauses, controls). Does
not know: how blocks are made, Ray.

The fragments are kept here a second time, so that a viewer reads them as it would from a session in this process. Only
playhead, pauses and seeks are answered here; every other control goes to the replica, between two of its blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, Protocol, cast

from arvid.pipeline import Request
from arvid.serve.cluster.replica import Answer, Seen
from arvid.serve.direction import Direction
from arvid.serve.fragments import Fragmenter
from arvid.serve.live import Live, Told
from arvid.serve.protocol import Control, Pause, Play, Seek
from arvid.serve.record import Piece, Record


class Line(Protocol):
    """The way to a replica."""

    def ask(self, what: str, *given: Any) -> Any:
        """Ask it and wait for the answer. Raises Refused when it is gone."""
        ...

    def tell(self, what: str, *given: Any) -> None:
        """Tell it, in order, and wait for nothing."""
        ...


class Far:
    """Stands for the direction that is on the replica (see `arvid.serve.direction`)."""

    def __init__(self, request: Request, blocks: int, record: Record) -> None:
        self.request, self.plan, self.done = request, range(blocks), False
        self._record = record

    @property
    def block(self) -> int:
        """The block that comes next, as far as it is known here."""
        return len(self._record)


class Mirror(Live):
    """See the module. Events arrive by one thread."""

    def __init__(
        self, line: Line, name: str, owner: str, request: Request, opened: Answer, stream: tuple[Fragmenter, Record],
        films: Executor, lead: float,
    ) -> None:  # fmt: skip
        self._line, self._words = line, 0
        self._watcher: Callable[[], None] | None = None
        self._far = Far(request, opened["blocks"], stream[1])
        self._whole = False
        super().__init__(name, owner, cast(Direction, self._far), stream, films, lead)
        self._whole = True

    # ------------------------------------------------------------ to the replica

    @property
    def on_change(self) -> Callable[[], None] | None:
        """What wakes the viewer; blocks are made while there is one."""
        return self._watcher

    @on_change.setter
    def on_change(self, tell: Callable[[], None] | None) -> None:
        self._watcher = tell
        if self._whole and not self.closed:
            self._say()

    def _say(self) -> None:
        """Tell the replica about the viewer."""
        with self._lock:
            self._words += 1
            seen = Seen(
                self._words, self._watcher is not None, self.paused, self.lead, self.playhead, self.record.version
            )
        self._line.tell("viewer", self.name, seen)

    def ack(self, second: float) -> None:
        """The viewer sees what is shown at a second."""
        super().ack(second)
        self._say()

    def seek(self, second: float) -> int:
        """The viewer wants to see what is shown at a second; the block that shows it."""
        block = super().seek(second)
        self._say()
        return block

    def apply(self, control: Control) -> Told:
        """Carry out a control, here or there. Raises ValueError for what cannot be done."""
        if isinstance(control, (Seek, Pause, Play)):
            receipt = super().apply(control)
            self._say()
            return receipt
        answer: Answer = self._line.ask("apply", self.name, control)
        if "refused" in answer:
            raise ValueError(answer["refused"])
        return answer

    def close(self, why: str) -> None:
        """End the session, here and there."""
        super().close(why)
        self._line.tell("close", self.name, why)

    # ------------------------------------------------------------ from the replica

    def made(self, piece: Piece, data: bytes) -> None:
        """A block has come."""
        if self.closed:
            return
        self.record.add(piece.block, piece.second, piece.seconds, data, piece.told)
        self._ends.append(round(piece.end * self.fragments.fps))
        self.changed()

    def forgot(self, block: int, version: int) -> None:
        """Blocks are forgotten from one on, which makes a version with that number."""
        if self.closed:
            return
        self._forget(block, version)
        self.changed()
        self._say()

    def state(self, failed: str, done: bool) -> None:
        """How it is."""
        self.failed, self._far.done = failed, done
        self.changed()
