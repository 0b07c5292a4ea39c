"""The reading judge: what a block of latents reads as, against what its prompt asks for.

Knows: a network that reads what stands in every cell of a block, one that reads which scene a prompt describes, how far
a reading is from a scene, and the directory both are kept in. Does not know: the autoencoder, pixels, words of a
language, how it was trained (`train.asking`), who asks or who learns from the distance (`train.feedback`).

A scene says what there is and not where, so the distance is one of sets: things of a scene have different colours,
and the cells of a colour must be of the thing's shape and size, as many as such a thing covers, and move as it was told
to; cells of no colour asked for must be empty. Every term is differentiable in the latents. What the classes of a scene
mean in numbers (cells, pixels per frame) is data of the judge (`Meaning`).

Legend: N blocks, K things of a scene, T latent frames, C channels, Y X cells, L tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arvid.rewards import parts
from arvid.types import Candidate

WEIGHTS = {"shape": 1.0, "size": 0.5, "cells": 1.0, "stray": 0.5, "motion": 0.5}
"""Of the terms of the distance: nats, nats, log ratios (see NEAR), log nats, squared pixels per frame."""
MARKS = {"shape": 1.0, "size": 1.0, "cells": 1.5, "stray": 0.5, "motion": 2.0, "pace": 4.0}
"""The same where blocks are ranked and nothing learns from it (docs/log.md says how they were chosen)."""
SLOW = 0.5
"""Pixels per frame by which a thing that should stand still is off as much as one that is off by its whole pace."""
NEAR = 0.25
"""The log of a number of cells costs its square when it is so near the usual one, and from there on its distance: what
is missing pulls no harder than what is a little too large, or all things would grow to make up for a few."""
SURE = 0.01
"""Probabilities below this count as this, so that one cell is no more than 4.6 nats."""
TOLD, AXIS = ("still", "move"), ("bounce",)
"""Kinds of motion whose velocity is told, and whose two components are known but for their signs; else the pace is."""


@dataclass(frozen=True)
class Meaning:
    """What classes of a scene mean: `cells` a lone thing covers, by shape and size; kinds of motion by name; what each
    way does to a pace, across and down; paces in pixels per frame by speed; the number of colours."""

    cells: Sequence[Sequence[float]] = ((1.0,),)
    kinds: Sequence[str] = ("still",)
    ways: Sequence[Sequence[float]] = ((0.0, 0.0),)
    paces: Sequence[float] = (0.0,)
    colours: int = 1

    @property
    def fields(self) -> tuple[int, ...]:
        """Numbers of classes of what is said of a thing: shape, colour, size, kind of motion, way, speed."""
        sides = (len(self.cells), self.colours, len(self.cells[0]))
        return (*sides, len(self.kinds), len(self.ways), len(self.paces))

    @property
    def seen(self) -> tuple[int, int, int]:
        """Numbers of classes of what stands in a cell, nothing included: shape, size, colour."""
        return len(self.cells) + 1, len(self.cells[0]) + 1, self.colours + 1


@dataclass(frozen=True)
class Asked:
    """Scenes of up to K things each: what is said of them [N, K, fields] (see `Meaning.fields`; 0 where there is no
    thing), classes [N, K, 3] (0 nothing, else 1 + the class of shape, size, colour), `there` [N, K] (0 where a scene
    has fewer things), cells that a thing usually covers [N, K], pace [N, K] in pixels per frame, and how a thing moves:
    velocity [N, K, 2] where it is `told`, the size of both components where `axis`, else the pace alone."""

    things_NKF: Tensor
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

    @classmethod
    def of(cls, things_NKF: Tensor, there_NK: Tensor, meaning: Meaning) -> Asked:
        """Of the classes [N, K, fields] of what is said (see `Meaning.fields`); those of things that are not there
        mean nothing."""
        things = torch.where(there_NK[..., None] > 0, things_NKF, 0)
        shape, colour, size, kind, way, speed = things.unbind(-1)
        table = things.new_tensor
        pace = there_NK.new_tensor(meaning.paces)[speed]
        told, axis = (
            table([name in names for name in meaning.kinds])[kind].float() * there_NK for names in (TOLD, AXIS)
        )
        pace = pace * (1 - table([name == "still" for name in meaning.kinds])[kind].float())
        return cls(
            things, (1 + torch.stack([shape, size, colour], -1)) * (there_NK[..., None] > 0), there_NK,
            there_NK.new_tensor(meaning.cells)[shape, size] * there_NK, pace * there_NK,
            there_NK.new_tensor(meaning.ways)[way] * (pace * there_NK)[..., None], told, axis,
        )  # fmt: skip


class BlockReader(nn.Module):
    """What stands in every cell of a block of `frames` latent frames of `channels`; maps of any height and width."""

    def __init__(
        self, channels: int, frames: int, kinds: tuple[int, int, int], width: int = 112, blocks: int = 5
    ) -> None:
        super().__init__()
        self.frames, self.parts = frames, (*kinds, 2)
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


class SceneReader(nn.Module):
    """Which things a prompt describes: learned queries, one for each field of each of `things` things by its place in
    the prompt, look at the embeddings of its words."""

    def __init__(self, width: int, fields: tuple[int, ...], things: int, heads: int = 4) -> None:
        super().__init__()
        self.things, self.fields = things, (2, *fields)
        self.queries = nn.Embedding(things * len(self.fields), width)
        self.attend = nn.MultiheadAttention(width, heads, batch_first=True)
        self.name = nn.ModuleList(nn.Linear(width, size) for _ in range(things) for size in self.fields)

    def forward(self, text_NLD: Tensor) -> list[Tensor]:
        """Logits [N, K, classes] of whether a thing is there and of every field, from embeddings that are zero where
        there is no token."""
        text_NLD, told_NL = parts.words(text_NLD.to(self.queries.weight.dtype))
        queries = self.queries.weight.expand(len(text_NLD), -1, -1)
        y_NQD, _ = self.attend(queries, text_NLD, text_NLD, key_padding_mask=~told_NL, need_weights=False)
        said = [layer(y_NQD[:, place]).float() for place, layer in enumerate(self.name)]
        return [torch.stack(said[index :: len(self.fields)], 1) for index in range(len(self.fields))]

    def read(self, text_NLD: Tensor, meaning: Meaning) -> Asked:
        """The scenes that prompts most likely describe."""
        there, *fields = (logits.argmax(-1) for logits in self(text_NLD))
        return Asked.of(torch.stack(fields, -1), there.float(), meaning)


class Asking:
    """The distance between what blocks read as and what was asked."""

    def __init__(self, reader: BlockReader) -> None:
        self.reader = reader

    def __call__(self, z_NTCHW: Tensor, asked: Asked) -> dict[str, Tensor]:
        """The terms [N], by the names in MARKS; all are 0 or near for true blocks."""
        return self.terms(self.reader(z_NTCHW), asked)

    @staticmethod
    def terms(read: Sequence[Tensor], asked: Asked) -> dict[str, Tensor]:
        """The same of what a reader has read (see `BlockReader`)."""
        *logits, velocity_NTYX2 = read
        colour_NTYXC, here_NKTYX = logits[2].softmax(-1), places(read, asked)
        fixed = here_NKTYX.detach()
        terms = {}
        for index, kind in enumerate(("shape", "size")):
            wrong = -of_things(logits[index].log_softmax(-1), asked.classes_NKJ[..., index])
            terms[kind] = _mean(_where(wrong, fixed), asked)
        usual_NKT = (asked.cells_NK[..., None] + 0.5).log()
        found_NKT = (here_NKTYX.sum((-2, -1)) + 0.5).log()
        off = F.huber_loss(found_NKT, usual_NKT.expand_as(found_NKT), reduction="none", delta=NEAR)
        terms["cells"] = _mean(8 * off.mean(-1), asked)
        fine = (colour_NTYXC[..., 0] + here_NKTYX.sum(1)).clamp(SURE, 1)
        terms["stray"] = torch.log1p(-fine.log().sum((2, 3)).mean(1))
        # A stream's first frame has no frame before it to move from.
        terms["motion"] = _mean(_where(_misses(velocity_NTYX2[:, None, 1:], asked), fixed[:, :, 1:]), asked)
        terms["pace"] = _mean(_off_pace(own_velocity(read, here_NKTYX)[:, :, 1:], asked), asked)
        return terms


def distance(terms: dict[str, Tensor], weights: Mapping[str, float] = WEIGHTS) -> Tensor:
    """One number [N] from those terms that have a weight; its logarithm keeps hopeless blocks from outweighing those
    that can be mended."""
    total = torch.stack([weights[name] * term for name, term in terms.items() if name in weights]).sum(0)
    return torch.log1p(total)


def places(read: Sequence[Tensor], asked: Asked) -> Tensor:
    """How much of every cell is each thing's, by its colour [N, K, T, Y, X]; nothing where there is no thing."""
    colour_NTYXC = read[2].softmax(-1)
    return of_things(colour_NTYXC, asked.classes_NKJ[..., 2]) * asked.there_NK[..., None, None, None]


def own_velocity(read: Sequence[Tensor], here_NKTYX: Tensor) -> Tensor:
    """The velocity [N, K, T, 2] of things in pixels per frame: the mean over their cells."""
    cells_NKT = here_NKTYX.sum((-2, -1)).clamp(min=0.5)
    return (here_NKTYX[..., None] * read[-1][:, None]).sum((3, 4)) / cells_NKT[..., None]


def of_things(x_NTYXC: Tensor, class_NK: Tensor) -> Tensor:
    """The entry [N, K, T, Y, X] of every thing's class."""
    wide = class_NK[:, :, None, None, None, None].expand(-1, -1, *x_NTYXC.shape[1:4], 1)
    return x_NTYXC[:, None].expand(-1, class_NK.shape[1], -1, -1, -1, -1).gather(-1, wide)[..., 0]


def _off_pace(own_NKT2: Tensor, asked: Asked) -> Tensor:
    """How far [N, K] the things' own velocities are off, as parts of their paces: squared pixels by squared pixels.
    What stands still and should creep is off by little and all wrong."""
    off_NKT = _misses(own_NKT2[..., None, None, :], asked)[..., 0, 0]
    return (off_NKT / (asked.pace_NK[..., None].square() + SLOW**2)).mean(-1)


def _misses(given: Tensor, asked: Asked) -> Tensor:
    """Squared pixels per frame [N, K, T, Y, X] by which velocities [N, K or 1, T, Y, X, 2] are not those of things."""
    pace = asked.pace_NK[..., None, None, None]
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


@dataclass(frozen=True)
class ReadingJudgeConfig:
    """Latents of `channels`, read `frames` at a time; `width` and `blocks` of the reader of cells, `text_width` of the
    embeddings, up to `things` things in a scene, and what its classes mean."""

    channels: int = 16
    frames: int = 3
    width: int = 112
    blocks: int = 5
    text_width: int = 128
    things: int = 3
    meaning: Meaning = field(default_factory=Meaning)


class ReadingJudge(nn.Module):
    """Scores blocks (see `arvid.types.BlockReward`). A shorter block is read with what came before it; one that begins
    a video and is shorter still, with its first frame again."""

    lookback = 0

    def __init__(self, config: ReadingJudgeConfig) -> None:
        super().__init__()
        self.config, meaning = config, config.meaning
        self.cells = BlockReader(config.channels, config.frames, meaning.seen, config.width, config.blocks)
        self.scenes = SceneReader(config.text_width, meaning.fields, config.things)
        self.asking = Asking(self.cells)

    @torch.no_grad()
    def score_block(self, candidate: Candidate) -> Tensor:
        """One over one plus the sum of the terms [B] fp32, weighted by MARKS, in (0, 1]: 1 is what was asked.

        Raises ValueError for latents of another number of channels.
        """
        return (-distance(self.terms(candidate), MARKS)).exp()

    @torch.no_grad()
    def terms(self, candidate: Candidate) -> dict[str, Tensor]:
        """The terms [B] of the distance of blocks from what they were asked to show (see `Asking`).

        Raises ValueError for latents of another number of channels.
        """
        return self.asking.terms(*self.read(candidate))

    @torch.no_grad()
    def read(self, candidate: Candidate) -> tuple[tuple[Tensor, ...], Asked]:
        """What stands in the cells of blocks (see `BlockReader`), and what was asked.

        Raises ValueError for latents of another number of channels.
        """
        block = candidate.block_BTCHW
        if block.ndim != 5 or block.shape[2] != self.config.channels:
            raise ValueError(
                f"latents of shape {[*block.shape]} to judge; expected [B, T, {self.config.channels}, H, W]"
            )
        film = block if candidate.before_BTCHW is None else torch.cat([candidate.before_BTCHW, block], 1)
        film = film[:, -self.config.frames :]
        film = torch.cat([film[:, :1]] * (self.config.frames - film.shape[1]) + [film], 1)
        where = self.cells.stem.weight.device
        asked = self.scenes.read(candidate.condition.text_BLD.to(where), self.config.meaning)
        return self.cells(film.to(where)), asked

    def save(self, directory: Path) -> None:
        """Write model.safetensors and config.json."""
        parts.save(self, self.config, directory)

    @classmethod
    def load(cls, directory: Path) -> ReadingJudge:
        """Read what `save` wrote. Raises ValueError when it is missing, damaged or of another configuration."""

        def make(raw: dict[str, Any]) -> ReadingJudge:
            return cls(ReadingJudgeConfig(**{**raw, "meaning": Meaning(**raw.get("meaning", {}))}))

        return parts.load("reading judge", make, directory)
