"""Deep sink with participative compression: of the middle of the past, the tokens that recent queries ask for.

Knows: queries and keys of tokens. Does not know: models, angles. After Deep Forcing (2512.05081). Scores are taken from
unrotated queries and keys, so that a token is not preferred for its distance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from arvid.caches.merging import need_grid
from arvid.caches.pieces import Piece, Pieces, joined
from arvid.caches.policy import ByContent, Look, Moment, Told
from arvid.caches.view import whole_frame
from arvid.types import Asking, Memory


@dataclass(frozen=True)
class Deep(ByContent):
    """At most `frames` latent frames' worth of tokens: the first `sink` frames, the last `recent` ones, and of what
    lies between, layer by layer, the tokens j with the highest sum over queries r of q_r . k_j, where the queries are
    those of the recent frames and of the block that reads. They stand in order of time as whole frames right before the
    recent ones. Published: frames=16, sink=10, recent=4, with `positions=rephase`.
    """

    frames: int = 9
    sink: int = 4
    recent: int = 3

    def __post_init__(self) -> None:
        if self.sink < 0 or self.recent < 1 or self.sink + self.recent >= self.frames:
            raise ValueError(
                f"{self.frames} frames with sink {self.sink} and {self.recent} recent leave nothing to choose; needs "
                "sink + recent < frames"
            )

    def note(self, frame: Memory, told: Told, place: int) -> tuple[Tensor, ...]:
        """The frame's own queries per layer [B, H, D]."""
        return tuple(told.queries[layer][:, place] for layer in range(len(frame)) if layer in told.queries)

    def keep(self, past: Pieces, moment: Moment) -> Pieces:
        """What was too long before the newest block came is chosen from for good; its queries are clean now."""
        newest = tuple(piece for piece in past if piece.frames[0] >= moment.newest)
        older = past[: len(past) - len(newest)]
        if _length(older) <= self.frames:
            return past
        layers = len(past[0].pairs)
        made = [self._chosen(layer, older, newest, None, moment.grid) for layer in range(layers)]
        where = tuple(top.where[0] for _, top, _ in made if top.where is not None)
        sink, top, recent = made[0]
        pairs = tuple(top.pairs[0] for _, top, _ in made)
        whole = Piece(top.frames, pairs, top.start, top.length, where)
        return (*sink, whole, *recent, *newest)

    def look(self, layer: int, past: Pieces, moment: Moment, ask: Asking) -> Sequence[Look]:
        """All, or what is chosen when it has become too long."""
        if _length(past) <= self.frames:
            return [(piece, None) for piece in past]
        sink, top, recent = self._chosen(layer, past, (), ask.queries_BLHD.sum(1), ask.grid)
        at_layer = Piece(top.frames, top.pairs * (layer + 1), top.start, top.length, (top.where or ()) * (layer + 1))
        return [(piece, None) for piece in (*sink, at_layer, *recent)]

    def _chosen(
        self, layer: int, past: Pieces, newest: Pieces, asked_BHD: Tensor | None, grid: tuple[int, int]
    ) -> tuple[Pieces, Piece, Pieces]:
        """(sink, what was chosen with the pair and places of this layer alone, recent)."""
        grid = need_grid(grid, "deep")
        sink = tuple(piece for piece in past if piece.frames[-1] < self.sink)
        recent = past[len(past) - self.recent :]
        middle = past[len(sink) : len(past) - self.recent]
        keys, values = (joined(middle, layer, which) for which in (0, 1))
        query_BHD = torch.zeros_like(keys[:, 0]) if asked_BHD is None else asked_BHD
        for piece in (*recent, *newest):
            query_BHD = query_BHD + piece.notes[layer] if piece.notes else query_BHD
        score_L = torch.einsum("bhd,blhd->l", query_BHD.float(), keys.float())
        count, each = self.frames - len(sink) - self.recent, grid[0] * grid[1]
        best = score_L.topk(min(count * each, len(score_L))).indices.sort().values
        whole = whole_frame(grid, best.device)
        where = torch.cat([whole if piece.where is None else piece.where[layer] for piece in middle])[best]
        where[:, 0] = torch.arange(len(best), device=best.device) // each
        frames = (middle[0].frames[0], middle[-1].frames[-1])
        pair = (keys[:, best], values[:, best])
        top = Piece(frames, (pair,), recent[0].start - count, float(count), (where,))
        return sink, top, recent


def _length(pieces: Pieces) -> float:
    return sum(piece.length for piece in pieces)
