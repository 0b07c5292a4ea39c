"""The server's end of one replica: questions to it, what it tells, and what happens when it dies.

Knows: the order in which a replica comes, is listened to and is lost. Does not know: which replica a job or a session
goes to, how a replica is deployed (it is handed a way).

A replica that is lost is removed for good before its jobs are given to another: two never write one video.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from arvid.pipeline import Family
from arvid.serve.cluster.mirror import Mirror
from arvid.serve.cluster.relay import PATIENCE, Event
from arvid.serve.cluster.replica import columns
from arvid.serve.logs import LOGGER, say
from arvid.serve.metrics import Metrics
from arvid.serve.refusals import OURS, Refused
from arvid.serve.store import QUEUED, RUNNING, DatabaseError, Job, Store

AGAIN_SECONDS = 1.0
"""Between a loss and the next try; it doubles with every loss in a row, up to LONGEST."""
LONGEST = 60.0


class Handle(Protocol):
    """A replica that was deployed."""

    def ask(self, what: str, *given: Any, patience: float | None = PATIENCE) -> Any:
        """Call a method of `Replica` and wait for what it gives."""
        ...

    def tell(self, what: str, *given: Any) -> None:
        """Call a method of `Replica` and wait for nothing."""
        ...

    def watch(self) -> Iterator[list[Event]]:
        """What it tells. Raises when it is lost."""
        ...


class Deploy(Protocol):
    """How replicas come and go, by their number."""

    def begin(self, number: int) -> Handle:
        """Put one up."""
        ...

    def end(self, number: int) -> None:
        """Remove one, and come back when it is gone. One that is not there is no error."""
        ...


class Lane:
    """See the module. `changed` is called when there is room for a job, or a replica has come or gone; `lost` with the
    live sessions that went with it."""

    def __init__(
        self, number: int, deploy: Deploy, store: Store, metrics: Metrics, changed: Callable[[], None],
        lost: Callable[[list[Mirror]], None],
    ) -> None:  # fmt: skip
        self.number, self.ready, self.failure = number, False, ""
        self.family: Family | None = None
        self._deploy, self._store, self._metrics, self._changed, self._on_loss = deploy, store, metrics, changed, lost
        self.jobs: dict[str, Job] = {}
        self.mirrors: dict[str, Mirror] = {}
        self._handle: Handle | None = None
        self._lock = threading.Lock()
        self._words: queue.SimpleQueue[tuple[Handle | None, str, tuple[Any, ...]] | None] = queue.SimpleQueue()
        self._leaving = threading.Event()
        self._threads = [
            threading.Thread(target=run, name=f"lane-{number}", daemon=True) for run in (self._run, self._speak)
        ]

    def start(self) -> None:
        """Put the replica up, and keep it up."""
        for thread in self._threads:
            thread.start()

    # ------------------------------------------------------------ to the replica

    def ask(self, what: str, *given: Any) -> Any:
        """Ask the replica and wait for the answer. Raises Refused when it is gone."""
        handle = self._handle
        try:
            if handle is None:
                raise ConnectionError("no replica")
            return handle.ask(what, *given)
        except Exception as error:
            say("a replica does not answer", replica=self.number, asked=what, error=type(error).__name__)
            raise Refused("the replica is gone; begin again", 503, OURS, "replica_lost", after=5) from error

    def tell(self, what: str, *given: Any) -> None:
        """Tell the replica, in order, and wait for nothing. What was meant for one never reaches its successor."""
        self._words.put((self._handle, what, given))

    def give(self, job: Job) -> bool:
        """Have the replica make a job. False when there is no replica now."""
        with self._lock:
            if not self.ready:
                return False
            self.jobs[job.id] = job
            self.tell("give", columns(job))
        return True

    def leave(self) -> None:
        """The replica saves what it has begun; it is removed."""
        self._leaving.set()
        handle = self._handle
        if handle is not None:
            try:
                handle.ask("leave")
            except Exception:
                LOGGER.exception("replica %d", self.number)
        self._words.put(None)
        self._threads[0].join(PATIENCE)

    def _speak(self) -> None:
        while (word := self._words.get()) is not None:
            handle, what, given = word
            if handle is not None:
                try:
                    handle.tell(what, *given)
                except Exception:
                    LOGGER.exception("replica %d", self.number)

    # ------------------------------------------------------------ from the replica

    def _run(self) -> None:
        pause = AGAIN_SECONDS
        while not self._leaving.is_set():
            begin = time.monotonic()
            try:
                self._live()
            except Exception as error:
                say("replica lost", replica=self.number, error=f"{type(error).__name__}: {str(error)[:300]}")
            self._lost()
            pause = AGAIN_SECONDS if time.monotonic() - begin > LONGEST else min(2 * pause, LONGEST)
            self._leaving.wait(pause)

    def _live(self) -> None:
        """From its coming to its end. Raises whatever ends it."""
        self._deploy.end(self.number)
        handle = self._deploy.begin(self.number)
        found = handle.ask("hello", patience=None)
        if isinstance(found, str):
            self.failure = found
            raise RuntimeError(found)
        events = handle.watch()
        self._handle, self.family, self.failure, self.ready = handle, found, "", True
        say("replica ready", replica=self.number)
        self._changed()
        for batch in events:
            for event in batch:
                self._hear(event)

    def _lost(self) -> None:
        """Its sessions end, its jobs wait again."""
        with self._lock:
            self.ready, self._handle = False, None
        mirrors, self.mirrors = list(self.mirrors.values()), {}
        self._on_loss(mirrors)
        while not self._removed() and not self._leaving.wait(AGAIN_SECONDS):
            pass
        with self._lock:
            jobs, self.jobs = list(self.jobs), {}
        for job in jobs:
            while not self._waits_again(job) and not self._leaving.wait(AGAIN_SECONDS):
                pass
        self._changed()

    def _waits_again(self, job: str) -> bool:
        try:
            self._store.change(job, status=QUEUED)
        except DatabaseError:
            LOGGER.exception("job %s", job)
            return False
        say("job waits again", job=job, replica=self.number)
        return True

    def _removed(self) -> bool:
        try:
            self._deploy.end(self.number)
            return True
        except Exception:
            LOGGER.exception("replica %d", self.number)
            return False

    def _hear(self, event: Event) -> None:
        kind, subject, *told = event
        if kind == "change":
            self._write(subject, *told)
        elif kind == "number":
            labels, verb, amount = told
            getattr(getattr(self._metrics, subject).labels(*labels), verb)(amount)
        elif (mirror := self.mirrors.get(subject)) is not None:
            if kind == "made":
                mirror.made(*told)
            elif kind == "cut":
                mirror.forgot(*told)
            else:
                mirror.state(told[0], told[2])

    def _write(self, number: int, job: str, values: dict[str, Any]) -> None:
        """A job has changed: write it down and say so. A replica that hears nothing tries again or goes without."""
        try:
            known = self._store.change(job, **values)
        except DatabaseError:
            LOGGER.exception("job %s", job)
            return
        if not known or values.get("status", RUNNING) != RUNNING:
            with self._lock:
                self.jobs.pop(job, None)
        self.tell("heard", number, known)
        self._changed()
