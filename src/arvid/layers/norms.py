"""Normalisation layers of the transformer.

Knows: statistics over the last axis. Does not know: modulation, heads, which layer it stands in.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis; the statistics are taken in fp32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Same shape and dtype as `x`."""
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)


def plain_norm(x: Tensor, eps: float) -> Tensor:
    """Layer norm over the last axis without weights."""
    return F.layer_norm(x, x.shape[-1:], eps=eps)
