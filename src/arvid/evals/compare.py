"""Reports of the same prompts against each other: paired differences, win rates, and where a difference begins.

Knows: how clips of two reports are paired, which way better is, intervals over prompts. Does not know: pages, videos.

The first report is the baseline. Clips are paired by prompt and seed, or by file name where no prompt is known; only
pairs count. A difference is called better or worse when its whole 95 % interval lies on that side of zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arvid.evals.statistics import PairedBootstrap

Report = Mapping[str, Any]
Row = dict[str, Any]
Key = tuple[str, object, int]
SURE = {1: "better", -1: "worse", 0: "no difference beyond the interval"}
COST = "seconds_per_video"
MOST = 1000.0
"""Largest effect that is written down."""


def check(reports: Sequence[Report]) -> None:
    """Raises ValueError unless these are reports of `arvid eval` that share clips."""
    for number, report in enumerate(reports, 1):
        if report.get("kind") != "eval" or "clips" not in report:
            raise ValueError(f"report {number} is of kind {report.get('kind')!r}; give what arvid eval --json wrote")
    if len(reports) > 1 and not shared(reports):
        raise ValueError("no prompt and seed is in all of the reports; compare runs of one suite")


def keyed(report: Report) -> dict[Key, Row]:
    """The clips of a report by (prompt or name, seed, occurrence)."""
    found: dict[Key, Row] = {}
    seen: dict[tuple[str, object], int] = {}
    for row in report["clips"]:
        key = (row["prompt"] or row["name"], row["seed"])
        seen[key] = seen.get(key, -1) + 1
        found[(*key, seen[key])] = row
    return found


def shared(reports: Sequence[Report]) -> list[Key]:
    """The keys that every report has, in the order of the first."""
    all_keyed = [keyed(report) for report in reports]
    return [key for key in all_keyed[0] if all(key in others for others in all_keyed[1:])]


def metrics_of(reports: Sequence[Report]) -> tuple[dict[str, Row], list[str]]:
    """The metrics that all reports measured in the same way, and lines about those that they did not."""
    told = [report["protocol"]["metrics"] for report in reports]
    found, left = {}, []
    for name, about in told[0].items():
        others = [metrics.get(name) for metrics in told[1:]]
        if None in others:
            left.append(f"{name} is not in all reports")
        elif any(other["options"] != about["options"] for other in others if other):
            left.append(f"{name} was measured with other options")
        else:
            found[name] = about
    left += [f"{name} is not in all reports" for metrics in told[1:] for name in metrics if name not in told[0]]
    return found, [*dict.fromkeys(left)]


def compare(reports: Sequence[Report], names: Sequence[str]) -> dict[str, Any]:
    """The comparison as plain data: names, pairs, one row per metric and report, findings, lines about what was left
    out. Raises ValueError for reports that cannot be compared."""
    check(reports)
    metrics, left = metrics_of(reports)
    keys = shared(reports)
    all_keyed = [keyed(report) for report in reports]
    rows = [
        _row(name, about, reports[number], names[number], [k[key] for key in keys], [all_keyed[0][key] for key in keys])
        for name, about in metrics.items()
        for number, k in enumerate(all_keyed)
    ]
    unpaired = [f"{name}: {len(k) - len(keys)} of {len(k)} clips have no partner"
                for name, k in zip(names, all_keyed, strict=True) if len(k) > len(keys)]  # fmt: skip
    found = [row for row in rows if row["verdict"] in ("better", "worse")]
    return {
        "names": list(names),
        "pairs": len(keys),
        "rows": rows,
        "findings": [_finding(row, names[0]) for row in sorted(found, key=lambda row: -row["effect"])],
        "left_out": [*left, *unpaired],
    }


def _row(name: str, about: Row, report: Report, label: str, own: Sequence[Row], base: Sequence[Row]) -> Row:
    """One metric of one report, on the pairs."""
    pairs = [(mine, theirs) for mine, theirs in zip(own, base, strict=True)
             if name in mine["values"] and name in theirs["values"]]  # fmt: skip
    better = int(about["better"])
    row: Row = {"metric": name, "report": label, "better": better, "unit": about["unit"], "pairs": len(pairs),
                "value": (report["totals"].get(name) or {}).get("value"), "ci95": None, "difference": None,
                "difference_ci95": None, "effect": 0.0, "win_rate": None, "verdict": None, "from_s": None}  # fmt: skip
    if not pairs:
        return row
    mine = np.array([pair[0]["values"][name] for pair in pairs])
    theirs = np.array([pair[1]["values"][name] for pair in pairs])
    bootstrap = PairedBootstrap([pair[0]["prompt"] or pair[0]["name"] for pair in pairs])
    row["value"], row["ci95"] = _short(float(mine.mean())), bootstrap.ratio(mine, np.ones(len(mine))).ci95
    if own is base or all(a is b for a, b in zip(own, base, strict=True)):
        return row
    gap = bootstrap.difference(mine, theirs)
    row["difference"], row["difference_ci95"] = _short(gap.value), gap.ci95
    row["effect"] = _effect(mine, theirs)
    if better:
        wins = better * (mine - theirs)
        row["win_rate"] = _short(float((wins > 0).mean() + (wins == 0).mean() / 2))
    side = 0 if gap.low is None or gap.high is None else int(gap.low > 0) - int(gap.high < 0)
    row["verdict"] = SURE[better * side] if better else ("different" if side else SURE[0])
    row["from_s"] = _begins(name, pairs)
    return row


def _effect(mine: NDArray[np.float64], theirs: NDArray[np.float64]) -> float:
    """The mean difference in standard deviations of the baseline between clips (Glass's delta), at most MOST."""
    gap, spread = abs(float((mine - theirs).mean())), float(theirs.std())
    return 0.0 if gap == 0 else round(min(MOST, gap / spread), 3) if spread else MOST


def _begins(name: str, pairs: Sequence[tuple[Row, Row]]) -> float | None:
    """The second from which the mean curves are apart by half of their largest distance; None without curves over
    time."""
    told = [[row["curves"].get(name) for row in pair] for pair in pairs]
    both = [(a[1:], b[1:]) for a, b in told if a and b and a[0] == b[0] == "time" and len(a) == len(b)]
    lengths = {len(a) for a, _ in both}
    if len(lengths) != 1 or not both:
        return None
    gap = np.abs(np.mean([a for a, _ in both], axis=0) - np.mean([b for _, b in both], axis=0))
    if gap.max() == 0:
        return None
    seconds = float(np.mean([pair[0]["frames"] / pair[0]["fps"] for pair in pairs]))
    return _short(float(np.argmax(gap >= gap.max() / 2)) / len(gap) * seconds)


def _finding(row: Row, baseline: str) -> Row:
    """A difference in words."""
    low, high = row["difference_ci95"]
    where = f", from about {row['from_s']:.1f} s on" if row["from_s"] else ""
    unit = f" {row['unit']}" if row["unit"] else ""
    text = (
        f"{row['report']} is {row['verdict']} than {baseline} in {row['metric']}: {row['difference']:+.4g}{unit} "
        f"[{low:.4g} to {high:.4g}]{where}"
    )
    return {"metric": row["metric"], "report": row["report"], "verdict": row["verdict"], "effect": row["effect"],
            "text": text}  # fmt: skip


# ---------------------------------------------------------------- what a page draws


def points(reports: Sequence[Report], names: Sequence[str], compared: Mapping[str, Any], x: str, y: str) -> list[Row]:
    """(x, y) of every report for a Pareto plot, those with both numbers; `x` and `y` are metrics or COST."""
    values = {(row["report"], row["metric"]): row["value"] for row in compared["rows"]}
    found = []
    for report, name in zip(reports, names, strict=True):
        speed = report.get("speed") or {}
        place = [speed.get(COST) if axis == COST else values.get((name, axis)) for axis in (x, y)]
        if None not in place:
            found.append({"report": name, "x": place[0], "y": place[1]})
    return found


def axes_of(reports: Sequence[Report], compared: Mapping[str, Any], x: str = "", y: str = "") -> tuple[str, str]:
    """Which numbers the Pareto plot shows: what is asked for, else cost and the first metric with a better side."""
    ranked = [row["metric"] for row in compared["rows"] if row["better"] and row["value"] is not None]
    ranked = [*dict.fromkeys(ranked)]
    timed = all(report.get("speed") for report in reports)
    measured = [row["metric"] for row in compared["rows"] if row["value"] is not None]
    x = x or (COST if timed else next((name for name in ("motion", *measured) if name in measured), ""))
    return x, y or next((name for name in ranked if name != x), "")


def front(found: Sequence[Row], x_better: int, y_better: int) -> list[str]:
    """The reports that no other one beats in both."""

    def beats(one: Row, two: Row) -> bool:
        gaps = (x_better * (one["x"] - two["x"]), y_better * (one["y"] - two["y"]))
        return min(gaps) >= 0 and max(gaps) > 0

    return [row["report"] for row in found if not any(beats(other, row) for other in found)]


def curves(reports: Sequence[Report], names: Sequence[str], metric: str) -> dict[str, list[float]]:
    """The mean curve of a metric by report, over clips whose curves have the commonest number of points."""
    found = {}
    for report, name in zip(reports, names, strict=True):
        some = [row["curves"][metric][1:] for row in report["clips"] if metric in row["curves"]]
        lengths = [len(curve) for curve in some]
        if lengths:
            usual = max(set(lengths), key=lengths.count)
            mean = np.mean([curve for curve in some if len(curve) == usual], axis=0)
            found[name] = [round(float(value), 6) for value in mean]
    return found


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.9g}")
