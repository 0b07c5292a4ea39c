"""The page of one or several evaluations: one HTML file with everything in it, that opens without a network.

Knows: how comparisons become plots, bars and curves, and videos become players and strips. Does not know: how anything
was measured (`evals.run`) or paired (`evals.compare`); it shows the numbers it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from arvid.evals import compare
from arvid.evals.drawing import COLOURS, PAGES, as_svg, plain, shown

SHOWN_CASES = 4
WIDE = 4
"""Small plots next to each other."""

Report = Mapping[str, Any]
Row = dict[str, Any]
Find = Callable[[Row], Path | None]


def render(
    reports: Sequence[Report],
    names: Sequence[str],
    compared: Mapping[str, Any],
    find: Find,
    axes: tuple[str, str] = ("", ""),
    most: int = SHOWN_CASES,
) -> str:
    """The page as one self-contained HTML text. `find` gives the file of a clip's row, None where it is gone; `axes`
    names those of the Pareto plot (empty: as fits); at most `most` pairs are shown with players."""
    x, y = compare.axes_of(reports, compared, *axes)
    metrics = [*dict.fromkeys(row["metric"] for row in compared["rows"] if row["value"] is not None)]
    return PAGES.get_template("gallery.html").render(
        reports=reports, names=names, compared=compared, colours=dict(zip(names, COLOURS * 9, strict=False)),
        pareto=pareto(reports, names, compared, x, y), axes=(x, y), bars=bars(compared, names, metrics), number=number,
        curves=drawn_curves(reports, names, metrics), cases=cases(reports, names, compared, find, most),
        table=[(name, [row for row in compared["rows"] if row["metric"] == name]) for name in metrics],
        about=reports[0]["protocol"]["metrics"],
    )  # fmt: skip


def number(value: float | None) -> str:
    """A number with as many digits as say something."""
    return "-" if value is None else f"{value:.4g}"


# ---------------------------------------------------------------- plots


def pareto(reports: Sequence[Report], names: Sequence[str], compared: Mapping[str, Any], x: str, y: str) -> str:
    """The reports by two numbers, those that no other one beats in both joined; empty with fewer than two points."""
    from matplotlib.figure import Figure

    found = compare.points(reports, names, compared, x, y)
    if len(found) < 2:
        return ""
    sides = {row["metric"]: row["better"] for row in compared["rows"]}
    best = compare.front(found, sides.get(x) or -1, sides.get(y) or 1)
    with plain():
        figure = Figure(figsize=(7.5, 4.4), layout="constrained")
        axes = figure.add_subplot()
        line = sorted((row["x"], row["y"]) for row in found if row["report"] in best)
        axes.plot(*zip(*line, strict=True), color="#a9a79f", lw=1, zorder=1)
        for row in found:
            colour = COLOURS[list(names).index(row["report"]) % len(COLOURS)]
            axes.plot([row["x"]], [row["y"]], "o", color=colour, ms=8, mec="white", zorder=3)
            axes.annotate(row["report"], (row["x"], row["y"]), xytext=(7, 5), textcoords="offset points", fontsize=9)
        axes.set_xlabel(_axis(x, sides))
        axes.set_ylabel(_axis(y, sides))
        _clean(axes)
        return as_svg(figure)


def _axis(name: str, sides: Mapping[str, int]) -> str:
    side = -1 if name == compare.COST else sides.get(name, 0)
    return name.replace("_", " ") + {1: " (more is better)", -1: " (less is better)", 0: ""}[side]


def bars(compared: Mapping[str, Any], names: Sequence[str], metrics: Sequence[str]) -> str:
    """One small plot per metric: a bar per report, with its interval."""
    from matplotlib.figure import Figure

    if not metrics:
        return ""
    with plain():
        figure, axes = _grid(Figure, len(metrics), 0.55 + 0.28 * len(names))
        for axis, metric in zip(axes, metrics, strict=False):
            rows = {row["report"]: row for row in compared["rows"] if row["metric"] == metric}
            for place, name in enumerate(names):
                row = rows.get(name)
                if row and row["value"] is not None:
                    _bar(axis, place, row, COLOURS[place % len(COLOURS)])
            axis.set_title(metric.replace("_", " "), fontsize=9, loc="left")
            axis.set_yticks([])
            axis.invert_yaxis()
            axis.tick_params(labelsize=8)
            axis.locator_params(axis="x", nbins=4)
            _clean(axis)
        return as_svg(figure)


def _bar(axis: Any, place: int, row: Row, colour: str) -> None:
    axis.barh([place], [row["value"]], color=colour, height=0.7)
    if row["ci95"]:
        low, high = row["ci95"]
        arms = [[max(row["value"] - low, 0.0)], [max(high - row["value"], 0.0)]]
        axis.errorbar([row["value"]], [place], xerr=arms, color="#33322f", lw=0.9, capsize=2, fmt="none")


def drawn_curves(reports: Sequence[Report], names: Sequence[str], metrics: Sequence[str]) -> str:
    """One small plot per metric that has a curve: the mean curve of every report."""
    from matplotlib.figure import Figure

    kinds = {metric: _kind(reports, metric) for metric in metrics}
    drawn = [metric for metric in metrics if kinds[metric]]
    if not drawn:
        return ""
    with plain():
        figure, axes = _grid(Figure, len(drawn), 1.7)
        for axis, metric in zip(axes, drawn, strict=False):
            for place, (name, curve) in enumerate(compare.curves(reports, names, metric).items()):
                along = np.linspace(0, 1, len(curve)) if kinds[metric] == "time" else np.arange(1, len(curve) + 1)
                axis.plot(along, curve, color=COLOURS[place % len(COLOURS)], lw=1.4, label=name)
            axis.set_title(metric.replace("_", " "), fontsize=9, loc="left")
            axis.set_xlabel({"time": "share of the clip"}.get(kinds[metric], f"{kinds[metric]} (samples)"), fontsize=8)
            axis.tick_params(labelsize=8)
            _clean(axis)
        return as_svg(figure)


def _kind(reports: Sequence[Report], metric: str) -> str:
    found = (row["curves"][metric][0] for report in reports for row in report["clips"] if metric in row["curves"])
    return str(next(found, ""))


def _grid(kind: Any, count: int, height: float) -> tuple[Any, list[Any]]:
    lines = -(-count // WIDE)
    figure = kind(figsize=(11, lines * (height + 0.35)), layout="constrained")
    axes = [figure.add_subplot(lines, min(WIDE, count), number + 1) for number in range(count)]
    return figure, axes


def _clean(axis: Any) -> None:
    axis.grid(color="#e6e5e0", lw=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


# ---------------------------------------------------------------- pictures


def cases(
    reports: Sequence[Report], names: Sequence[str], compared: Mapping[str, Any], find: Find, most: int = SHOWN_CASES
) -> list[Row]:
    """Players and strips for `most` pairs: those that differ most in what the findings name, then the first ones."""
    keyed = [compare.keyed(report) for report in reports]
    found = []
    for key in _telling(keyed, compared, compare.shared(reports))[:most]:
        rows = []
        for name, clips in zip(names, keyed, strict=True):
            path = find(clips[key])
            if path is not None:
                player, strip = shown(path, clips[key]["frames"])
                rows.append({"report": name, "player": player, "strip": strip, "values": clips[key]["values"]})
        if rows:
            found.append({"title": key[0], "seed": key[1], "rows": rows})
    return found


def _telling(keyed: Sequence[Mapping[Any, Row]], compared: Mapping[str, Any], keys: Sequence[Any]) -> list[Any]:
    """The keys, each finding's most different pair first."""
    first: list[Any] = []
    for finding in compared["findings"]:
        name, clips = finding["metric"], keyed[compared["names"].index(finding["report"])]
        gaps = {
            key: abs(clips[key]["values"][name] - keyed[0][key]["values"][name])
            for key in keys
            if name in clips[key]["values"] and name in keyed[0][key]["values"]
        }
        first.append(max(gaps, key=lambda key: gaps[key]))
    return [*dict.fromkeys([*first, *keys])]
