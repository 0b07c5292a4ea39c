"""Frames called back by content: of an archive, those whose mean key answers the block's query best.

Knows: mean keys of frames, the query of a block. Does not know: models, angles. After the memory routing of CausalCine
(2605.12496). The archive is bounded here: when it is full, the frame that is most like another one goes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from arvid.caches.pieces import Piece, Pieces
from arvid.caches.policy import ByContent, Look, Moment, Told
from arvid.types import Asking, Memory


def mean_keys(frame: Memory) -> tuple[Tensor, ...]:
    """The mean unrotated key of a frame per layer [B, H, D]."""
    return tuple(keys.mean(1) for keys, _ in frame)


@dataclass(frozen=True)
class Route(ByContent):
    """At most `frames` latent frames on view: the `recent` last ones, and of up to `archive` older ones those with the
    highest sum over heads of q . d, where q is the block's mean query and d the frame's mean key. Every layer chooses
    for itself, once per block. Published: frames=14, recent=9, with `positions=relative`."""

    frames: int = 9
    recent: int = 6
    archive: int = 24

    def __post_init__(self) -> None:
        if not 1 <= self.recent < self.frames or self.archive < self.frames - self.recent:
            raise ValueError(
                f"{self.frames} frames, {self.recent} of them recent, from an archive of {self.archive}; needs "
                "1 <= recent < frames and archive >= frames - recent"
            )

    @property
    def room(self) -> int:
        """Archive and recent frames."""
        return self.archive + self.recent

    def note(self, frame: Memory, told: Told, place: int) -> tuple[Tensor, ...]:
        """The frame's mean keys."""
        return mean_keys(frame)

    def keep(self, past: Pieces, moment: Moment) -> Pieces:
        """Recent frames, and the archive without those most like another."""
        older = [piece for piece in past if piece.frames[0] < moment.start - self.recent]
        recent = past[len(older) :]
        if len(older) > self.archive:
            older = distinct(older, self.archive)
        return (*older, *recent)

    def look(self, layer: int, past: Pieces, moment: Moment, ask: Asking) -> Sequence[Look]:
        """The recent frames and those of the archive that answer best, in order of time."""
        older = [piece for piece in past if piece.frames[0] < moment.start - self.recent]
        recent = past[len(older) :]
        found = best(older, layer, ask.queries_BLHD, self.frames - self.recent)
        return [(piece, None) for piece in (*found, *recent)]


def best(pieces: Sequence[Piece], layer: int, queries_BLHD: Tensor, count: int) -> list[Piece]:
    """The `count` pieces with the highest score, in their order."""
    if len(pieces) <= count:
        return list(pieces)
    keys_NBHD = torch.stack([piece.notes[layer] for piece in pieces]).float()
    score_N = (keys_NBHD * queries_BLHD.float().mean(1)).flatten(1).sum(1)
    return [pieces[i] for i in score_N.topk(count).indices.sort().values.tolist()]


def distinct(pieces: Sequence[Piece], count: int) -> list[Piece]:
    """`count` pieces: of the two most alike (by the cosine of their mean keys over all layers), the later one goes,
    until few enough are left."""
    keys_NE = torch.stack([torch.cat([note.flatten() for note in piece.notes]).float() for piece in pieces])
    alike_NN = torch.nn.functional.normalize(keys_NE, dim=1) @ torch.nn.functional.normalize(keys_NE, dim=1).T
    alike_NN = alike_NN.cpu().tril(-1) + torch.full_like(alike_NN.cpu(), -2).triu()
    left = list(range(len(pieces)))
    while len(left) > count:
        part_NN = alike_NN[left][:, left]
        left.pop(int(part_NN.max(1).values.argmax()))
    return [pieces[i] for i in left]
