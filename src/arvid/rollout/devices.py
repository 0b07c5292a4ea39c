"""Where a part of a rollout computes, and how what it remembers is brought there.

Knows: that a part computes where its first weights are, that a border keeps the part behind it as `inner`, which
containers a state is made of. Does not know: roles, placements (models/placement.py), what a state means.

A state is read from disk to where latents and conditions live, and most of it belongs there. The rest belongs to parts
that may stand elsewhere: a session that goes on from a file has pasts and decoder bring their own, once
(`Session.brought`). A state that never left memory is where it belongs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn


@runtime_checkable
class Border(Protocol):
    """Something around a part that does as the part does."""

    @property
    def inner(self) -> Any:
        """The part."""
        ...


def device_of(part: object) -> torch.device | None:
    """Where a part computes; None for one without weights, which computes where it is told to."""
    while isinstance(part, Border):
        part = part.inner
    weight = next(part.parameters(), None) if isinstance(part, nn.Module) else None
    return None if weight is None else weight.device


def brought(value: Any, device: torch.device | None) -> Any:
    """A value with all its tensors on `device` (None: wherever they are), those in its tuples and dicts too. What is
    there already stays the very object it is."""
    if isinstance(value, Tensor):
        return value if device is None else value.to(device)
    if isinstance(value, dict):
        made: Any = {key: brought(part, device) for key, part in value.items()}
        return made if any(made[key] is not part for key, part in value.items()) else value
    if isinstance(value, tuple):
        parts = tuple(brought(part, device) for part in value)
        return parts if any(one is not other for one, other in zip(parts, value, strict=True)) else value
    return value


def settled(parts: Iterable[object]) -> Callable[[], float]:
    """Seconds that never fall, for a clock over what `parts` do. A CUDA device is only told what to do and works later,
    so they are read when it has done what it was told; work beside the stream at hand is not waited for."""
    devices = {device for device in map(device_of, parts) if device is not None and device.type == "cuda"}
    if not devices:
        return time.perf_counter

    def now() -> float:
        for device in devices:
            torch.cuda.current_stream(device).synchronize()
        return time.perf_counter()

    return now
