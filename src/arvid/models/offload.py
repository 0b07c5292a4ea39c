"""A transformer whose layers rest on the CPU and visit the device one after the other.

Knows: which weights a layer is made of, how they are copied ahead of the layer that computes, when a place is free
again. Does not know: what the layers compute, whether the rest of a run fits (models/planning.py).

`ahead` places of one layer's size are made on the device, once. While a layer computes in one of them, the next layers
are copied into the others on a stream of their own; when it is done, its place is given to the layer that comes `ahead`
later, and after the last layer to the first ones again, for the next pass. The host's copy is pinned and never written.
What only a new prompt needs (the keys and values of the text) is fetched when there is one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from arvid.layers.quantise import plain_parts
from arvid.models.pinned import pinned
from arvid.models.wan.transformer import CausalWan

AHEAD = 2
"""Layers on the device at once: the one that computes and the next."""
Where = list[tuple[nn.Module, str]]
"""Weights by the module that holds them and their name there."""
TEXT = ("cross_attn.k", "cross_attn.v", "cross_attn.norm_k")
"""Parts of a block that a pass does not use, once the prompt was read."""


class Layer:
    """One layer's weights: at rest on the host, and at times in a place on the device."""

    def __init__(self, where: Where, device: torch.device) -> None:
        self.where = where
        self.rest = _at_rest([module.get_parameter(name) for module, name in where], device)
        self.place: Place | None = None
        self.leave()

    def enter(self, weights: Sequence[nn.Parameter]) -> None:
        """Compute with these."""
        for (module, name), weight in zip(self.where, weights, strict=True):
            module._parameters[name] = weight

    def leave(self) -> None:
        """Weights are those at rest."""
        self.enter(self.rest)


class Place:
    """Room for one layer on the device, and a note of when it is filled and when it is free again."""

    def __init__(self, like: Sequence[nn.Parameter], device: torch.device) -> None:
        self.weights = [_like(weight, device) for weight in like]
        self.filled: torch.cuda.Event | None = None
        self.free: torch.cuda.Event | None = None

    @torch.no_grad()
    def fill(self, layer: Layer, stream: torch.cuda.Stream | None) -> None:
        """Copy a layer in: on `stream` if there is one, once the place is free."""
        if stream is None:
            self._copy(layer)
            return
        if self.free is not None:
            stream.wait_event(self.free)
        with torch.cuda.stream(stream):
            self._copy(layer)
        self.filled = stream.record_event()

    def _copy(self, layer: Layer) -> None:
        for weight, rest in zip(self.weights, layer.rest, strict=True):
            for there, here in zip(plain_parts(weight), plain_parts(rest), strict=True):
                there.copy_(here, non_blocking=True)


class Offload:
    """Keeps the layers of one model moving; made by `offload`, and called by the hooks it sets."""

    def __init__(self, layers: Sequence[Layer], device: torch.device, ahead: int) -> None:
        self.layers, self._device = layers, device
        self._places = [Place(layers[0].rest, device) for _ in range(min(ahead, len(layers)))]
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.most = 0
        for layer, place in zip(layers, self._places, strict=False):
            self._fetch(layer, place)

    @property
    def resident(self) -> int:
        """Layers that are on the device now."""
        return sum(layer.place is not None for layer in self.layers)

    def enter(self, number: int) -> None:
        """Layer `number` is about to compute."""
        layer = self.layers[number]
        if layer.place is None:
            # The passes of a model come in the order of its layers; after one that broke off they begin anew.
            self._begin_at(number)
        assert layer.place is not None
        if layer.place.filled is not None:
            torch.cuda.current_stream(self._device).wait_event(layer.place.filled)
        layer.enter(layer.place.weights)

    def leave(self, number: int) -> None:
        """Layer `number` has been told to compute: its place goes to the layer that comes next into it."""
        layer = self.layers[number]
        layer.leave()
        place, layer.place = layer.place, None
        assert place is not None
        if self._stream is not None:
            place.free = torch.cuda.current_stream(self._device).record_event()
        self._fetch(self.layers[(number + len(self._places)) % len(self.layers)], place)

    def _begin_at(self, number: int) -> None:
        for layer in self.layers:
            layer.place = None
        for step, place in enumerate(self._places):
            self._fetch(self.layers[(number + step) % len(self.layers)], place)

    def _fetch(self, layer: Layer, place: Place) -> None:
        place.fill(layer, self._stream)
        layer.place = place
        self.most = max(self.most, self.resident)


def offload(model: CausalWan, device: torch.device, ahead: int = AHEAD) -> Offload:
    """Let the blocks of `model` rest where they are, on the CPU, and visit `device` for their part of a pass, `ahead`
    at once; all its other weights move there. Works in place; for inference only.

    Raises ValueError when the weights are not on the CPU, or fewer than one layer may be there at once.
    """
    if ahead < 1:
        raise ValueError(f"{ahead} layers on {device} at once; at least 1 is needed, 2 to copy while one computes")
    if away := {str(weight.device) for weight in model.parameters()} - {"cpu"}:
        raise ValueError(f"weights are on {', '.join(sorted(away))}; load the model on the cpu to offload its layers")
    blocks = list(model.blocks)
    for child in (child for name, child in model.named_children() if name != "blocks"):
        child.to(device)
    running = Offload([Layer(_weights(block, TEXT), device) for block in blocks], device, ahead)
    for number, block in enumerate(blocks):
        block.register_forward_pre_hook(_entering(running, number))
        block.register_forward_hook(_leaving(running, number), always_call=True)
        for name in TEXT:
            _on_demand(block.get_submodule(name), device)
    return running


def _weights(module: nn.Module, but: Sequence[str]) -> Where:
    """Every weight below a module except those of some parts."""
    return [
        (part, name)
        for path, part in module.named_modules()
        if path not in but
        for name, weight in part._parameters.items()
        if weight is not None
    ]


def _entering(running: Offload, number: int) -> Any:
    return lambda block, given: running.enter(number)


def _leaving(running: Offload, number: int) -> Any:
    return lambda block, given, made: running.leave(number)


def _on_demand(module: nn.Module, device: torch.device) -> None:
    """Fetch a module's weights when it is called, and let them go after."""
    layer = Layer(_weights(module, ()), device)

    def entering(part: nn.Module, given: Any) -> None:
        layer.enter([_remade(weight, lambda x: x.to(device)) for weight in layer.rest])

    module.register_forward_pre_hook(entering)
    module.register_forward_hook(lambda part, given, made: layer.leave(), always_call=True)


def _at_rest(weights: Sequence[nn.Parameter], device: torch.device) -> list[nn.Parameter]:
    """Weights on the host; for a GPU in pinned memory, from which it copies while it computes."""
    parts = [part for weight in weights for part in plain_parts(weight)]
    resting = iter(pinned(parts, device) if device.type == "cuda" else parts)
    return [_remade(weight, lambda x: next(resting)) for weight in weights]


def _like(weight: nn.Parameter, device: torch.device) -> nn.Parameter:
    """Room for a weight on a device."""
    return _remade(weight, lambda x: torch.empty_like(x, device=device))


def _remade(weight: nn.Parameter, make: Callable[[Tensor], Tensor]) -> nn.Parameter:
    """A weight of the same kind, its plain tensors made by `make`. Never one of inference mode, in which weights of
    several tensors cannot even be detached: it may be made while a video is."""
    with torch.inference_mode(False), torch.no_grad():
        return nn.Parameter(_rebuilt(weight.detach(), make), requires_grad=False)


def _rebuilt(weight: Tensor, make: Callable[[Tensor], Tensor]) -> Tensor:
    """What `_remade` wraps: a tensor in place of a tensor."""
    if not is_traceable_wrapper_subclass(weight):
        return make(weight)
    names, context = weight.__tensor_flatten__()
    inner = {name: _rebuilt(getattr(weight, name), make) for name in names}
    whole: Tensor = type(weight).__tensor_unflatten__(inner, context, weight.size(), weight.stride())
    return whole
