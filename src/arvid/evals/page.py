"""The page of the speculation benchmark: one HTML file with everything in it.

Knows: how a report's rows become a plot and a table, and kept frames become pictures. Does not know: how anything was
measured; it shows the numbers it is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from arvid.evals.drawing import PAGES, as_svg, plain, png
from arvid.evals.speculation import Video, router_of
from arvid.evals.summary import Row, front, is_rival

SHOWN_POLICIES, SHOWN_PROMPTS = 8, 4
GROUPS = {
    "target": ("the target alone", "#52514e", "s"),
    "rule": ("drafts by rule", "#eb6834", "o"),
    "judged": ("drafts by judgement", "#2a78d6", "^"),
    "mended": ("drafts mended by the target", "#1baa7d", "D"),
}
"""Groups of policies: words, colour and mark of the plot."""


def render(report: dict[str, Any], videos: Sequence[Video]) -> str:
    """The page of a report (see docs/benchmark.md) as one self-contained HTML text; `videos` give the pictures."""
    found: list[Row] = report["rows"]
    return PAGES.get_template("page.html").render(
        report=report, plot=plot(found), sheets=sheets(videos, shown_policies(found)),
        best={row["policy"] for row in front(found)}, colour=lambda policy: GROUPS[group_of(policy)][1],
    )  # fmt: skip


def group_of(policy: str) -> str:
    """A key of GROUPS."""
    router = router_of(policy)
    if router == "target":
        return "target"
    if "refine" in policy or "repair" in policy:
        return "mended"
    judged = {"reward", "quantile", "cascade", "verify", "verify-commit", "hold", "hold-quality"}
    return "judged" if router in judged else "rule"


def shown_policies(found: Sequence[Row]) -> list[str]:
    """Which policies are worth a row of pictures: the anchors, then the best of the others."""
    best = [row["policy"] for row in front(found)]
    order = ["target", "first", "draft", *best[::-1], *(row["policy"] for row in found if is_rival(row["policy"]))]
    present = {row["policy"] for row in found}
    return [policy for policy in dict.fromkeys(order) if policy in present][:SHOWN_POLICIES]


# ---------------------------------------------------------------- plot


def plot(found: Sequence[Row]) -> str:
    """Speed-up against retention with both intervals as an SVG element; numbers are those of the table's rows."""
    from matplotlib.figure import Figure

    with plain():
        figure = Figure(figsize=(9, 5.2), layout="constrained")
        axes = figure.add_subplot()
        for name, (words, colour, mark) in GROUPS.items():
            some = [(n, row) for n, row in enumerate(found, 1) if group_of(row["policy"]) == name]
            for number, row in [(n, row) for n, row in some if row["retention"] is not None]:
                _point(axes, number, row, colour, mark)
            axes.scatter([], [], color=colour, marker=mark, label=words)
        best = [row for row in front(found) if row["retention"] is not None]
        axes.plot([r["speedup"] for r in best], [r["retention"] for r in best], color="#a9a79f", lw=1, zorder=1)
        axes.set_xlabel("speed-up against the target alone")
        axes.set_ylabel("share of the target's world score")
        axes.grid(color="#e6e5e0", lw=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
        return as_svg(figure)


def _point(axes: Any, number: int, row: Row, colour: str, mark: str) -> None:
    """One row: its mark, its number, and its intervals where it has them."""
    x, y = row["speedup"], row["retention"]
    for interval, name, value in ((row["speedup_ci95"], "xerr", x), (row["retention_ci95"], "yerr", y)):
        if interval is not None:
            # A percentile interval may leave its own estimate out; an error bar cannot have a negative length.
            arms = [[max(value - interval[0], 0.0)], [max(interval[1] - value, 0.0)]]
            axes.errorbar([x], [y], **{name: arms}, color=colour, lw=0.8, alpha=0.5, fmt="none")
    axes.plot([x], [y], color=colour, marker=mark, ms=6, mec="white", mew=0.8, zorder=3)
    axes.annotate(str(number), (x, y), xytext=(5, 4), textcoords="offset points", fontsize=8, color="#33322f")


# ---------------------------------------------------------------- pictures


def sheets(videos: Sequence[Video], policies: Sequence[str]) -> list[dict[str, Any]]:
    """Strips of frames for the first prompts: prompt, seed, and per policy its score, seconds and image."""
    found: dict[tuple[str, int], dict[str, Video]] = {}
    for video in videos:
        found.setdefault((video.prompt, video.seed), {})[video.policy] = video
    return [
        {
            "prompt": prompt,
            "seed": seed,
            "rows": [
                {"policy": policy, "score": made[policy].score, "seconds": made[policy].seconds,
                 "image": png(made[policy].strip)}
                for policy in policies
                if policy in made
            ],
        }
        for (prompt, seed), made in [*found.items()][:SHOWN_PROMPTS]
    ]  # fmt: skip
