"""Rotary positions on three axes (frame, row, column), as Wan has them.

Knows: how angles follow from positions, how pairs of channels turn. Does not know: what is cached or when, nor where in
time a frame stands (`arvid.caches.positions` says that).
The channels of a head are pairs (0,1), (2,3), ...; the first pairs turn with the frame, then rows, then columns
(RoFormer, 2104.09864; axis split of Wan 2.1: 22/21/21 pairs at head size 128). Slower turning in time by frequency is
after FLEX (2602.14027), whose formula is not published: the ramp here is that of NTK-by-parts and YaRN (2309.00071).
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from arvid.types import Stretch

THETA = 10000.0
CPU = torch.device("cpu")
KEPT = 16
"""Sets of positions kept: a block needs its own and its past's, per head size; more would pile up in a long rollout."""


def axis_pairs(head_size: int) -> tuple[int, int, int]:
    """Channel pairs that turn with frame, row and column."""
    side = head_size // 6
    return head_size // 2 - 2 * side, side, side


def turning_rates(pairs: int, stretch: Stretch | None = None) -> Tensor:
    """Radians per position of each channel pair [pairs], float64, falling from 1. With a stretch, a pair that turns
    `t` times in the trained frames keeps the share g = clip((t - low) / (high - low), 0, 1) of its rate and has the
    rest divided by the scale."""
    rate = THETA ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
    if stretch is None:
        return rate
    turns = stretch.trained * rate / (2 * math.pi)
    kept = ((turns - stretch.low) / (stretch.high - stretch.low)).clamp(0, 1)
    return kept * rate + (1 - kept) * rate / stretch.scale


@lru_cache(maxsize=KEPT)
@torch.inference_mode(False)
def axis_rates(head_size: int, device: torch.device = CPU, stretch: Stretch | None = None) -> tuple[Tensor, ...]:
    """Turning rates [pairs] of frame, row and column; a stretch holds on the axis of time alone."""
    stretches = (stretch, None, None)
    return tuple(turning_rates(*axis).to(device) for axis in zip(axis_pairs(head_size), stretches, strict=True))


@lru_cache(maxsize=KEPT)
@torch.inference_mode(False)
def angles(
    frames: tuple[float, ...],
    rows: int,
    columns: int,
    head_size: int,
    device: torch.device = CPU,
    stretch: Stretch | None = None,
) -> Tensor:
    """Unit complex numbers [L, head_size / 2] of the tokens of `frames`, row by row; L = len(frames)*rows*columns.
    Computed in float64 once per set of positions, frame by frame, row by row and column by column, and kept as
    complex64: they become those of all tokens on the device, which costs far less than to compute and to move them
    there. Made outside inference mode, because a training step may meet what an evaluation made."""
    parts = []
    positions, rates = (frames, range(rows), range(columns)), axis_rates(head_size, CPU, stretch)
    for axis, (places, rate) in enumerate(zip(positions, rates, strict=True)):
        shape = [1, 1, 1, len(rate)]
        shape[axis] = len(places)
        units = _units(torch.tensor(places, dtype=torch.float64)[:, None] * rate).to(device)
        parts.append(units.view(shape).expand(len(frames), rows, columns, -1))
    return torch.cat(parts, -1).flatten(0, 2)


def angles_at(places_L3: Tensor, head_size: int, stretch: Stretch | None = None) -> Tensor:
    """Unit complex numbers [L, head_size / 2] of single tokens at their (time, row, column), whole or not."""
    rates = axis_rates(head_size, places_L3.device, stretch)
    return _units(torch.cat([places_L3[:, axis, None].double() * rate for axis, rate in enumerate(rates)], -1))


def _units(angles: Tensor) -> Tensor:
    """Unit complex numbers of angles in float64, as complex64."""
    return torch.polar(torch.ones_like(angles), angles).to(torch.complex64)


def rotate(x_BLHD: Tensor, angles_LE: Tensor) -> Tensor:
    """Turn every channel pair of queries or keys by its angle; computed in fp32, returned in the input's dtype. One
    complex product: on a CPU three times faster, forward and backward, than its real parts."""
    pairs = torch.view_as_complex(x_BLHD.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * angles_LE[:, None]).flatten(-2).to(x_BLHD.dtype)
