"""Gaussian data in closed form: every number of a clip is drawn from N(mean, deviation^2), and so is known everything
that a flow model could learn of it.

Knows: x_sigma = (1 - sigma) x0 + sigma eps, the law of normal variables. Does not know: anything of arvid.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn


def expected(x: Tensor, sigma: Tensor, mean: Tensor | float, deviation: Tensor | float) -> Tensor:
    """E[x0 | x_sigma = x]."""
    variance = (1 - sigma) ** 2 * deviation**2 + sigma**2
    return mean + (1 - sigma) * deviation**2 / variance * (x - (1 - sigma) * mean)


def flow(x: Tensor, sigma: Tensor, mean: Tensor | float, deviation: Tensor | float) -> Tensor:
    """E[eps - x0 | x_sigma = x]."""
    variance = (1 - sigma) ** 2 * deviation**2 + sigma**2
    noise = sigma / variance * (x - (1 - sigma) * mean)
    return noise - expected(x, sigma, mean, deviation)


def end(x: Tensor, sigma: Tensor, mean: float, deviation: float) -> Tensor:
    """Where the flow takes x from sigma to 0, in infinitely many steps."""
    spread = ((1 - sigma) ** 2 * deviation**2 + sigma**2) ** 0.5
    return mean + deviation * (x - (1 - sigma) * mean) / spread


def euler_gain(sigmas: tuple[float, ...], deviation: float) -> float:
    """Euler steps along `sigmas` to 0 take mean (1 - sigma) + y to mean + gain y."""
    gain = 1.0
    for sigma, following in pairwise(sigmas):
        variance = (1 - sigma) ** 2 * deviation**2 + sigma**2
        gain *= 1 + (following - sigma) * (sigma - (1 - sigma) * deviation**2) / variance
    return gain


class Score(nn.Module):
    """The flow of N(mean, deviation^2) as a score; its two numbers can be learned."""

    def __init__(self, mean: float, deviation: float) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(mean))
        self.log_deviation = nn.Parameter(torch.tensor(deviation).log())

    def forward(self, clean_BTCHW: Tensor, x_BTCHW: Tensor, sigma_BT: Tensor, text_BSD: Tensor) -> Tensor:
        return flow(x_BTCHW, sigma_BT[:, :, None, None, None], self.mean, self.log_deviation.exp())
