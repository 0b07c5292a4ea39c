"""Causal flow matching by diffusion forcing: all blocks are noisy in one pass, each at a level of its own.

Knows: the law of the levels, the loss. Does not know: architectures, prompts' words, which frames a pass may read
(the mask of an empty store says so). Source: Diffusion Forcing (2407.01392), its independent levels per block and
not per frame; AR-Diffusion (2503.07418) trains the profiles that rise along the frames only.

A block reads the keys of noisy blocks, so in a rollout a past may be committed at any level, and a clean past is
the rare corner of what was trained: `shift` 1 meets it more often than 5.
"""

from __future__ import annotations

import torch
from torch import Tensor

from arvid.caches.store import Policy
from arvid.train.flow import FlowBatch, FlowModel, first_blocks, halved, lend, noise_like, noised, shifted, spread
from arvid.train.scores import JointScore


class DiffusionForcing:
    """Flow matching with an independent noise level per block and a loss on every frame. First blocks of other clips,
    where a batch has them, are added with weight `first_weight`, as in `train.flow.TeacherForcing`."""

    def __init__(
        self, model: FlowModel, frames: int, block: int, policy: Policy, shift: float = 5.0, first_weight: float = 1.0
    ) -> None:
        self.model, self.frames, self.block = model, frames, block
        self.shift, self.first_weight = shift, first_weight
        self.score = JointScore(model, frames, block, policy)

    def __call__(self, batch: FlowBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """Mean squared error of the flow over all blocks, and of the first block alone."""
        z_BTCHW = batch.latents_BTCHW
        tau = torch.rand(z_BTCHW.shape[0], -(-self.frames // self.block), generator=generator)
        sigma_BT = spread(shifted(tau, self.shift), self.block, self.frames).to(z_BTCHW.device)
        noise = noise_like(z_BTCHW, generator)
        flow_BTCHW = self.score(z_BTCHW, noised(z_BTCHW, noise, sigma_BT), sigma_BT, batch.text_BSD)
        error_BT = (flow_BTCHW - (noise - z_BTCHW)).square().mean((2, 3, 4))
        loss, first = error_BT.mean(), error_BT[:, : self.block].mean()
        if batch.first is not None:
            z_NTCHW, text_NSD = batch.first
            weights = halved(self.model.named_parameters())
            first = lend(
                self.model, weights, lambda: first_blocks(self.model, z_NTCHW, text_NSD, self.shift, generator)
            )
            loss = loss + self.first_weight * first
        return {"loss": loss, "all": error_BT.mean().detach(), "first": first.detach()}
