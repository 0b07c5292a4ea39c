"""Reading out: what a model works out half-way must tell, cell by cell, what stands where.

Knows: how hidden states of a pass are caught, a linear reader's loss, which frames each pass of teacher forcing shows.
Does not know: where labels come from, the flow's own loss (train/flow.py), networks beyond that they have blocks.
After REPA (2410.06940), which aligns a diffusion transformer's middle with a vision model's features; here the labels
of a rendered world stand for the vision model. The reader is thrown away after training: inference is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arvid.train.flow import FlowBatch, TeacherForcing

WEIGHT = 0.1
"""Of the reading loss beside the flow's."""
MOTION = 0.5
"""Of the squared error of a velocity in pixels per frame beside a cross-entropy in nats."""
PLACE = 2.0
"""Of the squared error of an offset in cells."""


@dataclass(frozen=True)
class Told:
    """Labels of cells: classes [B, T, Y, X, kinds] (0 nothing), velocity [B, T, Y, X, 2] in pixels per frame and the
    offset [B, T, Y, X, 2] of the middle of what stands there, in cells; and which frames [B, T] are to be told (what
    stands in the others need not be in the text)."""

    classes_BTYXK: Tensor
    velocity_BTYX2: Tensor
    offset_BTYX2: Tensor
    asked_BT: Tensor

    def frames(self, starts: list[int], length: int) -> Told:
        """Of windows of every clip that begin at `starts`, window by window along the batch."""
        return Told(*(
            torch.stack([x[:, start : start + length] for start in starts], 1).flatten(0, 1)
            for x in (self.classes_BTYXK, self.velocity_BTYX2, self.offset_BTYX2, self.asked_BT)
        ))  # fmt: skip


@dataclass(frozen=True)
class ToldBatch:
    """A batch of clips with the labels of its whole clips and of its first blocks."""

    clips: FlowBatch
    whole: Told
    first: Told


class CellReader(nn.Module):
    """One linear map from a token's normalised hidden state to what stands in its cells."""

    def __init__(self, dim: int, patch: tuple[int, int], kinds: tuple[int, ...]) -> None:
        """`patch` is the cells of a token, down and across; `kinds` the number of classes, nothing included, of each
        kind of label."""
        super().__init__()
        self.patch, self.parts = patch, (*kinds, 2, 2)
        self.map = nn.Linear(dim, patch[0] * patch[1] * sum(self.parts))

    def forward(self, x_BTPD: Tensor, grid: tuple[int, int]) -> tuple[Tensor, ...]:
        """Logits [B, T, Y, X, classes] of each kind, then velocity and offset [B, T, Y, X, 2]; `grid` is tokens down,
        across."""
        batch, frames, _, dim = x_BTPD.shape
        read = self.map(F.layer_norm(x_BTPD.float(), (dim,)))
        cells = read.view(batch, frames, *grid, *self.patch, sum(self.parts)).transpose(3, 4)
        return cells.reshape(batch, frames, grid[0] * self.patch[0], grid[1] * self.patch[1], -1).split(self.parts, -1)

    def loss(self, x_BTPD: Tensor, told: Told) -> tuple[Tensor, Tensor]:
        """What `cells_loss` and `offset_loss` say of what the map reads, velocities of all frames included."""
        rows, columns = told.classes_BTYXK.shape[2:4]
        *read, offset = self(x_BTPD, (rows // self.patch[0], columns // self.patch[1]))
        loss, right = cells_loss(read, told, told.asked_BT)
        return loss + offset_loss(offset, told), right


def cells_loss(read: Sequence[Tensor], told: Told, moving_BT: Tensor, motion: float = MOTION) -> tuple[Tensor, Tensor]:
    """Of logits [B, T, Y, X, classes] of each kind and velocity [B, T, Y, X, 2]: cross-entropies, cells with things and
    without of equal weight in all, and `motion` times the error of velocities in frames `moving_BT`; and the share of
    right first kinds where things stand."""
    *logits, velocity = read
    asked = told.asked_BT[:, :, None, None].expand(told.classes_BTYXK.shape[:4]).float()
    stands = asked * (told.classes_BTYXK[..., 0] > 0)
    share = (stands.sum() / asked.sum().clamp(min=1)).clamp(min=0.02)
    balance = torch.where(stands > 0, 1 / share, asked)
    balance = balance / balance.sum().clamp(min=1)
    loss = velocity.new_zeros(())
    for kind, guess in enumerate(logits):
        wrong = F.cross_entropy(guess.movedim(-1, 1), told.classes_BTYXK[..., kind].long(), reduction="none")
        loss = loss + (balance * wrong).sum()
    moves = stands * moving_BT[:, :, None, None]
    missed = _miss(velocity, told.velocity_BTYX2, moves)
    right = (logits[0].argmax(-1) == told.classes_BTYXK[..., 0])[stands > 0].float().mean()
    return loss + motion * missed, right.detach()


def offset_loss(offset_BTYX2: Tensor, told: Told) -> Tensor:
    """PLACE times the squared error of offsets where things stand."""
    stands = told.asked_BT[:, :, None, None] * (told.classes_BTYXK[..., 0] > 0)
    return PLACE * _miss(offset_BTYX2, told.offset_BTYX2, stands)


def _miss(read_BTYX2: Tensor, true_BTYX2: Tensor, where_BTYX: Tensor) -> Tensor:
    """Mean squared length of what is missed in some cells."""
    miss_BTYX = (read_BTYX2 - true_BTYX2).square().sum(-1)
    return (miss_BTYX * where_BTYX).sum() / where_BTYX.sum().clamp(min=1)


class ReadForcing:
    """Teacher forcing, and the reading loss of all its noisy passes at one block of the model."""

    def __init__(self, forcing: TeacherForcing, reader: CellReader, block: nn.Module) -> None:
        self.forcing, self.reader = forcing, reader
        self._seen: list[Tensor] = []
        block.register_forward_hook(self._catch)

    def __call__(self, batch: ToldBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """The numbers of teacher forcing; `read` is the reading loss, `right` the share of first kinds read right."""
        self._seen.clear()
        numbers = self.forcing(batch.clips, generator)
        # The order of the passes: every walk the clean past and the groups of blocks, then the first blocks of others.
        *walks, first = self._seen
        groups = self.forcing.passes.groups
        asked = [(first, batch.first)]
        for place, hidden in enumerate(walks):
            number = place % (1 + len(groups)) - 1
            if number >= 0:
                starts = [start for start, _ in groups[number]]
                asked.append((hidden, batch.whole.frames(starts, hidden.shape[1])))
        losses, rights = zip(*(self.reader.loss(hidden, told) for hidden, told in asked), strict=True)
        read = losses[0] + torch.stack(losses[1:]).mean()
        self._seen.clear()
        return {**numbers, "loss": numbers["loss"] + WEIGHT * read, "read": read.detach(), "right": rights[0]}

    def _catch(self, block: nn.Module, given: tuple[Any, ...], made: tuple[Tensor, Any]) -> None:
        # A pass without gradients is asked for its estimate; there is nothing to teach it.
        if torch.is_grad_enabled():
            self._seen.append(made[0])
