"""The recipe of few-step models: a trained transformer becomes one that needs one to four passes a block.

Knows: which weights a stage starts from, its sizes, rates and levels. Does not know: losses (train/), networks
(models/), how the weights it starts from were made (recipes/embedded).

A stage reads `runs/START/model.safetensors` and writes `runs/START-STAGE/`, so a directory's name is the chain of
methods that made it: `target-consistency-matching` is the target, distilled along its own flow, then matched in its
own rollouts. `made.json` beside the weights says the same as data. Rates are the published ones, scaled by what a model
of this size is trained with; they have not been searched.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from arvid.caches.window import Window
from arvid.models.wan.transformer import WanConfig
from arvid.recipes.embedded import FRAMES, WINDOW, Report
from arvid.recipes.transformers import Clips, distil_settings, keep, kind_of, read, trained
from arvid.recipes.world import BLOCK
from arvid.samplers.grids import few_step
from arvid.train.consistency import Consistency
from arvid.train.diffusion_forcing import DiffusionForcing
from arvid.train.distribution_matching import DistributionMatching, Loss, Matching, ScoreIdentity
from arvid.train.scores import CausalScore
from arvid.train.self_forcing import Horizon, SelfForcing
from arvid.train.trainer import TrainConfig, train

MEMORY = 10
"""A slow copy remembers one in so many of a run's steps, and no more than the published hundred steps: in a shorter run
a copy that slow would still be the teacher at the end."""
MADE = "made.json"
"""How the weights beside it were made: method, start, steps, sizes."""


@dataclass(frozen=True)
class Sizes:
    """How much of everything. `levels` is the number of teacher steps that consistency makes into one pass (the field
    has 48), and of passes in the rollouts of the other stages; `horizon` the longest rollout in latent frames, `critic`
    its steps to one of the student's, `start` the directory in `runs` that a stage starts from (empty: `target`, and
    what consistency made of it for the stages behind that), `teacher` the directory whose flow consistency follows
    (empty: that of `start`; a drafter may follow the target)."""

    consistency_steps: int = 1000
    matching_steps: int = 300
    identity_steps: int = 300
    diffusion_steps: int = 1000
    levels: int = 4
    horizon: int = 63
    batch: int = 4
    critic: int = 5
    start: str = ""
    teacher: str = ""


# ---------------------------------------------------------------- stages


def diffusion(runs: Path, sizes: Sizes, report: Report) -> None:
    """Diffusion forcing: the other teacher, trained on from where teacher forcing left it."""
    start = sizes.start or "target"
    model = trained(runs, start)
    objective = DiffusionForcing(model, FRAMES, BLOCK, Window(WINDOW))
    settings = distil_settings(sizes.diffusion_steps)
    directory = runs / f"{start}-diffusion"
    average = train(model, objective, Clips(runs, sizes.batch), settings, directory, None, report)
    finish(average, model.config, directory, "diffusion", start, sizes)


def consistency(runs: Path, sizes: Sizes, report: Report) -> None:
    """Causal consistency distillation of a transformer along its own flow as it was, or along another one's."""
    start = sizes.start or "target"
    model, teacher = trained(runs, start), trained(runs, sizes.teacher or start).to(torch.bfloat16)
    teacher.requires_grad_(False)
    objective = Consistency(
        model, CausalScore(teacher, FRAMES, BLOCK, Window(WINDOW)), FRAMES, BLOCK, Window(WINDOW),
        few_step(sizes.levels), keep=min(0.99, 1 - MEMORY / max(sizes.consistency_steps, 2 * MEMORY)),
    )  # fmt: skip
    settings = distil_settings(sizes.consistency_steps)
    directory = runs / f"{start}-consistency"
    average = train(model, objective, Clips(runs, sizes.batch), settings, directory, None, report)
    finish(average, model.config, directory, "consistency", start, sizes)


def matching(runs: Path, sizes: Sizes, report: Report) -> None:
    """Self-Forcing with distribution matching."""
    matched(runs, sizes, "matching", sizes.matching_steps, DistributionMatching, report)


def identity(runs: Path, sizes: Sizes, report: Report) -> None:
    """Self-Forcing with score identity."""
    matched(runs, sizes, "identity", sizes.identity_steps, ScoreIdentity, report)


def matched(
    runs: Path, sizes: Sizes, stage: str, steps: int, loss: Callable[[CausalScore, CausalScore], Loss], report: Report
) -> None:
    """Rollouts of the few-step model against the target. The real score is the target's, the critic starts as the
    model was before it was distilled."""
    start = sizes.start or "target-consistency"
    words = torch.cat([read(runs, "text"), read(runs, "first_text")])
    model = trained(runs, start)
    real, fake = (
        CausalScore(score, FRAMES, BLOCK, Window(WINDOW))
        for score in (
            trained(runs, "target").to(torch.bfloat16).requires_grad_(False),
            trained(runs, kind_of(start)),
        )
    )
    height, width = read(runs, "latents", 1).shape[-2:]
    roll = SelfForcing(
        model, Window(WINDOW), Horizon(FRAMES, sizes.horizon, BLOCK, lead=BLOCK),
        (model.config.in_dim, height, width), few_step(sizes.levels),
    )  # fmt: skip

    def source(step: int) -> Tensor:
        rng = np.random.default_rng([19, step])
        return words[torch.from_numpy(rng.integers(0, len(words), (sizes.critic + 1, sizes.batch)))].float()

    objective = Matching(roll, loss(real, fake), learning_rate=4e-5)
    settings = TrainConfig(
        steps, learning_rate=4e-5, warmup=20, average=0.99, weight_decay=0.01, save_every=20, log_every=5
    )
    directory = runs / f"{start}-{stage}"
    average = train(model, objective, source, settings, directory, None, report)
    finish(average, model.config, directory, stage, start, sizes)


# ---------------------------------------------------------------- what goes in and out


def finish(
    weights: dict[str, Tensor], config: WanConfig, directory: Path, method: str, start: str, sizes: Sizes
) -> None:
    """Write the weights of a finished stage in bf16, and how they were made."""
    keep(weights, config, directory)
    plain = asdict(sizes)
    made = {"method": method, "start": start, "steps": plain[f"{method}_steps"], "sizes": plain}
    (directory / MADE).write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")


STAGES: dict[str, Callable[[Path, Sizes, Report], None]] = {
    "consistency": consistency,
    "matching": matching,
    "identity": identity,
    "diffusion": diffusion,
}
"""Stages in the order in which they need each other."""
PLACED = tuple(STAGES)
"""Stages that train on the device that was asked for."""
