"""The past: what was committed, and which of it a block may read.

Knows: pieces of keys (unrotated) and values, the policy and the positions it asks, snapshots, bytes. Does not know: how
keys are made, noise levels, what a policy does with a piece (`arvid.caches.policy` has the border between the two).

Reading changes nothing: a view holds its pieces, and only `commit` forgets. So a snapshot is a tuple of references, the
passes of a walk may be repeated, and a block that is thrown away leaves no trace.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from arvid.caches.pieces import Held, Piece, Pieces, Slab, layout, taken
from arvid.caches.policy import Moment, Policy, Told
from arvid.caches.positions import Absolute
from arvid.caches.view import StoreView
from arvid.types import Memory, Positions, Span

__all__ = ["Frames", "Policy", "Store", "StoreView"]

Frames = dict[int, tuple[Any, ...]]
"""A snapshot: plain data and tensors of the pieces (see `Held`) by the first frame each stands for, in order."""
LARGEST_SLAB = 64
"""Room in frames that is reserved at once; a past without bounds gets one slab after the other."""
CUT_GAP = 42
"""Frames between past and present in the first move after a cut (Infinity-RoPE, 2511.20649: 45 instead of 3)."""


class Store:
    """One model's past under a policy (see `arvid.types.Past`). `block` is the number of frames of a block, `positions`
    says where frames stand in time when a block reads them."""

    def __init__(self, policy: Policy, block: int, positions: Positions | None = None) -> None:
        self._policy, self._block = policy, block
        self._positions = Absolute() if positions is None else positions
        self._frames: dict[int, Piece] = {}
        self._slabs: list[Slab] = []
        self._told: Told | None = None
        self._cuts: frozenset[int] = frozenset()
        self._about: dict[int, tuple[str, ...]] = {}

    # ------------------------------------------------------------ reading

    def view(self, span: Span) -> StoreView:
        """What the frames of `span` may read. Of a span of several blocks, each sees what it would see alone, if the
        policy speaks of whole frames; else all see what the first one sees, and the blocks before them."""
        known = tuple(piece for piece in self._frames.values() if piece.frames[-1] < span.start)
        frames = tuple(frame for piece in known for frame in piece.frames)
        rules = []
        for start in range(span.start, span.stop, self._block):
            committed = frames + tuple(range(span.start, start))
            rules.append((start, frozenset(self._policy.visible(committed, start))))
        seen = frozenset().union(*(allowed for _, allowed in rules))
        past = tuple(piece for piece in known if seen.issuperset(piece.frames))
        self._told = Told(span)
        moment, gap = self._moment(span.start), CUT_GAP if span.start in self._cuts else 0.0
        return StoreView(past, tuple(rules), self._policy, self._positions, moment, self._told, gap)

    def _moment(self, start: int, grid: tuple[int, int] = (0, 0), newest: int = 0) -> Moment:
        heard = [about for first, about in self._about.items() if first <= start]
        return Moment(start, grid, heard[-1] if heard else (), newest)

    # ------------------------------------------------------------ writing

    def commit(self, span: Span, memory: Memory) -> None:
        """Remember the frames of `span` and forget what no later block may read. What was committed after
        `span.start` goes, a merged piece as a whole: it was made on a past that no longer holds. Keys and values are
        copied, so that a frame on hold does not keep the tensors of a whole pass alive.

        Raises ValueError when the tokens do not divide by the frames of the span.
        """
        tokens = memory[0][0].shape[1]
        if tokens % len(span):
            raise ValueError(f"{tokens} tokens do not divide into the {len(span)} frames of {span}; pass whole frames")
        told = self._told if self._told is not None and self._told.span == span else Told(span)
        self._settle(self._kept(span, memory, told))

    def _kept(self, span: Span, memory: Memory, told: Told) -> Pieces:
        """The past with `span`, as the policy keeps it block by block."""
        each = memory[0][0].shape[1] // len(span)
        past = tuple(piece for piece in self._frames.values() if piece.frames[-1] < span.start)
        for start in range(span.start, span.stop, self._block):
            stop = min(start + self._block, span.stop)
            for place in range(start - span.start, stop - span.start):
                part = slice(place * each, (place + 1) * each)
                frame = tuple((k[:, part], v[:, part]) for k, v in memory)
                notes, about = self._policy.note(frame, told, place), self._moment(start).about
                past += (Piece((span.start + place,), frame, span.start + place, notes=notes, about=about),)
            past = self._policy.keep(past, self._moment(stop, told.grid, start))
        return past

    def _settle(self, past: Pieces) -> None:
        """Take over the pieces of a commit. What is new gets room of its own, and whole frames come last: room that
        was given back is written over only when nothing is read from it any more."""
        self._frames = {piece.frames[0]: piece for piece in past}
        for first, piece in self._frames.items():
            if piece.slot is None and not self._fits(piece):
                self._frames[first] = replace(piece, pairs=tuple((_owned(k), _owned(v)) for k, v in piece))
        for first, piece in self._frames.items():
            if piece.slot is None and self._fits(piece):
                pairs, slot = self._slab(piece.pairs).put(piece.pairs)
                self._frames[first] = replace(piece, pairs=pairs, slot=slot)

    @staticmethod
    def _fits(piece: Piece) -> bool:
        """Whether a piece may lie in a slab, which gradients cannot flow through."""
        return piece.plain and not any(k.requires_grad or v.requires_grad for k, v in piece)

    def _slab(self, frame: Memory) -> Slab:
        """A slab with room for one more frame of this layout."""
        self._slabs = [slab for slab in self._slabs if slab.layout == layout(frame)]
        for slab in self._slabs:
            if slab.free:
                return slab
        known = self._policy.room
        reserved = sum(slab.room for slab in self._slabs)
        room = known if not reserved and 0 < known <= LARGEST_SLAB else min(LARGEST_SLAB, max(self._block, reserved))
        self._slabs.append(Slab(frame, room))
        return self._slabs[-1]

    # ------------------------------------------------------------ steering

    def hear(self, start: int, about: tuple[str, ...]) -> None:
        """What the blocks from `start` on are to show, by name: a policy that keeps identities needs it."""
        self._about = {first: names for first, names in self._about.items() if first < start}
        if not self._about or list(self._about.values())[-1] != about:
            self._about[start] = about

    @property
    def reader(self) -> str:
        """Who reads prompts for the policy."""
        return self._policy.reader

    def cut(self, starts: frozenset[int]) -> None:
        """The moves that begin at `starts`, and no others, open new scenes: for each of them alone the past stands
        CUT_GAP frames further back, whenever it is written. The blocks of a move stand together, so in a pass over
        several the gap is before the first of them."""
        self._cuts = starts

    def keep(self, frames: frozenset[int]) -> None:
        """Forget all frames but these, at once and without a pass; a piece goes unless it stands for these alone."""
        self._frames = {first: piece for first, piece in self._frames.items() if frames.issuperset(piece.frames)}

    # ------------------------------------------------------------ holding

    def snapshot(self) -> Frames:
        """The pieces as they stand, as plain data and tensors; nothing is copied."""
        return {first: Held.of(piece) for first, piece in self._frames.items()}

    def restore(self, snapshot: Frames) -> None:
        """Go back to a snapshot, or to the plain data of one."""
        self._frames = {first: taken(first, held) for first, held in snapshot.items()}
        self._told = None

    @property
    def bytes(self) -> int:
        """Bytes of the keys and values on hold."""
        return sum(piece.bytes for piece in self._frames.values())

    @property
    def listens(self) -> bool:
        """Whether its policy looks at content, and so at what a view of it was told."""
        return not self._policy.whole

    def together(self, span: Span) -> bool:
        """Whether the blocks of `span` stand in one pass where each would stand alone: at fixed places, and none of
        them behind a cut."""
        return self._positions.fixed and not any(span.start <= start < span.stop for start in self._cuts)

    @property
    def reserved(self) -> int:
        """Bytes of the room that was made, in use or not, and of pieces outside of it."""
        outside = sum(piece.bytes for piece in self._frames.values() if piece.slot is None)
        return outside + sum(slab.bytes for slab in self._slabs)


def _owned(x: Tensor) -> Tensor:
    """The tensor in memory of its own; gradients flow through."""
    return x if x.untyped_storage().nbytes() == x.numel() * x.element_size() and not x.requires_grad else x.clone()
