"""Where walks begin: initial noise of blocks and drafts noised again, as wide as the temperature says.

Knows: the shape of latents, how numbers are asked for by block and step, what narrower noise is for. Does not know:
models, routers, levels beyond the one it is given.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from arvid.samplers.noise import INITIAL, REFINE
from arvid.samplers.steps import add_noise
from arvid.types import Move, Noise

Shape = tuple[int, int, int, int]


@dataclass(frozen=True)
class Starts:
    """`shape` is (batch, channels, height, width) of latents. Behind a past, and where a draft is noised again, noise
    has `temperature` times the spread of training's: a past says most of how a video goes on, and what noise adds to it
    is mostly error. What opens a scene has all of it."""

    shape: Shape
    temperature: float = 1.0

    def initial(self, move: Move, noise: Noise, opens: bool, step: int = INITIAL) -> Tensor:
        """Where a block begins [B, T, C, H, W], on the CPU; `opens` says that it sees nothing before it."""
        batch, *rest = self.shape
        return noise.draw(move.index, step, (batch, len(move.span), *rest)) * (1.0 if opens else self.temperature)

    def again(self, move: Move, draft_BTCHW: Tensor, level: float, noise: Noise) -> Tensor:
        """A draft at a level in [0, 1], where it lives."""
        eps = noise.draw(move.index, REFINE, tuple(draft_BTCHW.shape)).to(draft_BTCHW.device)
        return add_noise(draft_BTCHW, self.temperature * eps, level)
