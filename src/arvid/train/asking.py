"""Learning to read: how the reading judge (rewards/reading.py) learns what stands in cells and what prompts describe.

Knows: the shapes world's labels and scenes, what they mean in numbers, both objectives. Does not know: where latents
and embeddings come from, distances, who asks the judge. The oracle takes no part: labels are the renderer's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from arvid.rewards.reading import Asked, BlockReader, Meaning, SceneReader
from arvid.train.reading import Told, cells_loss
from arvid.train.text import ABSENT, THING_FIELDS, WAYS, entropy, targets
from arvid.worlds import shapes
from arvid.worlds.grammar import SHAPES, SIZES, SPEEDS, THING_COLOURS, Scene
from arvid.worlds.labels import label

ROUGH, UNTOUCHED = 0.35, 0.3
"""A reader sees latents with noise of up to ROUGH, and a share UNTOUCHED of them as they are."""
PLACES = 40
"""Renders over which the cells of a thing are averaged."""


@cache
def meaning() -> Meaning:
    """What the words of the shapes world mean: cells by the mean over places of a lone thing, paces and ways as the
    renderer moves things."""
    cells = [
        [
            float(np.mean([
                (label(f"a {size} red {shape} stays still on a black background", seed, 1).shape_TYX > 0).sum()
                for seed in range(PLACES)
            ]))
            for size in SIZES
        ]
        for shape in SHAPES
    ]  # fmt: skip
    half = math.sqrt(0.5)
    ways = {
        "left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0),
        "horizontal": (1.0, 0.0), "vertical": (0.0, 1.0), "diagonal": (half, half),
    }  # fmt: skip
    paces = [shapes.SPEEDS[speed] * shapes.SIZE for speed in SPEEDS]
    moves = [ways.get(way, (0.0, 0.0)) for way in WAYS]
    return Meaning(cells, THING_FIELDS["motion"], moves, paces, len(THING_COLOURS))


def classes(scenes: Sequence[Scene]) -> Tensor:
    """The classes [N, K, fields] of what is said of the things of scenes (see `train.text.targets`).

    Raises ValueError for a scene with two things of one colour, whose cells could not be told apart.
    """
    for scene in scenes:
        colours = [thing.colour for thing in scene.things]
        if len(set(colours)) < len(colours):
            raise ValueError(f"things of the colours {', '.join(colours)} in one scene; each needs one of its own")
    return torch.tensor([targets(scene)[0] for scene in scenes])


def asked(things_NKF: Tensor) -> Asked:
    """What `classes` asks for."""
    return Asked.of(things_NKF, (things_NKF[..., 0] != ABSENT).float(), meaning())


@dataclass(frozen=True)
class LabelledBlocks:
    """Blocks of latents [N, T, C, Y, X], what stands in their cells, and in which frames [N, T] velocity is known."""

    z_NTCHW: Tensor
    told: Told
    moving_NT: Tensor


class BlockReading:
    """The objective of a reader of cells: what stands in those of blocks that are a little noisy."""

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
class ToldScenes:
    """Embeddings of prompts [N, L, D] and the classes [N, K, fields] of what they say (see `train.text.targets`)."""

    text_NLD: Tensor
    things_NKF: Tensor


class SceneReading:
    """The objective of a reader of prompts: which things there are, and every field of those."""

    def __init__(self, reader: SceneReader) -> None:
        self.reader = reader

    def __call__(self, batch: ToldScenes, generator: torch.Generator) -> dict[str, Tensor]:
        """`loss` in nats per field, and the share of prompts of which everything is read right."""
        there_NK = (batch.things_NKF[..., 0] != ABSENT).long()
        wanted = [there_NK, *batch.things_NKF.unbind(-1)]
        logits = self.reader(batch.text_NLD)
        losses = [entropy(a, b) for a, b in zip(logits, wanted, strict=True)]
        hits = [(a.argmax(-1) == b) | (b == ABSENT) for a, b in zip(logits, wanted, strict=True)]
        return {"loss": torch.stack(losses).mean(), "right": torch.stack(hits).all(0).all(1).float().mean()}
