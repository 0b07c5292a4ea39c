"""The only source of random numbers in generation.

Knows: a seed and how a number is asked for by name. Does not know: devices, schedules, who asks.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

INITIAL = 0
"""Step 0 of a block is its initial noise; step n is the re-noise before the n-th pass; REFINE and on for repairs."""
REFINE = 100


class SeededNoise:
    """Standard normal tensors, a pure function of (seed, block, step): drawn on the CPU, so that every device and
    every routing policy sees the same noise (see `arvid.types.Noise`)."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def draw(self, block: int, step: int, shape: tuple[int, ...]) -> Tensor:
        """fp32 of `shape`."""
        digest = hashlib.blake2b(f"{self._seed}/{block}/{step}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
        return torch.randn(shape, generator=generator)
