"""A tiny causal Wan of known weights, and one pass of it over a block that reads no past.

Knows: the transformer of the engine. Does not know: what any way to run it should do.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from arvid.models.wan.transformer import CausalWan, WanConfig
from arvid.types import Condition, Span
from oracles.dense_wan import CFG, weights

SPAN = Span(0, 3)


class Nothing:
    """A view of no past."""

    frames = ()

    def read(self, layer: int, rotate: Any) -> None:
        return None

    def mask(self, frames: tuple[int, ...]) -> None:
        return None


def model(dtype: torch.dtype = torch.float32, width: int = CFG["dim"], layers: int = CFG["num_layers"]) -> CausalWan:
    """Random weights under which everything matters."""
    cfg = {**CFG, "dim": width, "ffn_dim": 2 * width, "num_layers": layers}
    made = CausalWan(WanConfig(**cfg))
    made.load_state_dict(weights(cfg))
    return made.to(dtype).eval().requires_grad_(False)


def asked(size: tuple[int, int] = (1, 3)) -> tuple[Tensor, Tensor, Condition]:
    """Latents, levels and condition of a block of so many (videos, frames)."""
    draw = torch.Generator().manual_seed(1)
    text = torch.randn(size[0], CFG["text_len"], CFG["text_dim"], generator=draw)
    return torch.randn(*size, CFG["in_dim"], 8, 8, generator=draw), torch.full(size, 0.6), Condition("words", text)


@torch.no_grad()
def flow(made: CausalWan, condition: Condition | None = None, size: tuple[int, int] = (1, 3)) -> Tensor:
    """The flow of a block of so many (videos, frames), under another condition if one is given."""
    z, sigma, own = asked(size)
    return made(z, sigma, condition or own, Nothing(), Span(0, size[1])).flow_BTCHW
