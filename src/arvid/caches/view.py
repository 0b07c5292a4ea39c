"""What one block reads of the past, layer by layer.

Knows: how the pieces a policy chose become rotated keys, values and what is added to their logits. Does not know: how a
policy chooses, how positions are assigned, what the keys mean. A view holds its pieces, so later commits leave it
alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import cast

import torch
from torch import Tensor

from arvid.caches.pieces import Piece, Pieces, joined
from arvid.caches.policy import Look, Moment, Policy, Told
from arvid.types import Asking, Places, Positions, Rotate, Seen

KEPT = 16
"""Sets of numbers per token kept: a block needs those of its masses, places and pieces, for each of two models."""
Rules = tuple[tuple[int, frozenset[int]], ...]
"""First frame of each block of a span, and the frames before the block that it may read."""


class StoreView:
    """A view of some pieces of the past (see `arvid.types.View`)."""

    def __init__(
        self, past: Pieces, rules: Rules, policy: Policy, positions: Positions, moment: Moment, told: Told,
        gap: float = 0.0,
    ) -> None:  # fmt: skip
        self._past, self._rules, self._policy, self._positions = past, rules, policy, positions
        self._moment, self._told, self._gap = moment, told, gap
        self._own = tuple(range(told.span.start, told.span.stop))
        self._read: dict[int, Seen | None] = {}

    @property
    def frames(self) -> tuple[int, ...]:
        """Indices of the frames on view, in any form."""
        return tuple(frame for piece in self._past for frame in piece.frames)

    def places(self, frames: tuple[int, ...]) -> Places:
        """Positions of the pieces on view and of the frames of a pass (see `arvid.types.Placed`)."""
        self._own = frames
        return self._placed(self._past)

    def _placed(self, pieces: Sequence[Piece]) -> Places:
        places = self._positions.place(tuple((piece.start, piece.length) for piece in pieces), self._own)
        return replace(places, own=tuple(p + self._gap for p in places.own)) if self._gap else places

    def read(self, layer: int, rotate: Rotate) -> Seen | None:
        """Rotated keys and values [B, L, H, D] of a layer; chosen, gathered and rotated at the first pass of a block
        only."""
        looks: Sequence[Look] = [(piece, None) for piece in self._past]
        if not self._policy.whole:
            self._told.hear(layer, cast(Asking, rotate))
        if layer not in self._read:
            if not self._policy.whole:
                looks = self._policy.look(layer, self._past, self._moment, cast(Asking, rotate))
            looks = [look for look in looks if look[0].pairs[layer][0].shape[2]]
            self._read[layer] = self._seen(layer, looks, rotate) if looks else None
        return self._read[layer]

    def _seen(self, layer: int, looks: Sequence[Look], rotate: Rotate) -> Seen:
        pieces = [piece for piece, _ in looks]
        places = self._placed(pieces)
        keys, values = (joined(_widened(pieces, layer, which, rotate), layer, which) for which in (0, 1))
        if torch.is_grad_enabled():
            # A slab is written again while a graph may still need these values.
            values = values.clone()
        whole = all(piece.where is None for piece in pieces)
        if whole and not self._biased(looks, places):
            return Seen(rotate(keys, places.past), values)
        counts = tuple(piece.pairs[layer][0].shape[1] for piece in pieces)
        where_L3 = _where(pieces, layer, places, counts, cast(Asking, rotate).grid, keys.device)
        turned = rotate(keys, places.past) if whole else cast(Asking, rotate).at(keys, where_L3)
        return Seen(turned, values, self._bias(looks, layer, places, counts, where_L3, keys.shape[2]))

    @staticmethod
    def _biased(looks: Sequence[Look], places: Places) -> bool:
        return bool(places.decay) or any(
            piece.log_mass or piece.heads is not None or heads is not None for piece, heads in looks
        )

    def _bias(
        self, looks: Sequence[Look], layer: int, places: Places, counts: tuple[int, ...], where_L3: Tensor, heads: int
    ) -> Tensor | None:
        """What is added to the logits [heads or 1, frames or 1, L]: the mass of merged tokens, minus infinity for heads
        that do not look, and the decay with distance."""
        if not self._biased(looks, places):
            return None
        device = where_L3.device
        bias_HL = per_token(tuple(piece.log_mass for piece, _ in looks), counts, device).float()[None]
        if any(piece.heads is not None or heads_H is not None for piece, heads_H in looks):
            looking_NH = torch.ones(len(looks), heads, dtype=torch.bool, device=device)
            for number, (piece, heads_H) in enumerate(looks):
                if piece.heads is not None:
                    looking_NH[number] = torch.zeros_like(looking_NH[number]).index_fill(0, piece.heads[layer], True)
                if heads_H is not None:
                    looking_NH[number] &= heads_H
            owner_L = per_token(tuple(range(len(looks))), counts, device).long()
            bias_HL = bias_HL.expand(heads, -1).masked_fill(~looking_NH[owner_L].T, -torch.inf)
        bias = bias_HL[:, None]
        if places.decay:
            own = per_token(places.own, (1,) * len(places.own), device)
            bias = bias - (places.decay * (own[:, None] - where_L3[:, 0]).abs()).float()
        return bias

    def mask(self, frames: tuple[int, ...]) -> Tensor | None:
        """None for a single block (it sees all that is on view and itself); else which frame sees which."""
        if len(self._rules) == 1:
            return None
        past = self.frames if self._policy.whole else ()
        starts = [start for start, _ in self._rules]
        rows = []
        for frame in frames:
            block = max(i for i, start in enumerate(starts) if start <= frame)
            end = starts[block + 1] if block + 1 < len(starts) else frames[-1] + 1
            seen = self._rules[block][1]
            rows.append([key in seen for key in past] + [key in seen or starts[block] <= key < end for key in frames])
        return torch.tensor(rows)


def _widened(pieces: list[Piece], layer: int, which: int, rotate: Rotate) -> list[Piece]:
    """Pieces of some heads with zeros for the others, which do not look at them."""
    if all(piece.heads is None for piece in pieces):
        return pieces
    total = cast(Asking, rotate).queries_BLHD.shape[2]
    found = []
    for piece in pieces:
        x_BLHD = piece.pairs[layer][which]
        if piece.heads is None or x_BLHD.shape[2] == total:
            found.append(piece)
            continue
        wide = x_BLHD.new_zeros(*x_BLHD.shape[:2], total, x_BLHD.shape[3])
        wide = wide.index_copy(2, piece.heads[layer], x_BLHD)
        pairs = tuple((wide, wide) if i == layer else pair for i, pair in enumerate(piece.pairs))
        found.append(replace(piece, pairs=pairs, slot=None))
    return found


def _where(
    pieces: Sequence[Piece], layer: int, places: Places, counts: tuple[int, ...], grid: tuple[int, int],
    device: torch.device,
) -> Tensor:  # fmt: skip
    """(time, row, column) of every token of pieces that stand at `places` [L, 3], float64."""
    where_L3 = torch.cat([whole_frame(grid, device) if piece.where is None else piece.where[layer] for piece in pieces])
    at_L = per_token(places.past, counts, device)
    return torch.cat([where_L3[:, :1] + at_L[:, None], where_L3[:, 1:]], 1)


@lru_cache(maxsize=KEPT)
@torch.inference_mode(False)
def per_token(values: tuple[float, ...], counts: tuple[int, ...], device: torch.device) -> Tensor:
    """Each value as often as its piece has tokens [L], float64; not to be changed. Kept, since moving it to a GPU waits
    for the GPU, and most layers of a block ask for the same."""
    of_all_L = torch.tensor(values, dtype=torch.float64).repeat_interleave(torch.tensor(counts))
    return of_all_L.to(device)


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def whole_frame(grid: tuple[int, int], device: torch.device) -> Tensor:
    """(0, row, column) of every token of a frame [L, 3], float64; not to be changed."""
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], -1).flatten(0, 1).double().to(device)
