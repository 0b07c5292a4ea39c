"""The benchmark of the past on a terminal: a table of the longest horizon, one of switches, and the claims.

Knows: the report of `cli.memory_run`. Does not know: how anything was measured.
"""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from arvid.cli.places import stdout
from arvid.cli.report import Row

WIDTH = 150
"""Columns of the table where no terminal says how many there are."""
COLUMNS = (
    ("world_score", "score", 3), ("kept", "of 1x", 3), ("score_slope", "slope", 4), ("over_sink", "to sink", 3),
    ("identity_return", "return", 3), ("chunk_discontinuity", "seams", 3), ("motion", "motion", 3),
    ("max_diff_to_full", "to full", 6), ("bytes", "KiB", 0), ("ms_per_block", "ms/block", 1),
    ("ms_slope_per_block", "slope", 4),
)  # fmt: skip
"""Fields of a row, their heads, their digits."""
SWITCHES = (
    ("adopted", "adopted", 2), ("adherence", "adherence", 3), ("identity_kept", "identity", 3),
    ("continuity", "continuity", 3), ("continuity_same_thing", "same thing", 3), ("ms_switch_block", "ms", 1),
)  # fmt: skip


def show(report: Row) -> None:
    """The tables and the claims on stdout."""
    console = stdout(WIDTH)
    longest = max((row["horizon"] for row in report["rows"]), default=0)
    far = [row for row in report["rows"] if row["horizon"] == longest]
    if far:
        title = f"{report['config']['model']}: {longest}x the training length, {far[0]['prompts']} prompts"
        table = _table(title, ("policy", "positions", "level", "budget"), [name for _, name, _ in COLUMNS])
        for row in sorted(far, key=lambda row: (row["budget_frames"] or 0, -row["world_score"])):
            table.add_row(
                row["policy"], row["positions"], f"{row['past_level']:g}", str(row["budget_frames"] or "-"),
                *_cells(row, COLUMNS),
            )  # fmt: skip
        console.print(table)
    if report["switching"]:
        one = report["switching"][0]
        table = _table(
            f"changes of the prompt: {one['past']}, {one['trials']} trials", ("way",), [n for _, n, _ in SWITCHES]
        )
        for row in report["switching"]:
            table.add_row(row["how"], *_cells(row, SWITCHES))
        console.print(table)
    for row in report["endurance"]:
        console.print(endured(row), markup=False, highlight=False, soft_wrap=True)
    for claim in report["claims"]:
        said = "reached" if claim["reached"] else "not reached"
        who = " ".join(str(claim[name]) for name in ("policy", "budget_frames") if claim[name] is not None)
        who += f", past at {claim['past_level']:g}" if claim["past_level"] else ""
        console.print(f"{said}: {claim['claim']} ({who})", markup=False, highlight=False, soft_wrap=True)


def endured(row: Row) -> str:
    """A line about a very long video."""
    ms, weight = row["ms_slope_ci95"], row["process_slope_ci95"]
    return (
        f"{row['policy']} at {row['positions']}, {row['blocks']} blocks: {row['ms_per_block']:.1f} ms per block, "
        f"{1000 * row['ms_slope_per_block']:+.3f} ms per thousand blocks ({1000 * ms[0]:+.3f} to {1000 * ms[1]:+.3f}); "
        f"process {row['process_bytes'] / 2**20:.0f} MiB, {row['process_slope_bytes_per_block']:+.0f} bytes per block "
        f"({weight[0]:+.0f} to {weight[1]:+.0f}); past {row['bytes'] / 2**10:.0f} KiB"
    )


def _table(title: str, names: tuple[str, ...], numbers: list[str]) -> Table:
    table = Table(title=title)
    for name in names:
        table.add_column(name, no_wrap=True)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _cells(row: Row, columns: tuple[tuple[str, str, int], ...]) -> Iterator[str]:
    for name, _, digits in columns:
        value = row[name]
        if value is not None and name == "bytes":
            value /= 1024
        yield "-" if value is None else f"{value:.{digits}f}"
