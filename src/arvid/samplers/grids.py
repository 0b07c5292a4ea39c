"""Noise levels of a walk from noise to clean.

Knows: the shift of flow matching and the published few-step lists. Does not know: models or blocks.
"""

from __future__ import annotations

SHIFT = 5.0


def shifted(tau: float, shift: float = SHIFT) -> float:
    """sigma = s tau / (1 + (s - 1) tau) (SD3, 2403.03206; Wan uses s = 5)."""
    return shift * tau / (shift * tau + (1 - tau))  # this order gives exactly 1 at tau = 1 for every shift


def few_step(steps: int, shift: float = SHIFT) -> tuple[float, ...]:
    """Levels of `steps` passes from 1 to 0: equal parts of tau, shifted. Four steps give the published
    1, 0.9375, 0.8333, 0.625, 0 (Self-Forcing, 2506.08009).

    Raises ValueError for fewer than one step.
    """
    if steps < 1:
        raise ValueError(f"{steps} steps asked for; at least 1 is needed")
    return tuple(shifted(1 - i / steps, shift) for i in range(steps + 1))
