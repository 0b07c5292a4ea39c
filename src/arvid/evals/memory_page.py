"""The page of the benchmark of the past: curves over time, a table of everything, in one HTML file.

Knows: how a report's rows become plots and tables. Does not know: how anything was measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from arvid.evals.drawing import COLOURS, PAGES, as_svg, plain
from arvid.evals.memory_rows import Row, full_and_best

GREY = "#a9a79f"
OVER_TIME = (
    "Each point is the mean over prompts of one window; of every policy the best budget, positions and noise of the "
    "past at the longest horizon. Controls are grey."
)
BY_BUDGET = (
    "At the longest horizon, at a policy's best positions and noise of the past; the dashed line is the past without a "
    "limit."
)


def render(report: Mapping[str, Any]) -> str:
    """The page of a report (see docs/long.md) as one self-contained HTML text."""
    found: list[Row] = report["rows"]
    shown = full_and_best(found)
    curves = []
    if shown and shown[0]["horizon"] > 1:
        curves.append(("World score over time", _over_time(shown), OVER_TIME))
    if len({row["budget_frames"] for row in found if row["budget_frames"]}) > 1:
        curves.append(("World score by budget", _by_budget(found), BY_BUDGET))
    for row in report["endurance"]:
        curves.append((f"{row['blocks']} blocks by {row['policy']}", _endured(row), "Medians of equal parts."))
    return PAGES.get_template("memory.html").render(report=report, curves=curves)


def _figure() -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.6), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(color="#e6e5e0", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _over_time(shown: Sequence[Row]) -> str:
    with plain():
        figure, axes = _figure()
        for number, row in enumerate(shown):
            heights = row["window_scores"]
            words = f"{row['policy']} {row['budget_frames'] or ''} {row['positions']}, past at {row['past_level']:g}"
            axes.plot(range(1, len(heights) + 1), heights, marker="o", ms=3, lw=1.4, label=words, **_look(row, number))
        axes.set_xlabel("training lengths")
        axes.set_ylabel("world score of the window")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, fontsize=8, ncols=2)
        return as_svg(figure)


def _by_budget(found: Sequence[Row]) -> str:
    longest = max(row["horizon"] for row in found)
    far = [row for row in found if row["horizon"] == longest]
    names = [row["policy"] for row in full_and_best(found)]
    with plain():
        figure, axes = _figure()
        for number, name in enumerate(names):
            mine: dict[int, Row] = {}
            for row in (row for row in far if row["policy"] == name):
                budget = row["budget_frames"] or 0
                if budget not in mine or row["world_score"] > mine[budget]["world_score"]:
                    mine[budget] = row
            if 0 in mine:
                axes.axhline(mine[0]["world_score"], color=GREY, lw=1, ls="--", label=name)
                continue
            places = sorted(mine)
            heights = [mine[place]["world_score"] for place in places]
            axes.plot(places, heights, marker="o", ms=4, lw=1.4, label=name, **_look(mine[places[0]], number))
        axes.set_xlabel("budget, latent frames on view")
        axes.set_ylabel(f"world score at {longest}x")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, fontsize=8, ncols=2)
        return as_svg(figure)


def _endured(row: Row) -> str:
    with plain():
        figure, axes = _figure()
        step = row["blocks"] / len(row["curve_ms"])
        places = [(n + 0.5) * step for n in range(len(row["curve_ms"]))]
        axes.plot(places, row["curve_ms"], color=COLOURS[0], lw=1, label="ms per block")
        axes.set_xlabel("block")
        axes.set_ylabel("ms per block")
        axes.set_ylim(bottom=0)
        other = axes.twinx()
        other.plot(places, [held / 2**20 for held in row["curve_process_bytes"]], color=COLOURS[1], lw=1)
        other.set_ylabel("MiB of the process", color=COLOURS[1])
        other.set_ylim(bottom=0)
        return as_svg(figure)


def _look(row: Row, number: int) -> dict[str, Any]:
    """Controls are grey, whatever number they have."""
    if row["control"]:
        return {"color": GREY, "linestyle": ("-", "--", ":")[number % 3]}
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": "-" if number < len(COLOURS) else "--"}
