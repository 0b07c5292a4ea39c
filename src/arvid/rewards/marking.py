"""The marking judge: what a block reads as, marked thing by thing as marked blocks have taught.

Knows: numbers that the reading judge gives for every thing of a scene, a small network over them, the directory that
its weights are kept in. Does not know: networks that read, who made the marks (`train.marking`), who asks.

The reading judge's distance weighs its terms by hand. This network sees the numbers behind them (what a thing is taken
for, how large it is, where it is in every frame and how it moves, against what was said of it) and gives every thing a
value, as the oracle of marked blocks does; the mean of the values is the mark to expect. It is shown latents: those of
a block, or those of its frames, encoded again (`rewards.rereading.Seeing`); weights belong to one of the two.

Legend: N blocks, K things of a scene, T latent frames, Y X cells, F numbers of a thing, S of a scene, A attributes,
D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arvid.rewards import parts
from arvid.rewards.reading import Asked, Asking, ReadingJudge, of_things, own_velocity, places
from arvid.types import Candidate

LOUD = 6.0
"""No number counts for more than so many of its deviations."""
FAINT = 1e-4
"""Marks lie so far from 0 and 1, so that their logarithms have an end."""


class Evidence(NamedTuple):
    """Numbers of things [N, K, F] and of the scene [N, S], and what was asked."""

    things_NKF: Tensor
    scene_NS: Tensor
    asked: Asked


def evidence(read: Sequence[Tensor], asked: Asked) -> Evidence:
    """What a reading (see `rewards.reading.BlockReader`) says of every thing that was asked for: nats of its shape and
    size, the log of its number of cells by the usual one, its velocity and that less the one asked for, the log of its
    pace by that asked for, where it is and how far it spreads (of half a side), frame by frame, and the kind of motion;
    of the scene the terms of the distance and their roots."""
    logits, here_NKTYX = read[:3], places(read, asked)
    cells_NKT = here_NKTYX.sum((-2, -1))
    numbers = []
    for index in (0, 1):
        wrong = -of_things(logits[index].log_softmax(-1), asked.classes_NKJ[..., index])
        numbers.append((wrong * here_NKTYX).sum((-2, -1)) / cells_NKT.clamp(min=0.5))
    numbers.append((cells_NKT + 0.5).log() - (asked.cells_NK[..., None] + 0.5).log())
    own_NKT2, meant_NK12 = own_velocity(read, here_NKTYX), asked.velocity_NK2[:, :, None]
    numbers += [own_NKT2.flatten(2), (own_NKT2 - meant_NK12).flatten(2)]
    pace_NKT = (own_NKT2.square().sum(-1) + 1e-4).sqrt()
    numbers.append(((pace_NKT + 0.1) / (asked.pace_NK[..., None] + 0.1)).log())
    numbers += _where(here_NKTYX, cells_NKT)
    numbers.append(torch.stack([asked.told_NK, asked.axis_NK, asked.pace_NK], -1))
    terms = torch.stack([*Asking.terms(read, asked).values()], 1)
    return Evidence(torch.cat(numbers, -1), torch.cat([terms, terms.clamp(min=0).sqrt()], 1), asked)


def _where(here_NKTYX: Tensor, cells_NKT: Tensor) -> list[Tensor]:
    """Places, spreads and steps [N, K, T or T - 1] of things, across and down, in half a side of the map."""
    found = []
    for axis in (-1, -2):
        side = here_NKTYX.shape[axis]
        line = torch.linspace(-1 + 1 / side, 1 - 1 / side, side, device=here_NKTYX.device)
        line = line if axis == -1 else line[:, None]
        total = cells_NKT.clamp(min=0.3)
        middle = (here_NKTYX * line).sum((-2, -1)) / total
        spread = (here_NKTYX * (line - middle[..., None, None]).square()).sum((-2, -1)) / total
        found += [middle, spread, middle.diff(dim=-1)]
    return found


@dataclass(frozen=True)
class MarkingJudgeConfig:
    """Numbers of classes of what is said of a thing, of numbers of a thing and of a scene, of attributes that are
    marked beside the whole; `width` and `blocks` of the network."""

    fields: tuple[int, ...]
    things: int
    scene: int
    attributes: int = 13
    width: int = 128
    blocks: int = 2


class MarkingJudge(nn.Module):
    """Scores blocks (see `arvid.types.BlockReward`). The reading judge it listens to is no part of its weights."""

    lookback = 0

    def __init__(self, config: MarkingJudgeConfig, reading: ReadingJudge) -> None:
        super().__init__()
        self.config, self._witness = config, (reading,)
        width = config.width
        self.said = nn.ModuleList(nn.Embedding(size, width) for size in config.fields)
        for table in self.said.parameters():
            table.data.mul_(0.5)
        self.thing = nn.Linear(config.things, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
            for _ in range(config.blocks)
        )
        both = width + config.scene
        self.scene = nn.Sequential(nn.LayerNorm(both), nn.Linear(both, width), nn.SiLU())
        self.value, self.attributes = nn.Linear(width, 1), nn.Linear(width, config.attributes)
        self.scene_value, self.scene_attributes = nn.Linear(width, 1), nn.Linear(width, config.attributes)
        self.plain = nn.Linear(config.scene, 1)
        nn.init.zeros_(self.scene_value.weight)
        nn.init.zeros_(self.plain.weight)
        for name, size in (("things", config.things), ("scene", config.scene)):
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_spread", torch.ones(size))

    def measure(self, shown: Evidence) -> None:
        """Set what the numbers usually are, and by how much they vary, from evidence of many blocks."""
        there = shown.asked.there_NK > 0
        for name, x in (("things", shown.things_NKF[there]), ("scene", shown.scene_NS)):
            self.get_buffer(f"{name}_mean").copy_(x.mean(0))
            self.get_buffer(f"{name}_spread").copy_(x.std(0) + 1e-3)

    def forward(self, shown: Evidence) -> tuple[Tensor, Tensor]:
        """Logits of marks [N], and estimates [N, A] in [0, 1] of those of the attributes."""
        asked = shown.asked
        share_NK = asked.there_NK / asked.there_NK.sum(1, keepdim=True).clamp(min=1)
        things, scene = self._usual("things", shown.things_NKF), self._usual("scene", shown.scene_NS)
        said = [table(asked.things_NKF[..., index]) for index, table in enumerate(self.said)]
        x_NKD = self.thing(things) + torch.stack(said).sum(0)
        for block in self.blocks:
            x_NKD = x_NKD + block(x_NKD)
        s_ND = self.scene(torch.cat([(x_NKD * share_NK[..., None]).sum(1), scene], -1))
        value_N = (self.value(x_NKD)[..., 0].sigmoid() * share_NK).sum(1).clamp(FAINT, 1 - FAINT)
        logits = value_N.logit() + self.scene_value(s_ND)[:, 0] + self.plain(scene)[:, 0]
        marks_NKA = (self.attributes(x_NKD) + self.scene_attributes(s_ND)[:, None]).sigmoid()
        return logits, (marks_NKA * share_NK[..., None]).sum(1)

    def _usual(self, name: str, x: Tensor) -> Tensor:
        usual = (x - self.get_buffer(f"{name}_mean")) / self.get_buffer(f"{name}_spread")
        return F.hardtanh(usual, -LOUD, LOUD)

    @torch.no_grad()
    def evidence(self, candidate: Candidate) -> Evidence:
        """What the reading judge says of blocks. Raises ValueError for latents of another number of channels."""
        return evidence(*self._witness[0].read(candidate))

    @torch.no_grad()
    def score_block(self, candidate: Candidate) -> Tensor:
        """Estimates [B] fp32 in [0, 1] of the marks of blocks. Raises ValueError for latents of another number of
        channels."""
        return self(self.evidence(candidate))[0].sigmoid().float()

    def save(self, directory: Path) -> None:
        """Write model.safetensors and config.json."""
        parts.save(self, self.config, directory)

    @classmethod
    def load(cls, directory: Path, reading: ReadingJudge) -> MarkingJudge:
        """Read what `save` wrote, to listen to this reading judge. Raises ValueError when it is missing, damaged or of
        another configuration."""
        return parts.load("marking judge", lambda raw: cls(MarkingJudgeConfig(**raw), reading), directory)
