"""What each training method buys: one row per checkpoint and number of passes, on the same held-out prompts.

Knows: world scores by video and by block, motion, how an error grows along a rollout, what a run's log says it cost.
Does not know: models, methods, how a video is made (a callable `Maker`).

Exposure bias (Self-Forcing, 2506.08009) is measured in latents: a rollout goes on from the true first block of a
held-out clip, whose motion then settles all that follows, and `exposure` is the slope of its mean squared error against
the block's number. Latents have unit variance, so 1 is what the mean of all videos would cost, and 2 an unrelated one.
Intervals are 95 % percentile bootstrap over prompts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from arvid.evals.clips import Clip, Pixels, looks
from arvid.evals.motion import Motion
from arvid.evals.statistics import Interval, PairedBootstrap
from arvid.worlds import oracle

MADE, LOG = "made.json", "log.jsonl"
Row = dict[str, Any]


@dataclass(frozen=True)
class Lineage:
    """How weights came about: the directory training began from, the methods since, and their steps and seconds (None:
    a log is missing)."""

    init: str
    methods: tuple[str, ...] = ()
    steps: int = 0
    seconds: float | None = 0.0

    @property
    def method(self) -> str:
        """The methods in words, `none` when there are none."""
        return " + ".join(self.methods) or "none"


@dataclass(frozen=True)
class Passes:
    """Passes of a block, and of the first block."""

    steps: int
    first: int


@dataclass(frozen=True, eq=False)
class Made:
    """One video: frames [T, H, W, 3] uint8, the frames at which its blocks begin (0 too), seconds it took."""

    frames: Pixels
    starts: tuple[int, ...]
    seconds: float


class Maker(Protocol):
    """A checkpoint that makes videos."""

    def video(self, prompt: str, seed: int, passes: Passes) -> Made:
        """A video of a prompt from nothing."""
        ...

    def errors(self, prompt: str, seed: int, passes: Passes) -> tuple[float, ...]:
        """Mean squared errors in latents of the blocks that follow the true first block of a clip of `prompt`."""
        ...


@dataclass(frozen=True, eq=False)
class Measured:
    """All videos of a checkpoint with so many passes, prompt by prompt: world scores, motion, world scores by block,
    errors by block (empty: not measured), seconds."""

    name: str
    lineage: Lineage
    passes: Passes
    scores: list[float] = field(default_factory=list)
    motions: list[float] = field(default_factory=list)
    blocks: list[list[float]] = field(default_factory=list)
    errors: list[tuple[float, ...]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


# ---------------------------------------------------------------- measuring


def lineage(directory: Path) -> Lineage:
    """What `made.json` and `log.jsonl` of a checkpoint and of those it was made from say; without `made.json` the
    directory is where training began. Raises ValueError when a file is damaged."""
    if not (directory / MADE).is_file():
        return Lineage(directory.name)
    try:
        made = json.loads((directory / MADE).read_text(encoding="utf-8"))
        before = lineage(directory.parent / made["start"])
        method, steps = str(made["method"]), int(made["steps"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{directory / MADE} does not say how weights were made ({error}); train again") from error
    took = cost(directory / LOG)
    seconds = None if took is None or before.seconds is None else before.seconds + took
    return Lineage(before.init, (*before.methods, method), before.steps + steps, seconds)


def cost(log: Path) -> float | None:
    """Seconds of training by a run's log: rows tell the mean since the run was last resumed, so each stretch between
    two resumes counts with its own. None without a log."""
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.is_file() else []
    timed = [(int(row["step"]), float(row["seconds_per_step"])) for row in rows if "seconds_per_step" in row]
    return float(sum(seconds * steps for steps, seconds in _stretches(timed))) if timed else None


def _stretches(timed: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """(steps, seconds per step) by row: the time since the row before it, where no resume lies between."""
    found: list[tuple[int, float]] = []
    begun, done, spent = 0, 0, 0.0
    for step, mean in timed:
        whole = mean * (step - begun)
        if step <= done or whole < spent:  # a resumed run counts anew, perhaps from before the last row
            begun, spent, whole = done, 0.0, mean * max(step - done, 0)
        if step > done:
            found.append((step - done, (whole - spent) / (step - done)))
            done, spent = step, whole
    return found


def measure(
    maker: Maker, name: str, made: Lineage, passes: Passes, prompts: Sequence[str], fps: float, follow: bool
) -> Measured:
    """Every prompt once, its number as seed; `follow` also measures exposure bias, to which passes of a first block
    make no difference."""
    found = Measured(name, made, passes)
    for seed, prompt in enumerate(prompts):
        video = maker.video(prompt, seed, passes)
        found.scores.append(oracle.judge(video.frames, prompt).score)
        found.blocks.append(by_block(video, prompt))
        found.motions.append(motion(video.frames, fps))
        found.seconds.append(video.seconds)
        if follow:
            found.errors.append(maker.errors(prompt, seed, passes))
    return found


def by_block(video: Made, prompt: str) -> list[float]:
    """The world score of every block, as part of the whole film."""
    total = len(video.frames)
    ends = (*video.starts[1:], total)
    return [
        oracle.judge(video.frames[start:stop], prompt, start, total).score
        for start, stop in zip(video.starts, ends, strict=True)
    ]


def motion(frames: Pixels, fps: float) -> float:
    """Mean speed of what moves most, in shorter sides per second (see `evals.motion.Motion`)."""
    watcher = Motion().watch(Clip(Path(), fps=fps))
    for frame in looks(frames, fps):
        watcher.see(frame)
    return watcher.reading().value or 0.0


# ---------------------------------------------------------------- the table


def rows(measured: Sequence[Measured], prompts: Sequence[str]) -> list[Row]:
    """A row per checkpoint and number of passes. `gain` is the score above that of the checkpoint training began from,
    at the same passes, prompt by prompt (None: it was not measured)."""
    bootstrap = PairedBootstrap(prompts)
    begun = {(one.name, one.passes): one for one in measured if not one.lineage.methods}
    found = []
    for one in measured:
        base = begun.get((one.lineage.init, one.passes)) if one.lineage.methods else None
        row: Row = {
            "checkpoint": one.name, "init": one.lineage.init, "method": one.lineage.method,
            "steps": one.passes.steps, "first_steps": one.passes.first,
        }  # fmt: skip
        row |= _told("score", _mean(bootstrap, one.scores))
        row |= _told("gain", bootstrap.difference(one.scores, base.scores) if base else Interval(None))
        row |= _told("motion", _mean(bootstrap, one.motions))
        row |= _told("score_slope", _mean(bootstrap, [slope(blocks) for blocks in one.blocks]))
        row |= _told("exposure", _mean(bootstrap, [slope(errors) for errors in one.errors]))
        row |= {
            "error_by_block": _curve(one.errors),
            "score_by_block": _curve(one.blocks),
            "seconds_per_video": round(float(np.mean(one.seconds)), 4),
            "training_steps": one.lineage.steps,
            "training_s": None if one.lineage.seconds is None else round(one.lineage.seconds, 1),
            "scores": [round(score, 6) for score in one.scores],
        }
        found.append(row)
    return found


def slope(values: Sequence[float]) -> float:
    """Rise per block of the least-squares line; 0 for fewer than two blocks."""
    return float(np.polyfit(np.arange(len(values)), values, 1)[0]) if len(values) > 1 else 0.0


def _mean(bootstrap: PairedBootstrap, values: Sequence[float]) -> Interval:
    return bootstrap.ratio(values, [1.0] * len(values)) if values else Interval(None)


def _told(name: str, found: Interval) -> Row:
    return {name: None if found.value is None else round(found.value, 6), f"{name}_ci95": found.ci95}


def _curve(values: Sequence[Sequence[float]]) -> list[float]:
    return [round(float(value), 6) for value in np.mean(values, 0)] if len(values) else []


# ---------------------------------------------------------------- how it is read

COLUMNS = (
    ("init", "init"), ("method", "method"), ("steps", "passes"), ("first_steps", "first block"),
    ("score", "world score"), ("gain", "above its init"), ("motion", "motion"), ("exposure", "error per block"),
    ("score_slope", "score per block"), ("training_s", "trained s"), ("seconds_per_video", "s a video"),
)  # fmt: skip
TEXT = frozenset({"init", "method"})
WHOLE = frozenset({"steps", "first_steps", "training_s"})


def cells(row: Row) -> list[str]:
    """A row as text, in the order of COLUMNS; numbers with their interval where they have one."""
    return [_cell(row, name) for name, _ in COLUMNS]


def _cell(row: Row, name: str) -> str:
    value, ends = row[name], row.get(f"{name}_ci95")
    if value is None:
        return "-"
    if name in TEXT:
        return str(value)
    if name in WHOLE:
        return f"{value:.0f}"
    shown = f"{value:+.3f}" if name in ("gain", "exposure", "score_slope") else f"{value:.3f}"
    return f"{shown} ({ends[0]:.3f} to {ends[1]:.3f})" if ends else shown


def markdown(report: Row) -> str:
    """The table for a page of the manual."""
    head = [words for _, words in COLUMNS]
    rule = ["---" if name in TEXT else "---:" for name, _ in COLUMNS]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *map(cells, report["rows"]))) + "\n"
