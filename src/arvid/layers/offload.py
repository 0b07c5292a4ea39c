"""Layers that rest in one place and compute in another: one computes while the next one is on its way.

Knows: an order of layers, two copies of their weights at most, streams of a GPU. Does not know: what the layers are,
when offloading pays (models/planning.py says when it is needed).

The resting weights are never written to and never copied back. Towards a GPU they rest in pinned memory and travel on a
stream of their own; on a CPU the same steps are made without streams.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

AHEAD = 1
"""Layers that are on their way while one computes."""


def tensors(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers."""
    return [*module.parameters(), *module.buffers()]


class Offload:
    """Hooks on `layers`, which must be called in their order, again and again. `remove` takes them off."""

    def __init__(self, layers: Sequence[nn.Module], device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._layers = [tensors(layer) for layer in layers]
        for held in (held for layer in self._layers for held in layer):
            held.data = held.data.pin_memory() if self._stream and not held.is_cuda else held.data
        self._resting = [[held.data for held in layer] for layer in self._layers]
        self._arrived: dict[int, Any] = {}
        self._hooks = [
            hook
            for place, layer in enumerate(layers)
            for hook in (
                layer.register_forward_pre_hook(lambda *_, place=place: self._enter(place)),
                layer.register_forward_hook(lambda *_, place=place: self._leave(place), always_call=True),
            )
        ]

    @property
    def visiting(self) -> tuple[int, ...]:
        """Layers whose weights are on the device now, or on their way."""
        return tuple(sorted(self._arrived))

    def remove(self) -> None:
        """Take the hooks off; all weights rest."""
        for hook in self._hooks:
            hook.remove()
        for place in list(self._arrived):
            self._leave(place)

    def _enter(self, place: int) -> None:
        for near in range(place, place + AHEAD + 1):
            self._send(near % len(self._layers))
        if self._stream is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_event(self._arrived[place])
            for held in self._layers[place]:
                held.data.record_stream(current)

    def _send(self, place: int) -> None:
        if place in self._arrived:
            return
        # Weights outlive the call they are sent in, so they are no tensors of inference.
        with torch.inference_mode(False), torch.cuda.stream(self._stream):
            for held, data in zip(self._layers[place], self._resting[place], strict=True):
                held.data = data.to(self._device, non_blocking=True, copy=True)
            self._arrived[place] = self._stream.record_event() if self._stream is not None else None

    def _leave(self, place: int) -> None:
        self._arrived.pop(place, None)
        for held, data in zip(self._layers[place], self._resting[place], strict=True):
            held.data = data
