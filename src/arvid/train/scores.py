"""What a distillation asks of a causal model: the flow of noisy frames, given the clean ones they stand for.

Knows: which of the clean frames a noisy block may read, guidance. Does not know: losses, noise levels' laws, rollouts.

Two factors of one density: `CausalScore` is that of every block given the clean blocks before it, whose divergences
add up to that of the whole by the chain rule; `JointScore` is that of all frames together, as bidirectional teachers
have it (block = all frames) or a model trained by diffusion forcing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from arvid.caches.store import Policy, Store
from arvid.train.flow import FlowModel, Passes, halved, joint, lend
from arvid.types import Span

Score = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(clean z_BTCHW, noisy x_BTCHW, sigma_BT, text_BSD) -> flow [B, T, C, H, W] of the noisy frames."""


class CausalScore(nn.Module):
    """The flow of every noisy block given the clean blocks before it (a `Score`), in half precision."""

    def __init__(self, model: FlowModel, frames: int, block: int, policy: Policy) -> None:
        super().__init__()
        self.model = model
        self.passes = Passes(model, frames, block, policy)

    def forward(self, clean_BTCHW: Tensor, x_BTCHW: Tensor, sigma_BT: Tensor, text_BSD: Tensor) -> Tensor:
        """Flow [B, T, C, H, W] with the model's own weights."""
        weights = halved(self.model.named_parameters())
        return self.under(weights, clean_BTCHW, x_BTCHW, sigma_BT, text_BSD)

    def under(
        self, weights: dict[str, Tensor], clean_BTCHW: Tensor, x_BTCHW: Tensor, sigma_BT: Tensor, text_BSD: Tensor
    ) -> Tensor:
        """Flow [B, T, C, H, W] with the weights given."""
        told = torch.zeros_like(sigma_BT)
        return lend(self.model, weights, lambda: self.passes(clean_BTCHW, told, x_BTCHW, sigma_BT, text_BSD))


class JointScore(nn.Module):
    """The flow of all noisy frames in one pass (a `Score`), in half precision; blocks see noisy blocks before them,
    and all see all where `block` is `frames`."""

    def __init__(self, model: FlowModel, frames: int, block: int, policy: Policy) -> None:
        super().__init__()
        self.model = model
        self.view = Store(policy, block).view(Span(0, frames))

    def forward(self, clean_BTCHW: Tensor, x_BTCHW: Tensor, sigma_BT: Tensor, text_BSD: Tensor) -> Tensor:
        """Flow [B, T, C, H, W]; the clean frames are not looked at."""
        weights = halved(self.model.named_parameters())
        return lend(self.model, weights, lambda: joint(self.model, x_BTCHW, sigma_BT, text_BSD, self.view))


@dataclass(frozen=True, eq=False)
class Guided:
    """A score with classifier-free guidance (2207.12598): v_c + weight (v_c - v_u), where v_u is told an empty (zero)
    text. Weight 0 is no guidance; what the field calls scale s is weight s - 1. The model must have been trained with
    empty texts among its own, or v_u means nothing."""

    score: Score
    weight: float

    def __call__(self, clean_BTCHW: Tensor, x_BTCHW: Tensor, sigma_BT: Tensor, text_BSD: Tensor) -> Tensor:
        """Flow [B, T, C, H, W]."""
        told = self.score(clean_BTCHW, x_BTCHW, sigma_BT, text_BSD)
        untold = self.score(clean_BTCHW, x_BTCHW, sigma_BT, torch.zeros_like(text_BSD))
        return told + self.weight * (told - untold)
