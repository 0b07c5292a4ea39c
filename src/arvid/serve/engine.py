"""The one thread that owns the pipeline, and whose turn it is: the next block of a live session or of a job.

Knows: turns, calls from other threads, how the server comes and goes. Does not know: HTTP, how a block is made.

A pipeline is not safe for use by two threads, so everything that touches it happens here, one block at a time; between
two blocks calls from elsewhere are answered. Live sessions go first, the one with the least ahead of its viewer; of
`SHARE` blocks in a row one is a job's, so that jobs are never starved.

What the rest of the server uses of an engine, from any thread unless said otherwise:

    start, stop, drain      its life; `on_failure` is called when it cannot go on, with the reason in `failure`
    ready                   the pipeline, to check requests against; Refused while it cannot make videos
    warm, leaving           whether it has made a video, whether it takes nothing new
    wake, nudge             there is a new job in the store; a live session may want another block
    lives                   live sessions by id, to be read
    call                    have something done between two blocks: `open_live`, `close_live`, `drop`, `Live.apply`

It takes jobs from its store and writes to its place and nowhere else, so a process that has a store and a place of its
own may have an engine of its own; `arvid.serve.app.build` puts the three together.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from arvid.pipeline import Pipeline, Request
from arvid.serve.direction import Direction
from arvid.serve.fragments import Fragmenter
from arvid.serve.limits import Limits
from arvid.serve.live import Live
from arvid.serve.logs import LOGGER, say
from arvid.serve.making import Hands, Speed, untimed
from arvid.serve.metrics import LIVE, Metrics
from arvid.serve.place import Place
from arvid.serve.record import Record
from arvid.serve.refusals import LIMITED, OURS, Refused
from arvid.serve.store import DatabaseError, Job, Store, new_id, unusable
from arvid.serve.tasks import Books, Task, blamed

SHARE = 8
IDLE_SECONDS = 0.25
"""How long the thread sleeps when there is nothing to do and nobody wakes it."""
AGAIN_SECONDS = 1.0
"""Before a database that did not answer is asked again."""
SMALLEST_SIDE = 128
"""Live frames are enlarged by a whole number to at least this many pixels."""
FINISHING = 3
"""Jobs at most between their last block and their end."""
THE_END = "the server ends"
Given = TypeVar("Given")


class Engine:
    """See the module. `open_pipeline` is called by the thread; `pipeline` is None until it is loaded, `warm` false
    until it has made a video, `failure` what kept it from either. `speed` times the jobs."""

    MAKER = "the server"
    """Who ended when a job was begun and not ended."""

    def __init__(
        self, open_pipeline: Callable[[], Pipeline], store: Store, place: Place, limits: Limits, metrics: Metrics,
        speed: Speed = untimed,
    ) -> None:  # fmt: skip
        self._open, self._limits, self._metrics, self._place = open_pipeline, limits, metrics, place
        self._books, self._speed = Books(store, place, metrics), speed
        self.pipeline: Pipeline | None = None
        self.warm = False
        self.failure: Exception | None = None
        self.on_failure: Callable[[], None] = lambda: None
        self.lives: dict[str, Live] = {}
        self._tasks: list[Task] = []
        self._claimed: Job | None = None
        self._asks_again = 0.0
        self._since_job, self._look = 0, True
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._awake, self._leaving, self._ended = threading.Event(), threading.Event(), threading.Event()
        self._films = ThreadPoolExecutor(1, "films")
        # A film of their own for jobs: a live session, and with it everybody, would wait for frames of theirs.
        self._hands = Hands(ThreadPoolExecutor(1, "job-films"), ThreadPoolExecutor(1, "ends"))
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        metrics.gauge("arvid_queue_jobs", "Jobs that are not finished.", lambda: float(store.count()))
        metrics.gauge("arvid_live_sessions", "Live sessions.", lambda: float(len(self.lives)))

    # ------------------------------------------------------------ for other threads

    def start(self) -> None:
        """Begin: jobs that a killed server left wait again. Without a database it fails instead."""
        books = self._books
        try:
            books.place.sweep(books.store.ids())
            left = books.store.requeue()
        except DatabaseError as error:
            self._fail(unusable(error))
            self._ended.set()
            return
        if left:
            say("jobs taken up again", jobs=left)
        self._thread.start()

    def stop(self, seconds: float = 30.0) -> None:
        """End after the block at hand; what is unfinished is saved and waits for the next server."""
        self._leaving.set()
        self.wake()
        if self._thread.ident is not None:
            self._thread.join(seconds)
        for hand in (self._films, self._hands.films, self._hands.ends):
            hand.shutdown(wait=False)

    @property
    def leaving(self) -> bool:
        """Whether it takes nothing new."""
        return self._leaving.is_set()

    def drain(self) -> None:
        """Take nothing new from now on; viewers of live sessions are told at once. Not for signal handlers: the thread
        that they interrupt may hold a lock that this takes."""
        self._leaving.set()
        for live in list(self.lives.values()):
            live.leave(THE_END)
        self.wake()

    def wake(self) -> None:
        """There may be a job to do."""
        self._look = True
        self._awake.set()

    def nudge(self) -> None:
        """A live session may want another block."""
        self._awake.set()

    def call(self, what: Callable[[], Given]) -> Future[Given]:
        """Have something done between two blocks."""
        future: Future[Given] = Future()
        self._calls.put((what, future))
        self._awake.set()
        if self._ended.is_set():
            self._answer()
        return future

    def ready(self) -> Pipeline:
        """The pipeline. Raises Refused while it is being loaded and when the server is about to end."""
        if self.pipeline is None or self.leaving:
            told = "the server is about to end" if self.leaving else "the model is being loaded"
            raise Refused(f"{told}; try again soon", 503, OURS, "not_ready", after=5)
        return self.pipeline

    # ------------------------------------------------------------ by call

    def open_live(self, owner: str, most: int, request: Request, lead: float, name: str = "") -> Live:
        """A new live session (empty `name`: called as nothing else is) of an owner who may have `most`. Raises
        ValueError for a request that cannot be met, and Refused when there are too many."""
        pipeline = self.ready()
        mine = sum(live.owner == owner for live in self.lives.values())
        if mine >= most or len(self.lives) >= self._limits.sessions:
            told = f"{mine} live sessions of yours, {len(self.lives)} in all; end one first"
            raise Refused(told, 429, LIMITED, "too_many_sessions")
        direction = Direction(pipeline, request, self._limits.block)
        card, name = pipeline.family.card, name or new_id("live")
        fragments = Fragmenter(card.fps, card.size, max(1, -(-SMALLEST_SIDE // min(card.size))))
        stream = (fragments, Record(self._place.live(name)))
        self.lives[name] = live = Live(name, owner, direction, stream, self._films, lead)
        say("live session begun", session=name)
        return live

    def close_live(self, live: Live, why: str) -> None:
        """End a live session."""
        if self.lives.pop(live.name, None) is not None:
            live.close(why)
            say("live session ended", session=live.name, why=why)

    def drop(self, job: str) -> None:
        """A job was deleted: its files go."""
        if self._claimed is not None and self._claimed.id == job:
            self._claimed = None
        for task in self._tasks:
            if task.job.id == job:
                task.drop()
        self._forget_ended()
        self._place.remove(self._place.video(job))

    # ------------------------------------------------------------ the thread

    def _run(self) -> None:
        try:
            pipeline = self._open()
            self.pipeline = pipeline
            for _ in pipeline.stream(Request("warm", seconds=1.0)):
                self._answer()
            self.warm = True
            say("ready", model=pipeline.family.card.name, device=str(pipeline.family.device))
            while not self.leaving:
                self._answer()
                self._expire()
                try:
                    busy = self._turn(pipeline)
                except DatabaseError:
                    LOGGER.exception("the database does not answer")
                    busy, self._asks_again = False, time.monotonic() + AGAIN_SECONDS
                if not busy:
                    self._awake.wait(IDLE_SECONDS)
                    self._awake.clear()
        except Exception as error:
            LOGGER.exception("the engine failed")
            self._fail(error)
        finally:
            self._leave()

    def _fail(self, error: Exception) -> None:
        self.failure = error
        self._leaving.set()
        self.on_failure()

    def _answer(self) -> None:
        """Do what others asked for."""
        while True:
            try:
                what, future = self._calls.get_nowait()
            except queue.Empty:
                return
            if not future.set_running_or_notify_cancel():
                continue
            try:
                if self._ended.is_set():
                    self.ready()
                future.set_result(what())
            except BaseException as error:
                future.set_exception(error)

    def _expire(self) -> None:
        """End live sessions that nobody has asked for anything in a while."""
        for live in list(self.lives.values()):
            if live.expired(self._limits.idle_seconds):
                self.close_live(live, "idle")

    def _turn(self, pipeline: Pipeline) -> bool:
        """Do one piece of work. False when there is none."""
        live = min((live for live in self.lives.values() if live.wants), key=lambda live: live.ahead, default=None)
        if live is not None and self._since_job < SHARE:
            self._since_job += 1
            self._step_live(live)
            return True
        self._since_job = 0
        task = self._task(pipeline) if self._may_ask else None
        if task is None:
            if live is not None:
                self._step_live(live)
            return live is not None
        task.step()
        self._forget_ended()
        return True

    @property
    def _may_ask(self) -> bool:
        """Whether the database may be asked about jobs; live sessions go on without it."""
        return time.monotonic() >= self._asks_again

    def _forget_ended(self) -> None:
        self._tasks = [task for task in self._tasks if not task.ended]

    def _step_live(self, live: Live) -> None:
        begin = time.monotonic()
        try:
            block = live.step(sum(other.active for other in self.lives.values()))
        except Exception:
            LOGGER.exception("live session %s", live.name)
            live.fail("the server failed to make the next block; its log has the reason")
            return
        if block is not None:
            self._metrics.made(LIVE, block, time.monotonic() - begin)
            if not live.shown:
                live.shown = True
                self._metrics.first.labels(LIVE).observe(time.monotonic() - live.begun)

    def _task(self, pipeline: Pipeline) -> Task | None:
        """The job whose turn it is: one that is begun, or the next in the queue."""
        for task in self._tasks:
            if not task.waits:
                return task
        # One at a time has a past: another is not begun while the one before waits for its film.
        if len(self._tasks) > FINISHING or not all(task.finishing for task in self._tasks):
            return None
        while (job := self._claim()) is not None:
            begun = self._begun(job, pipeline)
            self._claimed = None
            if begun is not None:
                self._tasks.append(begun)
                return begun
        return None

    def _claim(self) -> Job | None:
        """The next job to be begun. It stays in hand (`_claimed`) until somebody has taken it, so that none is lost
        when the database fails meanwhile."""
        while (job := self._claimed or self._next()) is not None:
            self._claimed = job
            if job.attempts <= self._limits.attempts:
                return job
            told = f"{self.MAKER} ended {job.attempts - 1} times while it made this video"
            self._books.failed(job, OURS, told)
            self._claimed = None
        return None

    def _next(self) -> Job | None:
        """The job that has waited longest; nobody looks again before the next `wake` when there is none."""
        if not self._look:
            return None
        self._look = False
        try:
            job = self._books.store.claim()
        except DatabaseError:
            self._look = True
            raise
        if job is not None:
            self._look = True
        return job

    def _begun(self, job: Job, pipeline: Pipeline) -> Task | None:
        """What makes a job; None when it cannot be begun, which its owner is told."""
        try:
            return Task(job, pipeline, self._books, self._hands, self._limits.save_seconds, self.wake, self._speed)
        except Exception as error:
            self._books.failed(job, *blamed(error, job))
            return None

    def _leave(self) -> None:
        """Save what is unfinished."""
        for task in self._tasks:
            try:
                task.leave()
            except Exception:
                LOGGER.exception("job %s", task.job.id)
        self._tasks.clear()
        for live in list(self.lives.values()):
            self.close_live(live, THE_END)
        self._ended.set()
        self._answer()
