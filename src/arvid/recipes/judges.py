"""The recipe of the judges of blocks: two that read latents, one that looks at pixels, and those that mark.

Knows: where clips, drafter and autoencoder of a run lie, sizes, rates, which clips are kept apart. Does not know:
losses and rivals (train/judges), the judges' networks (rewards/), how blocks are marked (recipes/marking).

`latent_judge` writes `runs/latent_judge/model/`, and so on: a family that holds `latent_judge/`, `block_judge/` or
`reading_judge/` has routers that ask `by=latent`, `by=block` or `by=reading`. How the reading judge learns, which needs
no rivals, is in `recipes.reading_judge`; how those learn that mark what it reads, in `recipes.marking`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from arvid.caches.window import Window
from arvid.models.family import load_autoencoder
from arvid.models.running import pack, packable
from arvid.recipes import embedded, marking
from arvid.recipes.embedded import WINDOW, Report
from arvid.recipes.reading_judge import reading_judge
from arvid.recipes.transformers import read, trained
from arvid.recipes.world import BLOCK
from arvid.rewards.block import BlockJudge, BlockJudgeConfig
from arvid.rewards.latent import LatentJudge, LatentJudgeConfig
from arvid.samplers.grids import few_step
from arvid.samplers.steps import STEPS
from arvid.train.judges import (
    DRAFTED,
    RIVALS,
    TRUE,
    Decoded,
    DraftOf,
    Drafts,
    JudgeBatch,
    Marked,
    Ranking,
    Rivals,
    mark,
)
from arvid.train.trainer import TrainConfig, train

DRAFT_STEPS = (1, 2, 4)
"""Passes of the drafts a judge learns from, so that it is a judge of all of them."""
KINDS = (DRAFTED,) * (len(RIVALS) - 2) + RIVALS
"""Half of the rivals are drafts: they are what is judged later, and the hardest to tell."""
APART, HELD_BATCHES = 0.05, 4
"""Share of the clips that nothing is learned from, and batches of them that are marked."""


@dataclass(frozen=True)
class Sizes:
    """How much of everything: clips of a batch, rivals of each, and the run whose drafter makes the drafts."""

    latent_judge_steps: int = 600
    block_judge_steps: int = 400
    reading_judge_steps: int = 1500
    marked_prompts: int = 2280
    marking_steps: int = 2500
    batch: int = 8
    rivals: int = 3
    drafter: str = "drafter"


class Pool:
    """Clips and their embeddings by step (see `train.judges.Clips`): a pure function of it."""

    def __init__(self, z_NTCHW: Tensor, text_NLD: Tensor, batch: int) -> None:
        self.z, self.text, self.batch = z_NTCHW, text_NLD, batch

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """The clips of a step, each once where there are enough."""
        rng = np.random.default_rng([23, step])
        chosen = torch.from_numpy(rng.choice(len(self.z), self.batch, replace=len(self.z) < self.batch))
        return self.z[chosen].float(), self.text[chosen].float()


class Varied:
    """Drafts in turn by one of several ways to make them (see `train.judges.DraftOf`)."""

    def __init__(self, ways: Sequence[DraftOf]) -> None:
        self.ways = ways

    def __call__(self, z_BTCHW: Tensor, text_BLD: Tensor, start: int, seed: int) -> Tensor:
        """Drafts of the blocks that begin at `start`."""
        return self.ways[seed % len(self.ways)](z_BTCHW, text_BLD, start, seed)


def latent_judge(runs: Path, sizes: Sizes, report: Report) -> None:
    """The judge of latents."""
    rivals, held = batches(runs, sizes)
    torch.manual_seed(0)
    channels, width = read(runs, "latents", 1).shape[2], read(runs, "text", 1).shape[-1]
    model = LatentJudge(LatentJudgeConfig(channels=channels, frames=BLOCK, text_width=width))
    learned(model, rivals, held, sizes.latent_judge_steps, runs / "latent_judge", report)
    model.to(torch.bfloat16).save(runs / "latent_judge" / "model")


def block_judge(runs: Path, sizes: Sizes, report: Report) -> None:
    """The judge of pixels."""
    codec = load_autoencoder(runs / "decoder", embedded.CARD, embedded.CPU)
    rivals, held = (Decoded(source, codec) for source in batches(runs, sizes))
    torch.manual_seed(0)
    model = BlockJudge(BlockJudgeConfig(text_width=read(runs, "text", 1).shape[-1]))
    learned(model, rivals, held, sizes.block_judge_steps, runs / "block_judge", report)
    model.to(torch.bfloat16).save(runs / "block_judge" / "model")


def reading(runs: Path, sizes: Sizes, report: Report) -> None:
    """The judge that reads, a third as many steps for prompts as for cells."""
    reading_judge(runs, sizes.reading_judge_steps, -(-sizes.reading_judge_steps // 3), report)


def marked(runs: Path, sizes: Sizes, report: Report) -> None:
    """Blocks that the oracle has marked."""
    marking.marked(runs, sizes.marked_prompts, report)


def marking_judges(runs: Path, sizes: Sizes, report: Report) -> None:
    """The judges that learn from them."""
    marking.marking(runs, sizes.marking_steps, report)


def batches(runs: Path, sizes: Sizes) -> tuple[Rivals, Rivals]:
    """True blocks and their rivals, of the clips to learn from and of those kept apart."""
    z, text = read(runs, "latents"), read(runs, "text")
    model = trained(runs, sizes.drafter).to(torch.bfloat16).eval().requires_grad_(False)
    if packable(model):
        pack(model)
    step = STEPS[embedded.CARD.step]
    draft = Varied([Drafts(model, Window(WINDOW), BLOCK, few_step(passes), step) for passes in DRAFT_STEPS])
    edge = len(z) - max(1, round(APART * len(z)))
    pools = (Pool(part, words, sizes.batch) for part, words in ((z[:edge], text[:edge]), (z[edge:], text[edge:])))
    learn, held = (Rivals(pool, draft, BLOCK, sizes.rivals, KINDS) for pool in pools)
    return learn, held


def learned(
    model: LatentJudge | BlockJudge, rivals: Callable[[int], JudgeBatch], held: Callable[[int], JudgeBatch],
    steps: int, directory: Path, report: Report,
) -> None:  # fmt: skip
    """Train a judge in place; what it says of the clips kept apart goes into the log."""
    chosen = [held(step) for step in range(HELD_BATCHES)]

    def numbers(_: nn.Module) -> dict[str, float]:
        return ranks(mark(model, chosen.__getitem__, range(HELD_BATCHES)))

    settings = TrainConfig(
        steps, learning_rate=1.5e-3, warmup=50, average=0.99, weight_decay=0.02, save_every=100, log_every=20
    )
    model.load_state_dict(train(model, Ranking(model), rivals, settings, directory, numbers, report))


def ranks(found: Marked) -> dict[str, float]:
    """The chance that a true block scores above a rival, of all kinds (`held_auc`) and of each (`held_KIND`)."""
    kinds = np.array(found.kinds)
    scores = found.score_N.numpy()
    true = scores[kinds == TRUE]

    def chance(rivals: np.ndarray) -> float:
        gap = true[:, None] - rivals
        return float(((gap > 0) + 0.5 * (gap == 0)).mean())

    each = {f"held_{kind}": chance(scores[kinds == kind]) for kind in sorted(set(found.kinds) - {TRUE})}
    return {"held_auc": chance(scores[kinds != TRUE]), **each}


STAGES: dict[str, Callable[[Path, Sizes, Report], None]] = {
    "latent_judge": latent_judge,
    "block_judge": block_judge,
    "reading_judge": reading,
    "marked": marked,
    "marking": marking_judges,
}
"""Stages in any order, but for the last two, which need the others' family, and one the other."""
