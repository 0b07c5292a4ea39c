"""Several tokens made into one: which go together, and how they are weighed.

Knows: grids of tokens, groups, the average and a trainable kernel. Does not know: which frames are merged and when.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn


class Merge(nn.Module):
    """Per layer, for keys and values, a weight for each token of a group and each channel: a depthwise convolution
    whose stride is its kernel (SoulX-LiveAct, 2603.11746, after which the average is where it starts)."""

    def __init__(self, layers: int, group: int, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((layers, 2, group, channels), 1 / group))

    @classmethod
    def load(cls, path: str) -> Merge:
        """From a safetensors file with one tensor, `weight` [layers, 2, group, channels]. Raises ValueError for
        others."""
        try:
            weight = load_file(Path(path))["weight"]
            merge = cls(weight.shape[0], weight.shape[2], weight.shape[3])
            merge.load_state_dict({"weight": weight})
        except (OSError, SafetensorError, KeyError, IndexError, RuntimeError) as error:
            raise ValueError(f"{path} holds no merging weights ({error}); name a file of one tensor, weight") from error
        return merge

    def forward(self, groups_BGNHD: Tensor, layer: int, which: int) -> Tensor:
        """One token per group [B, G, H, D]; `which` is 0 for keys, 1 for values. Raises ValueError for groups of
        another size than the weights have."""
        weight_ND = self.weight[layer, which]
        found = (groups_BGNHD.shape[2], groups_BGNHD[0, 0, 0].numel())
        if found != tuple(weight_ND.shape):
            raise ValueError(
                f"groups of {found[0]} tokens with {found[1]} channels, merging weights for {tuple(weight_ND.shape)}; "
                "train weights for this policy"
            )
        return (groups_BGNHD * weight_ND.unflatten(1, groups_BGNHD.shape[3:]).to(groups_BGNHD)).sum(2)


Weights = Merge | str
"""The path of trained merging weights, or the module itself while it is trained; empty: the average."""

_loaded = lru_cache(maxsize=8)(Merge.load)


def merged(weights: Weights, pair: tuple[Tensor, Tensor], layer: int) -> tuple[Tensor, Tensor]:
    """Keys and values [B, G, H, D] of groups [B, G, N, H, D], one token each."""
    if isinstance(weights, str) and not weights:
        return pair[0].mean(2), pair[1].mean(2)
    merge = _loaded(weights) if isinstance(weights, str) else weights
    return merge(pair[0], layer, 0), merge(pair[1], layer, 1)


@lru_cache(maxsize=8)
def cells(grid: tuple[int, int], side: int, time: int = 1) -> Tensor:
    """Indices [G, time * side * side] of the tokens of `time` frames that share a cell of side x side; the last row and
    column are repeated where the grid does not divide."""
    rows, columns = grid
    row = torch.arange(-(-rows // side) * side).clamp(max=rows - 1).view(-1, 1, side, 1, 1)
    column = torch.arange(-(-columns // side) * side).clamp(max=columns - 1).view(1, -1, 1, side, 1)
    index = row * columns + column + rows * columns * torch.arange(time)
    return index.permute(0, 1, 4, 2, 3).flatten(2).flatten(0, 1)


def need_grid(grid: tuple[int, int], policy: str) -> tuple[int, int]:
    """The grid. Raises ValueError when no model has read a view of the store."""
    if not grid[0]:
        raise ValueError(f"{policy} merges neighbours and no pass has told the grid of tokens; let a model read a view")
    return grid
