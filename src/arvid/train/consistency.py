"""Causal consistency distillation: few passes of a student end where many passes of its causal teacher end.

Knows: the loss between two neighbouring levels, the slow copy of the student that sets its targets. Does not know:
architectures, guidance (a wrapped score), how the student is used. Source: consistency models (2303.01469, section 4)
for each block given the true past, as in Causal Forcing (2602.02214) and Causal Forcing++ (2605.15141): the teacher's
flow starts from noised data, so no trajectory of it has to be stored.

The student's clean estimate at a level shall be what its slow copy estimates one teacher step below. In this form the
end is exact by itself: at level 0 the estimate is the input. What is learned is the teacher's Euler walk along the
given levels, made in one pass; more levels are a finer teacher and a longer chain to learn.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from arvid.caches.store import Policy
from arvid.samplers.plans import validate
from arvid.train.flow import FlowBatch, FlowModel, halved, noise_like, noised, spread
from arvid.train.scores import CausalScore, Score
from arvid.types import Move, Span


class Consistency:
    """Mean squared difference of clean estimates at neighbouring levels of `sigmas`, a level per block.

    `teacher` is a frozen score, under guidance if it is wrapped so; the slow copy keeps the share `keep` of itself at
    every call, one per training step. Raises ValueError for levels that do not fall to 0.
    """

    def __init__(
        self, model: FlowModel, teacher: Score, frames: int, block: int, policy: Policy, sigmas: tuple[float, ...],
        keep: float = 0.99,
    ) -> None:  # fmt: skip
        validate((Move(0, Span(0, frames), sigmas),))
        self.model, self.teacher, self.frames, self.block, self.keep = model, teacher, frames, block, keep
        self.steps_S2 = torch.tensor(list(pairwise(sigmas)))
        self.score = CausalScore(model, frames, block, policy)
        self.slow = {name: p.detach().clone() for name, p in model.named_parameters()}

    def __call__(self, batch: FlowBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """The loss over all blocks, and of the first block alone (as it starts from nothing)."""
        self._follow()
        z_BTCHW, text = batch.latents_BTCHW, batch.text_BSD
        drawn = torch.randint(
            len(self.steps_S2), (z_BTCHW.shape[0], -(-self.frames // self.block)), generator=generator
        )
        sigma_BT, next_BT = (
            spread(level_BN, self.block, self.frames).to(z_BTCHW.device) for level_BN in self.steps_S2[drawn].unbind(-1)
        )
        x_BTCHW = noised(z_BTCHW, noise_like(z_BTCHW, generator), sigma_BT)
        with torch.no_grad():
            step = _frames(next_BT - sigma_BT)
            lower = x_BTCHW + step * self.teacher(z_BTCHW, x_BTCHW, sigma_BT, text)
            slow = self.score.under(halved(self.slow.items()), z_BTCHW, lower, next_BT, text)
            end = lower - _frames(next_BT) * slow
        found = x_BTCHW - _frames(sigma_BT) * self.score(z_BTCHW, x_BTCHW, sigma_BT, text)
        error_BT = (found - end).square().mean((2, 3, 4))
        return {"loss": error_BT.mean(), "first": error_BT[:, : self.block].mean().detach()}

    @torch.no_grad()
    def _follow(self) -> None:
        for name, p in self.model.named_parameters():
            self.slow[name].lerp_(p, 1 - self.keep)

    def state(self) -> dict[str, Any]:
        """The slow copy (see `train.trainer.Stateful`)."""
        return dict(self.slow)

    def restore(self, state: dict[str, Any]) -> None:
        """Take up a slow copy again."""
        for name, value in self.slow.items():
            value.copy_(state[name])


def _frames(level_BT: Tensor) -> Tensor:
    return level_BT[:, :, None, None, None]
