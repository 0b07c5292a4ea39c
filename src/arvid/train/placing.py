"""Where this process trains: the device that was asked for, and how batches get there.

Knows: one device for the process, nested values with tensors in them. Does not know: models, recipes, workers (which
GPU is whose is theirs to say, `train.workers`).

Recipes make networks and everything they hold on `here()`; the trainer moves each batch to where the model is. Numbers
are drawn on the CPU, so that every device sees the same.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import TypeVar, cast

import torch
from torch import Tensor

V = TypeVar("V")
_device = torch.device("cpu")


def settle(device: torch.device) -> None:
    """Train here from now on."""
    global _device
    _device = device


def here() -> torch.device:
    """Where this process trains; the CPU unless it has settled elsewhere."""
    return _device


def moved(value: V, device: torch.device) -> V:
    """A batch on a device: tensors, and dataclasses, tuples, lists and dicts of what can be moved; anything else as it
    is."""
    found: object = value
    if isinstance(value, Tensor):
        found = value.to(device, non_blocking=True)
    elif is_dataclass(value) and not isinstance(value, type):
        found = type(value)(**{field.name: moved(getattr(value, field.name), device) for field in fields(value)})
    elif isinstance(value, tuple):
        parts = [moved(part, device) for part in value]
        found = type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    elif isinstance(value, list):
        found = [moved(part, device) for part in value]
    elif isinstance(value, dict):
        found = {name: moved(part, device) for name, part in value.items()}
    return cast(V, found)
