"""Asking: how far what a block of latents reads as is from what its prompt asks for.

Knows: a network that reads what stands in every cell of a block, how it is trained, how far a reading is from a scene.
Does not know: where blocks come from, autoencoders, who learns from the distance (train/feedback.py), the oracle.

A scene says what there is and not where, so the distance is one of sets: things of a scene have different colours,
and the cells of a colour must be of the thing's shape and size, as many as such a thing covers, and move as it was told
to; cells of no colour asked for must be empty. Every term is differentiable in the latents.

Legend: N blocks, K things of a scene, T latent frames, C channels, Y X cells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arvid.train.reading import Told, cells_loss
from arvid.worlds import shapes
from arvid.worlds.grammar import SHAPES, SIZES, THING_COLOURS, Scene, Thing
from arvid.worlds.labels import label

KINDS = (len(SHAPES) + 1, len(SIZES) + 1, len(THING_COLOURS) + 1)
"""Classes of each kind of label, nothing included."""
WEIGHTS = {"shape": 1.0, "size": 0.5, "cells": 1.0, "stray": 0.5, "motion": 0.5}
"""Of the terms of the distance: nats, nats, log ratios (see NEAR), log nats, squared pixels per frame."""
NEAR = 0.25
"""The log of a number of cells costs its square when it is so near the usual one, and from there on its distance: things
that are missing pull no harder than things that are a little too large, or all would grow to make up for a few."""
ROUGH, UNTOUCHED = 0.35, 0.3
"""A reader sees latents with noise of up to ROUGH, and a share UNTOUCHED of them as they are."""
SURE = 0.01
"""Probabilities below this count as this, so that one cell is no more than 4.6 nats."""


class BlockReader(nn.Module):
    """What stands in every cell of a block of `frames` latent frames of `channels`; maps of any height and width."""

    def __init__(self, channels: int, frames: int, width: int = 112, blocks: int = 5) -> None:
        super().__init__()
        self.frames, self.parts = frames, (*KINDS, 2)
        self.stem = nn.Conv2d(frames * channels, width, 3, padding=1)
        self.blocks = nn.ModuleList(_residual(width) for _ in range(blocks))
        self.head = nn.Conv2d(width, frames * sum(self.parts), 1)

    def forward(self, z_NTCHW: Tensor) -> tuple[Tensor, ...]:
        """Logits [N, T, Y, X, classes] of shape, size and colour, then velocity [N, T, Y, X, 2] in pixels per frame."""
        maps = z_NTCHW.flatten(1, 2).to(self.stem.weight.dtype).contiguous(memory_format=torch.channels_last)
        x = self.stem(maps)
        for block in self.blocks:
            x = x + block(x)
        read = self.head(F.silu(x)).float().unflatten(1, (self.frames, -1)).permute(0, 1, 3, 4, 2)
        return read.split(self.parts, -1)


def _residual(width: int) -> nn.Module:
    half = (nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1))
    return nn.Sequential(*half, nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1))


@dataclass(frozen=True)
class LabelledBlocks:
    """Blocks of latents [N, T, C, Y, X], what stands in their cells, and in which frames [N, T] velocity is known."""

    z_NTCHW: Tensor
    told: Told
    moving_NT: Tensor


class BlockReading:
    """The objective of a reader: what stands in the cells of blocks that are a little noisy."""

    def __init__(self, reader: BlockReader) -> None:
        self.reader = reader

    def __call__(self, batch: LabelledBlocks, generator: torch.Generator) -> dict[str, Tensor]:
        """`loss`, and the share of cells with things whose shape is read right."""
        z = batch.z_NTCHW
        rough, touched = torch.rand(2, len(z), 1, 1, 1, 1, generator=generator)
        noise = torch.randn(z.shape, generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            read = self.reader(z + ROUGH * rough * (touched >= UNTOUCHED) * noise)
        loss, right = cells_loss(read, batch.told, batch.moving_NT)
        return {"loss": loss, "right": right}


@dataclass(frozen=True)
class Asked:
    """Scenes as numbers, of up to K things each: classes [N, K, kinds] (1 + index in SHAPES, SIZES, THING_COLOURS),
    `there` [N, K] (0 where a scene has fewer things), cells that a thing usually covers [N, K], pace [N, K] in pixels
    per frame, and how a thing moves: told velocity [N, K, 2] where `told`, magnitudes [N, K, 2] of both components
    where `axis`, else the pace alone."""

    classes_NKJ: Tensor
    there_NK: Tensor
    cells_NK: Tensor
    pace_NK: Tensor
    velocity_NK2: Tensor
    told_NK: Tensor
    axis_NK: Tensor

    def __getitem__(self, chosen: Tensor) -> Asked:
        """The scenes of some blocks."""
        return Asked(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))


@cache
def usual_cells() -> dict[tuple[str, str], float]:
    """Cells that a lone thing of a shape and size covers, on average over places."""
    return {
        (shape, size): float(np.mean([
            (label(f"a {size} red {shape} stays still on a black background", seed, 1).shape_TYX > 0).sum()
            for seed in range(40)
        ]))
        for shape in SHAPES for size in SIZES
    }  # fmt: skip


def asked(scenes: Sequence[Scene]) -> Asked:
    """Scenes as numbers. Raises ValueError for a scene with two things of one colour, whose cells could not be told
    apart."""
    usual, most = usual_cells(), max(len(scene.things) for scene in scenes)
    rows = []
    for scene in scenes:
        colours = [thing.colour for thing in scene.things]
        if len(set(colours)) < len(colours):
            raise ValueError(f"things of the colours {', '.join(colours)} in one scene; each needs one of its own")
        things = [_numbers(thing, usual) for thing in scene.things]
        rows.append(things + [[0.0] * len(things[0])] * (most - len(things)))
    table = torch.tensor(rows)
    classes, there, cells, pace, told, axis, velocity = table.split((3, 1, 1, 1, 1, 1, 2), -1)
    return Asked(classes.long(), there[..., 0], cells[..., 0], pace[..., 0], velocity, told[..., 0], axis[..., 0])


def _numbers(thing: Thing, usual: dict[tuple[str, str], float]) -> list[float]:
    classes = [SHAPES.index(thing.shape), SIZES.index(thing.size), THING_COLOURS.index(thing.colour)]
    motion = thing.motion
    pace = 0.0 if motion.kind == "still" else shapes.SPEEDS[motion.speed] * shapes.SIZE
    diagonal = math.sqrt(0.5)
    ways = {
        "left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0),
        "horizontal": (1.0, 0.0), "vertical": (0.0, 1.0), "diagonal": (diagonal, diagonal),
    }  # fmt: skip
    velocity = [pace * part for part in ways.get(motion.way, (0.0, 0.0))]
    kind = (float(motion.kind in ("still", "move")), float(motion.kind == "bounce"))
    return [*(1.0 + index for index in classes), 1.0, usual[thing.shape, thing.size], pace, *kind, *velocity]


class Asking:
    """The distance between what blocks read as and what was asked."""

    def __init__(self, reader: BlockReader) -> None:
        self.reader = reader

    def __call__(self, z_NTCHW: Tensor, asked: Asked) -> dict[str, Tensor]:
        """The terms [N], by the names in WEIGHTS; all are 0 or near for true blocks."""
        *logits, velocity_NTYX2 = self.reader(z_NTCHW)
        colour_NTYXC = logits[2].softmax(-1)
        here_NKTYX = _of_things(colour_NTYXC, asked.classes_NKJ[..., 2]) * asked.there_NK[..., None, None, None]
        fixed = here_NKTYX.detach()
        terms = {}
        for index, kind in enumerate(("shape", "size")):
            wrong = -_of_things(logits[index].log_softmax(-1), asked.classes_NKJ[..., index])
            terms[kind] = _mean(_where(wrong, fixed), asked)
        usual_NKT = (asked.cells_NK[..., None] + 0.5).log()
        found_NKT = (here_NKTYX.sum((-2, -1)) + 0.5).log()
        off = F.huber_loss(found_NKT, usual_NKT.expand_as(found_NKT), reduction="none", delta=NEAR)
        terms["cells"] = _mean(8 * off.mean(-1), asked)
        fine = (colour_NTYXC[..., 0] + here_NKTYX.sum(1)).clamp(SURE, 1)
        terms["stray"] = torch.log1p(-fine.log().sum((2, 3)).mean(1))
        # A stream's first frame has no frame before it to move from.
        terms["motion"] = _mean(_where(_misses(velocity_NTYX2[:, 1:], asked), fixed[:, :, 1:]), asked)
        return terms


def distance(terms: dict[str, Tensor]) -> Tensor:
    """One number [N] from the terms; its logarithm keeps hopeless blocks from outweighing those that can be mended."""
    total = torch.stack([WEIGHTS[name] * term for name, term in terms.items()]).sum(0)
    return torch.log1p(total)


def _of_things(x_NTYXC: Tensor, class_NK: Tensor) -> Tensor:
    """The entry [N, K, T, Y, X] of every thing's class."""
    wide = class_NK[:, :, None, None, None, None].expand(-1, -1, *x_NTYXC.shape[1:4], 1)
    return x_NTYXC[:, None].expand(-1, class_NK.shape[1], -1, -1, -1, -1).gather(-1, wide)[..., 0]


def _misses(velocity_NTYX2: Tensor, asked: Asked) -> Tensor:
    """Squared pixels per frame [N, K, T, Y, X] by which a velocity is not that of a thing."""
    given, pace = velocity_NTYX2[:, None], asked.pace_NK[..., None, None, None]
    meant, told, axis = (
        x[..., None, None, None] if x.ndim == 2 else x[:, :, None, None, None]
        for x in (asked.velocity_NK2, asked.told_NK, asked.axis_NK)
    )
    straight = (given - meant).square().sum(-1)
    either = (given.abs() - meant).square().sum(-1)
    turning = ((given.square().sum(-1) + 1e-3).sqrt() - pace).square()
    return told * straight + axis * either + (1 - told - axis) * turning


def _where(x_NKTYX: Tensor, weight_NKTYX: Tensor) -> Tensor:
    """The mean [N, K] over the cells of a thing."""
    total = weight_NKTYX.sum((2, 3, 4)).clamp(min=1.0)
    return (x_NKTYX * weight_NKTYX).sum((2, 3, 4)) / total


def _mean(x_NK: Tensor, asked: Asked) -> Tensor:
    """The mean [N] over the things of a scene."""
    return (x_NK * asked.there_NK).sum(1) / asked.there_NK.sum(1).clamp(min=1.0)
