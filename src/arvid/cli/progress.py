"""How a run is shown while it runs: a live table on a terminal, plain lines elsewhere, nothing when asked to be quiet.

Knows: rows of a report (cli/report.py) and where to print them (stderr). Does not know: how blocks are made.
"""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

Row = dict[str, Any]
SHOWN = 18
"""Blocks that a live table shows at once; older ones leave at the top."""
COLOURS = {
    "target": "blue", "drafted": "green", "accepted": "green", "verified": "green", "refined": "yellow",
    "repaired": "magenta", "redone": "red",
}  # fmt: skip


def rate_of(row: Row) -> float:
    """Frames per second of one block."""
    return row["frames"] / max(sum(row["seconds"].values()), 1e-9)


def summary(totals: Row) -> str:
    """Totals in one sentence."""
    sources = ", ".join(f"{count} {name}" for name, count in totals["blocks_by_outcome"].items())
    first = f", first one after {totals['first_frame_s']:.2f} s" if totals["first_frame_s"] is not None else ""
    return (
        f"{totals['frames']} frames in {totals['seconds']:.2f} s ({totals['fps'] or 0:.1f} frames per second{first}); "
        f"{totals['blocks']} blocks: {sources or 'none'}"
    )


class Display:
    """Shows nothing; the base of the others. A `Listener`; `block` is told of every finished block, `end` of the
    totals. Use it as a context around one run, begun by `begin`."""

    def begin(self, title: str, blocks: int) -> None:
        """A run of `blocks` blocks starts."""

    def on(self, event: str, payload: dict[str, Any]) -> None:
        """What happens inside a block."""

    def block(self, row: Row) -> None:
        """A block is finished."""

    def end(self, totals: Row, notes: list[str]) -> None:
        """The run is over; `notes` are lines to add."""

    def __enter__(self) -> Display:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class Lines(Display):
    """One plain line per block."""

    def __init__(self) -> None:
        self._blocks = 0

    def begin(self, title: str, blocks: int) -> None:
        """Say what comes."""
        self._blocks = blocks
        self._say(title)

    def block(self, row: Row) -> None:
        """Say what became of a block."""
        score = row["score"]
        drafted = "drafted" if row["passes"].get("drafter") else "not drafted"
        judged = "not scored" if score is None else f"score {score:.3f}"
        self._say(
            f"block {row['block'] + 1}/{self._blocks}: {drafted}, {judged}, {row['outcome']}, {row['frames']} frames, "
            f"{sum(row['seconds'].values()):.2f} s, {rate_of(row):.1f} frames per second"
        )

    def end(self, totals: Row, notes: list[str]) -> None:
        """Say the totals."""
        for line in (summary(totals), *notes):
            self._say(line)

    @staticmethod
    def _say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)


class Terminal(Display):
    """A table that grows, with a bar below; redrawn when something happens, so that it costs no thread."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=False)
        self._rows: list[Row] = []
        self._title, self._blocks, self._now = "", 0, ""

    def begin(self, title: str, blocks: int) -> None:
        """An empty table."""
        self._title, self._blocks, self._rows = title, blocks, []

    def __enter__(self) -> Display:
        self._live = Live(self._picture(), console=self._console, auto_refresh=False)
        self._live.start(refresh=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._now = ""
        self._live.update(self._picture(), refresh=True)
        self._live.stop()

    def on(self, event: str, payload: dict[str, Any]) -> None:
        """Show which block is being made, and a draft that was sent back."""
        if event == "begun":
            self._now = f"block {payload['block'] + 1}: being made"
        elif event == "rejected":
            score = "" if payload["score"] is None else f" at {payload['score']:.3f}"
            self._now = f"{self._now.split(':')[0]}: draft rejected{score}, the target takes over"
        else:
            return
        self._live.update(self._picture(), refresh=True)

    def block(self, row: Row) -> None:
        """One more row."""
        self._rows.append(row)
        self._now = ""
        self._live.update(self._picture(), refresh=True)

    def end(self, totals: Row, notes: list[str]) -> None:
        """The totals below the table."""
        self._console.print(Text(summary(totals), style="bold"))
        for line in notes:
            self._console.print(Text(line))

    def _picture(self) -> Group:
        table = Table(title=Text(self._title, style="bold"), title_justify="left", box=None, pad_edge=False)
        for name in ("block", "frames", "draft", "score", "outcome", "seconds", "frames/s"):
            table.add_column(name, justify="left" if name in ("draft", "outcome") else "right", header_style="dim")
        for row in self._rows[-SHOWN:]:
            score = row["score"]
            table.add_row(
                str(row["block"] + 1), str(row["frames"]), "drafted" if row["passes"].get("drafter") else "-",
                "-" if score is None else f"{score:.3f}", Text(row["outcome"], style=COLOURS.get(row["outcome"], "")),
                f"{sum(row['seconds'].values()):.2f}", f"{rate_of(row):.1f}",
            )  # fmt: skip
        frames = sum(row["frames"] for row in self._rows)
        foot = Table.grid(padding=(0, 2))
        foot.add_row(
            ProgressBar(total=max(self._blocks, 1), completed=len(self._rows), width=32),
            f"{len(self._rows)}/{self._blocks} blocks, {frames} frames",
        )
        return Group(table, foot, Text(self._now, style="dim"))


def choose(quiet: bool) -> Display:
    """The display that fits: nothing when quiet, a table on a terminal, lines elsewhere."""
    console = Console(stderr=True)
    if quiet:
        return Display()
    return Terminal(console) if console.is_terminal and not console.is_dumb_terminal else Lines()
