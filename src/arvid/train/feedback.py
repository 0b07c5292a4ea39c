"""Reward feedback: a few-step model learns from what its own finished blocks show, beside the flow it came from.

Knows: which blocks of a rollout are looked at, that they are looked at as they decode, how far outliers may pull.
Does not know: how a rollout is made (train/self_forcing.py), what is asked of a block (rewards/reading.py), networks.
Sources: ReFL (2304.05977), which teaches a generator by a differentiable reward at a late step; DRaFT-K (2309.17400),
whose gradient runs through the last K passes of a whole walk; the rollouts are those of Self-Forcing (2506.08009).

A generator finds latents that read well and decode badly, so blocks are judged twice, as they are and as they come back
from the autoencoder. The flow's own loss, on true clips, keeps the model where true videos are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from arvid.rewards.reading import Asked, Asking, distance
from arvid.train.self_forcing import SelfForcing

OUTLIER = 1.5
"""No block's gradient is longer than so many times the median's."""
ANCHOR = 2.0
"""Weight of the flow's loss beside the mean distance."""

B = TypeVar("B")


@dataclass(frozen=True)
class FeedbackBatch(Generic[B]):
    """Texts [N, S, D] to be shown, what they ask for, and the batch of the anchor."""

    text_NSD: Tensor
    asked: Asked
    anchor: B


class Feedback(Generic[B]):
    """The distance of own blocks from what was asked, and the anchor's loss. `again` takes latents [N, T, C, H, W]
    through the autoencoder and back; the rollout gives windows of whole blocks of `block` frames."""

    def __init__(
        self, rollout: SelfForcing, again: Callable[[Tensor], Tensor], asking: Asking, block: int,
        anchor: Callable[[B, torch.Generator], dict[str, Tensor]], weight: float = ANCHOR,
    ) -> None:  # fmt: skip
        self.rollout, self.again, self.asking, self.block = rollout, again, asking, block
        self.anchor, self.weight = anchor, weight

    def __call__(self, batch: FeedbackBatch[B], generator: torch.Generator) -> dict[str, Tensor]:
        """`loss`, `distance` of the blocks and its terms, and the anchor's loss as `anchor`."""
        window = self.rollout(batch.text_NSD, generator)
        blocks = window.unflatten(1, (-1, self.block))
        chosen = torch.arange(len(window)).repeat_interleave(blocks.shape[1])
        terms = self.terms(blocks.flatten(0, 1), batch.asked[chosen])
        far = distance(terms).mean()
        anchor = self.anchor(batch.anchor, generator)["loss"]
        shown = {name: term.detach().mean() for name, term in terms.items()}
        return {"loss": far + self.weight * anchor, "distance": far.detach(), "anchor": anchor.detach(), **shown}

    def terms(self, z_NTCHW: Tensor, asked: Asked) -> dict[str, Tensor]:
        """The terms [N] of the distance: motion mostly as the latents say it, the rest half from either reading."""
        if z_NTCHW.requires_grad:
            z_NTCHW.register_hook(shortened)
        plain, again = self.asking(z_NTCHW, asked), self.asking(self.again(z_NTCHW), asked)
        return {name: plain[name].lerp(again[name], 0.25 if name == "motion" else 0.5) for name in plain}


def shortened(gradient_NTCHW: Tensor) -> Tensor:
    """The gradient with that of every block cut to OUTLIER times the median length."""
    length = gradient_NTCHW.flatten(1).norm(dim=1)
    share = (OUTLIER * length.median() / length.clamp(min=1e-12)).clamp(max=1)
    return gradient_NTCHW * share[:, None, None, None, None]
