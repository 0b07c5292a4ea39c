"""What `arvid bench engine` shows on the terminal.

Knows: the report's rows. Does not know: how they came about.
"""

from __future__ import annotations

from typing import Any

from rich.table import Table

from arvid.cli.places import stdout

WIDTH = 128
"""Columns where no terminal says how many there are."""
Row = dict[str, Any]


def show(report: Row) -> None:
    """The tables on stdout."""
    console = stdout(WIDTH)
    config = report["config"]
    width, height = config["size"]
    title = f"{width}x{height}, {config['steps']} steps, {config['dtype']}, seconds per block ({config['clock']})"
    table = Table(title=title, title_justify="left")
    for name in ("model", "window", "how", "passes", "commit", "decode", "rest", "fps", "with decode", "x plain"):
        table.add_column(name, justify="left" if name in ("model", "how") else "right", no_wrap=name == "how")
    for row in report["rows"]:
        table.add_row(row["model"], str(row["window"]), row["how"], *_cells(row))
    console.print(table)
    if report["speculation"]:
        table = Table(title="forced acceptance", title_justify="left")
        for name in ("router", "kept", "seconds", "fps", "speed-up"):
            table.add_column(name, justify="left" if name == "router" else "right")
        for row in report["speculation"]:
            kept = f"{row['drafts']} of {row['blocks']}"
            table.add_row(row["router"], kept, f"{row['seconds']:.2f}", f"{row['fps']:.1f}", f"{row['speedup']:.2f}")
        console.print(table)
    if report["profile"]:
        told = report["profile"]
        top = ", ".join(f"{one['name']} {one['share']:.0%}" for one in told["operators"][:5])
        console.print(f"profile: {told['arithmetic']:.0%} of the time is arithmetic; {top}", highlight=False)


def _cells(row: Row) -> list[str]:
    if "error" in row:
        return [row["error"]]
    seconds, fps, times = row["seconds_per_block"], row["fps"], row["times_plain"]
    stages = [f"{seconds[name]:.4f}" if name in seconds else "" for name in ("pass", "commit", "decode", "rest")]
    return [
        *stages,
        f"{fps['denoise']:.1f}",
        f"{fps['with_decode']:.1f}",
        f"{times['with_decode']:.2f}" if times else "",
    ]
