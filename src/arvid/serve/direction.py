"""A rollout under direction: one block at a time, other prompts and routers, and ways back, however far.

Knows: what was asked for by block (prompts, seeds, routers), states to go back to. Does not know: clients, playheads,
encoders.

A session of the pipeline has one router. What was asked for is therefore kept here, as values by block, and the session
is opened anew where the router changes, from the state of the one before. Going back takes the nearest kept state and
makes the blocks since then again, one per step, with what was in force at each; so no step lasts longer than a block.
Where `hold` was, they may come out mended otherwise: it is the one router that looks at the clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor

from arvid.pipeline import Pipeline, Request
from arvid.rollout.session import Session
from arvid.rollout.state import Snapshot
from arvid.rollout.timeline import RECACHE, Change, Entry
from arvid.serve import bounds
from arvid.serve.knobs import shared
from arvid.serve.limits import Work
from arvid.types import Block

RECENT, SPARSE = 8, 8
"""States that are kept: those of the last blocks, and of some before, ever further apart."""
ROOM = 2**30
"""Bytes that they may hold; where that is too little the oldest go first."""
USUAL = Work()


class Kept(NamedTuple):
    """A state, and the bytes of its tensors by their addresses: states share most of them."""

    state: Snapshot
    bytes: dict[int, int]


class Direction:
    """See the module. `sharing` is how many sessions take turns on the machine. Raises ValueError when the request
    cannot be met, or asks for more than `work`. Not safe for use by two threads at once."""

    def __init__(self, pipeline: Pipeline, request: Request, work: Work = USUAL, room: int = ROOM) -> None:
        self._pipeline, self.request, self._work, self._room = pipeline, request, work, room
        bounds.check(pipeline, request, self._work)
        self._routers: list[tuple[int, str]] = [(0, request.router)]
        self._router = request.router
        self._session = self._open(request.router)
        begin = self._session.snapshot()
        self._script, self._seeds = begin.script, begin.seeds
        self._states = {0: Kept(begin, bytes_of(begin.parts))}
        self._stride = 1
        self._wanted = 0
        self.sharing = 1
        self.plan = self._session.plan
        self.done = False

    def _open(self, router: str) -> Session:
        return self._pipeline.session(replace(self.request, router=router), keep=1)

    @property
    def block(self) -> int:
        """The block that comes next, for whoever watches; the number of blocks when all are made."""
        return max(self._wanted, self._at)

    @property
    def _at(self) -> int:
        block = self._session.block
        return len(self.plan) if block is None else block

    @property
    def router(self) -> str:
        """The router of the next block."""
        return self._routers[-1][1]

    def prompt_at(self, block: int) -> str:
        """What a block is asked to show."""
        frame = self.plan[block].span.start
        ordered = sorted(self._script, key=lambda change: (change.frame, change.live))
        return [change.prompt for change in ordered if change.frame <= frame][-1]

    def step(self) -> Block | None:
        """The next block; None when a block was made again on the way back. Call it while not `done`."""
        at = self._at
        router = self._router_at(at)
        if router != self._router:
            self._resume(self._session.snapshot(), router)
        block = next(self._session)
        self._keep(self._at, self._session.snapshot())
        self.done = self._at == len(self.plan)
        return None if at < self._wanted else block

    # ------------------------------------------------------------ controls

    def prompt(self, text: str, how: str = RECACHE, blocks: int = 3) -> int:
        """Show something else from the next block on, whose number is returned. Raises ValueError for an empty prompt,
        an unknown transition, and when no block is left."""
        at, entry = self._next(), Entry(0.0, text, how, blocks)
        frame = self.plan[at].span.start
        change = Change(frame, at, entry.prompt, entry.how, entry.blocks, live=True)
        others = tuple(other for other in self._script if (other.frame, other.live) != (frame, True))
        self._script = (*others, change)
        self._resume(self._session.snapshot(), self._router)
        return at

    def route(self, router: str) -> int:
        """Decide otherwise about drafts from the next block on. Raises ValueError for an unknown router, one that the
        family cannot serve, that takes too many passes or makes other moves of the video (`ahead=`), and when no block
        is left."""
        at = self._next()
        _, plan = bounds.check(self._pipeline, replace(self.request, router=router), self._work)
        if [move.span for move in plan] != [move.span for move in self.plan]:
            raise ValueError(
                f"router {router!r} makes this video in {len(plan)} moves, it was begun in {len(self.plan)}; keep "
                "ahead= as it is, or begin another session"
            )
        self._routers = [(block, other) for block, other in self._routers if block < at] + [(at, router)]
        return at

    def back(self, block: int, prompt: str = "", seed: int | None = None, how: str = RECACHE) -> int:
        """Go back to before a block, and on with another prompt, another seed, or as it was asked for before the
        video began. The router stays as it is now. Raises ValueError for a block that was not made, before anything
        changes."""
        if not 0 <= block <= min(self.block, len(self.plan) - 1):
            made = f"blocks 0 to {self.block - 1} are made" if self.block else "none is made yet"
            raise ValueError(f"block {block} cannot be gone back to; {made}")
        if prompt:
            Entry(0.0, prompt, how)
        router, frame = self.router, self.plan[block].span.start
        self._script = tuple(change for change in self._script if not change.live or change.frame < frame)
        self._seeds = self._seeds[:1] + tuple(turn for turn in self._seeds[1:] if turn[0] < block)
        if seed is not None:
            self._seeds = (*self._seeds, (block, seed))
        self._routers = [turn for turn in self._routers if turn[0] < block] + [(block, router)]
        self._states = {at: kept for at, kept in self._states.items() if at <= block}
        start = max(self._states)
        self._resume(self._states[start].state, self._router_at(start))
        self._wanted, self.done = block, False
        if prompt:
            self.prompt(prompt, how)
        return block

    def _next(self) -> int:
        if self.block >= len(self.plan):
            raise ValueError(f"all {len(self.plan)} blocks are made; go back first")
        return self.block

    # ------------------------------------------------------------ states

    def _router_at(self, block: int) -> str:
        """What decides about the drafts of a block."""
        return shared([router for start, router in self._routers if start <= block][-1], self.sharing)

    def _resume(self, state: Snapshot, router: str) -> None:
        """Go on from a state with what is asked for now."""
        if router != self._router:
            self._session, self._router = self._open(router), router
        self._session.restore(replace(state, script=self._script, seeds=self._seeds))

    def _keep(self, at: int, state: Snapshot) -> None:
        """Keep a state; old ones thin out, so that their number stays the same, and their bytes in bounds."""
        self._states[at] = Kept(state, bytes_of(state.parts))
        old = sorted(self._states)[1:-RECENT]
        while sum(place % self._stride == 0 for place in old) > SPARSE:
            self._stride *= 2
        for place in old:
            if place % self._stride:
                del self._states[place]
        while len(self._states) > 2 and _together(self._states.values()) > self._room:
            del self._states[sorted(self._states)[1]]


def bytes_of(value: Any) -> dict[int, int]:
    """Bytes of the tensors in a nested value, by address."""
    if isinstance(value, Tensor):
        return {value.data_ptr(): value.nbytes}
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else ()
    found: dict[int, int] = {}
    for part in parts:
        found.update(bytes_of(part))
    return found


def _together(states: Iterable[Kept]) -> int:
    found: dict[int, int] = {}
    for kept in states:
        found.update(kept.bytes)
    return sum(found.values())
