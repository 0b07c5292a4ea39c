"""Why a causal student needs a causal teacher: the injectivity argument of Causal Forcing, on a world of two films.

    python benchmarks/injectivity.py --json benchmarks/results/injectivity.json --picture docs/injectivity.png

Knows: a world whose first frame is ambiguous, the exact flows of it (all frames together, or frame by frame), a small
student, the two ways to distil. Does not know: the embedded family. Source: Causal Forcing (2602.02214), section on
frame-level injectivity; regression of ODE pairs is CausVid's and Self-Forcing's start, consistency that of Causal
Forcing++ (2605.15141).

A spot leaves the middle to the left or to the right. In frame 1 the two spots still overlap, in frame 3 they are far
apart. A teacher that sees all frames lets the noise of frames 2 and 3 decide the side of frame 1, so the same noise of
frame 1 ends in two pictures, and a student that sees nothing else learns their mean. A teacher that sees only the past
gives every noise one end. Both teachers are exact here (the data are two normal distributions), so nothing is left that
could be blamed on their training.

`blur` is the squared distance of a picture to the nearer of the two true ones, as a share of what their mean has: 0 is
a true picture, 1 the mean. `sides` is how many of the two come out (the exponential of their entropy): a student that
knew one picture only would be sharp, too.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn.functional import linear

from arvid.caches.full import Full
from arvid.cli.report import head, write_report
from arvid.samplers.grids import few_step
from arvid.train.consistency import Consistency
from arvid.train.flow import FlowBatch, noise_like
from arvid.train.scores import CausalScore
from arvid.train.self_forcing import Drawn, Horizon, SelfForcing
from arvid.train.trainer import TrainConfig, train
from arvid.types import Estimate, Span, View

SIDES, FRAMES, HEIGHT, WIDTH = 2, 3, 3, 9
PIXELS = HEIGHT * WIDTH
STEP, RADIUS, BRIGHT = 1.1, 1.2, 3.0
"""Cells a spot moves per frame, its radius in cells, its brightness."""
SPREAD = 0.05
"""Deviation of every pixel from its film."""
WALK, TAUGHT = 16, 4
"""Euler steps of the teachers' walk, and passes whose levels the student learns."""
SHAPE = (1, HEIGHT, WIDTH)
TEACHERS = {"bidirectional": True, "causal": False}
PASSES = (1, 2, 4)
PAIRS = 8192
"""ODE pairs a student is regressed on."""


# ---------------------------------------------------------------- the world and its exact flows


def films() -> Tensor:
    """The two films [2, FRAMES, 1, HEIGHT, WIDTH]."""
    row_H1, column_W = torch.arange(HEIGHT)[:, None] - (HEIGHT - 1) / 2, torch.arange(WIDTH) - (WIDTH - 1) / 2
    places_KT = STEP * torch.tensor([-1.0, 1.0])[:, None] * torch.arange(1, FRAMES + 1)
    far_KTHW = row_H1**2 + (column_W - places_KT[:, :, None, None]) ** 2
    return BRIGHT * (-far_KTHW / (2 * RADIUS**2)).exp()[:, :, None]


class Exact:
    """The flow of the world (a `train.scores.Score`): of all frames together, or of each given the clean ones before
    it. In closed form, as the posterior of two normal distributions."""

    def __init__(self, together: bool) -> None:
        self.together, self.films_KTN = together, films().flatten(2)

    def __call__(self, clean_BTCHW: Tensor, x_BTCHW: Tensor, sigma_BT: Tensor, text_BSD: Tensor) -> Tensor:
        """Flow [B, T, 1, HEIGHT, WIDTH] of noisy frames at levels above 0."""
        sigma_BT = sigma_BT.clamp_min(1e-3)
        x_BTN, level = x_BTCHW.flatten(2), sigma_BT[..., None]
        rest = x_BTN[:, None] - (1 - level[:, None]) * self.films_KTN
        variance = (1 - sigma_BT) ** 2 * SPREAD**2 + sigma_BT**2
        own_BKT = -rest.square().sum(-1) / (2 * variance[:, None])
        if self.together:
            logits_BKT = own_BKT.sum(-1, keepdim=True).expand_as(own_BKT)
        else:
            known_BKT = (clean_BTCHW.flatten(2)[:, None] - self.films_KTN).square().sum(-1) / (2 * SPREAD**2)
            logits_BKT = own_BKT - (known_BKT.cumsum(-1) - known_BKT)
        share_BKT = logits_BKT.softmax(1)
        gain_BT = (1 - sigma_BT) * SPREAD**2 / variance
        ends = self.films_KTN + gain_BT[:, None, :, None] * rest
        clean = (share_BKT[..., None] * ends).sum(1)
        return ((x_BTN - clean) / level).view_as(x_BTCHW)


@torch.no_grad()
def walked(teacher: Exact, noise_BTCHW: Tensor) -> Tensor:
    """States [TAUGHT + 1, B, T, ...] of the teacher's walk from noise at the levels of `few_step(TAUGHT)`. All frames
    walk together, or each when those before it have arrived."""
    levels, every = few_step(WALK), WALK // TAUGHT
    text = noise_BTCHW.new_zeros(0)
    passes = 1 if teacher.together else FRAMES
    ends = torch.zeros_like(noise_BTCHW)
    for _ in range(passes):
        x, states = noise_BTCHW, [noise_BTCHW]
        for number, (sigma, following) in enumerate(pairwise(levels), 1):
            level_BT = torch.full(x.shape[:2], sigma)
            x = x + (following - sigma) * teacher(ends, x, level_BT, text)
            if number % every == 0:
                states.append(x)
        ends = x
    return torch.stack(states)


def drawn(size: int, generator: torch.Generator) -> Tensor:
    """Films of the world [B, T, 1, HEIGHT, WIDTH]."""
    chosen = films()[torch.randint(SIDES, (size,), generator=generator)]
    return chosen + SPREAD * noise_like(chosen, generator)


# ---------------------------------------------------------------- the student


class Student(nn.Module):
    """A frame's clean picture from the frame, its level and the clean frames before it (a `train.flow.FlowModel`)."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(PIXELS * FRAMES + FRAMES, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(),
            nn.Linear(width, PIXELS),
        )  # fmt: skip

    def read_text(self, text_BSD: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
        """Nothing is said."""
        return ()

    def flow(self, z_BTCHW: Tensor, sigma_BT: Tensor, context: object, view: View, frames: tuple[int, ...]) -> Estimate:
        """Flow of frames at any level; what the past keeps of a frame is the frame."""
        x_BTN = z_BTCHW.flatten(2).float()
        seen = view.read(0, lambda keys, places: keys)
        past_BPN = x_BTN[:, :0] if seen is None else seen[1].flatten(2)
        past_BPN = nn.functional.pad(past_BPN, (0, 0, 0, FRAMES - 1 - past_BPN.shape[1]))
        told_BP = (past_BPN != 0).any(-1).float()
        wide = torch.cat([past_BPN.flatten(1), told_BP], 1)[:, None].expand(-1, x_BTN.shape[1], -1)
        y = torch.cat([x_BTN, sigma_BT[..., None], wide], -1)
        for layer in self.layers:
            y = linear(y, layer.weight.float(), layer.bias.float()) if isinstance(layer, nn.Linear) else layer(y)
        flow = (x_BTN - y) / sigma_BT.clamp_min(0.05)[..., None]
        kept = x_BTN[:, :, None]
        return Estimate(flow.view_as(z_BTCHW), ((kept, kept),))


class Regression:
    """Regression of ODE pairs: from any state of the teacher's walk to its end, given the clean frames before."""

    def __init__(self, student: Student) -> None:
        self.score = CausalScore(student, FRAMES, 1, Full())
        self.levels = torch.tensor(few_step(TAUGHT)[:-1])

    def __call__(self, states: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Mean squared error of the clean estimate, at a level drawn for every frame."""
        size = states.shape[1]
        which_BT = torch.randint(TAUGHT, (size, FRAMES), generator=generator)
        x = states[which_BT, torch.arange(size)[:, None], torch.arange(FRAMES)]
        sigma_BT = self.levels[which_BT]
        flow = self.score(states[-1], x, sigma_BT, torch.zeros(size, 1, 1))
        clean = x - sigma_BT[..., None, None, None] * flow
        return {"loss": (clean - states[-1]).square().mean()}


def regressed(teacher: Exact, seed: int, steps: int, batch: int, place: Path) -> Student:
    """A student of ODE pairs."""
    generator = torch.Generator().manual_seed(1_000_003 + seed)
    pairs = walked(teacher, noise_like(torch.empty(PAIRS, FRAMES, *SHAPE), generator))

    def source(step: int) -> Tensor:
        return pairs[:, torch.from_numpy(np.random.default_rng([seed, step]).integers(0, PAIRS, batch))]

    student = fresh(seed)
    return averaged(student, Regression(student), source, seed, steps, place)


def consistent(teacher: Exact, seed: int, steps: int, batch: int, place: Path) -> Student:
    """A student by consistency distillation, without any pairs."""

    def source(step: int) -> FlowBatch:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        return FlowBatch(drawn(batch, generator), torch.zeros(batch, 1, 1))

    student = fresh(seed)
    objective = Consistency(student, teacher, FRAMES, 1, Full(), few_step(2 * TAUGHT), keep=0.95)
    return averaged(student, objective, source, seed, steps, place)


METHODS: dict[str, Callable[[Exact, int, int, int, Path], Student]] = {"ode": regressed, "consistency": consistent}


def fresh(seed: int) -> Student:
    """A student that knows nothing."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Student()


def averaged(student: Student, objective: Any, source: Any, seed: int, steps: int, place: Path) -> Student:
    """The student trained, with its averaged weights."""
    config = TrainConfig(
        steps, learning_rate=4e-3, warmup=20, weight_decay=0.0, average=0.99, seed=seed, save_every=steps + 1
    )
    student.load_state_dict(train(student, objective, source, config, place))
    return student.eval()


# ---------------------------------------------------------------- what comes out


@torch.no_grad()
def rolled(student: Student, passes: int, seeds: int) -> Tensor:
    """Films [B, T, 1, HEIGHT, WIDTH] that the student makes, frame by frame, by the one loop."""
    roll = SelfForcing(student, Full(), Horizon(FRAMES, FRAMES, 1), SHAPE, few_step(passes))
    blocks = roll.blocks(Drawn(Span(0, FRAMES), 0.999, 1234), torch.zeros(seeds, 1, 1))
    return torch.cat([block.latents_BTCHW for block in blocks], 1)


def blur(x_BTCHW: Tensor) -> Tensor:
    """[T]: how far pictures are from the nearer true one, by how far their mean is."""
    films_KTN = films().flatten(2)
    far_BKT = (x_BTCHW.flatten(2)[:, None] - films_KTN).square().sum(-1)
    mean_T = (films_KTN.mean(0) - films_KTN).square().sum(-1).mean(0)
    return far_BKT.amin(1).mean(0) / mean_T


def sides(x_BTCHW: Tensor) -> float:
    """How many of the sides first frames have."""
    far_BK = (x_BTCHW[:, :1].flatten(2)[:, None] - films()[:, :1].flatten(2)).square().sum((-1, -2))
    share = torch.bincount(far_BK.argmin(1), minlength=SIDES).float() / len(far_BK)
    return float((-(share * share.clamp_min(1e-9).log()).sum()).exp())


def interval(values: list[float]) -> dict[str, Any]:
    """Mean and 95 % interval (Student's t) over seeds."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return {"mean": round(mean, 4), "ci95": None}
    arm = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return {"mean": round(mean, 4), "ci95": [round(mean - arm, 4), round(mean + arm, 4)]}


def measure(seeds: int, steps: int, batch: int, made: int) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """Rows of the table, and first frames for the picture."""
    rows, shown = [], {}
    noise = noise_like(torch.empty(made, FRAMES, *SHAPE), torch.Generator().manual_seed(5))
    for name, together in TEACHERS.items():
        teacher = Exact(together)
        ends = walked(teacher, noise)[-1]
        shown[f"{name} teacher"] = ends[:, 0]
        rows.append({
            "teacher": name, "method": "the teacher itself", "passes": WALK,
            "blur": [interval([float(value)]) for value in blur(ends)], "sides": interval([sides(ends)]),
        })  # fmt: skip
        for method, distil in METHODS.items():
            found: dict[int, list[Tensor]] = {passes: [] for passes in PASSES}
            begin = time.process_time()
            for seed in range(seeds):
                with tempfile.TemporaryDirectory() as place:
                    student = distil(teacher, seed, steps, batch, Path(place))
                for passes in PASSES:
                    found[passes].append(rolled(student, passes, made))
            spent = (time.process_time() - begin) / seeds
            shown[f"{method}, {name} teacher"] = found[1][0][:, 0]
            for passes, films_made in found.items():
                blurs = zip(*[blur(x).tolist() for x in films_made], strict=True)
                rows.append({
                    "teacher": name, "method": method, "passes": passes,
                    "blur": [interval(list(each)) for each in blurs],
                    "sides": interval([sides(x) for x in films_made]), "seconds_per_student": round(spent, 2),
                })  # fmt: skip
            print(f"{method}, {name}: blur of frame 1 at one pass {rows[-len(PASSES)]['blur'][0]['mean']:.3f}")
    return rows, shown


def picture(shown: dict[str, Tensor], path: Path, columns: int = 10) -> None:
    """First frames: a row per teacher and student. Teachers share the noise of a column, and so do students."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.6 * len(shown)), layout="constrained")
    grid = figure.subplots(len(shown), columns)
    for line, (name, frames_BCHW) in zip(grid, shown.items(), strict=True):
        for axes, frame in zip(line, frames_BCHW[:columns, 0], strict=True):
            axes.imshow(frame, vmin=0, vmax=BRIGHT, cmap="magma")
            axes.set_xticks([])
            axes.set_yticks([])
        line[0].set_ylabel(name.replace(", ", "\n"), rotation=0, ha="right", va="center", fontsize=9)
    figure.savefig(path, dpi=75)


def main(arguments: list[str]) -> None:
    """Measure, print the table, write what was asked for."""
    parser = argparse.ArgumentParser(description="Blur of students of bidirectional and causal teachers.")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--films", type=int, default=512)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path)
    asked = parser.parse_args(arguments)
    rows, shown = measure(asked.seeds, asked.steps, asked.batch, asked.films)
    config = {"seeds": asked.seeds, "steps": asked.steps, "batch": asked.batch, "films": asked.films}
    for row in rows:
        print(json.dumps(row))
    if asked.json:
        write_report({**head("benchmark injectivity", "cpu"), "config": config, "rows": rows}, asked.json)
    if asked.picture:
        picture(shown, asked.picture)


if __name__ == "__main__":
    main(sys.argv[1:])
