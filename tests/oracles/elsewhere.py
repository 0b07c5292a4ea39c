"""A device that is not there: CPU tensors that say they lie elsewhere and refuse company, as those of a GPU do.

Knows: which functions of torch may mix devices on a GPU, how a tensor gets from one to the other. Does not know: what
is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

HERE, ELSEWHERE = torch.device("cpu"), torch.device("xla")
T = Tensor
DEVICE = T.device.__get__  # type: ignore[attr-defined]
CROSSING = {T.to, T.cpu, T.copy_, T.as_subclass, DEVICE}
INDEXING = {T.__getitem__, T.__setitem__}
"""Indices may lie on the CPU, if the tensor that they are of does not."""
JOINING = {torch.cat, torch.stack}
"""Take no single number from the CPU either, unlike all others."""


class Far(Tensor):
    """A tensor elsewhere; what is computed from it is elsewhere too."""


class Elsewhere(TorchFunctionMode):
    """While it is entered, ELSEWHERE is a device. `moved` counts the tensors that were brought there."""

    def __init__(self) -> None:
        super().__init__()
        self.moved = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        found = list(tensors([*args, *kwargs.values()]))
        if func == DEVICE:
            return ELSEWHERE if isinstance(found[0], Far) else HERE
        if func not in CROSSING:
            self._refuse(func, found)
        if func is T.cpu:
            return func(*args, **kwargs).as_subclass(Tensor)
        if func is T.to:
            return self._brought(args, kwargs)
        wanted = kwargs.get("device")
        made = func(*args, **({**kwargs, "device": HERE} if wanted is not None else kwargs))
        if wanted == ELSEWHERE:
            self.moved += func is torch.tensor
            return made.as_subclass(Far)
        return made

    @staticmethod
    def _refuse(func: Callable[..., Any], found: list[Tensor]) -> None:
        near = [x for x in found if not isinstance(x, Far) and (x.ndim or func in JOINING)]
        allowed = func in INDEXING and isinstance(found[0], Far)
        if near and len(near) < len(found) and any(isinstance(x, Far) for x in found) and not allowed:
            raise RuntimeError(f"{func.__name__} of tensors on two devices; shapes {[list(x.shape) for x in found]}")

    def _brought(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """`Tensor.to`: a device by itself or that of another tensor, a type, or both."""
        x, told = args[0], [*args[1:], *kwargs.values()]
        far = isinstance(x, Far)
        for word in told:
            if isinstance(word, torch.device):
                far = word == ELSEWHERE
            elif isinstance(word, Tensor):
                far = isinstance(word, Far)
        self.moved += far and not isinstance(x, Far)
        types = [word.dtype if isinstance(word, Tensor) else word for word in told]
        types = [word for word in types if isinstance(word, torch.dtype)]
        made = Tensor.to(x, *types) if types else x
        return made.as_subclass(Far if far else Tensor)


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in nested tuples, lists and values of dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from tensors(list(value.values()))
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from tensors(part)


def far(value: Any) -> Any:
    """Nested tuples of tensors, elsewhere."""
    return tuple(far(part) for part in value) if isinstance(value, tuple) else value.as_subclass(Far)
