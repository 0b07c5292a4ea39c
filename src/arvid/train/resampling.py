"""Pasts resampled by the model itself: blocks learn to go on from what the model made, towards what is true.

Knows: which blocks of the past are own estimates, what keeps first blocks as they were. Does not know: networks, data,
samplers. Source: Resampling Forcing (2512.15702), which degrades the frames on view by the model's own errors while the
target stays true; here the estimates come out of the training pass itself, so they cost nothing.

A block that follows a true past has one continuation in a world where things move as they began. A model that learns
from true pasts alone meets its own small errors for the first time when it is used, and they grow from block to block.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from arvid.caches.store import Policy
from arvid.train.flow import Drawn, FlowBatch, FlowModel, TeacherForcing, halved, lend


class ResampledForcing(TeacherForcing):
    """Every batch is walked twice: behind its true past, and behind a past whose blocks are, with chance `share`, what
    the first walk estimated them to be (from levels of at least `least`; others told it too little of the model). First
    blocks follow nothing: of other clips they learn the flow that `keeper` has for them, with weight `first_weight`."""

    def __init__(
        self, model: FlowModel, keeper: FlowModel, frames: int, block: int, *policies: Policy, share: float = 0.7,
        least: float = 0.5, first_weight: float = 5.0,
    ) -> None:  # fmt: skip
        """Raises ValueError for a share or a level outside of [0, 1]."""
        if not (0 <= share <= 1 and 0 <= least <= 1):
            raise ValueError(f"share={share} and least={least}; both must lie in [0, 1]")
        super().__init__(model, frames, block, *policies, first_weight=first_weight)
        self.keeper, self.share, self.least = keeper, share, least

    def __call__(self, batch: FlowBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """Mean squared error of the flow of all blocks behind a past, `own` of it behind own estimates; `first` is the
        mean squared distance to the keeper's flow. Raises ValueError for a batch without first blocks."""
        if batch.first is None:
            raise ValueError("a batch without first blocks of other clips; give some, or first blocks are forgotten")
        self.draw_view(generator)
        weights = halved(self.model.named_parameters())
        behind_truth_BT, estimate_BTCHW, level_BT = self.walk(batch, *self._past(batch, generator), weights, generator)
        past = self._resampled(batch, estimate_BTCHW, level_BT, generator)
        behind_own_BT, _, _ = self.walk(batch, *past, weights, generator)
        true, own = self._followed(batch, behind_truth_BT), self._followed(batch, behind_own_BT)
        z_NTCHW, text_NSD = batch.first
        drawn = Drawn.of(z_NTCHW, self.shift, generator)
        made = lend(self.model, weights, lambda: drawn.flow(self.model, text_NSD))
        with torch.no_grad():
            kept = drawn.flow(self.keeper, text_NSD)
        first = (made - kept).square().mean()
        loss = (true + own) / 2 + self.first_weight * first
        return {"loss": loss, "all": true.detach(), "own": own.detach(), "first": first.detach()}

    def _followed(self, batch: FlowBatch, error_BT: Tensor) -> Tensor:
        """The mean error of what is learned and has a block before it."""
        begins_B = torch.full((len(error_BT),), self.block, device=error_BT.device)
        if batch.begins_B is not None:
            begins_B = begins_B.maximum(batch.begins_B)
        return replace(batch, begins_B=begins_B).learned(error_BT)

    def _resampled(
        self, batch: FlowBatch, estimate_BTCHW: Tensor, level_BT: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """The true past with some blocks replaced, and the level 0 that the model is told."""
        drawn = torch.rand(len(level_BT), self.blocks, generator=generator) < self.share
        own_BT = self._spread(drawn.float()).to(level_BT.device) * (level_BT >= self.least)
        return batch.latents_BTCHW.lerp(estimate_BTCHW, own_BT[:, :, None, None, None]), torch.zeros_like(level_BT)
