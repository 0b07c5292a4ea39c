"""Linear layers in 8 bits, by torchao.

Knows: kinds of numbers that weights and activations may be rounded to, which layers are worth it. Does not know:
models, which device is fast with which kind, how good a video is with it.

Weights are rounded once, with a scale per row; with `-dynamic` activations are too, per row at every call, and the
product is one of 8 bits. Embeddings, norms, modulation and the head stay as they are: they are small, and they show.
torchao is optional: pip install 'arvid[quantise]'.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

KINDS = ("int8", "int8-dynamic", "fp8", "fp8-dynamic")
"""Weights of 8 bits as integers or floats; `-dynamic` rounds activations too."""
FP8_DYNAMIC_SINCE = (8, 9)
"""Compute capability of the first GPUs that multiply fp8 by fp8."""


def quantise(model: nn.Module, kind: str, within: str = "blocks.") -> int:
    """Round, in place, the weights of all linear layers whose names begin with `within`; returns how many.

    Raises ValueError for an unknown kind, a device that cannot do it, no such layers, and when torchao is missing.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind of quantisation {kind!r}; known: {', '.join(KINDS)}")
    found = [part for name, part in model.named_modules() if isinstance(part, nn.Linear) and name.startswith(within)]
    if not found:
        raise ValueError(f"no linear layer has a name that begins with {within!r}; nothing to round to {kind}")
    if kind == "fp8-dynamic":
        _able(found[0].weight.device)
    config = _config(kind)
    from torchao.quantization import quantize_

    quantize_(model, config, lambda part, name: isinstance(part, nn.Linear) and name.startswith(within))
    return len(found)


def _able(device: torch.device) -> None:
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < FP8_DYNAMIC_SINCE:
        raise ValueError(
            f"fp8-dynamic needs a GPU of compute capability 8.9 or later, the weights are on {device}; use fp8 or int8"
        )


def _config(kind: str) -> Any:
    """torchao's description of a kind; it may not change the settings of the compiler behind our back."""
    try:
        from torchao import quantization
    except ImportError as error:
        raise ValueError(f"{kind} needs torchao, which is not installed: pip install 'arvid[quantise]'") from error
    if kind == "int8":
        return quantization.Int8WeightOnlyConfig(set_inductor_config=False)
    if kind == "int8-dynamic":
        return quantization.Int8DynamicActivationInt8WeightConfig(set_inductor_config=False)
    if kind == "fp8":
        return quantization.Float8WeightOnlyConfig(set_inductor_config=False)
    per_row = quantization.PerRow()
    return quantization.Float8DynamicActivationFloat8WeightConfig(granularity=per_row, set_inductor_config=False)


def plain_parts(weight: Tensor) -> Iterator[Tensor]:
    """The tensors a weight is made of: itself, or numbers and scales when it was rounded."""
    if not is_traceable_wrapper_subclass(weight):
        yield weight
        return
    for name in weight.__tensor_flatten__()[0]:
        yield from plain_parts(getattr(weight, name))
