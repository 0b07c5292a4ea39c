"""A proposer around speculation: blocks that are given, orders that come from outside, pasts that change at a boundary.

Knows: the last decided blocks (enough to run them again), what each walker's past must become when the prompt changes,
which block the target must make. Does not know: why (a timeline, a person, a guard), decoders, files.

Everything happens before a block is first proposed, so a boundary is the only place where a past changes otherwise than
by a commit. Facts: recache after LongLive (2509.22622, one causal pass over the frames on view, at most as many as the
model was trained on), flush and cut after Infinity-RoPE (2511.20649).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from arvid.rollout.entities import names, reader_of
from arvid.rollout.flow import FlowWalker
from arvid.rollout.timeline import CUT, FLUSH, JUMP, RECACHE, Change, Director
from arvid.types import Condition, Move, Noise, Proposal, Proposer, Span

GIVEN = "given"
"""Source of a block that was there before."""
TARGET_NEXT, REFRESH, ANCHOR = "target", "refresh", "anchor"
ORDERS = (TARGET_NEXT, REFRESH, ANCHOR)
Told = tuple[Move, Tensor]
"""A decided block and its latents."""
Order = tuple[str, Tensor | None]
Tell = Callable[[str, dict[str, Any]], None]


@runtime_checkable
class Reading(Protocol):
    """A past that says who reads prompts for it."""

    @property
    def reader(self) -> str:
        """See `arvid.rollout.entities.reader_of`."""
        ...


@dataclass(frozen=True, eq=False)
class Hands:
    """Who makes blocks: `routed` as the router says, `alone` where a block must not be left to chance (the target,
    unless the router never asks it); both work with the same `walkers`, the target's first. `level` is the noise level
    of commits, `waits` the number of latent frames that may wait to be written (0: the walkers see to that), `first`
    the levels of a move that opens a scene, as those of block 0 (empty: those of the plan)."""

    routed: Proposer
    alone: Proposer
    walkers: tuple[FlowWalker, ...]
    level: float = 0.0
    waits: int = 0
    first: tuple[float, ...] = ()


class Steered:
    """See the module. `reach` is the number of latent frames that are run again at most (to the next whole block);
    `given` holds latents z_BTCHW that the first moves of the plan cover."""

    def __init__(self, hands: Hands, director: Director, reach: int, given: Tensor | None, tell: Tell) -> None:
        self.given = given
        self._hands, self._director, self._reach, self._tell = hands, director, reach, tell
        self._empty = tuple(walker.snapshot() for walker in hands.walkers)
        self._tail: tuple[Told, ...] = ()
        self._first: Told | None = None
        self._orders: tuple[Order, ...] = ()
        self._informed = False
        self._joined = len(hands.walkers)

    def order(self, name: str, statistics: Tensor | None = None) -> None:
        """Before the next block: `target` has the target make it, `refresh` runs the frames on view again (the first
        block too, where it is still on view), `anchor` does so after each block's latents were given the mean and the
        deviation of `statistics` [2, C]. Raises ValueError for another name."""
        if name not in ORDERS:
            raise ValueError(f"unknown order {name!r}; known: {', '.join(ORDERS)}")
        self._orders += ((name, statistics),)

    def propose(self, move: Move, condition: Condition, noise: Noise, rejected: Proposal | None = None) -> Proposal:
        """What was given, else what the hands make of it."""
        if rejected is not None:
            again = self._hands.routed.propose(move, condition, noise, rejected)
            return replace(again, opens=rejected.opens)
        alone, cut = self._prepare(move, condition, noise)
        if self.given is not None and move.span.stop <= self.given.shape[1]:
            return Proposal(self.given[:, move.span.start : move.span.stop], source=GIVEN)
        alone |= self.given is not None and move.span.start == self.given.shape[1]
        walked = replace(move, sigmas=self._hands.first) if cut and self._hands.first else move
        made = (self._hands.alone if alone else self._hands.routed).propose(walked, condition, noise)
        return replace(made, opens=cut)

    def commit(self, move: Move, proposal: Proposal, condition: Condition) -> None:
        """Tell the walkers, and keep the block as long as it may have to be run again."""
        self._hands.routed.commit(move, proposal, condition)
        if move.commit is None:
            return
        told = (replace(move, commit=self._hands.level), proposal.block_BTCHW)
        self._first = self._first or told
        tail = [*self._tail, told]
        while sum(len(kept.span) for kept, _ in tail[1:]) >= self._reach:
            del tail[0]
        self._tail = tuple(tail)

    def snapshot(self) -> tuple[Any, ...]:
        """Pasts, what is pending, the last blocks and orders, as a value that `restore` brings back."""
        walkers = tuple(walker.snapshot() for walker in self._hands.walkers[: self._joined])
        return walkers, self._tail, self._first, self._orders

    def restore(self, snapshot: tuple[Any, ...]) -> None:
        """Go back to a snapshot, perhaps one of other hands: a past that these have no walker for goes, and a walker
        that those did not have joins in at the next block."""
        walkers, self._tail, self._first, self._orders = snapshot
        self._informed = False
        self._joined = min(len(walkers), len(self._hands.walkers))
        for walker, held in zip(self._hands.walkers, (*walkers, *self._empty[len(walkers) :]), strict=False):
            walker.restore(held)

    def brought(self, snapshot: tuple[Any, ...]) -> tuple[Any, ...]:
        """A snapshot that was read at home, every past where its model is."""
        walkers, *rest = snapshot
        pairs = zip(self._hands.walkers, walkers, strict=False)
        return tuple(walker.brought(held) for walker, held in pairs), *rest

    def _prepare(self, move: Move, condition: Condition, noise: Noise) -> tuple[bool, bool]:
        """Carry out what changes at this boundary. Whether the block is to be the target's: it was ordered, or it opens
        a scene, as a router's first block opens a video; and whether it does."""
        alone, cut = False, False
        change = self._director.begins(move.span.start)
        if change is not None or not self._informed:
            self._inform(move.span.start)
        self._join(move.span.start, condition)
        if change is not None:
            alone = cut = change.how == CUT
            self._apply(change, move, condition, noise)
            told = {"block": move.index, "prompt": change.prompt, "how": change.how, "live": change.live}
            self._tell("changed", told)
        orders, self._orders = self._orders, ()
        for name, wanted in orders:
            alone |= name == TARGET_NEXT
            if name == ANCHOR and wanted is not None:
                self._tail = tuple((kept, _with(z, wanted)) for kept, z in self._tail)
            if name in (REFRESH, ANCHOR):
                self._run_again(move.span.start, condition, from_first=True)
        for walker in self._hands.walkers:
            if 0 < self._hands.waits < sum(len(kept.span) for kept, _, _ in walker.pending):
                walker.catch_up(noise)
        return alone, cut

    def _inform(self, frame: int) -> None:
        """Tell the pasts whom each prompt so far has named, and which blocks jump: all of those, since one may still
        wait to be written. It follows from the script, so they do not keep it in their snapshots."""
        told = self._director.until(frame)
        prompts = [change.prompt for change in told]
        jumps = frozenset(change.frame for change in told[1:] if change.how == JUMP)
        for walker in self._hands.walkers:
            walker.past.cut(jumps)
            reader = walker.past.reader if isinstance(walker.past, Reading) else ""
            for change, about in zip(told, names(prompts, reader_of(reader)), strict=True):
                walker.past.hear(change.frame, about)
        self._informed = True

    def _join(self, start: int, condition: Condition) -> None:
        """Have walkers that were not there before write, under `condition`, what the first walker still knows of the
        blocks that are kept here."""
        late, self._joined = self._hands.walkers[self._joined :], len(self._hands.walkers)
        if not late or not self._tail:
            return
        known = self._known(self._hands.walkers[0], start)
        first = [self._first] if self._first and self._first[0].span.stop <= self._tail[0][0].span.start else []
        told = [(move, z, condition) for move, z in (*first, *self._tail) if not known.isdisjoint(_frames(move.span))]
        for walker in late:
            walker.rewrite(tuple(told))

    def _apply(self, change: Change, move: Move, condition: Condition, noise: Noise) -> None:
        if change.how == RECACHE:
            self._run_again(move.span.start, condition)
        elif change.how == FLUSH and self._first is not None:
            for walker in self._hands.walkers:
                walker.catch_up(noise)
                walker.past.keep(frozenset({self._first[0].span.start, move.span.start - 1}))
        elif change.how == CUT:
            for walker, empty in zip(self._hands.walkers, self._empty, strict=True):
                walker.restore(empty)
            self._tail, self._first = (), None

    def _run_again(self, start: int, condition: Condition, from_first: bool = False) -> None:
        """Have the last blocks written again under `condition`: those that are on view or wait to be written, without
        a gap, so that no walker pays for what it will not read."""
        for walker in self._hands.walkers:
            pending, known = walker.pending, self._known(walker, start)
            again: list[Told] = []
            for told in reversed(self._tail):
                if not known.issuperset(_frames(told[0].span)):
                    break
                again.insert(0, told)
            first = again[0][0].span.start if again else start
            if from_first and self._first is not None and self._alone_on_view(self._first[0].span, first, known):
                again.insert(0, self._first)
                first = self._first[0].span.start
            older = tuple(entry for entry in pending if entry[0].span.stop <= first)
            walker.rewrite((*older, *((move, z, condition) for move, z in again)))

    @staticmethod
    def _known(walker: FlowWalker, start: int) -> set[int]:
        """The frames that a block at `start` would see of what a walker has written, and those that wait."""
        waiting = {frame for move, _, _ in walker.pending for frame in _frames(move.span)}
        return waiting | {*walker.past.view(Span(start, start + 1)).frames}

    @staticmethod
    def _alone_on_view(sink: Span, start: int, known: set[int]) -> bool:
        """Whether the sink is on view and nothing between it and `start` is: writing it again drops what follows it."""
        between = any(frame in known for frame in range(sink.stop, start))
        return sink.stop <= start and known.issuperset(_frames(sink)) and not between


def _frames(span: Span) -> range:
    return range(span.start, span.stop)


def statistics(z_BTCHW: Tensor) -> Tensor:
    """Mean and deviation of each channel [2, C]."""
    values = z_BTCHW.float().movedim(2, 0).flatten(1)
    return torch.stack([values.mean(1), values.std(1)])


def _with(z_BTCHW: Tensor, wanted: Tensor) -> Tensor:
    """The latents with the wanted mean and deviation [2, C] of each channel."""
    found, wanted = (pair[:, :, None, None] for pair in (statistics(z_BTCHW), wanted))
    moved = (z_BTCHW.float() - found[0]) / found[1].clamp_min(1e-6) * wanted[1] + wanted[0]
    return moved.to(z_BTCHW.dtype)
