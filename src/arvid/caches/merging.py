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

CPU = torch.device("cpu")


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

    def check(self, layers: int, group: int, channels: int) -> None:
        """Raises ValueError for more or fewer layers than there are weights, and for groups of another size."""
        known, _, *size = self.weight.shape
        if layers != known or [group, channels] != size:
            raise ValueError(
                f"layers 0 to {layers - 1} have groups of {group} tokens with {channels} channels, merging weights for "
                f"{tuple(size)} in layers 0 to {known - 1}; train weights for this policy and this model"
            )

    def forward(self, groups_BGNHD: Tensor, layer: int, which: int) -> Tensor:
        """One token per group [B, G, H, D]; `which` is 0 for keys, 1 for values. Raises ValueError for groups of
        another size than the weights have, and a layer that they do not have."""
        self.check(max(layer + 1, len(self.weight)), groups_BGNHD.shape[2], groups_BGNHD[0, 0, 0].numel())
        weight_ND = self.weight[layer, which]
        return (groups_BGNHD * weight_ND.unflatten(1, groups_BGNHD.shape[3:]).to(groups_BGNHD)).sum(2)


Weights = Merge | str
"""The path of trained merging weights, or the module itself while it is trained; empty: the average."""

_loaded = lru_cache(maxsize=8)(Merge.load)


def check_weights(weights: Weights, layers: int, group: int, channels: int) -> None:
    """Raises ValueError for a file without weights, and for those of other layers or groups."""
    if (merge := _module(weights)) is not None:
        merge.check(layers, group, channels)


def merged(weights: Weights, pair: tuple[Tensor, Tensor], layer: int) -> tuple[Tensor, Tensor]:
    """Keys and values [B, G, H, D] of groups [B, G, N, H, D], one token each."""
    merge = _module(weights)
    if merge is None:
        return pair[0].mean(2), pair[1].mean(2)
    return merge(pair[0], layer, 0), merge(pair[1], layer, 1)


def _module(weights: Weights) -> Merge | None:
    """None: the average."""
    if isinstance(weights, str):
        return _loaded(weights) if weights else None
    return weights


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def cells(grid: tuple[int, int], side: int, time: int = 1, device: torch.device = CPU) -> Tensor:
    """Indices [G, time * side * side] of the tokens of `time` frames that share a cell of side x side; the last row and
    column are repeated where the grid does not divide."""
    rows, columns = grid
    row = torch.arange(-(-rows // side) * side).clamp(max=rows - 1).view(-1, 1, side, 1, 1)
    column = torch.arange(-(-columns // side) * side).clamp(max=columns - 1).view(1, -1, 1, side, 1)
    index = row * columns + column + rows * columns * torch.arange(time)
    return index.permute(0, 1, 4, 2, 3).flatten(2).flatten(0, 1).to(device)


def need_grid(grid: tuple[int, int], policy: str) -> tuple[int, int]:
    """The grid. Raises ValueError when no model has read a view of the store."""
    if not grid[0]:
        raise ValueError(f"{policy} merges neighbours and no pass has told the grid of tokens; let a model read a view")
    return grid
