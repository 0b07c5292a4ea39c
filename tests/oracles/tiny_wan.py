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


def asked() -> tuple[Tensor, Tensor, Condition]:
    """Latents, levels and condition of the block."""
    draw = torch.Generator().manual_seed(1)
    text = torch.randn(1, CFG["text_len"], CFG["text_dim"], generator=draw)
    return torch.randn(1, 3, CFG["in_dim"], 8, 8, generator=draw), torch.full((1, 3), 0.6), Condition("words", text)


@torch.no_grad()
def flow(made: CausalWan, condition: Condition | None = None) -> Tensor:
    """The flow of the block, under another condition if one is given."""
    z, sigma, own = asked()
    return made(z, sigma, condition or own, Nothing(), SPAN).flow_BTCHW
