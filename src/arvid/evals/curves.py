"""Training curves: what the logs of runs say, smoothed, as one picture.

Knows: rows of `log.jsonl` (docs/training.md), running means, how curves become panels. Does not know: methods, models,
what a number means.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from arvid.evals.drawing import COLOURS, as_svg, plain
from arvid.evals.training import LOG

Row = dict[str, Any]


@dataclass(frozen=True)
class Curve:
    """One number of one run: the steps at which its log has it, its values, and their running means."""

    run: str
    number: str
    steps: tuple[int, ...]
    values: tuple[float, ...]
    means: tuple[float, ...]


def curves(directories: Sequence[Path], numbers: Sequence[str], over: int) -> list[Curve]:
    """The curves of all `numbers` that these runs have, number by number; means are over `over` steps.

    Raises ValueError for a log that is missing or damaged, and for a number that no run has.
    """
    logs = dict(zip(_names(directories), map(rows, directories), strict=True))
    known = dict.fromkeys(name for log in logs.values() for row in log for name in row if name != "step")
    for number in numbers:
        if number not in known:
            raise ValueError(f"no run has a number {number!r} in its log; these do: {', '.join(known)}")
    found = [curve(run, number, log, over) for number in numbers for run, log in logs.items()]
    return [one for one in found if one.steps]


def rows(directory: Path) -> list[Row]:
    """The log of a run as it was written. Raises ValueError when it is missing or damaged."""
    log = directory / LOG
    if not log.is_file():
        raise ValueError(f"no {LOG} in {directory}; name folders of stages that `arvid train` has trained")
    found = []
    for number, line in enumerate(log.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            found.append({**{name: float(value) for name, value in row.items()}, "step": int(row["step"])})
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            raise ValueError(f"line {number} of {log} is no row of numbers with a step; take it out") from error
    return found


def curve(run: str, number: str, log: Sequence[Row], over: int) -> Curve:
    """A number of a log, by step. A run that was resumed may have been at a step twice: what it said last counts."""
    at = {row["step"]: row[number] for row in log if number in row}
    steps = tuple(sorted(at))
    values = tuple(at[step] for step in steps)
    return Curve(run, number, steps, values, running_mean(steps, values, over))


def running_mean(steps: Sequence[int], values: Sequence[float], over: int) -> tuple[float, ...]:
    """At every step the mean of the values of the last `over` steps, its own among them."""
    at, known = np.asarray(steps), np.asarray(values, float)
    return tuple(float(known[(at > step - over) & (at <= step)].mean()) for step in steps)


def _names(directories: Sequence[Path]) -> list[str]:
    """The folder's name of each; the whole path where two have the same."""
    short = [directory.absolute().name for directory in directories]
    return [
        name if short.count(name) == 1 else directory.as_posix()
        for name, directory in zip(short, directories, strict=True)
    ]


# ---------------------------------------------------------------- how they are read


def told(found: Sequence[Curve]) -> list[str]:
    """Where each curve ends, a line each."""
    return [f"{one.number}, {one.run}: {one.means[-1]:.4g} at step {one.steps[-1]}" for one in found]


def render(found: Sequence[Curve], over: int) -> str:
    """An SVG element on white paper: a panel for each number, a colour for each run; points are rows of the log, lines
    their running means. A panel shows the heights of its lines; points above or below them are cut off."""
    from matplotlib.figure import Figure

    numbers = list(dict.fromkeys(one.number for one in found))
    colours = {run: COLOURS[n % len(COLOURS)] for n, run in enumerate(dict.fromkeys(one.run for one in found))}
    with plain():
        figure = Figure(figsize=(8, 0.8 + 2.3 * len(numbers)), layout="constrained")
        panels = figure.subplots(len(numbers), 1, sharex=True, squeeze=False)[:, 0]
        for axes, number in zip(panels, numbers, strict=True):
            shown = [one for one in found if one.number == number]
            for one in shown:
                axes.plot(one.steps, one.means, color=colours[one.run], lw=1.6)
            low, high = axes.get_ylim()
            for one in shown:
                axes.scatter(one.steps, one.values, s=7, color=colours[one.run], alpha=0.45, lw=0)
            axes.set_ylim(low, high)
            axes.set_ylabel(number)
            axes.grid(color="#e6e5e0", lw=0.6)
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
        panels[-1].set_xlabel(f"step (lines: mean of the last {over} steps)")
        figure.align_ylabels()
        _legend(figure, colours)
        return as_svg(figure)


def _legend(figure: Any, colours: dict[str, str]) -> None:
    """Which colour is which run, above the panels."""
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color=colour, lw=1.6, label=run) for run, colour in colours.items()]
    figure.legend(handles=lines, loc="outside upper left", ncols=4, frameon=False, fontsize=9)
