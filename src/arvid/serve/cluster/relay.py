"""What a replica has of its own where a server has its database, its numbers and its files, so that an engine runs
there as it does in a server; and the way in which it tells the server of them.

Knows: events, who waits for an answer. Does not know: Ray, how blocks are made, what the server does with an event.

    ("change", number, job, values)            a job's row; the server answers whether there still is one
    ("number", name, labels, verb, amount)     an observation of a metric
    ("cut", session, block, version)           blocks from there on are forgotten
    ("made", session, piece, data)             a block and its fragment
    ("state", session, failed, closed, done)   of a live session
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as TooLate
from pathlib import Path
from typing import Any

from arvid.serve.live import Live
from arvid.serve.metrics import Metrics
from arvid.serve.place import Place
from arvid.serve.store import DatabaseError, Store

Event = tuple[Any, ...]
PATIENCE = 30.0
"""Seconds that a replica waits for the server's answer."""


class Outbox:
    """Events that wait to be told, and answers that are waited for. Safe for use by several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._events: list[Event] = []
        self._touched: set[str] = set()
        self._waiting: dict[int, Future[bool]] = {}
        self._numbers = itertools.count(1)
        self._wake: Callable[[], None] | None = None
        self.closed = False

    def listen(self, wake: Callable[[], None]) -> None:
        """Call `wake` whenever there is something."""
        self._wake = wake
        wake()

    def put(self, *event: Any) -> None:
        """Tell the server."""
        with self._lock:
            self._events.append(event)
        self._call()

    def touch(self, session: str) -> None:
        """Something about a live session has changed."""
        with self._lock:
            self._touched.add(session)
        self._call()

    def take(self) -> tuple[list[Event], set[str]]:
        """Everything that waits: events, and live sessions that have changed."""
        with self._lock:
            found, self._events = (self._events, self._touched), []
            self._touched = set()
        return found

    def ask(self, *event: Any) -> bool:
        """Tell the server something that it answers. Raises DatabaseError when it does not."""
        future: Future[bool] = Future()
        number = next(self._numbers)
        self._waiting[number] = future
        try:
            if self.closed:
                raise DatabaseError("the server is gone")
            self.put(event[0], number, *event[1:])
            return future.result(PATIENCE)
        except TooLate as error:
            raise DatabaseError("the server does not answer") from error
        finally:
            self._waiting.pop(number, None)

    def heard(self, number: int, answer: bool) -> None:
        """The server has answered."""
        if (future := self._waiting.get(number)) is not None and not future.done():
            future.set_result(answer)

    def close(self) -> None:
        """Nobody will answer any more."""
        self.closed = True
        for future in list(self._waiting.values()):
            if not future.done():
                future.set_exception(DatabaseError("the server is gone"))
        self._call()

    def _call(self) -> None:
        if (wake := self._wake) is not None:
            wake()


class Slips(Store):
    """The jobs that a replica was given, in a database of its own. The server hears of a change before it counts."""

    def __init__(self, folder: Path, outbox: Outbox) -> None:
        super().__init__(f"sqlite:///{folder / 'slips.db'}", "slips")
        self._outbox = outbox

    def change(self, job: str, **values: Any) -> bool:
        """Note something about a job. False when it was deleted, here or at the server."""
        known = self._outbox.ask("change", job, values)
        return super().change(job, **values) and known


class Room(Place):
    """The server's data directory as a replica uses it: jobs have their folders there, live sessions are kept on the
    replica's own disk, and nothing of others is swept away."""

    def __init__(self, root: Path, own: Path) -> None:
        super().__init__(root)
        self._own = own

    def live(self, session: str) -> Path:
        """The file of a live session. Raises ValueError for what is no id."""
        return self._own / super().live(session).name

    def sweep(self, known: set[str]) -> None:
        """The server does that."""


class Told:
    """A metric whose observations are told to the server."""

    def __init__(self, name: str, outbox: Outbox, labels: tuple[str, ...] = ()) -> None:
        self._name, self._outbox, self._labels = name, outbox, labels

    def labels(self, *labels: str) -> Told:
        """The one with these labels."""
        return Told(self._name, self._outbox, labels)

    def inc(self, amount: float = 1.0) -> None:
        """Count."""
        self._outbox.put("number", self._name, self._labels, "inc", amount)

    def observe(self, amount: float) -> None:
        """Measure."""
        self._outbox.put("number", self._name, self._labels, "observe", amount)


class Numbers(Metrics):
    """The metrics of a replica: what its engine observes is told."""

    TOLD = ("blocks", "frames", "judged", "block", "first", "jobs")

    def __init__(self, outbox: Outbox) -> None:
        super().__init__()
        for name in self.TOLD:
            setattr(self, name, Told(name, outbox))


class Tap:
    """What of a live session has not been told yet."""

    def __init__(self, live: Live) -> None:
        self.live = live
        self.heard = 0
        self._next, self._version = 0, live.record.version
        self._state: tuple[str, str, bool] = ("", "", False)

    def take(self) -> list[Event]:
        """Events, in order."""
        live, name = self.live, self.live.name
        events: list[Event] = []
        if (cut := live.take_cut()) is not None:
            self._next, self._version = min(self._next, cut), live.record.version
            events.append(("cut", name, cut, self._version))
        while (found := live.record.read(self._next)) is not None and found[0] == self._version:
            events.append(("made", name, found[1], found[2]))
            self._next += 1
        state = (live.failed, live.closed, live.done)
        if state != self._state:
            self._state = state
            events.append(("state", name, *state))
        return events
