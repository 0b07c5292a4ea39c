"""Muon for convolutions: every filter bank is stepped as the matrix [outputs, inputs x height x width].

Knows: how a filter bank lies in memory. Does not know: the update itself, which is torch's (Muon, Jordan 2024; scaled
to AdamW's update size after 2502.16982). Needs torch 2.9.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Muon(torch.optim.Muon):
    """torch's Muon over weights of two axes and over filter banks of four, contiguous or channels-last."""

    def __init__(self, weights: list[nn.Parameter], learning_rate: float, weight_decay: float) -> None:
        self._pairs = [(weight, nn.Parameter(_matrix(weight.detach(), weight))) for weight in weights]
        super().__init__(
            [matrix for _, matrix in self._pairs], learning_rate, weight_decay, adjust_lr_fn="match_rms_adamw"
        )

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One update; weights and matrices share their memory."""
        for weight, matrix in self._pairs:
            matrix.grad = None if weight.grad is None else _matrix(weight.grad, weight)
        return super().step(closure)  # type: ignore[no-untyped-call]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of the weights as well."""
        super().zero_grad(set_to_none)
        for weight, _ in self._pairs:
            weight.grad = None


def _matrix(x: Tensor, weight: Tensor) -> Tensor:
    """[O, ...] as [O, rest] in the order in which the weight lies in memory: of the weight itself, no copy."""
    # A weight that is not contiguous is channels-last.
    return (x if weight.is_contiguous() else x.permute(0, 2, 3, 1)).reshape(x.shape[0], -1)
