"""A deeper causal Wan from a trained shallower one, the same function at first.

Knows: which weights of a block make it add nothing. Does not know: training. New blocks are spread evenly among the
old ones; their output projections are zero, so they pass the residual stream on unchanged until they are trained
(function-preserving growth as in Net2Net, 1511.05641).
"""

from __future__ import annotations

import torch
from torch import Tensor

from arvid.models.wan.transformer import CausalWan, WanConfig

OUTPUTS = ("self_attn.o.", "cross_attn.o.", "ffn.2.")
"""What a block adds to the residual stream leaves it through these."""


def deepen(weights: dict[str, Tensor], config: WanConfig, seed: int = 0) -> dict[str, Tensor]:
    """Weights of a model of `config` that computes what `weights`, of fewer blocks and else equal sizes, computes.

    Raises ValueError when `weights` has more blocks than `config` or none.
    """
    numbers = {int(name.split(".")[1]) for name in weights if name.startswith("blocks.")}
    if not 0 < len(numbers) <= config.num_layers:
        raise ValueError(
            f"{len(numbers)} blocks to grow to {config.num_layers}; growing goes from at least one block to more"
        )
    model = CausalWan(config)
    model.initialise(torch.Generator().manual_seed(seed))
    grown = dict(model.state_dict())
    for name, value in weights.items():
        if not name.startswith("blocks."):
            grown[name] = value
    homes = {old: old * config.num_layers // len(numbers) for old in sorted(numbers)}
    for name, value in weights.items():
        if name.startswith("blocks."):
            _, old, rest = name.split(".", 2)
            grown[f"blocks.{homes[int(old)]}.{rest}"] = value
    for new in set(range(config.num_layers)) - set(homes.values()):
        for name in grown:
            if name.startswith(tuple(f"blocks.{new}.{output}" for output in OUTPUTS)):
                grown[name] = torch.zeros_like(grown[name])
    return grown
