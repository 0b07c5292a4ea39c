"""Learning to mark: how the marking judge (rewards/marking.py) learns from blocks that somebody has marked.

Knows: the objective, which rows a step draws. Does not know: who made the marks, what the numbers mean, how blocks were
made.

The whole mark is what is asked for; the attributes it is made of are marked beside it, so that the network learns why.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from arvid.rewards.marking import FAINT, Evidence, MarkingJudge

ATTRIBUTES = 2.0
"""Weight of the cross-entropy of the attributes' marks beside that of the whole."""
NOISE = 0.05
"""Deviation of the noise on every number, of its own."""


@dataclass(frozen=True)
class MarkedBlocks:
    """Evidence of N blocks, their marks [N] and those of their attributes [N, A], all in [0, 1]."""

    shown: Evidence
    mark_N: Tensor
    attributes_NA: Tensor

    def __len__(self) -> int:
        return len(self.mark_N)

    def __getitem__(self, rows: Tensor) -> MarkedBlocks:
        """Some of the blocks."""
        things, scene, asked = self.shown
        return MarkedBlocks(
            Evidence(things[rows], scene[rows], asked[rows]), self.mark_N[rows], self.attributes_NA[rows]
        )


class Marking:
    """The objective of a marking judge: cross-entropies against marks."""

    def __init__(self, model: MarkingJudge) -> None:
        self.model = model

    def __call__(self, batch: MarkedBlocks, generator: torch.Generator) -> dict[str, Tensor]:
        """`loss`, and its part `mark` in nats that is of the whole."""
        shown = batch.shown
        rough = [
            x + NOISE * self.model.get_buffer(f"{name}_spread") * torch.randn(x.shape, generator=generator)
            for name, x in (("things", shown.things_NKF), ("scene", shown.scene_NS))
        ]
        logits, attributes = self.model(Evidence(rough[0], rough[1], shown.asked))
        mark = F.binary_cross_entropy_with_logits(logits, batch.mark_N)
        beside = F.binary_cross_entropy(attributes.clamp(FAINT, 1 - FAINT), batch.attributes_NA)
        return {"loss": mark + ATTRIBUTES * beside, "mark": mark.detach()}
