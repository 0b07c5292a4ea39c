"""A job on its way through the engine: what the database is told about it, and when.

Knows: states of a job, how an error becomes an error of the API. Does not know: which job has its turn, how a video is
made.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any

from arvid.pipeline import Pipeline
from arvid.serve.logs import LOGGER, say
from arvid.serve.making import Asked, Hands, Making, Speed, untimed
from arvid.serve.metrics import JOB, Metrics
from arvid.serve.place import Place
from arvid.serve.refusals import INVALID, OURS
from arvid.serve.store import COMPLETED, FAILED, QUEUED, Job, Store, now
from arvid.types import Block

TELL_SECONDS = 0.5
"""The database hears of progress no more often."""


def blamed(error: Exception, job: Job) -> tuple[str, str]:
    """Code and message for the owner of a job that an error ended; the log has the reason where it is our fault."""
    if isinstance(error, ValueError):
        return "invalid_input", " ".join(str(error).split())
    LOGGER.error("job %s", job.id, exc_info=error)
    return OURS, "the server failed to make this video; its log has the reason; try again"


class Books:
    """Where a job's fate is written down."""

    def __init__(self, store: Store, place: Place, metrics: Metrics) -> None:
        self.store, self.place, self.metrics = store, place, metrics

    def failed(self, job: Job, code: str, message: str) -> None:
        """It cannot be made."""
        kind = OURS if code == OURS else INVALID
        told = {"code": code, "message": message, "type": kind}
        self.store.change(job.id, status=FAILED, completed_at=now(), error=told)
        self.metrics.jobs.labels(FAILED).inc()
        say("job failed", logging.WARNING, job=job.id, code=code, message=message)


class Task:
    """One job that is being made. `step` does a piece of work; it `waits` while others do one, and `wake` is called
    when they have."""

    def __init__(
        self,
        job: Job,
        pipeline: Pipeline,
        books: Books,
        hands: Hands,
        save_seconds: float,
        wake: Callable[[], None],
        speed: Speed = untimed,
    ) -> None:
        self.job, self._books, self._wake = job, books, wake
        self._making = Making(pipeline, books.place.video(job.id), Asked.of(job.asked), hands, save_seconds, speed)
        self._steps = self._making.run()
        self._begun = self._told = time.monotonic()
        self._saves = 0
        self._waited: Future[Any] | None = None
        self._failure: tuple[str, str] | None = None
        self.ended = False
        say("job begun", job=job.id, attempt=job.attempts)

    @property
    def waits(self) -> bool:
        """Whether there is nothing to do for it now."""
        return self._waited is not None and not self._waited.done()

    @property
    def finishing(self) -> bool:
        """Whether all blocks are made."""
        return self._making.sampled

    def step(self) -> None:
        """Do a piece of work, and note what became of it."""
        begin = time.monotonic()
        try:
            step = next(self._steps)
        except StopIteration:
            self._finish()
        except Exception as error:
            self._failure = blamed(error, self.job)
            self._finish()
        else:
            self._waited = step if isinstance(step, Future) else None
            if self._waited is not None:
                self._waited.add_done_callback(lambda _: self._wake())
            elif isinstance(step, Block):
                self._made(step, time.monotonic() - begin)

    def _made(self, block: Block, seconds: float) -> None:
        metrics, making = self._books.metrics, self._making
        metrics.made(JOB, block, seconds)
        if len(making.rows) == 1:
            metrics.first.labels(JOB).observe(time.monotonic() - self._begun)
        if making.saves > self._saves or time.monotonic() - self._told > TELL_SECONDS:
            saved = {"attempts": 0} if making.saves > self._saves else {}
            self._saves, self._told = making.saves, time.monotonic()
            if not self._books.store.change(self.job.id, progress=min(99, self._progress()), **saved):
                self.drop()

    def _progress(self) -> int:
        return 100 * len(self._making.rows) // max(1, self._making.blocks)

    def _finish(self) -> None:
        """Nothing is left to be done. May be called again when the database could not be told."""
        self._close()
        told = self._told_of() if self._failure is None else {}
        if self._failure is not None:
            self._books.failed(self.job, *self._failure)
        else:
            self._complete(told)
        self.ended = True

    def _told_of(self) -> dict[str, Any]:
        """What the database is told about a finished video. One that nothing can be told about has failed."""
        try:
            report = self._making.report()
            told = {name: report[name] for name in ("frames", "seconds", "sources")}
            return {**told, "blocks": len(report["blocks"])}
        except Exception as error:
            self._failure = blamed(error, self.job)
            return {}

    def _complete(self, told: dict[str, Any]) -> None:
        done = {"status": COMPLETED, "progress": 100, "completed_at": now(), "report": told, "error": None}
        if not self._books.store.change(self.job.id, **done):
            self._books.place.remove(self._books.place.video(self.job.id))
            return
        self._making.settle()
        self._books.metrics.jobs.labels(COMPLETED).inc()
        say("job completed", job=self.job.id, wall=round(time.monotonic() - self._begun, 3), **told)

    def _close(self) -> None:
        for close in (self._making.close, self._steps.close):  # in this order: films end before their files do
            try:
                close()
            except Exception:
                LOGGER.exception("job %s", self.job.id)

    def drop(self) -> None:
        """It was deleted."""
        self._close()
        self.ended = True
        self._books.place.remove(self._books.place.video(self.job.id))

    def leave(self) -> None:
        """The server ends: finish it where only that is left, else save the state and wait for the next server."""
        while self.finishing and not self.ended:
            if self._waited is not None:
                wait([self._waited])
            self.step()
        if not self.ended:
            try:
                self._making.save()
            finally:
                self._close()
                self._books.store.change(self.job.id, status=QUEUED, attempts=0)
                say("job left for later", job=self.job.id, progress=self._progress())
