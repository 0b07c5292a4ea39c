"""A video in the making that can be directed: blocks on demand, and controls that are answered with a receipt.

Knows: the plan, the parts of a rollout, how to go back in it (states of recent blocks are kept; what lies further back
is made again, bit for bit). Does not know: models, files, clients, when somebody wants the next block.

Between two blocks everything is decided, so that is where controls act and where a state is taken. Whatever was asked
for while the video was made (prompts, seeds) is kept as a script by block; a replay follows it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from arvid.rollout.loop import rollout
from arvid.rollout.stage import Stage
from arvid.rollout.state import Snapshot
from arvid.rollout.steered import Steered
from arvid.rollout.timeline import RECACHE, Change, Director, Entry
from arvid.types import Block, Judge, Listener, Move, Noise, Plan

KEPT = 8
"""Blocks that can be taken back without making anything again."""


@dataclass(frozen=True)
class Receipt:
    """The answer to a control: its kind, and the block that is the first to show its effect."""

    kind: str
    block: int


class Wire:
    """Hands events on to listeners, unless it is `mute` (see `arvid.types.Listener`)."""

    def __init__(self, listeners: tuple[Listener, ...] = ()) -> None:
        self.listeners, self.mute = listeners, False

    def on(self, event: str, payload: dict[str, Any]) -> None:
        """Tell everybody."""
        if not self.mute:
            for listener in self.listeners:
                listener.on(event, payload)


class Seeds:
    """Noise whose seed changes at given blocks (see `arvid.types.Noise`): a pure function of (block, step), whatever
    way through the video led there. `turns` are (block, seed) in order, the first from the beginning."""

    def __init__(self, noise: Callable[[int], Noise], turns: tuple[tuple[int, int], ...]) -> None:
        self.turns = turns
        self._noise = noise

    def draw(self, block: int, step: int, shape: tuple[int, ...]) -> Tensor:
        """fp32 of `shape`, by the seed in force at `block`."""
        seed = [seed for start, seed in self.turns if start <= block][-1]
        return self._noise(seed).draw(block, step, shape)


class JudgeOf(Judge, Protocol):
    """A judge whose memory is a value."""

    def snapshot(self) -> Any:
        """What `restore` brings back."""
        ...

    def restore(self, snapshot: Any) -> None:
        """Go back to a snapshot."""
        ...


@dataclass(frozen=True, eq=False)
class Crew:
    """The parts of a rollout that have a state, and where noise comes from."""

    proposer: Steered
    judge: JudgeOf
    director: Director
    stage: Stage
    noise: Callable[[int], Noise]
    wire: Wire

    def snapshot(self) -> tuple[Any, ...]:
        """Their states as a value; copies no tensors."""
        return self.proposer.snapshot(), self.judge.snapshot(), self.director.snapshot(), self.stage.state

    def restore(self, snapshot: tuple[Any, ...]) -> None:
        """Go back to a snapshot."""
        proposer, judge, director, state = snapshot
        self.proposer.restore(proposer)
        self.judge.restore(judge)
        self.director.restore(director)
        self.stage.restore(state)

    def brought(self, snapshot: tuple[Any, ...]) -> tuple[Any, ...]:
        """States that were read from disk to one device, each where its part computes."""
        proposer, judge, director, state = snapshot
        return self.proposer.brought(proposer), judge, director, self.stage.brought(state)


class Session:
    """An iterator of blocks that takes directions. `request` is plain data that a snapshot carries; `keep` is the
    number of blocks that can be taken back at once. Not safe for use by two threads at once.

    A block that fails or is interrupted leaves the session as it was before that block.
    """

    def __init__(self, plan: Plan, crew: Crew, seed: int, request: dict[str, Any], keep: int = KEPT) -> None:
        self.plan = plan
        self._crew, self._request, self._keep = crew, request, max(1, keep)
        self._seeds = Seeds(crew.noise, ((plan[0].index, seed),))
        self._place = 0
        self._marks: dict[int, tuple[Any, ...]] = {0: crew.snapshot()}
        self._blocks: Iterator[Block] | None = None

    def __iter__(self) -> Session:
        return self

    @torch.inference_mode()
    def __next__(self) -> Block:
        if self._blocks is None:
            crew = self._crew
            moves = self.plan[self._place :]
            self._blocks = rollout(moves, crew.proposer, crew.judge, crew.director, self._seeds, crew.stage)
        try:
            block = next(self._blocks)
        except StopIteration:
            self._blocks = iter(())
            raise
        except BaseException:
            self._back(self._place)
            raise
        while self.plan[self._place] is not block.move:
            self._place += 1
        self._place += 1
        self._marks[self._place] = self._crew.snapshot()
        for old in sorted(self._marks)[1 : -self._keep]:
            del self._marks[old]
        return block

    @property
    def block(self) -> int | None:
        """The block that comes next; None when the video is finished."""
        return self.plan[self._place].index if self._place < len(self.plan) else None

    @property
    def blocks(self) -> int:
        """How many blocks the whole video has."""
        return sum(move.emits for move in self.plan)

    def prompt(self, text: str, how: str = RECACHE, blocks: int = 3) -> Receipt:
        """Show something else from the next block on. Raises ValueError for an empty prompt, an unknown transition,
        and when no block is left."""
        move = self._next()
        entry = Entry(0.0, text, how, blocks)
        self._crew.director.add(Change(move.span.start, move.index, entry.prompt, entry.how, entry.blocks, live=True))
        return Receipt("prompt", move.index)

    def rewind(self, block: int) -> Receipt:
        """Go back to before `block` was made, and forget what was asked for since; a timeline stays. Raises ValueError
        for a block that was not made."""
        place = self._place_of(block)
        frame, director = self.plan[place].span.start, self._crew.director
        director.script = tuple(change for change in director.script if not change.live or change.frame < frame)
        self._seeds.turns = self._seeds.turns[:1] + tuple(turn for turn in self._seeds.turns[1:] if turn[0] < block)
        self._back(max(mark for mark in self._marks if mark <= place))
        self._crew.wire.mute = True
        try:
            while self._place < place:
                next(self)
        finally:
            self._crew.wire.mute = False
        return Receipt("rewind", block)

    def branch(self, block: int, prompt: str = "", seed: int | None = None, how: str = RECACHE) -> Receipt:
        """Go back to before `block` and on from there with another prompt, another seed, or both. Raises ValueError as
        `rewind` and `prompt` do, before anything changes."""
        if prompt:
            Entry(0.0, prompt, how)
        self.rewind(block)
        if seed is not None:
            self._seeds.turns = (*self._seeds.turns, (block, seed))
        if prompt:
            self.prompt(prompt, how)
        return Receipt("branch", block)

    def snapshot(self) -> Snapshot:
        """The state between two blocks. Shares its tensors with the session; it stays as it is while that goes on."""
        script, given = self._crew.director.script, self._crew.proposer.given
        return Snapshot(self._place, self._request, script, self._seeds.turns, given, self._crew.snapshot())

    def brought(self, snapshot: Snapshot) -> Snapshot:
        """A snapshot that was read from disk to one device, what each part remembers where that part computes."""
        return replace(snapshot, parts=self._crew.brought(snapshot.parts))

    def restore(self, snapshot: Snapshot) -> None:
        """Go on from a snapshot of a session with the same request, or with another router for the same moves (see
        `brought` for one from disk). Raises ValueError for a place beyond the plan."""
        if snapshot.place > len(self.plan):
            raise ValueError(
                f"a state after {snapshot.place} moves for a plan of {len(self.plan)}; use its own request"
            )
        self._crew.director.script, self._seeds.turns = snapshot.script, snapshot.seeds
        self._marks = {0: self._marks[0], snapshot.place: snapshot.parts}
        self._back(snapshot.place)

    def _next(self) -> Move:
        if self._place >= len(self.plan):
            raise ValueError(f"all {self.blocks} blocks are made; rewind first, or ask for a longer video")
        return self.plan[self._place]

    def _place_of(self, block: int) -> int:
        for place, move in enumerate(self.plan[: self._place + 1]):
            if move.index == block:
                return place
        made = "none is made yet" if not self._place else f"blocks 0 to {self.plan[self._place - 1].index} are made"
        raise ValueError(f"block {block} cannot be gone back to; {made}")

    def _back(self, mark: int) -> None:
        self._crew.restore(self._marks[mark])
        self._place, self._blocks = mark, None
        self._marks = {place: held for place, held in self._marks.items() if place <= mark}
