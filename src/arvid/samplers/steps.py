"""Single steps of a walk: pure functions of (state, estimate, levels, noise).

Knows: x_sigma = (1 - sigma) x0 + sigma eps and v = eps - x0. Does not know: models, blocks, the number of steps.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Step = Callable[[Tensor, Tensor, float, float, Callable[[], Tensor]], Tensor]
"""(x at sigma, flow, sigma, next sigma, fresh noise on demand) -> x at the next sigma."""


def clean(x: Tensor, flow: Tensor, sigma: float) -> Tensor:
    """x0 = x - sigma v."""
    return x - sigma * flow


def add_noise(x0: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """x_sigma = (1 - sigma) x0 + sigma eps."""
    return (1 - sigma) * x0 + sigma * noise


def euler(x: Tensor, flow: Tensor, sigma: float, following: float, noise: Callable[[], Tensor]) -> Tensor:
    """One Euler step of dx/dsigma = v; asks for no noise."""
    return x + (following - sigma) * flow


def renoise(x: Tensor, flow: Tensor, sigma: float, following: float, noise: Callable[[], Tensor]) -> Tensor:
    """Consistency step: the clean estimate, noised afresh to the next level (none at level 0)."""
    x0 = clean(x, flow, sigma)
    return add_noise(x0, noise(), following) if following > 0 else x0


STEPS: dict[str, Step] = {"euler": euler, "renoise": renoise}
"""Steps by the name a model card or a spec string uses."""
