"""The one trainer: steps an objective over batches, keeps an average of the weights, and survives being killed.

Knows: optimiser, schedule, weight average, checkpoints, the log, and that several workers may share a run. Does not
know: what a model is or what a loss means (an objective is a callable), nor where data comes from (a source is a
callable of a number, so that a resumed run sees exactly the batches it would have seen).
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from arvid.train.muon import Muon
from arvid.train.placing import moved
from arvid.train.workers import Workers

Batch = Any
Source = Callable[[int], Batch]
"""The batch with a number, a pure function of it: the step's, where one worker trains; of `count` workers, each takes
one of the `count` batches of a step."""
Objective = Callable[[Batch, torch.Generator], dict[str, Tensor]]
"""Named scalars of a batch; the entry `loss` is differentiated."""


@runtime_checkable
class Stateful(Protocol):
    """An objective that keeps something of its own from step to step (a critic and its optimiser, a slow copy of the
    weights): it is saved with the run and resumed with it."""

    def state(self) -> dict[str, Any]:
        """What a resumed run needs: tensors and plain data."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        ...


CHECKPOINT = "checkpoint.pt"
_APART = 1_000_003
"""Between the seeds of workers."""
Held = Callable[[nn.Module], dict[str, float]]
"""Held-out numbers of the averaged model."""


@dataclass(frozen=True)
class TrainConfig:
    """One stage: `steps` steps at `learning_rate` (linear warm-up, cosine to zero), weight average `average`.
    With `muon`, matrices and filter banks whose name contains that word are stepped by Muon (orthogonalised momentum,
    scaled to AdamW's update size; needs torch 2.9) and the rest by AdamW."""

    steps: int
    learning_rate: float = 1e-3
    warmup: int = 100
    weight_decay: float = 0.01
    average: float = 0.999
    clip: float = 1.0
    seed: int = 0
    save_every: int = 200
    log_every: int = 20
    muon: str = ""

    def rate(self, step: int) -> float:
        """Learning rate of a step counted from 0."""
        warm = min(1.0, (step + 1) / max(self.warmup, 1))
        return self.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / self.steps))


def train(
    model: nn.Module,
    objective: Objective,
    source: Source,
    config: TrainConfig,
    directory: Path,
    held: Held | None = None,
    report: Callable[[dict[str, float]], None] = lambda row: None,
) -> dict[str, Tensor]:
    """Train `model` in place and return the averaged weights. Resumes from `directory` when it holds a checkpoint
    (bit-equal to never having stopped; a `Stateful` objective goes with it); appends rows of numbers to
    `directory/log.jsonl` and hands them to `report`.

    Several workers (`train.workers`) step the same weights by the mean of all gradients; the first writes and reports
    (its own numbers). Weights stay on the device where they are, their average and the optimisers' state with them; the
    generator is on the CPU. Raises ValueError for several workers of an objective that keeps a state, for a checkpoint
    of another kind of objective or number of workers, and for workers that find different ones; ConnectionError when a
    worker is gone.
    """
    workers = Workers.here()
    if workers.count > 1 and isinstance(objective, Stateful):
        raise ValueError(
            f"{workers.count} workers, but {type(objective).__name__} keeps a state of its own that they would not "
            "share; train it by one"
        )
    directory.mkdir(parents=True, exist_ok=True)
    optimisers = _optimisers(model, config)
    workers.agree(model.state_dict().values())
    average = {name: value.detach().clone() for name, value in model.state_dict().items()}
    generator = torch.Generator().manual_seed(config.seed + _APART * workers.rank)
    run = _Run(model, optimisers, average, generator, objective, workers)
    start = run.resume(directory)
    device = next(model.parameters()).device
    began = time.monotonic()
    for step in range(start, config.steps):
        for group in (group for optimiser in optimisers for group in optimiser.param_groups):
            group["lr"] = config.rate(step)
        numbers = objective(moved(source(step * workers.count + workers.rank), device), generator)
        numbers["loss"].backward()
        workers.average(p.grad for p in model.parameters() if p.grad is not None)
        norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        _blend(average, model, min(config.average, (1 + step) / (10 + step)))
        last = step + 1 == config.steps
        if workers.leads and ((step + 1) % config.log_every == 0 or last):
            row = {
                "step": step + 1,
                **{name: float(value.detach()) for name, value in numbers.items()},
                "norm": float(norm),
            }
            row["seconds_per_step"] = (time.monotonic() - began) / (step + 1 - start)
            _log(directory, row, report)
        if (step + 1) % config.save_every == 0 or last:
            run.save(directory, step + 1)
            if held and workers.leads:
                _log(directory, {"step": step + 1, **_with_weights(model, average, held)}, report)
    return average


def _optimisers(model: nn.Module, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Muon for the named matrices, AdamW for the rest; matrices and modulation tables decay, vectors do not."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    fast = [p for name, p in trained if config.muon and config.muon in name and p.ndim in (2, 4)]
    chosen = {id(p) for p in fast}
    rest = [p for _, p in trained if id(p) not in chosen]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    found: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, config.learning_rate, betas=(0.9, 0.95))]
    if fast:
        found.append(Muon(fast, config.learning_rate, config.weight_decay))
    return found


@torch.no_grad()
def _blend(average: dict[str, Tensor], model: nn.Module, keep: float) -> None:
    for name, value in model.state_dict().items():
        if value.dtype.is_floating_point:
            average[name].lerp_(value, 1 - keep)


def _with_weights(model: nn.Module, average: dict[str, Tensor], held: Held) -> dict[str, float]:
    """Held-out numbers under the averaged weights; the trained ones are put back."""
    trained = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(average)
    model.eval()
    try:
        with torch.inference_mode():
            return held(model)
    finally:
        model.load_state_dict(trained)
        model.train()


@dataclass(frozen=True, eq=False)
class _Run:
    """What a checkpoint holds, besides the step."""

    model: nn.Module
    optimisers: list[torch.optim.Optimizer]
    average: dict[str, Tensor]
    generator: torch.Generator
    objective: Objective
    workers: Workers

    def save(self, directory: Path, step: int) -> None:
        """Written beside and renamed, so a kill at any moment leaves a whole checkpoint; with the generators of all
        workers."""
        generators = self.workers.gather(self.generator.get_state())
        if not self.workers.leads:
            return
        held: dict[str, Any] = {
            "model": self.model.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "average": self.average,
            "generator": generators,
            "step": step,
        }
        if isinstance(self.objective, Stateful):
            held["objective"] = self.objective.state()
        part = directory / "checkpoint.part"
        torch.save(held, part)
        os.replace(part, directory / CHECKPOINT)

    def resume(self, directory: Path) -> int:
        """The step to go on with, the same for all workers. Raises ValueError when the checkpoint is of another kind of
        objective or of another number of workers, or when workers find different ones."""
        steps = self.workers.gather(torch.tensor(self._restore(directory))).tolist()
        if len(set(steps)) > 1:
            raise ValueError(
                f"workers found checkpoints of different steps in {directory}: {', '.join(map(str, steps))} (0: none); "
                "the folder of runs must be one that all machines see"
            )
        return int(steps[0])

    def _restore(self, directory: Path) -> int:
        """The step of the checkpoint that this worker finds, 0 without one, and all that it holds put in place."""
        path = directory / CHECKPOINT
        if not path.exists():
            return 0
        # By way of the CPU: the device that it was saved from may not be here, and generators stay there.
        held = torch.load(path, map_location="cpu", weights_only=True)
        stateful = isinstance(self.objective, Stateful)
        if stateful != ("objective" in held):
            kept = "keeps" if stateful else "does not keep"
            raise ValueError(
                f"{path} was saved by another objective: {type(self.objective).__name__} {kept} a state of its own; "
                "use a directory per method"
            )
        generators = torch.atleast_2d(held["generator"])
        count = len(generators)
        if count != self.workers.count:
            raise ValueError(
                f"{path} was saved by {count} workers, this run has {self.workers.count}; go on with {count}"
            )
        self.model.load_state_dict(held["model"])
        for optimiser, state in zip(self.optimisers, held["optimisers"], strict=True):
            optimiser.load_state_dict(state)
        for name, value in self.average.items():
            value.copy_(held["average"][name])
        # A copy: torch reads a state from where its storage begins, and a row does not.
        self.generator.set_state(generators[self.workers.rank].clone())
        if isinstance(self.objective, Stateful):
            self.objective.restore(held["objective"])
        return int(held["step"])


def _log(directory: Path, row: dict[str, float], report: Callable[[dict[str, float]], None]) -> None:
    with (directory / "log.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    report(row)
