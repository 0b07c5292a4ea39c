"""Judges of drafts against the oracle: one set of drafted blocks, every judge's score of each, what it cost.

Knows: scores, labels, seconds by judge. Does not know: judges, models, how a block was drafted (`evals.judging` has the
statistics).

A label is the oracle's score of the drafted block as part of its film. Three questions are asked of a judge: does it
tell blocks that are good (`auc`), blocks that are better than most (`auc_median`), and blocks that are hardly worse
than what the target makes of the same past (`auc_beside`)? The last is what a router wants to know.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from arvid.evals.drawing import COLOURS, as_svg, plain
from arvid.evals.judging import Judged
from arvid.evals.statistics import Interval

HARDLY = 0.1
"""How much lower than the target's own block a draft may score."""
SHARE = 0.5
"""The share of drafts that is kept where a judge is asked to choose."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Drafted:
    """A drafted block: its prompt and number, the oracle's score of it and of the target's own block after the same
    past, every judge's score in [0, 1] and seconds, and the seconds its decoding took."""

    prompt: str
    block: int
    label: float
    own: float
    scores: dict[str, float]
    seconds: dict[str, float]
    decode: float


def rows(drafts: Sequence[Drafted], good: float, seeing: frozenset[str]) -> list[Row]:
    """A row per judge, the best ranking first. `seeing` names the judges that look at pixels.

    Raises ValueError when there are no drafts.
    """
    if not drafts:
        raise ValueError("0 drafted blocks to judge; videos need at least two blocks, give more --seconds")
    found = [row(drafts, name, good, name in seeing) for name in drafts[0].scores]
    return sorted(found, key=lambda each: -(each["auc"] if each["auc"] is not None else -1.0))


def row(drafts: Sequence[Drafted], name: str, good: float, pixels: bool) -> Row:
    """The numbers of one judge."""
    prompts = [draft.prompt for draft in drafts]
    labels = np.array([draft.label for draft in drafts])
    scores = [draft.scores[name] for draft in drafts]
    beside = [float(draft.label >= draft.own - HARDLY) for draft in drafts]
    judged = Judged(scores, labels, prompts)
    [lift] = judged.lift((SHARE,))
    return {
        "judge": name,
        **_told("auc", judged.auc(good)),
        **_told("auc_median", judged.auc(float(np.median(labels)))),
        **_told("auc_beside", Judged(scores, beside, prompts).auc()),
        **_told("calibration_error", judged.calibration_error()),
        **_told("gain", lift.gain),
        "kept_label": round(lift.label, 6),
        "calibration": [asdict(each) for each in judged.calibration()],
        "ms_per_block": round(1e3 * float(np.mean([draft.seconds[name] for draft in drafts])), 3),
        "pixels": pixels,
    }


def summary(drafts: Sequence[Drafted], good: float) -> Row:
    """What was judged: how many blocks, how good they and the target's are, what decoding one costs."""
    labels = np.array([draft.label for draft in drafts])
    own = np.array([draft.own for draft in drafts])
    return {
        "blocks": len(drafts),
        "prompts": len({draft.prompt for draft in drafts}),
        "label": round(float(labels.mean()), 6),
        "label_median": round(float(np.median(labels)), 6),
        "good": round(float((labels >= good).mean()), 6),
        "hardly_worse": round(float((labels >= own - HARDLY).mean()), 6),
        "target_label": round(float(own.mean()), 6),
        "decode_ms_per_block": round(1e3 * float(np.mean([draft.decode for draft in drafts])), 3),
    }


def _told(name: str, found: Interval) -> Row:
    return {name: None if found.value is None else round(found.value, 6), f"{name}_ci95": found.ci95}


# ---------------------------------------------------------------- how it is read

COLUMNS = (
    ("auc", "AUC, good"), ("auc_beside", "AUC, hardly worse than the target"), ("auc_median", "AUC, above the median"),
    ("calibration_error", "calibration error"), ("gain", "gained by keeping the better half"),
)  # fmt: skip


def markdown(report: Row) -> str:
    """The table for a page of the manual; a judge that looks at pixels also needs them decoded."""
    decode = report["drafts"]["decode_ms_per_block"]
    lines = [["judge", *(words for _, words in COLUMNS), "ms a block"], ["---", *["---:"] * (len(COLUMNS) + 1)]]
    for found in report["rows"]:
        spent = f"{found['ms_per_block']:.1f}" + (f" + {decode:.1f} decoding" if found["pixels"] else "")
        lines.append([found["judge"], *(_cell(found, name) for name, _ in COLUMNS), spent])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _cell(found: Row, name: str) -> str:
    value, ends = found[name], found[f"{name}_ci95"]
    if value is None:
        return "-"
    return f"{value:.3f} ({ends[0]:.3f} to {ends[1]:.3f})" if ends else f"{value:.3f}"


def curves(report: Row) -> str:
    """Calibration curves as an SVG element: mean label against mean score, a line per judge; the area of a point is the
    number of blocks."""
    from matplotlib.figure import Figure

    with plain():
        figure = Figure(figsize=(7, 6), layout="constrained")
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color="#a9a79f", lw=1)
        for number, found in enumerate(report["rows"]):
            bins = [each for each in found["calibration"] if each["count"]]
            colour, x, y = COLOURS[number % len(COLOURS)], [b["score"] for b in bins], [b["label"] for b in bins]
            style = "-" if number < len(COLOURS) else "--"
            axes.plot(x, y, color=colour, lw=1, ls=style, label=found["judge"])
            axes.scatter(x, y, s=[4 + 120 * b["count"] / report["drafts"]["blocks"] for b in bins], color=colour)
        axes.set_xlabel("score of the judge")
        axes.set_ylabel("score of the oracle")
        axes.grid(color="#e6e5e0", lw=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
        return as_svg(figure)
