"""The page of the training benchmark: one HTML file with the table and two plots in it.

Knows: how a report's rows become plots and a table. Does not know: how anything was measured.
"""

from __future__ import annotations

from typing import Any

from arvid.evals.drawing import COLOURS, PAGES, as_svg, plain
from arvid.evals.training import COLUMNS, TEXT, Row, cells


def render(report: Row) -> str:
    """The page of a report (docs/training.md) as one self-contained HTML text."""
    found = [cells(row) for row in report["rows"]]
    return PAGES.get_template("training.html").render(
        report=report, head=COLUMNS, text=TEXT, found=found, scores=plot_scores(report["rows"]),
        errors=plot_errors(report["rows"]),
    )  # fmt: skip


def plot_scores(found: list[Row]) -> str:
    """World score against passes, a line per checkpoint; the first block with as many passes as the others."""
    lines = {name: [row for row in found if row["checkpoint"] == name and _plain(row)] for name in _names(found)}
    return _plot(
        {name: ([row["steps"] for row in some], [row["score"] for row in some], [row["score_ci95"] for row in some])
         for name, some in lines.items()},
        "passes of a block", "world score",
    )  # fmt: skip


def plot_errors(found: list[Row]) -> str:
    """Error against the block's number at the most passes measured, a line per checkpoint."""
    lines = {}
    for name in _names(found):
        some = [row for row in found if row["checkpoint"] == name and row["error_by_block"]]
        if some:
            curve = max(some, key=lambda row: row["steps"])["error_by_block"]
            lines[name] = (list(range(1, len(curve) + 1)), curve, [None] * len(curve))
    return _plot(lines, "block behind the true one", "mean squared error of latents")


def _names(found: list[Row]) -> list[str]:
    return list(dict.fromkeys(row["checkpoint"] for row in found))


def _plain(row: Row) -> bool:
    return bool(row["first_steps"] == row["steps"])


def _plot(lines: dict[str, tuple[list[Any], list[Any], list[Any]]], across: str, up: str) -> str:
    from matplotlib.figure import Figure

    with plain():
        figure = Figure(figsize=(7, 4.2), layout="constrained")
        axes = figure.add_subplot()
        for number, (name, (x, y, ends)) in enumerate(lines.items()):
            colour = COLOURS[number % len(COLOURS)]
            axes.plot(x, y, color=colour, marker="o", ms=4, label=name)
            for place, value, interval in zip(x, y, ends, strict=True):
                if interval:
                    arms = [[max(value - interval[0], 0.0)], [max(interval[1] - value, 0.0)]]
                    axes.errorbar([place], [value], yerr=arms, color=colour, lw=0.8, alpha=0.5, fmt="none")
        axes.set_xlabel(across)
        axes.set_ylabel(up)
        axes.grid(color="#e6e5e0", lw=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        if lines:
            axes.legend(frameon=False, fontsize=8)
        return as_svg(figure)
