"""Checkpoints of `arvid train` as makers of videos, and one run of `arvid bench training`.

Knows: folders of runs, the family that lends autoencoder and text encoder, the truth of the shapes world.
Does not know: arguments (`cli.bench_training`), what is made of the numbers (`evals.training`).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import typer
from torch import Tensor

from arvid.cli.report import Row, head
from arvid.evals import training
from arvid.evals.speculation import draw_prompts
from arvid.evals.training import Made, Measured, Passes
from arvid.models.family import Card, fill
from arvid.models.running import pack, packable
from arvid.models.tae import TIME_STRIDE
from arvid.models.wan.transformer import CausalWan
from arvid.pipeline import Family, Pipeline, Request
from arvid.recipes.transformers import sizes_of
from arvid.video import to_bytes
from arvid.worlds import shapes

WEIGHTS = "model.safetensors"
DISTILLED = "renoise"
"""The step of models that were made for few passes; a teacher walks as its card says."""
TEACHING = frozenset({"diffusion"})
"""Methods that leave a teacher."""
QUICK_PROMPTS, QUICK_STEPS, QUICK_SECONDS = 4, (1, 2), 2.0


@dataclass(frozen=True)
class Asked:
    """The options of a run. `first` holds passes of the first block, 0 for as many as the others."""

    checkpoints: tuple[Path, ...]
    prompts: int
    steps: tuple[int, ...]
    first: tuple[int, ...]
    levels: tuple[int, ...]
    seconds: float

    def quickly(self) -> Asked:
        """The same, smaller."""
        return replace(
            self, prompts=min(self.prompts, QUICK_PROMPTS), steps=QUICK_STEPS, first=(0,),
            seconds=min(self.seconds, QUICK_SECONDS),
        )  # fmt: skip

    @property
    def passes(self) -> list[Passes]:
        """What is measured of every checkpoint, each once."""
        pairs = [Passes(steps, first or steps) for steps in self.steps for first in self.first]
        return list(dict.fromkeys(pair for pair in pairs if pair.first >= pair.steps))


def step_of(directory: Path, card: Card) -> str:
    """The step of the model that a run left: as it was distilled, or as the card of the family says."""
    return DISTILLED if {*training.lineage(directory).methods} - TEACHING else card.step


class Checkpoint:
    """Makes videos with the weights of a run (see `arvid.evals.training.Maker`)."""

    def __init__(self, family: Family, directory: Path, seconds: float) -> None:
        card = family.card
        kind = directory.name.partition("-")[0]
        part = kind if kind in card.parts else "target"
        model = CausalWan(sizes_of(directory / WEIGHTS, card, part))
        fill(model, directory / WEIGHTS)
        model = model.to(family.device, torch.bfloat16).eval().requires_grad_(False)
        if packable(model):
            pack(model)
        # All noise, as in training: what less of it is worth was measured for no run but the shipped target's.
        card = replace(card, step=step_of(directory, card), temperature=1.0)
        self.pipeline = Pipeline(replace(family, card=card, target=model, drafter=None))
        self.seconds, self.card = seconds, card

    def video(self, prompt: str, seed: int, passes: Passes) -> Made:
        """A video from nothing."""
        begin, shown, starts, frames = time.perf_counter(), [], [], 0
        for block in self.pipeline.stream(self._asked(prompt, self.seconds, seed, passes)):
            shown.append(to_bytes(block.frames_BTCHW[0]))
            starts.append(frames)
            frames += len(shown[-1])
        seconds = time.perf_counter() - begin
        return Made(torch.cat([torch.from_numpy(part) for part in shown]).numpy(), tuple(starts), seconds)

    @torch.inference_mode()
    def errors(self, prompt: str, seed: int, passes: Passes) -> tuple[float, ...]:
        """Errors of the blocks that follow the true first block."""
        block = self.card.block
        rest = min(self.pipeline.latent_frames(self.seconds), self.card.trained_frames) - block
        if rest < 1:
            raise ValueError(f"videos of {self.seconds} s have one block; exposure bias needs a longer --seconds")
        truth = self._truth(prompt, seed, block + rest)
        request = self._asked(prompt, rest * TIME_STRIDE / self.card.fps, seed, passes)
        made = [block.latents_BTCHW.float().cpu() for block in self.pipeline.stream(request, given=truth[:, :block])]
        rolled = torch.cat(made, 1)[:, block:]
        gap_T = (rolled - truth[:, block : block + rolled.shape[1]].cpu()).square().mean((0, 2, 3, 4))
        return tuple(float(part.mean()) for part in gap_T.split(block))

    def _truth(self, prompt: str, seed: int, frames: int) -> Tensor:
        clip = shapes.render(prompt, seed, 1 + TIME_STRIDE * (frames - 1))
        return self.pipeline.encode(clip)

    @staticmethod
    def _asked(prompt: str, seconds: float, seed: int, passes: Passes) -> Request:
        router = f"target:steps={passes.steps},first_steps={passes.first}"
        return Request(prompt, seconds, seed, router)


def run(pipeline: Pipeline, asked: Asked) -> Row:
    """The report; with fewer rows when it was interrupted."""
    known = [(path, training.lineage(path)) for path in asked.checkpoints]
    missing = [str(path) for path, _ in known if not (path / WEIGHTS).is_file()]
    if missing:
        raise ValueError(f"no {WEIGHTS} in {', '.join(missing)}; name folders that `arvid train` has finished")
    prompts = draw_prompts(asked.prompts, asked.levels, "training")
    found: list[Measured] = []
    interrupted = False
    try:
        for path, made in known:
            maker = Checkpoint(pipeline.family, path, asked.seconds)
            for passes in asked.passes:
                follow = passes.first == passes.steps
                found.append(
                    training.measure(maker, path.name, made, passes, prompts, pipeline.family.card.fps, follow)
                )
                _say(found[-1])
    except KeyboardInterrupt:
        interrupted = True
    return {
        **head("bench training", str(pipeline.family.device)),
        "config": {
            "model": pipeline.family.card.name, "checkpoints": [path.name for path in asked.checkpoints],
            "prompts": asked.prompts, "levels": list(asked.levels), "seconds": asked.seconds, "temperature": 1.0,
            "interrupted": interrupted,
        },
        "rows": training.rows(found, prompts),
    }  # fmt: skip


def _say(done: Measured) -> None:
    mean = sum(done.scores) / len(done.scores)
    typer.echo(f"{done.name}, {done.passes.steps} passes, {done.passes.first} on the first block: {mean:.3f}", err=True)
