"""A drafter learns what it is used for: whole walks of one pass, behind blocks that it drafted itself.

Knows: which blocks of the past are own drafts, how often a block begins and ends in one pass. Does not know: targets,
routers, networks, data. After Scheduled Sampling (1506.03099): a model that reads its own output must have seen some.

Where blocks are drafted ahead (`rollout.speculate`), a drafter reads its drafts until the target has mended them; one
pass of it, made of the truth's past alone, is what such a draft is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from arvid.caches.store import Policy
from arvid.train.flow import FlowBatch, FlowModel, halved, lend, noise_like
from arvid.train.guidance import GuidedForcing


class DraftForcing(GuidedForcing):
    """Guided teacher forcing in which the share `drafted` of all past blocks is what one pass makes of them, and the
    share `single` of the clips is learned at level 1 alone, the only one of a draft of one pass."""

    def __init__(
        self, model: FlowModel, frames: int, block: int, *policies: Policy, scale: float = 2.0, drafted: float = 0.4,
        single: float = 0.4,
    ) -> None:  # fmt: skip
        """Raises ValueError for shares outside of [0, 1]."""
        if not (0 <= drafted <= 1 and 0 <= single <= 1):
            raise ValueError(f"shares drafted={drafted} and single={single}; both must lie in [0, 1]")
        super().__init__(model, frames, block, *policies, scale=scale)
        self.drafted, self.single = drafted, single

    def drafts(self, batch: FlowBatch, generator: torch.Generator) -> Tensor:
        """What one pass makes of every block of a batch behind its true past [B, T, C, H, W], without a gradient."""
        z_BTCHW = batch.latents_BTCHW
        noise, full = noise_like(z_BTCHW, generator), torch.ones(z_BTCHW.shape[:2], device=z_BTCHW.device)
        with torch.no_grad():
            weights = halved(self.model.named_parameters())
            made = lend(self.model, weights, lambda: self.passes(z_BTCHW, 0 * full, noise, full, batch.text_BSD))
        return noise - made.to(noise.dtype)

    def _past(self, batch: FlowBatch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        past_BTCHW, told_BT = super()._past(batch, generator)
        share = self._spread((torch.rand(len(told_BT), self.blocks, generator=generator) < self.drafted).float())
        own_BT = share.to(told_BT.device) * (told_BT == 0)
        own = own_BT[:, :, None, None, None]
        return past_BTCHW.lerp(self.drafts(batch, generator), own), told_BT

    def _levels(self, size: int, generator: torch.Generator) -> Tensor:
        sigma_BT = super()._levels(size, generator)
        return torch.where(torch.rand(size, 1, generator=generator) < self.single, 1.0, sigma_BT)
