"""An engine whose blocks are made elsewhere: by replicas on a cluster, each of which has the models.

Knows: which replica a job or a live session goes to, what becomes of them when it dies. Does not know: how a replica
works (cluster/replica.py), how it is deployed (cluster/deploying.py), HTTP.

The server stays where it is: it keeps the database, the files, the keys and the sockets, and is the only one who gives
jobs out. A live session stays with its replica, because its past, its decoder's state and the states it can go back to
are there; jobs go to the replica with the fewest.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

from arvid.pipeline import Pipeline, Request
from arvid.serve.app import Settings
from arvid.serve.app import build as build_here
from arvid.serve.cluster.lane import Deploy, Lane
from arvid.serve.cluster.mirror import Mirror
from arvid.serve.cluster.replica import Answer
from arvid.serve.engine import SMALLEST_SIDE, THE_END, Engine, Given
from arvid.serve.fragments import Fragmenter
from arvid.serve.house import House
from arvid.serve.limits import Limits
from arvid.serve.live import Live
from arvid.serve.logs import say
from arvid.serve.metrics import Metrics
from arvid.serve.place import Place
from arvid.serve.record import Record
from arvid.serve.refusals import LIMITED, OURS, Refused
from arvid.serve.store import Store, new_id
from arvid.types import Block

EACH = 2
"""Jobs that a replica has at the same time: one being made, one that follows it without a pause."""
CALLS = 32
"""Questions to replicas at the same time."""
LOOK_SECONDS = 0.1
LEAVING_SECONDS = 120.0
LOST = "the replica that made it was lost; begin again"
LATE = "it was opened too late"


class Shell(Pipeline):
    """Checks requests; makes nothing."""

    def stream(self, *given: Any, **named: Any) -> Iterator[Block]:
        """No blocks: the replicas have warmed up by themselves."""
        return iter(())


class RayEngine(Engine):
    """See the module. `replicas` of them are kept up by `deploy`."""

    MAKER = "its replica"

    def __init__(
        self, replicas: int, deploy: Deploy, store: Store, place: Place, limits: Limits, metrics: Metrics
    ) -> None:
        super().__init__(self._join, store, place, limits, metrics)
        self._lanes = [Lane(number, deploy, store, metrics, self.wake, self._end_all) for number in range(replicas)]
        self._pool = ThreadPoolExecutor(CALLS, "calls")
        self._opening = threading.Lock()
        metrics.gauge("arvid_replicas", "Replicas that are ready.", lambda: float(sum(x.ready for x in self._lanes)))

    def call(self, what: Callable[[], Given]) -> Future[Given]:
        """Have something done that may ask a replica; others need not wait for it."""
        return super().call(what) if self._ended.is_set() else self._pool.submit(what)

    def _join(self) -> Pipeline:
        """Wait for the first replica. Raises ValueError when the models cannot be opened."""
        for lane in self._lanes:
            lane.start()
        while not self.leaving:
            for lane in self._lanes:
                if lane.family is not None:
                    return Shell(lane.family)
                if lane.failure:
                    raise ValueError(f"replica {lane.number} cannot open the model: {lane.failure}")
            time.sleep(LOOK_SECONDS)
        raise ValueError("ended before a replica was ready")

    # ------------------------------------------------------------ live sessions

    def open_live(self, owner: str, most: int, request: Request, lead: float, name: str = "") -> Live:
        """A new live session on the replica that has the fewest. Raises as the engine in one process does."""
        family = self.ready().family
        with self._opening:
            mine = sum(live.owner == owner for live in self.lives.values())
            if mine >= most or len(self.lives) >= self._limits.sessions:
                told = f"{mine} live sessions of yours, {len(self.lives)} in all; end one first"
                raise Refused(told, 429, LIMITED, "too_many_sessions")
            ready = [lane for lane in self._lanes if lane.ready]
            if not ready:
                raise Refused("no replica is ready; try again soon", 503, OURS, "not_ready", after=5)
            lane = min(ready, key=lambda lane: len(lane.mirrors))
            name, card = name or new_id("live"), family.card
            opened = self._asked(lane, name, owner, request, lead)
            if "refused" in opened:
                raise ValueError(opened["refused"])
            fragments = Fragmenter(card.fps, card.size, max(1, -(-SMALLEST_SIDE // min(card.size))))
            fragments.init = opened["init"]
            stream = (fragments, Record(self._place.live(name)))
            mirror = Mirror(lane, name, owner, request, opened, stream, self._films, lead)
            self.lives[name] = lane.mirrors[name] = mirror
        if not lane.ready:
            self.close_live(mirror, LOST)
        say("live session begun", session=name, replica=lane.number)
        return mirror

    def _asked(self, lane: Lane, name: str, owner: str, request: Request, lead: float) -> Answer:
        """What a replica answers that is to open a session. One that answers too late would keep it for nobody."""
        try:
            answer: Answer = lane.ask("open", name, owner, request, lead)
        except Refused:
            lane.tell("close", name, LATE)
            raise
        return answer

    def close_live(self, live: Live, why: str) -> None:
        """End a live session, here and on its replica."""
        for lane in self._lanes:
            lane.mirrors.pop(live.name, None)
        super().close_live(live, why)

    def _end_all(self, mirrors: list[Mirror]) -> None:
        for mirror in mirrors:
            self.close_live(mirror, LOST)

    # ------------------------------------------------------------ jobs

    def drop(self, job: str) -> None:
        """A job was deleted: whoever makes it stops, its files go."""
        for lane in self._lanes:
            if lane.jobs.pop(job, None) is not None:
                lane.ask("drop", job)
        super().drop(job)

    def _turn(self, pipeline: Pipeline) -> bool:
        """Give a job out. False when there is none, or nobody to make it."""
        free = [lane for lane in self._lanes if lane.ready and len(lane.jobs) < EACH]
        job = self._claim() if free and self._may_ask else None
        if job is None:
            return False
        if min(free, key=lambda lane: len(lane.jobs)).give(job):
            self._claimed = None
        return True

    # ------------------------------------------------------------ the end

    def stop(self, seconds: float = LEAVING_SECONDS) -> None:
        """End; replicas save what is unfinished and are removed."""
        super().stop(seconds)

    def _leave(self) -> None:
        for live in list(self.lives.values()):
            self.close_live(live, THE_END)
        with ThreadPoolExecutor(len(self._lanes), "leaving") as pool:
            list(pool.map(lambda lane: lane.leave(), self._lanes))
        super()._leave()
        self._pool.shutdown(wait=False)


def build(settings: Settings, replicas: int, deploy: Deploy) -> House:
    """The parts of a server whose blocks are made by replicas."""
    return build_here(settings, partial(RayEngine, replicas, deploy))
