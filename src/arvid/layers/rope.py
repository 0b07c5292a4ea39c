"""Rotary positions on three axes (frame, row, column), as Wan has them.

Knows: how angles follow from positions, how pairs of channels turn. Does not know: what is cached or when.
The channels of a head are pairs (0,1), (2,3), ...; the first pairs turn with the frame, then rows, then columns
(RoFormer, 2104.09864; axis split of Wan 2.1: 22/21/21 pairs at head size 128).
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

THETA = 10000.0
CPU = torch.device("cpu")
KEPT = 16
"""Sets of positions kept: a block needs its own and its past's, per head size; more would pile up in a long rollout."""


def axis_pairs(head_size: int) -> tuple[int, int, int]:
    """Channel pairs that turn with frame, row and column."""
    side = head_size // 6
    return head_size // 2 - 2 * side, side, side


@lru_cache(maxsize=KEPT)
@torch.inference_mode(False)
def angles(frames: tuple[int, ...], rows: int, columns: int, head_size: int, device: torch.device = CPU) -> Tensor:
    """Unit complex numbers [L, head_size / 2] of the tokens of `frames`, row by row; L = len(frames)*rows*columns.
    Computed in float64 once per set of positions and kept as complex64; made outside inference mode, because a training
    step may meet what an evaluation made."""
    parts = []
    for axis, (pairs, positions) in enumerate(
        zip(axis_pairs(head_size), (frames, tuple(range(rows)), tuple(range(columns))), strict=True)
    ):
        rate = THETA ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
        angle = torch.tensor(positions, dtype=torch.float64)[:, None] * rate
        shape = [1, 1, 1, pairs]
        shape[axis] = len(positions)
        parts.append(angle.view(shape).expand(len(frames), rows, columns, pairs))
    whole = torch.cat(parts, -1).flatten(0, 2)
    return torch.polar(torch.ones_like(whole), whole).to(torch.complex64).to(device)


def rotate(x_BLHD: Tensor, angles_LE: Tensor) -> Tensor:
    """Turn every channel pair of queries or keys by its angle; computed in fp32, returned in the input's dtype. One
    complex product: on a CPU three times faster, forward and backward, than its real parts."""
    pairs = torch.view_as_complex(x_BLHD.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * angles_LE[:, None]).flatten(-2).to(x_BLHD.dtype)
