"""Two kinds of heads: static ones look at the sink and at what was last, dynamic ones also at what has changed.

Knows: which heads are static (an offline profile), likeness of neighbouring frames. Does not know: models, angles, how
a profile is made (`arvid.caches.profile`). After Forcing-KV (2605.09681).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from arvid.caches.merging import need_grid
from arvid.caches.pieces import Piece, Pieces
from arvid.caches.policy import ByContent, Moment
from arvid.caches.profile import read_profile
from arvid.caches.view import whole_frame

JUDGE = 1
"""The layer whose keys say what has changed; all layers follow it. Layer 0 keeps an ordinary window for all heads."""


@dataclass(frozen=True)
class Headwise(ByContent):
    """Layer 0: the first `sink` and the last frames, `frames` together. The others: every head reads the sink and the
    last `recent` frames; dynamic heads also one frame's worth of segments of the frames right before, those whose keys
    are least like the keys of the following frame. A frame has at most `segments` segments of equal size. `profile` is
    the path of a head profile; without one all heads are dynamic. Published: sink=1, recent=1, segments=6."""

    frames: int = 9
    sink: int = 1
    recent: int = 1
    segments: int = 6
    profile: str = ""

    def __post_init__(self) -> None:
        if self.sink < 0 or self.recent < 1 or self.sink + self.recent > self.frames or self.segments < 1:
            raise ValueError(
                f"{self.frames} frames with sink {self.sink}, {self.recent} recent and {self.segments} segments; needs "
                "sink >= 0, recent >= 1, sink + recent <= frames and segments >= 1"
            )

    @property
    def room(self) -> int:
        """Frames that no head has lost."""
        return self.sink + self.recent

    @property
    def reach(self) -> int | None:
        """What layer 0 reads, without a sink."""
        return None if self.sink else self.frames

    def check_files(self, layers: int, heads: int, channels: int) -> None:
        """The profile."""
        read_profile(self.profile, layers, heads)

    def keep(self, past: Pieces, moment: Moment) -> Pieces:
        """Frames are thinned when they leave the recent ones."""
        sink = [piece for piece in past if piece.frames[-1] < self.sink]
        queue = past[len(sink) :]
        queue = queue[max(0, len(queue) - (self.frames - len(sink))) :]
        older, recent = queue[: -self.recent], queue[-self.recent :]
        fresh = [piece for piece in older if piece.plain]
        stale = [self._thinned(piece, None, moment.grid) for piece in older if not piece.plain]
        chosen = self._changed([*fresh, recent[0]], moment.grid) if fresh else []
        thinned = [self._thinned(piece, index, moment.grid) for piece, index in zip(fresh, chosen, strict=True)]
        return (*sink, *stale, *thinned, *recent)

    def _changed(self, chain: list[Piece], grid: tuple[int, int]) -> list[Tensor]:
        """Of each frame of a chain but the last, the tokens to keep: one frame's worth of segments in all, those least
        like the same place in the following frame; of equals the first."""
        tokens = grid[0] * grid[1]
        size = next(tokens // n for n in range(min(self.segments, tokens), 0, -1) if tokens % n == 0)
        layer = min(JUDGE, len(chain[0].pairs) - 1)
        keys_NLE = torch.stack([piece.pairs[layer][0][0].flatten(1).float() for piece in chain])
        alike_NL = torch.nn.functional.cosine_similarity(keys_NLE[:-1], keys_NLE[1:], dim=2)
        alike_NS = alike_NL.unflatten(1, (-1, size)).mean(2)
        least = alike_NS.flatten().sort(stable=True).indices[: tokens // size]
        kept_NS = torch.zeros_like(alike_NS, dtype=torch.bool).flatten().index_fill(0, least, True).view(alike_NS.shape)
        return [kept_S.repeat_interleave(size).nonzero()[:, 0] for kept_S in kept_NS]

    def _thinned(self, piece: Piece, index: Tensor | None, grid: tuple[int, int]) -> Piece:
        """A frame that layer 0 has in full and the other layers as the tokens `index` for dynamic heads, None:
        nothing."""
        total, device = piece.pairs[0][0].shape[2], piece.pairs[0][0].device
        static = read_profile(self.profile, len(piece.pairs), total)
        tokens, every = torch.arange(0, device=device) if index is None else index, frozenset(range(total))
        whole = whole_frame(need_grid(grid, "headwise"), device)
        pairs, where, heads = [piece.pairs[0]], [whole], [others(frozenset(), total, device)]
        for layer in range(1, len(piece.pairs)):
            heads.append(others(static[layer] if len(tokens) else every, total, device))
            k, v = (x[:, tokens][:, :, heads[-1]] for x in piece.pairs[layer])
            pairs.append((k, v))
            where.append(whole[tokens])
        return replace(piece, pairs=tuple(pairs), where=tuple(where), heads=tuple(heads), slot=None)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def others(heads: frozenset[int], total: int, device: torch.device) -> Tensor:
    """Of `total` heads those that are not among `heads` [H], in order; not to be changed."""
    return torch.tensor([head for head in range(total) if head not in heads], dtype=torch.long, device=device)
