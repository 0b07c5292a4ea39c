"""The recipe of the reading judge: a reader of cells learns from labelled latents, a reader of prompts from captions.

Knows: where latents, labels and text encoder of a run lie, sizes, rates, which clips are kept apart. Does not know:
objectives (train/asking.py), the judge's networks and its distance (rewards/reading.py), the oracle.

`reading_judge` writes `runs/reading_judge/model/`: a family that holds it as `reading_judge/` has routers that ask
`by=reading`, and `arvid train feedback` learns from it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from arvid.models.text import TextEncoder
from arvid.recipes.embedded import Report
from arvid.recipes.transformers import LABELS, read
from arvid.recipes.world import BLOCK
from arvid.rewards.reading import ReadingJudge, ReadingJudgeConfig
from arvid.train.asking import BlockReading, LabelledBlocks, SceneReading, ToldScenes, meaning
from arvid.train.reading import Told
from arvid.train.text import Captions
from arvid.train.trainer import TrainConfig, train

APART = 32
"""Clips, the last of all, and batches of held-out captions that nothing is learned from."""


class Blocks:
    """Labelled blocks, first blocks on even steps, blocks of whole clips on odd ones; a pure function of the step."""

    def __init__(self, runs: Path, batch: int = 64) -> None:
        self.batch = batch
        self.rows = [
            tuple(read(runs, key) for key in (kind, *(f"{kind}_{what}" for what in LABELS)))
            for kind in ("first", "latents")
        ]

    def __call__(self, step: int) -> LabelledBlocks:
        """The batch of a step."""
        rng, kind = np.random.default_rng([29, step]), step % 2
        rows = self.rows[kind]
        clips = rng.integers(0, len(rows[0]) - APART, self.batch)
        return self.cut(kind, clips, rng.integers(0, rows[0].shape[1] - BLOCK + 1, self.batch))

    def held(self) -> list[LabelledBlocks]:
        """Blocks of the clips that are kept apart."""
        clips = [np.arange(len(rows[0]) - APART, len(rows[0])) for rows in self.rows]
        return [self.cut(kind, clips[kind], np.full(APART, 2 * BLOCK * kind)) for kind in (0, 1)]

    def cut(self, kind: int, clips: np.ndarray, starts: np.ndarray) -> LabelledBlocks:
        """The blocks of some clips that begin at frames."""
        z, classes, velocity, offset = (
            torch.stack([row[i, start : start + BLOCK] for i, start in zip(clips, starts, strict=True)])
            for row in self.rows[kind]
        )
        everywhere = torch.ones(z.shape[:2]).bool()
        moving = everywhere & (torch.arange(BLOCK) >= 1 - kind)  # nothing is known of how a film's first frame moves
        return LabelledBlocks(z.float(), Told(classes, velocity.float(), offset.float(), everywhere), moving)


class Scenes:
    """Captions of up to three things as embeddings, and what they say: a pure function of the step."""

    def __init__(self, encoder: TextEncoder, batch: int, held_out: bool = False) -> None:
        self.captions = Captions(encoder.tokens, encoder.tokenizer.unk_token_id, batch, (1, 2, 3, 4), held_out=held_out)
        self.encoder = encoder

    def __call__(self, step: int) -> ToldScenes:
        """The batch of a step."""
        batch = self.captions(step)
        with torch.no_grad():
            return ToldScenes(self.encoder(batch.ids_BL, batch.mask_BL), batch.things_BKF)


def reading_judge(runs: Path, cell_steps: int, scene_steps: int, report: Report) -> None:
    """The judge that reads: its reader of prompts first, then its reader of cells."""
    encoder = TextEncoder.load(runs / "text" / "encoder")
    torch.manual_seed(0)
    channels = read(runs, "latents", 1).shape[2]
    config = ReadingJudgeConfig(channels=channels, frames=BLOCK, text_width=encoder.width, meaning=meaning())
    judge, directory = ReadingJudge(config), runs / "reading_judge"
    held_scenes = [Scenes(encoder, 128, held_out=True)(step) for step in range(3)]

    def scenes_right(_: nn.Module) -> dict[str, float]:
        return held(lambda batch: SceneReading(judge.scenes)(batch, torch.Generator()), held_scenes)

    settings = TrainConfig(scene_steps, 2e-3, warmup=30, average=0.98, save_every=200, log_every=50)
    judge.scenes.load_state_dict(
        train(judge.scenes, SceneReading(judge.scenes), Scenes(encoder, 128), settings, directory / "scenes",
              scenes_right, report)
    )  # fmt: skip
    blocks = Blocks(runs)
    apart = blocks.held()
    judge.cells.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def cells_right(_: nn.Module) -> dict[str, float]:
        return held(lambda batch: BlockReading(judge.cells)(batch, torch.Generator().manual_seed(0)), apart)

    settings = TrainConfig(cell_steps, 2e-3, warmup=50, average=0.99, save_every=200, log_every=50)
    judge.cells.load_state_dict(
        train(judge.cells, BlockReading(judge.cells), blocks, settings, directory / "cells", cells_right, report)
    )
    judge.to(torch.bfloat16).save(directory / "model")


def held(
    numbers: Callable[..., dict[str, Tensor]], batches: list[ToldScenes] | list[LabelledBlocks]
) -> dict[str, float]:
    """Means over batches that are kept apart."""
    found = [numbers(batch) for batch in batches]
    return {f"held_{name}": float(torch.stack([each[name] for each in found]).mean()) for name in found[0]}
