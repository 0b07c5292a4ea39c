"""A replica: an engine in a process of its own, with the models, directed by a server that may be on another machine.

Knows: which questions the server asks and how the engine answers them. Does not know: Ray (a deployment is made of this
class elsewhere), the database, clients.

A replica makes blocks and fragments; frames never leave it. The server keeps the only list of jobs: it gives them out,
hears of every change, and gives them to another replica when this one dies. When the server is gone, which the replica
sees by the end of `watch`, it saves what it has begun and makes nothing any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from arvid.pipeline import Family, Pipeline, Request
from arvid.serve.cluster.relay import Event, Numbers, Outbox, Room, Slips, Tap
from arvid.serve.engine import Engine
from arvid.serve.limits import Limits
from arvid.serve.making import Speed, untimed
from arvid.serve.protocol import Control
from arvid.serve.store import QUEUED, Job

LOOK_SECONDS = 0.05
FOREVER = 1e9
MANY = 10**6
REMEMBERED = 1000
"""Sessions that were closed before they were open, and of which word may still come."""
Answer = dict[str, Any]


@dataclass(frozen=True)
class Seen:
    """What the server knows of a viewer: a number that grows with every word of it, whether somebody watches, whether
    it is paused, seconds of lead and playhead, and the version of the record they belong to."""

    number: int
    watched: bool
    paused: bool
    lead: float
    playhead: float
    version: int


class Elsewhere:
    """Stands for a part that is on a replica."""


def shell(family: Family) -> Family:
    """A family without its models: enough to check requests against."""
    part: Any = Elsewhere()
    return replace(
        family, target=part, drafter=None if family.drafter is None else part, decoder=part, text=part,
        reward=None if family.reward is None else part, device=torch.device("cpu"),
        judges=dict.fromkeys(family.judges, part),
    )  # fmt: skip


class Replica:
    """See the module. `root` is the server's data directory, as this machine sees it."""

    def __init__(
        self, open_pipeline: Callable[[], Pipeline], root: str, limits: Limits, speed: Speed = untimed
    ) -> None:
        self._own = Path(tempfile.mkdtemp(prefix="arvid-replica-"))
        self._outbox, self._taps = Outbox(), dict[str, Tap]()
        self._given_up: deque[str] = deque(maxlen=REMEMBERED)
        self._slips = Slips(self._own, self._outbox)
        # How long a session waits for somebody and how many there may be is the server's to say.
        ours = replace(limits, idle_seconds=FOREVER, sessions=MANY)
        room = Room(Path(root), self._own)
        self._engine = Engine(open_pipeline, self._slips, room, ours, Numbers(self._outbox), speed)
        self._engine.start()

    # ------------------------------------------------------------ coming and going

    async def hello(self) -> Family | str:
        """The family without its models, as soon as they have made a video; a text that says why they cannot."""
        engine = self._engine
        while not engine.warm:
            if engine.failure is not None:
                return f"{type(engine.failure).__name__}: {engine.failure}"
            await asyncio.sleep(LOOK_SECONDS)
        assert engine.pipeline is not None
        return shell(engine.pipeline.family)

    async def watch(self) -> AsyncIterator[list[Event]]:
        """Everything that happens, until the replica has left. When nobody listens any more, it leaves."""
        loop, due = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop may be closed by now
                loop.call_soon_threadsafe(due.set)

        self._outbox.listen(wake)
        try:
            while True:
                due.clear()
                events, touched = self._outbox.take()
                for name in sorted(touched & self._taps.keys()):
                    events += self._taps[name].take()
                if events:
                    yield events
                elif self._outbox.closed:
                    return
                else:
                    await due.wait()
        finally:
            self._outbox.close()
            await asyncio.to_thread(self._end)

    async def leave(self) -> None:
        """Save what is begun and make nothing any more; `watch` ends when all of it is told."""
        await asyncio.to_thread(self._engine.stop)
        self._outbox.close()

    def _end(self) -> None:
        self._engine.stop()
        self._slips.close()
        shutil.rmtree(self._own, ignore_errors=True)

    # ------------------------------------------------------------ jobs

    async def give(self, job: dict[str, Any]) -> None:
        """Make the video of a job."""
        await asyncio.to_thread(self._take, job)

    def _take(self, job: dict[str, Any]) -> None:
        # One that comes back after another replica had it, and this one before that.
        self._slips.delete(job["id"])
        self._slips.add(Job(**job))
        self._engine.wake()

    async def drop(self, job: str) -> None:
        """A job was deleted."""
        await asyncio.to_thread(self._slips.delete, job)
        await asyncio.wrap_future(self._engine.call(lambda: self._engine.drop(job)))

    async def heard(self, number: int, known: bool) -> None:
        """The server has written a change down; whether it still knows the job."""
        self._outbox.heard(number, known)

    # ------------------------------------------------------------ live sessions

    async def open(self, session: str, owner: str, request: Request, lead: float) -> Answer:
        """Begin a live session, unless the server has given it up by then."""
        engine = self._engine
        try:
            live = await asyncio.wrap_future(engine.call(lambda: engine.open_live(owner, MANY, request, lead, session)))
        except ValueError as error:
            return {"refused": str(error)}
        self._taps[session] = Tap(live)
        if session in self._given_up:
            await self.close(session, "given up")
        return {"init": live.fragments.init, "blocks": live.blocks, "seconds": live.seconds}

    async def apply(self, session: str, control: Control) -> Answer:
        """Carry out a control between two blocks; the receipt."""
        tap = self._taps.get(session)
        if tap is None:
            return {"refused": "this session has ended; begin another"}
        live = tap.live
        try:
            return dict(await asyncio.wrap_future(self._engine.call(lambda: live.apply(control))))
        except ValueError as error:
            return {"refused": str(error)}

    async def viewer(self, session: str, seen: Seen) -> None:
        """What the viewer does. Words that were overtaken by later ones are left out."""
        tap = self._taps.get(session)
        if tap is None or seen.number <= tap.heard:
            return
        live, tap.heard = tap.live, seen.number
        live.lead, live.paused = seen.lead, seen.paused
        if seen.version == live.record.version:
            live.sent = live.playhead = seen.playhead
        live.on_change = (lambda: self._outbox.touch(session)) if seen.watched else None
        self._outbox.touch(session)
        self._engine.nudge()

    async def close(self, session: str, why: str) -> None:
        """End a live session, or one that may still be opened."""
        if (tap := self._taps.pop(session, None)) is None:
            self._given_up.append(session)
        else:
            live = tap.live
            await asyncio.wrap_future(self._engine.call(lambda: self._engine.close_live(live, why)))


def columns(job: Job) -> dict[str, Any]:
    """A job as plain data, to be given to a replica. Whoever begins it counts the attempt."""
    plain = {column.key: getattr(job, column.key) for column in job.__table__.columns if column.key != "number"}
    return {**plain, "status": QUEUED, "attempts": max(0, job.attempts - 1), "repeat": None}
