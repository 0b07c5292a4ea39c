"""The recipe of reward feedback: transformers that learn from what the reading judge says of their own blocks.

Knows: where clips, autoencoder and transformers of a run lie, sizes, rates, which prompts are kept apart. Does not
know: distances (rewards/reading.py), objectives (train/feedback.py), rollouts, the oracle.

A stage reads `runs/reading_judge/model/` and `runs/START/model.safetensors` and writes `runs/START-feedback/`, which
`arvid train embedded --stage pack` prefers to START.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from arvid.caches.window import Window
from arvid.models.family import load_autoencoder
from arvid.recipes.embedded import CARD, FRAMES, GUIDANCE, WINDOW, WINDOWS, Report
from arvid.recipes.transformers import HELD_FIRSTS, Encoded, keep, read, trained
from arvid.recipes.world import BLOCK
from arvid.rewards.reading import Asked, Asking, ReadingJudge, distance
from arvid.samplers.grids import few_step
from arvid.samplers.steps import STEPS
from arvid.train.asking import asked
from arvid.train.feedback import Feedback, FeedbackBatch
from arvid.train.flow import FlowBatch
from arvid.train.guidance import GuidedForcing
from arvid.train.placing import here, moved
from arvid.train.self_forcing import LAST, Horizon, SelfForcing
from arvid.train.trainer import TrainConfig, train

BLEND = 0.5
"""What is kept lies so far from the start to where the run ended (WiSE-FT, 2109.01903): a target half-way was better
than either end."""
PASSES, DEEP = 4, 2
"""Passes of a walk, and how many of them, the last, carry a gradient; with all of them gradients were twenty times
as long and taught nothing."""


@dataclass(frozen=True)
class Sizes:
    """How much of everything: prompts whose first blocks a step shows, whole clips of its anchor; `rate` is the
    learning rate."""

    target_steps: int = 190
    drafter_steps: int = 190
    firsts: int = 32
    batch: int = 3
    rate: float = 1.5e-4


class Shown:
    """Prompts to be shown, and clips for the anchor."""

    def __init__(self, runs: Path, sizes: Sizes) -> None:
        self.text, self.clips = read(runs, "first_text"), Encoded(runs, sizes.batch)
        self.firsts = sizes.firsts
        self.asked: Asked = asked(read(runs, "first_things"))

    def __call__(self, step: int) -> FeedbackBatch[FlowBatch]:
        """The batch of a step: a pure function of it."""
        drawn = np.random.default_rng([31, step]).integers(0, len(self.text) - HELD_FIRSTS, self.firsts)
        which = torch.from_numpy(drawn)
        return FeedbackBatch(self.text[which].float(), self.asked[which], self.clips(step).clips)


def again(runs: Path) -> Callable[[Tensor], Tensor]:
    """Latents through the autoencoder and back, in half precision, every block as the beginning of a stream."""
    codec = load_autoencoder(runs / "decoder", CARD, here()).to(torch.bfloat16).channels_last().requires_grad_(False)

    def through(z_NTCHW: Tensor) -> Tensor:
        frames, _ = codec.decode(z_NTCHW.to(torch.bfloat16))
        return codec.encode(frames.clamp(-1, 1)).float()

    return through


def read_by(runs: Path) -> Asking:
    """What the trained judge reads. Raises ValueError when there is none."""
    judge = ReadingJudge.load(runs / "reading_judge" / "model").float().to(here()).requires_grad_(False)
    judge.cells.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return judge.asking


def fed(runs: Path, start: str, steps: int, sizes: Sizes, report: Report) -> None:
    """A transformer that learns from its own blocks."""
    model, source = trained(runs, start), Shown(runs, sizes)
    channels, height, width = read(runs, "latents", 1).shape[2:]
    first = SelfForcing(
        model, Window(WINDOW), Horizon(BLOCK, BLOCK, BLOCK), (channels, height, width), few_step(PASSES),
        step=STEPS[CARD.step], deep=DEEP, part=LAST,
    )  # fmt: skip
    forcing = GuidedForcing(model, FRAMES, BLOCK, *map(Window, WINDOWS), scale=GUIDANCE)
    objective = Feedback(first, again(runs), read_by(runs), BLOCK, forcing)

    def numbers(_: nn.Module) -> dict[str, float]:
        with torch.no_grad():
            held = source.text[-HELD_FIRSTS:].float(), source.asked[torch.arange(-HELD_FIRSTS, 0)]
            text, scenes = moved(held, here())
            terms = objective.terms(first(text, torch.Generator().manual_seed(1)), scenes)
            return {"held_distance": float(distance(terms).mean())} | {
                f"held_{name}": float(term.mean()) for name, term in terms.items()
            }

    config = TrainConfig(steps, sizes.rate, warmup=20, average=0.98, weight_decay=0.0, save_every=50, log_every=10)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    average = train(model, objective, source, config, runs / f"{start}-feedback", numbers, report)
    blended = {name: before[name].lerp(value, BLEND) for name, value in average.items()}
    keep(blended, model.config, runs / f"{start}-feedback")


def target(runs: Path, sizes: Sizes, report: Report) -> None:
    """The target."""
    fed(runs, "target", sizes.target_steps, sizes, report)


def drafter(runs: Path, sizes: Sizes, report: Report) -> None:
    """The drafter."""
    fed(runs, "drafter", sizes.drafter_steps, sizes, report)


STAGES: dict[str, Callable[[Path, Sizes, Report], None]] = {"target": target, "drafter": drafter}
"""Stages in any order."""
SHARED = ("target", "drafter")
"""Stages that several workers may train together."""
PLACED = ("target", "drafter")
"""Stages that train on the device that was asked for."""
