"""Pieces of the past, and the room they live in.

Knows: what a piece stands for, where its keys and values lie, and which room is free again. Does not know: who may read
a piece, when it is forgotten, what its numbers mean.

A piece is a value: nothing changes it, so a snapshot is a tuple of references. Whole frames live in slabs, tensors that
are made once and used again: a slot is free when no piece refers to it any more, whoever held it (a store, a snapshot,
a view), and neighbours in a slab are read together without a copy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from arvid.types import Memory

Layout = tuple[tuple[tuple[int, ...], torch.dtype, torch.device], ...]


@dataclass(frozen=True, eq=False)
class Piece:
    """What is kept of some frames: per layer the unrotated keys and values [B, L, H, D].

    `frames` are those it stands for, or the first and the last of many. `start` and `length` say where it stands.
    `where` holds per layer the (time after `start`, row, column) of every token [L, 3], None for one whole frame.
    `heads` holds per layer the heads that the pair has, None for all. `log_mass` is added to the logits of tokens that
    stand for several. `notes` is what the policy wrote down about the frame when it was committed; `about` names what
    the frames show. All tensors lie on the device of the keys.
    """

    frames: tuple[int, ...]
    pairs: Memory
    start: float
    length: float = 1.0
    where: tuple[Tensor, ...] | None = None
    heads: tuple[Tensor, ...] | None = None
    log_mass: float = 0.0
    notes: tuple[Tensor, ...] = ()
    about: tuple[str, ...] = ()
    slot: Slot | None = None

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(keys, values) layer by layer."""
        return iter(self.pairs)

    @property
    def plain(self) -> bool:
        """One whole frame, as it was committed."""
        return self.where is None and self.heads is None

    @property
    def bytes(self) -> int:
        """Bytes of its keys and values."""
        return sum(tensor.numel() * tensor.element_size() for pair in self.pairs for tensor in pair)


Pieces = tuple[Piece, ...]
"""The past in order of time; pieces stand for different frames."""


class Held(tuple[Any, ...]):
    """A piece in a snapshot, as plain data: the pairs of its layers, and a dict of its other fields unless it is one
    plain frame. It keeps the room of the piece; the plain data alone are enough to have it again."""

    piece: Piece

    @classmethod
    def of(cls, piece: Piece) -> Held:
        """The plain data of a piece."""
        rest = {
            field.name: getattr(piece, field.name) for field in fields(piece) if field.name not in ("pairs", "slot")
        }
        plain = rest == {**PLAIN, "frames": piece.frames, "start": piece.frames[0]}
        held = cls((*piece.pairs, *(() if plain else (rest,))))
        held.piece = piece
        return held


PLAIN = {
    "length": 1.0, "where": None, "heads": None, "log_mass": 0.0, "notes": (), "about": (),
}  # fmt: skip


def taken(first: int, held: tuple[Any, ...]) -> Piece:
    """The piece of a `Held`, or of its plain data."""
    if isinstance(held, Held):
        return held.piece
    rest = held[-1] if isinstance(held[-1], dict) else {"frames": (first,), "start": first}
    return Piece(pairs=tuple(pair for pair in held if not isinstance(pair, dict)), **rest)


class Slot:
    """One frame's place in a slab, given back when nobody holds it."""

    def __init__(self, slab: Slab, index: int) -> None:
        self.slab, self.index = slab, index

    def __del__(self) -> None:
        self.slab.free.append(self.index)


class Slab:
    """Room for `room` whole frames: per layer keys and values [B, room, L, H, D]."""

    def __init__(self, like: Memory, room: int) -> None:
        self.layout, self.free, self.room = layout(like), list(range(room)), room
        self._last = -1
        # Not inference tensors: a store may be filled inside inference mode and go on outside.
        with torch.inference_mode(False):
            self._tensors = tuple(
                tuple(x.new_empty(x.shape[0], room, *x.shape[1:], requires_grad=False) for x in pair) for pair in like
            )

    @property
    def bytes(self) -> int:
        """Bytes reserved."""
        return sum(x.numel() * x.element_size() for pair in self._tensors for x in pair)

    def put(self, pairs: Memory) -> tuple[Memory, Slot]:
        """Copy one frame in, behind the frame before it where that place is free."""
        index = min(self.free, key=lambda slot: (slot - self._last - 1) % self.room)
        self.free.remove(index)
        self._last = index
        for pair, kept in zip(pairs, self._tensors, strict=True):
            for x, slab in zip(pair, kept, strict=True):
                slab[:, index].copy_(x)
        return tuple((k[:, index], v[:, index]) for k, v in self._tensors), Slot(self, index)

    def run(self, layer: int, which: int, first: int, last: int) -> Tensor:
        """Keys (0) or values (1) of neighbouring slots [B, L, H, D]: a view, not a copy."""
        return self._tensors[layer][which][:, first : last + 1].flatten(1, 2)


def layout(pairs: Memory) -> Layout:
    """Shapes, types and devices of one frame."""
    return tuple((tuple(x.shape), x.dtype, x.device) for pair in pairs for x in pair)


def joined(pieces: Sequence[Piece], layer: int, which: int) -> Tensor:
    """Keys (0) or values (1) [B, L, H, D] of pieces in their order; neighbours of one slab are taken together."""
    runs: list[list[Piece]] = []
    for piece in pieces:
        if runs and _neighbours(runs[-1][-1].slot, piece.slot):
            runs[-1].append(piece)
        else:
            runs.append([piece])
    parts = [_run(run[0], run[-1], layer, which) for run in runs]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _neighbours(left: Slot | None, right: Slot | None) -> bool:
    return left is not None and right is not None and (left.slab, left.index + 1) == (right.slab, right.index)


def _run(first: Piece, last: Piece, layer: int, which: int) -> Tensor:
    if first.slot is None or last.slot is None:
        return first.pairs[layer][which]
    return first.slot.slab.run(layer, which, first.slot.index, last.slot.index)
