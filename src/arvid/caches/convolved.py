"""A past of a few slots, in which the oldest are convolved into one again and again: it fades and never ends.

Knows: which slots are merged, in which order of tokens. Does not know: models, angles, noise levels. After the ConvKV
memory of SoulX-LiveAct (2603.11746), whose caches per denoising step are `arvid.caches.per_step`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from arvid.caches.merging import Weights, check_weights, merged
from arvid.caches.pieces import Piece, Pieces
from arvid.caches.policy import ByContent, Moment


def flat(slots_NBLHD: Tensor) -> Tensor:
    """Groups of neighbours [B, L, N, H, D] of all tokens in one row: frame after frame squeezed into one, as
    published."""
    return slots_NBLHD.transpose(0, 1).flatten(1, 2).unflatten(1, (-1, slots_NBLHD.shape[0]))


def place(slots_NBLHD: Tensor) -> Tensor:
    """Groups [B, L, N, H, D] of the tokens of one place in all slots."""
    return slots_NBLHD.permute(1, 2, 0, 3, 4)


MIXES: dict[str, Callable[[Tensor], Tensor]] = {"flat": flat, "place": place}


@dataclass(frozen=True)
class Convolved(ByContent):
    """At most `frames` slots of a frame's size: the first `sink` frames for good, the others a queue. When it is too
    long, groups of `ratio` slots, the oldest first, become one each; what was merged is merged again later. `mix` is
    the order of tokens in a group: flat or place. Published: frames=6, sink=2, ratio=5, blocks of 8, with
    `positions=rephase`."""

    frames: int = 9
    sink: int = 3
    ratio: int = 4
    mix: str = "flat"
    weights: Weights = ""

    def __post_init__(self) -> None:
        slots = self.frames - self.sink
        if self.sink < 0 or not 2 <= self.ratio <= slots + 1:
            raise ValueError(
                f"groups of {self.ratio} in {self.frames} slots, {self.sink} of them sink; needs sink >= 0 and "
                "2 <= ratio <= frames - sink + 1"
            )
        if self.mix not in MIXES:
            raise ValueError(f"unknown mix {self.mix!r}; known: {', '.join(MIXES)}")

    @property
    def room(self) -> int:
        """The slots."""
        return self.frames

    def check_files(self, layers: int, heads: int, channels: int) -> None:
        """The merging weights."""
        check_weights(self.weights, layers, self.ratio, channels)

    def keep(self, past: Pieces, moment: Moment) -> Pieces:
        """Merged until the queue fits."""
        sink = [piece for piece in past if piece.frames[-1] < self.sink]
        queue, place = list(past[len(sink) :]), 0
        while len(sink) + len(queue) > self.frames:
            place = place if len(queue) - place >= self.ratio else 0
            queue[place : place + self.ratio] = [self._merged(queue[place : place + self.ratio])]
            place += 1
        return (*sink, *queue)

    def _merged(self, pieces: list[Piece]) -> Piece:
        pairs = []
        for layer in range(len(pieces[0].pairs)):
            slots = (torch.stack([piece.pairs[layer][which] for piece in pieces]) for which in (0, 1))
            k, v = (MIXES[self.mix](slot) for slot in slots)
            pairs.append(merged(self.weights, (k, v), layer))
        frames = (pieces[0].frames[0], pieces[-1].frames[-1])
        # A plain piece: it has the size of a frame, stands like one, and lies among them.
        return replace(pieces[-1], frames=frames, pairs=tuple(pairs), slot=None)


@dataclass(frozen=True)
class Neighbour(Convolved):
    """The same with neighbour forcing: one past per noise level, so that a block reads its neighbour at the very step
    it is at, and needs no clean pass (`commit=last`)."""

    per_level = True
