"""The only source of random numbers in generation.

Knows: a seed and how a number is asked for by name. Does not know: devices, schedules, who asks.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from arvid.types import Noise

INITIAL = 0
"""Step 0 of a block is its initial noise; step n is the re-noise before the n-th pass; REFINE and on for repairs."""
REFINE = 100
CANDIDATE = 1_000_000
"""From here on, initial noise of the other candidates for a block."""
TURN = 10_000_000
"""Steps of the n-th block of a move that is several blocks count from n times this."""


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


class InTurn:
    """The noise of block `number` of a move that is several blocks, each made in its turn (see `arvid.types.Noise`)."""

    def __init__(self, inner: Noise, number: int) -> None:
        self._inner, self._first = inner, number * TURN

    def draw(self, block: int, step: int, shape: tuple[int, ...]) -> Tensor:
        """fp32 of `shape`; of the first block what the move itself would get."""
        return self._inner.draw(block, self._first + step, shape)


class Antiphase:
    """Noise whose neighbouring frames lean against each other, for more motion in long videos (FLEX, 2602.14027; its
    formula is not published, this is an autoregressive row): inside a block, e'_t = rho e'_(t-1) + sqrt(1 - rho^2) e_t.
    Every number is standard normal, neighbouring frames have correlation `rho`, and blocks are independent of each
    other. Only initial noise is such; `inner` is asked for the rest (see `arvid.types.Noise`)."""

    def __init__(self, inner: Noise, rho: float) -> None:
        if not -1 < rho < 1:
            raise ValueError(f"neighbouring frames of correlation {rho:g}; needs -1 < rho < 1")
        self._inner, self._rho = inner, rho

    def draw(self, block: int, step: int, shape: tuple[int, ...]) -> Tensor:
        """fp32 of `shape` [B, T, C, H, W]."""
        noise = self._inner.draw(block, step, shape)
        if INITIAL < step % TURN < CANDIDATE:
            return noise
        frames = list(noise.unbind(1))
        for place in range(1, len(frames)):
            frames[place] = self._rho * frames[place - 1] + math.sqrt(1 - self._rho**2) * frames[place]
        return torch.stack(frames, 1)


@dataclass(frozen=True)
class White:
    """Independent numbers."""

    def __call__(self, seed: int) -> Noise:
        """Noise of a seed."""
        return SeededNoise(seed)


@dataclass(frozen=True)
class AntiphaseNoise:
    """Neighbouring frames of a block with correlation `rho` (see `Antiphase`)."""

    rho: float = -0.5

    def __post_init__(self) -> None:
        Antiphase(SeededNoise(0), self.rho)

    def __call__(self, seed: int) -> Noise:
        """Noise of a seed."""
        return Antiphase(SeededNoise(seed), self.rho)


NOISES: dict[str, Callable[..., Callable[[int], Noise]]] = {"antiphase": AntiphaseNoise, "white": White}
"""Name of a kind of noise in a spec string (`antiphase:rho=-0.5`) and what builds it: a seed in, noise out."""
