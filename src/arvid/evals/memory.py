"""The benchmark of the past: every policy makes the same long videos at equal budgets, an oracle marks them in windows.

Knows: how each policy's spec follows from a budget (a table), which videos are made, how a video is cut and marked.
Does not know: caches, models, how a video is made (a callable `Maker`), what the rows of a report are
(`evals.memory_rows`), what scenes show (`evals.memory_scenes`).

A budget of n is n latent frames' worth of tokens on view for every layer and head, the block itself not counted, in
whatever form: what a policy holds besides (an archive, a bank) shows in its bytes. A video of the longest horizon
holds those of the shorter ones, bit for bit (a longer rollout leaves the blocks of a shorter one as they were), so
each is made once and cut. The oracle marks windows of one training length each, the first of which is the video at 1x;
no policy's windows are chosen differently.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from arvid.evals.clips import Clip, Pixels, looks
from arvid.evals.metric import measure_frames
from arvid.evals.motion import Motion
from arvid.evals.signals import Drift, Seams
from arvid.worlds import oracle

BUDGETS, HORIZONS = (6, 9, 12, 16), (1, 4, 12)
FULL, SINK, WINDOW, TARGET = "full", "sink", "window", "target"
OWN, ALL = "own", "all"
POSITIONS = ("absolute", "rephase", "relative:limit={trained}", "flex:trained={trained}", "decay")
"""The schemes of a whole grid; `trained` is the training length in latent frames."""
CYCLE = "cyclic:period=33"
"""Only for a past that drops all old frames: `window`, with which it was published (Ca2-VDM, 2411.16375)."""
STRIDE = 4
"""Frames of a latent frame; the first latent frame of a video stands for one."""


# ---------------------------------------------------------------- the table


@dataclass(frozen=True)
class Part:
    """A whole number that follows from a budget: `share` of it less `less`, rounded down to a multiple of `step`, and
    at least `least`; but `at` some budgets another one."""

    share: Fraction = Fraction(0)
    least: int = 0
    step: int = 1
    less: int = 0
    at: tuple[tuple[int, int], ...] = ()

    def of(self, budget: int) -> int:
        """The number for a budget."""
        return dict(self.at).get(
            budget, max(self.least, (int(self.share * budget) - self.less) // self.step * self.step)
        )


def share(above: int, below: int, least: int = 0) -> Part:
    """`above` / `below` of the budget."""
    return Part(Fraction(above, below), least)


def fixed(number: int) -> Part:
    """The same for every budget."""
    return Part(least=number)


@dataclass(frozen=True)
class Rule:
    """How a policy takes part: its options by budget, the positions it was published with, the options whose sum is the
    number of frames it shows in full before it drops, merges or chooses anything, the past it must equal until then,
    and the router (the target alone; only the plain one can be told how noisily blocks are remembered)."""

    options: Mapping[str, Part] = field(default_factory=dict)
    positions: str = "relative:limit={trained}"
    whole: tuple[str, ...] = ("frames",)
    reference: str = FULL
    router: str = TARGET
    control: bool = False


ALL_OF_IT = share(1, 1)
RULES: dict[str, Rule] = {
    "full": Rule(positions="absolute", whole=(), control=True),
    WINDOW: Rule({"frames": ALL_OF_IT}, control=True),
    "random": Rule({"frames": ALL_OF_IT, "recent": fixed(3)}, control=True),
    "sink": Rule({"frames": ALL_OF_IT, "sink": fixed(3)}),
    "deep": Rule({"frames": ALL_OF_IT, "sink": share(10, 16), "recent": share(4, 16)}, "rephase"),
    "headwise": Rule(
        {"frames": ALL_OF_IT, "sink": fixed(1), "recent": Part(Fraction(1), less=2)}, whole=("sink", "recent")
    ),
    "pack": Rule(
        {
            "frames": ALL_OF_IT, "sink": Part(Fraction(1, 3), step=3, at=((6, 1),)),
            "recent": Part(least=3, at=((6, 2),)),
        },
        "rephase", whole=("sink", "recent"),
    ),
    "route": Rule({"frames": ALL_OF_IT, "recent": share(2, 3), "archive": fixed(20)}),
    "coarse": Rule({"frames": ALL_OF_IT, "fine": share(2, 3)}, whole=("fine",)),
    "conv": Rule({"frames": ALL_OF_IT, "sink": share(1, 3), "ratio": fixed(4)}, "rephase"),
    "neighbour": Rule(
        {"frames": ALL_OF_IT, "sink": share(1, 3), "ratio": fixed(4)}, "rephase", reference="neighbour:frames=999",
        router="target:commit=last",
    ),
    "bank": Rule(
        {"frames": ALL_OF_IT, "sink": share(1, 4), "recent": share(1, 2), "bank": fixed(8), "top": share(1, 2, 3)},
        whole=("sink", "recent"),
    ),
}  # fmt: skip
"""Every policy, by its name in a spec string. The shares are the published ones where there are any (Deep Forcing 10, 4
and 2 of 16; CausalCine 9 of 14; LongLive's sink is one block). With `headwise` a head sees sink, recent frames and one
frame's worth of segments. Packs are of three frames: with sink and recent frames in threes none of them waits for its
pack, so the budget is never exceeded. `neighbour` has a past of its own per noise level and no clean pass, so what it
must equal is itself without a limit."""
TRAINED = {"pack": "pack", "conv": "conv", "coarse": "coarse"}
"""Policies that merge, and the file of their trained weights (`NAME.safetensors`)."""


@dataclass(frozen=True)
class Cell:
    """One competitor: a policy under positions at a budget (0: no limit), and what is asked of a pipeline for it.
    `whole` is the number of past frames that it shows in full, `reference` the past it must equal until then, `level`
    the noise level at which blocks are remembered."""

    policy: str
    positions: str
    budget: int
    past: str
    router: str
    whole: int
    reference: str
    level: float = 0.0

    @property
    def key(self) -> str:
        """Its name in a journal."""
        return f"{self.past} {self.positions} {self.router}"


def options_of(policy: str, budget: int) -> dict[str, int]:
    """The options of a policy at a budget."""
    return {name: part.of(budget) for name, part in RULES[policy].options.items()}


def cell(
    policy: str, budget: int, positions: str, trained: int, extra: Mapping[str, str] | None = None, level: float = 0.0
) -> Cell:
    """The competitor that a policy is at a budget; `positions` may be `own`, `trained` is the training length in latent
    frames, `extra` holds further options, `level` is the noise level at which blocks are remembered (Diffusion Forcing,
    2407.01392, keeps long rollouts steady so; a past whose keys are those of a last pass has none). Raises ValueError
    for an unknown policy and a budget below 4 frames."""
    if policy not in RULES:
        raise ValueError(f"unknown policy {policy!r}; known: {', '.join(sorted(RULES))}")
    if policy != FULL and budget < 4:
        raise ValueError(f"a budget of {budget} latent frames; every policy needs at least 4")
    rule = RULES[policy]
    options = {} if policy == FULL else options_of(policy, budget)
    listed = ",".join(f"{name}={value}" for name, value in {**options, **(extra or {})}.items())
    where = (rule.positions if positions == OWN else positions).format(trained=trained)
    whole = sum(options[name] for name in rule.whole) if options else trained
    name = "+".join([policy, *(extra or {})])
    noised = level if rule.router == TARGET else 0.0
    return Cell(
        name, where, 0 if policy == FULL else budget, f"{policy}:{listed}".rstrip(":"),
        f"{TARGET}:level={noised:g}" if noised else rule.router, whole, rule.reference, noised,
    )  # fmt: skip


def schemes(policy: str) -> tuple[str, ...]:
    """The positions that go with a policy at every budget of at most 30 frames."""
    return (*POSITIONS, CYCLE) if policy == WINDOW else POSITIONS


def cells(
    policies: Sequence[str],
    budgets: Sequence[int],
    positions: Sequence[str],
    trained: int,
    extras: Mapping[str, Mapping[str, str]] | None = None,
    levels: Sequence[float] = (0.0,),
) -> tuple[Cell, ...]:
    """Every competitor, each once: policies at all budgets under all positions (`all`: every scheme that goes with a
    policy) with blocks remembered at all noise levels, and once more with `extras` (further options by policy, such as
    trained weights)."""
    found = [
        cell(policy, budget, where, trained, extra, level)
        for level in levels
        for budget in budgets
        for policy in policies
        for word in positions
        for where in (schemes(policy) if word == ALL else (word,))
        for extra in (None, *([extras[policy]] if extras and policy in extras else []))
    ]
    return tuple(dict.fromkeys(found))


# ---------------------------------------------------------------- films


@dataclass(frozen=True)
class Script:
    """What one video is asked to show: a prompt, from certain blocks on another one (block, prompt, way), and true
    clips that it begins with (prompts, one training length each), whose blocks count."""

    prompt: str
    seed: int
    blocks: int
    turns: tuple[tuple[int, str, str], ...] = ()
    shown: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Film:
    """One video: frames [T, H, W, 3] uint8, latents [t, C, H, W] fp32, the frame at which each block begins, and of
    each block the wall-clock seconds from the one before to its last frame and the bytes of keys and values after
    it."""

    frames: Pixels
    latents: NDArray[np.float32]
    starts: tuple[int, ...]
    seconds: tuple[float, ...]
    bytes: tuple[int, ...]


class Maker(Protocol):
    """Makes videos."""

    def __call__(self, cell: Cell, script: Script) -> Film:
        """The video of a script by a competitor."""
        ...


@dataclass(frozen=True)
class Shape:
    """Of a family: latent frames of a block and of a training clip, frames per second."""

    block: int
    trained: int
    fps: float

    @property
    def blocks(self) -> int:
        """Blocks of one training length."""
        return self.trained // self.block

    def frames(self, lengths: int) -> int:
        """Frames of so many training lengths."""
        return 1 + STRIDE * (lengths * self.trained - 1) if lengths else 0


# ---------------------------------------------------------------- marks


def largest_difference(film: Film, reference: Film, cell: Cell, shape: Shape) -> float | None:
    """The largest difference of latents in the blocks that begin before the competitor has dropped anything (those
    behind at most `whole` past frames, the first block left out: it has no past). None where there are none."""
    last = min(cell.whole, shape.trained - shape.block) // shape.block
    frames = slice(shape.block, (last + 1) * shape.block)
    gaps = np.abs(film.latents[frames] - reference.latents[frames])
    return float(gaps.max()) if gaps.size else None


def marks(film: Film, prompt: str, horizons: Sequence[int], shape: Shape) -> dict[str, Any]:
    """Everything that rows need of one video, as plain data: seconds of every block, and by horizon bytes, signals and
    the world scores of its windows."""
    windows = [
        oracle.judge(film.frames[shape.frames(w) : shape.frames(w + 1)], prompt).score for w in range(max(horizons))
    ]
    return {
        "seconds": [round(seconds, 6) for seconds in film.seconds],
        "scores": [round(score, 6) for score in windows],
        "bytes": {str(h): film.bytes[h * shape.blocks - 1] for h in horizons},
        "signals": {str(h): signals(film, shape.frames(h), shape.fps) for h in horizons},
    }


def signals(film: Film, frames: int, fps: float) -> dict[str, float | None]:
    """Chunk discontinuity, motion and drift of the first `frames` frames (see docs/evaluation.md)."""
    high, wide = film.frames.shape[1:3]
    starts = tuple(start for start in film.starts[1:] if start < frames)
    clip = Clip(Path(), starts=starts, fps=fps, width=wide, height=high)
    found = measure_frames(clip, (Seams(), Motion(), Drift()), looks(film.frames[:frames], fps))
    return {name: None if reading.value is None else round(reading.value, 6) for name, reading in found.items()}
