"""Packed history: a sink and recent frames as they are, what lies between as few tokens, and of those the best.

Knows: groups of neighbouring tokens, queries of a block. Does not know: models, latents, angles. After PackForcing
(2603.25730), whose compressor works on latents and is not published: here keys and values themselves are merged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from arvid.caches.merging import Weights, cells, check_weights, merged, need_grid
from arvid.caches.pieces import Piece, Pieces
from arvid.caches.policy import ByContent, Look, Moment
from arvid.caches.route import best, mean_keys
from arvid.caches.view import per_token, whole_frame
from arvid.types import Asking


@dataclass(frozen=True)
class Pack(ByContent):
    """At most `frames` latent frames' worth of tokens on view: the first `sink` frames, the last `recent` ones, and for
    the rest packs of `time` frames in which `time` x `side` x `side` tokens are one. `capacity` packs are kept, first
    in first out; each layer reads those with the highest mean q . k, once per block. A pack stands for as many frames
    as it holds, and the logarithm of the tokens merged, times `mass`, is added to its logits (exact for equal tokens,
    TempCache, 2602.01801). `weights` is a trained `Merge`. With `positions=rephase`.
    """

    frames: int = 9
    sink: int = 3
    recent: int = 3
    side: int = 2
    time: int = 3
    capacity: int = 0
    mass: float = 1.0
    weights: Weights = ""

    def __post_init__(self) -> None:
        if self.sink < 0 or self.recent < 1 or self.sink + self.recent >= self.frames:
            raise ValueError(
                f"{self.frames} frames with sink {self.sink} and {self.recent} recent leave no room for packs; needs "
                "sink + recent < frames"
            )
        if min(self.side, self.time) < 1 or 0 < self.capacity < self.packs:
            raise ValueError(
                f"{self.capacity} packs of {self.time} x {self.side} x {self.side}, {self.packs} of them on view; "
                "needs time >= 1, side >= 1 and capacity >= those on view (0: twice as many)"
            )

    @property
    def packs(self) -> int:
        """Packs on view: a pack has one frame's tokens divided by side * side."""
        return (self.frames - self.sink - self.recent) * self.side**2

    @property
    def room(self) -> int:
        """Whole frames: sink, recent, and those that wait for their pack to be full."""
        return self.sink + self.recent + self.time - 1

    def check_files(self, layers: int, heads: int, channels: int) -> None:
        """The merging weights."""
        check_weights(self.weights, layers, self.time * self.side**2, channels)

    def keep(self, past: Pieces, moment: Moment) -> Pieces:
        """Frames that leave the recent ones are packed as soon as there are enough of them."""
        sink = [piece for piece in past if piece.frames[-1] < self.sink]
        packs = [piece for piece in past if not piece.plain]
        whole = [piece for piece in past if piece.plain and piece.frames[0] >= self.sink]
        while len(whole) - self.time >= self.recent:
            packs.append(self._packed(whole[: self.time], moment.grid))
            del whole[: self.time]
        return (*sink, *packs[-(self.capacity or 2 * self.packs) :], *whole)

    def _packed(self, pieces: list[Piece], grid: tuple[int, int]) -> Piece:
        device = pieces[0].pairs[0][0].device
        index_GN = cells(need_grid(grid, "pack"), self.side, self.time, device)
        pairs = []
        for layer in range(len(pieces[0].pairs)):
            k, v = (torch.cat([piece.pairs[layer][which] for piece in pieces], 1)[:, index_GN] for which in (0, 1))
            pairs.append(merged(self.weights, (k, v), layer))
        whole_L3 = whole_frame(grid, device).repeat(self.time, 1)
        whole_L3[:, 0] = per_token(tuple(range(self.time)), (grid[0] * grid[1],) * self.time, device)
        where = whole_L3[index_GN].mean(1)
        return Piece(
            tuple(frame for piece in pieces for frame in piece.frames), tuple(pairs), pieces[0].start, float(self.time),
            (where,) * len(pairs), log_mass=self.mass * math.log(index_GN.shape[1]), notes=mean_keys(tuple(pairs)),
        )  # fmt: skip

    def look(self, layer: int, past: Pieces, moment: Moment, ask: Asking) -> Sequence[Look]:
        """Sink, the packs that answer best, recent; in order of time."""
        packs = [piece for piece in past if not piece.plain]
        found = {piece.frames for piece in best(packs, layer, ask.queries_BLHD, self.packs)}
        return [(piece, None) for piece in past if piece.plain or piece.frames in found]
