"""Two levels of history: near frames token by token, far frames in coarse patches.

Knows: groups of neighbouring tokens. Does not know: models, latents, angles. After FAR (2503.19325), which has a patch
embedding of its own for coarse frames: here keys and values of a frame are merged, by the average or by trained
weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from arvid.caches.merging import Weights, cells, check_weights, merged, need_grid
from arvid.caches.pieces import Piece, Pieces
from arvid.caches.policy import ByContent, Moment
from arvid.caches.view import whole_frame


@dataclass(frozen=True)
class Coarse(ByContent):
    """At most `frames` latent frames' worth of tokens: the last `fine` frames as they are, and for the rest of the
    budget the frames before them in patches of `side` x `side` tokens, (frames - fine) * side^2 of them. A coarse token
    stands at the first row and column of its patch, as FAR has it, and its logits get `mass` times the logarithm of its
    tokens. Published: side=4, fine=16."""

    frames: int = 9
    fine: int = 6
    side: int = 2
    mass: float = 1.0
    weights: Weights = ""

    def __post_init__(self) -> None:
        if not 1 <= self.fine < self.frames or self.side < 1:
            raise ValueError(
                f"{self.frames} frames, {self.fine} of them fine, patches of side {self.side}; needs "
                "1 <= fine < frames and side >= 1"
            )

    @property
    def room(self) -> int:
        """The fine frames."""
        return self.fine

    @property
    def reach(self) -> int | None:
        """Fine and coarse frames."""
        return self.fine + self.patched

    @property
    def patched(self) -> int:
        """Coarse frames: each has one frame's tokens divided by side * side."""
        return (self.frames - self.fine) * self.side**2

    def check_files(self, layers: int, heads: int, channels: int) -> None:
        """The merging weights."""
        check_weights(self.weights, layers, self.side**2, channels)

    def keep(self, past: Pieces, moment: Moment) -> Pieces:
        """Frames that leave the fine ones are merged; the oldest coarse ones go."""
        far = [piece for piece in past if not piece.plain]
        near = [piece for piece in past if piece.plain]
        far += [self._merged(piece, moment.grid) for piece in near[: -self.fine]]
        return (*far[-self.patched :], *near[-self.fine :])

    def _merged(self, piece: Piece, grid: tuple[int, int]) -> Piece:
        device = piece.pairs[0][0].device
        index_GN = cells(need_grid(grid, "coarse"), self.side, device=device)
        pairs = tuple(
            merged(self.weights, (k[:, index_GN], v[:, index_GN]), layer) for layer, (k, v) in enumerate(piece)
        )
        where = (whole_frame(grid, device)[index_GN[:, 0]],) * len(pairs)
        return Piece(piece.frames, pairs, piece.start, where=where, log_mass=self.mass * math.log(index_GN.shape[1]))
