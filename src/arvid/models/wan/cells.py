"""Convolutions over single latent cells, before and behind a transformer that sees patches of them.

Knows: one frame of latents and its noise level, and what the transformer made of the frame's patches. Does not know:
other frames, text, attention, the past. Wan has none of this; published checkpoints are read without it.

A transformer of few channels that is shown two by two cells as one token learns slowly where in them an edge lies, and
relative positions do not tell it where the picture ends. Convolutions are told both: cells with their neighbours, and
how far each is from the middle. They add to what the transformer is shown and to the flow it gives, nothing at first.
(Convolutions beside a transformer's patches: CvT, 2103.15808; coordinates as channels: CoordConv, 1807.03247.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FACTS = 3
"""Channels beside the latent's own: noise level, and the cell's place down and across."""


@dataclass(frozen=True, kw_only=True)
class CellConfig:
    """Channels and residual blocks of the convolutions on either side of a transformer; width 0: there are none."""

    cell_width: int = 0
    cell_blocks: int = 0


class Residual(nn.Module):
    """Two convolutions that add to what they are given."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Same shape."""
        y_NCHW: Tensor = self.second(F.silu(self.first(F.silu(x_NCHW))))
        return x_NCHW + y_NCHW


class CellConvolutions(nn.Module):
    """What stands before and behind a transformer of `dim` channels whose tokens are `patch` cells, down and across:
    `depth` residual blocks of `width` channels on either side."""

    def __init__(self, channels: int, out: int, dim: int, patch: tuple[int, int], width: int, depth: int) -> None:
        super().__init__()
        self.patch, self.width, self.dim = patch, width, dim
        inner = width * patch[0] * patch[1]
        self.enter = nn.Conv2d(channels + FACTS, width, 3, padding=1)
        self.time = nn.Linear(dim, width)
        self.before_blocks = nn.Sequential(*(Residual(width) for _ in range(depth)))
        self.show = nn.Linear(inner, dim)
        self.tell = nn.Linear(dim, inner)
        self.behind_blocks = nn.Sequential(*(Residual(width) for _ in range(depth)))
        self.leave = nn.Conv2d(width, out, 3, padding=1)
        for p in self.parameters():
            p.data = p.data.contiguous(memory_format=torch.channels_last) if p.ndim == 4 else p.data

    def silence(self) -> None:
        """Let them add nothing: as a transformer was without them."""
        seconds = [x.second for x in self.modules() if isinstance(x, Residual)]
        for last in (*seconds, self.show, self.leave):
            for p in last.parameters():
                nn.init.zeros_(p)

    def before(self, z_BTCHW: Tensor, sigma_BT: Tensor, time_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """What to add to the tokens [B, T, P, D] fp32 of noisy latents, and the maps that `behind` goes on from."""
        batch, frames, _, height, width = z_BTCHW.shape
        level = sigma_BT[:, :, None, None, None].expand(-1, -1, 1, height, width)
        facts = torch.cat([z_BTCHW, level, _places(z_BTCHW).expand(batch, frames, -1, -1, -1)], 2)
        x_NCHW = facts.flatten(0, 1).to(self.enter.weight.dtype).contiguous(memory_format=torch.channels_last)
        x_NCHW = self.enter(x_NCHW) + self.time(time_BTD.to(x_NCHW.dtype)).flatten(0, 1)[..., None, None]
        x_NCHW = self.before_blocks(x_NCHW)
        return self.show(in_patches(x_NCHW.unflatten(0, (batch, frames)), self.patch)).float(), x_NCHW

    def behind(self, maps_NCHW: Tensor, x_BTPD: Tensor) -> Tensor:
        """What to add to the flow [B, T, C, H, W] fp32, given the transformer's last tokens."""
        batch, frames = x_BTPD.shape[:2]
        height, width = maps_NCHW.shape[-2:]
        rows, columns = self.patch
        told = self.tell(F.layer_norm(x_BTPD, (self.dim,)).to(maps_NCHW.dtype))
        cells = told.view(-1, height // rows, width // columns, self.width, rows, columns)
        wide = cells.permute(0, 3, 1, 4, 2, 5).reshape(maps_NCHW.shape).contiguous(memory_format=torch.channels_last)
        flow_NCHW: Tensor = self.leave(F.silu(self.behind_blocks(maps_NCHW + wide)))
        return flow_NCHW.unflatten(0, (batch, frames)).float()


def in_patches(x_BTCHW: Tensor, patch: tuple[int, int]) -> Tensor:
    """Patches of cells, row by row [B, T, P, C * rows * columns]."""
    rows, columns = patch
    batch, frames, channels, height, width = x_BTCHW.shape
    cells = x_BTCHW.view(batch, frames, channels, height // rows, rows, width // columns, columns)
    return cells.permute(0, 1, 3, 5, 2, 4, 6).flatten(4).flatten(2, 3)


def _places(z_BTCHW: Tensor) -> Tensor:
    """[2, H, W]: rows and columns from -1 to 1."""
    down, across = (torch.linspace(-1, 1, side, device=z_BTCHW.device) for side in z_BTCHW.shape[-2:])
    return torch.stack(torch.meshgrid(down, across, indexing="ij")).to(z_BTCHW.dtype)
