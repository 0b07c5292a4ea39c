"""The recipe of resampled pasts: a trained target learns to go on from what it made itself.

Knows: where latents and transformers of a run lie, sizes, rates. Does not know: losses (train/resampling.py), networks.

The stage reads `runs/START/model.safetensors` and writes `runs/START-resampled/`; first blocks stay what the start
makes of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from arvid.caches.window import Window
from arvid.recipes.embedded import FRAMES, WINDOWS, Report, reader_of
from arvid.recipes.transformers import Encoded, flow_settings, held_numbers, keep, trained
from arvid.recipes.world import BLOCK
from arvid.train.placing import here
from arvid.train.reading import ReadForcing
from arvid.train.resampling import ResampledForcing
from arvid.train.trainer import TrainConfig, train

READER = TrainConfig(120, 1e-2, warmup=10, average=0.9, save_every=60)
"""Of the reader alone, while the model stands still."""


@dataclass(frozen=True)
class Sizes:
    """How much of everything: whole clips of a worker's step, first blocks to each of them; `rate` is the learning
    rate, `start` a folder in `runs`."""

    target_steps: int = 1400
    batch: int = 3
    firsts: int = 5
    rate: float = 7e-4
    start: str = "target"


def target(runs: Path, sizes: Sizes, report: Report) -> None:
    """The target, behind its own blocks."""
    data, model = Encoded(runs, sizes.batch, sizes.firsts), trained(runs, sizes.start)
    keeper = trained(runs, sizes.start).to(torch.bfloat16).requires_grad_(False)
    reader = reader_of(model.config).to(here())
    forcing = ResampledForcing(model, keeper, FRAMES, BLOCK, *map(Window, WINDOWS))
    objective = ReadForcing(forcing, reader, model.blocks[model.config.num_layers // 2])
    together = nn.ModuleDict({"model": model, "reader": reader})
    directory = runs / f"{sizes.start}-resampled"
    # The reader of the start was thrown away: a new one first learns to read what is there, and teaches afterwards.
    model.requires_grad_(False)
    together.load_state_dict(train(together, objective, data, READER, directory / "reader", None, report))
    model.requires_grad_(True)

    held = held_numbers(forcing, data)
    average = train(together, objective, data, flow_settings(sizes.target_steps, sizes.rate), directory, held, report)
    keep({k.removeprefix("model."): v for k, v in average.items() if k.startswith("model.")}, model.config, directory)


STAGES: dict[str, Callable[[Path, Sizes, Report], None]] = {"target": target}
"""The one stage."""
SHARED = ("target",)
"""Stages that several workers may train together."""
PLACED = ("target",)
"""Stages that train on the device that was asked for."""
