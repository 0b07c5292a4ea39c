"""The recipe of few-step models: a trained transformer becomes one that needs one to four passes a block.

Knows: which weights a stage starts from, its sizes, rates and levels. Does not know: losses (train/), networks
(models/), how the weights it starts from were made (recipes/embedded).

First `consistency` along the model's own flow (`runs/NAME-consistency`), then `matching` of its rollouts with the
target (`runs/NAME-few`), NAME being target or drafter. Rates are the published ones, scaled by what a model of this
size is trained with; they have not been searched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from arvid.caches.window import Window
from arvid.models.family import fill
from arvid.models.wan.presets import EMBEDDED_DRAFTER, EMBEDDED_TARGET
from arvid.models.wan.transformer import CausalWan, WanConfig
from arvid.recipes.embedded import BLOCK, FRAMES, WINDOW, Report
from arvid.samplers.grids import few_step
from arvid.train.consistency import Consistency
from arvid.train.distribution_matching import DistributionMatching, Matching
from arvid.train.flow import FlowBatch
from arvid.train.scores import CausalScore
from arvid.train.self_forcing import Horizon, SelfForcing
from arvid.train.trainer import TrainConfig, train

CONFIGS: dict[str, WanConfig] = {"target": EMBEDDED_TARGET, "drafter": EMBEDDED_DRAFTER}
CRITIC_STEPS = 5
"""Steps of the critic to one of the student."""


@dataclass(frozen=True)
class Sizes:
    """How much of everything. `levels` is the number of teacher steps that consistency makes into one pass (the field
    has 48), `steps` the passes of the few-step model, `horizon` the longest rollout in latent frames."""

    consistency_steps: int = 1000
    matching_steps: int = 300
    drafter_consistency_steps: int = 1000
    drafter_matching_steps: int = 300
    levels: int = 4
    steps: int = 4
    horizon: int = 63
    batch: int = 4


def consistency(runs: Path, sizes: Sizes, report: Report) -> None:
    """The target's flow, in fewer passes."""
    distilled(runs, "target", sizes, sizes.consistency_steps, report)


def drafter_consistency(runs: Path, sizes: Sizes, report: Report) -> None:
    """The drafter's own flow, in fewer passes."""
    distilled(runs, "drafter", sizes, sizes.drafter_consistency_steps, report)


def matching(runs: Path, sizes: Sizes, report: Report) -> None:
    """Rollouts of the few-step target against the target."""
    matched(runs, "target", sizes, sizes.matching_steps, report)


def drafter_matching(runs: Path, sizes: Sizes, report: Report) -> None:
    """Rollouts of the few-step drafter against the target."""
    matched(runs, "drafter", sizes, sizes.drafter_matching_steps, report)


def distilled(runs: Path, name: str, sizes: Sizes, steps: int, report: Report) -> None:
    """Causal consistency distillation of one transformer; the teacher is the model as it was."""
    z, words = (read(runs, key) for key in ("latents", "text"))
    model, teacher = trained(runs, name, name), trained(runs, name, name).to(torch.bfloat16).requires_grad_(False)

    def source(step: int) -> FlowBatch:
        chosen = torch.from_numpy(np.random.default_rng([17, step]).integers(0, len(z), sizes.batch))
        return FlowBatch(z[chosen].float(), words[chosen].float())

    objective = Consistency(
        model, CausalScore(teacher, FRAMES, BLOCK, Window(WINDOW)), FRAMES, BLOCK, Window(WINDOW),
        few_step(sizes.levels),
    )  # fmt: skip
    settings = TrainConfig(
        steps, learning_rate=4e-4, warmup=50, average=0.99, weight_decay=0.01, save_every=100, muon="blocks."
    )
    directory = runs / f"{name}-consistency"
    keep(train(model, objective, source, settings, directory, None, report), directory)


def matched(runs: Path, name: str, sizes: Sizes, steps: int, report: Report) -> None:
    """Self-Forcing with distribution matching. The real score is the target's, the critic starts as the model was
    before it was distilled."""
    words = torch.cat([read(runs, "text"), read(runs, "first_text")])
    model = trained(runs, name, f"{name}-consistency")
    real, fake = (
        CausalScore(score, FRAMES, BLOCK, Window(WINDOW))
        for score in (
            trained(runs, "target", "target").to(torch.bfloat16).requires_grad_(False),
            trained(runs, name, name),
        )
    )
    height, width = read(runs, "latents", 1).shape[-2:]
    roll = SelfForcing(
        model, Window(WINDOW), Horizon(FRAMES, sizes.horizon, BLOCK, lead=BLOCK),
        (CONFIGS[name].in_dim, height, width), few_step(sizes.steps),
    )  # fmt: skip

    def source(step: int) -> Tensor:
        rng = np.random.default_rng([19, step])
        return words[torch.from_numpy(rng.integers(0, len(words), (CRITIC_STEPS + 1, sizes.batch)))].float()

    objective = Matching(roll, DistributionMatching(real, fake), learning_rate=4e-5)
    settings = TrainConfig(steps, learning_rate=4e-5, warmup=20, average=0.99, weight_decay=0.01, save_every=20)
    directory = runs / f"{name}-few"
    keep(train(model, objective, source, settings, directory, None, report), directory)


def read(runs: Path, key: str, parts: int | None = None) -> Tensor:
    """One tensor of the parts that the stage `latents` of the embedded recipe left, or of the first `parts` of them.

    Raises ValueError when there are none.
    """
    paths = sorted((runs / "latents").glob("*.safetensors"))[:parts]
    if not paths:
        raise ValueError(f"no latents in {runs / 'latents'}; make them by `arvid train embedded --stage latents`")
    return torch.cat([load_file(path)[key] for path in paths])


def trained(runs: Path, name: str, directory: str) -> CausalWan:
    """The transformer `name` in fp32 with the weights of a finished stage. Raises ValueError when they are missing."""
    model = CausalWan(CONFIGS[name])
    fill(model, runs / directory / "model.safetensors")
    return model


def keep(weights: dict[str, Tensor], directory: Path) -> None:
    """Write the weights of a finished stage in bf16."""
    save_file({k: v.to(torch.bfloat16).contiguous() for k, v in weights.items()}, directory / "model.safetensors")


STAGES: dict[str, Callable[[Path, Sizes, Report], None]] = {
    "consistency": consistency,
    "matching": matching,
    "drafter_consistency": drafter_consistency,
    "drafter_matching": drafter_matching,
}
"""Stages in the order in which they need each other."""
