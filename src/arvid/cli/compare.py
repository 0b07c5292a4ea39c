"""`arvid compare`: reports of `arvid eval` against each other, paired by prompt and seed.

Knows: arguments, files, the terminal. Does not know: how differences are found or drawn (`arvid.evals`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from arvid.cli.eval import WIDTH, check_place
from arvid.cli.places import stdout, write

Row = dict[str, Any]


def compare(
    reports: Annotated[
        list[Path], typer.Argument(metavar="REPORT...", help="Reports; the first is the baseline.", show_default=False)
    ],
    names: Annotated[str, typer.Option(metavar="A,B", help="What to call them, joined by commas.")] = "",
    x: Annotated[str, typer.Option("--x", metavar="METRIC", help="Across in the Pareto plot; seconds_per_video.")] = "",
    y: Annotated[str, typer.Option("--y", metavar="METRIC", help="Upwards in the Pareto plot.")] = "",
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the comparison here.")] = None,
    html_file: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write the page here.")] = None,
) -> None:
    """Compare evaluations of the same prompts and seeds: paired differences with intervals, win rates, a page."""
    for path in filter(None, (json_file, html_file)):
        check_place(path)
    from arvid.cli.evaluating import read_report
    from arvid.cli.report import head, write_report
    from arvid.evals import compare as comparing

    held = [read_report(path) for path in reports]
    labels = _labels(held, reports, names)
    compared = comparing.compare(held, labels)
    known = {row["metric"] for row in compared["rows"]} | {comparing.COST, ""}
    for axis in (x, y):
        if axis not in known:
            raise ValueError(f"no number {axis!r} in these reports; known: {', '.join(sorted(known - {''}))}")
    if json_file:
        write_report({**head("compare", "cpu"), "reports": [str(path) for path in reports], **compared}, json_file)
    if html_file:
        from arvid.evals import gallery

        homes = {id(row): path.parent for path, report in zip(reports, held, strict=True) for row in report["clips"]}
        text = gallery.render(held, labels, compared, lambda row: _find(row, homes[id(row)]), (x, y))
        write(html_file, text)
    show(compared)


def _labels(held: list[Row], paths: list[Path], names: str) -> list[str]:
    """What the reports are called, each differently."""
    given = [name.strip() for name in names.split(",")] if names else [str(report["name"]) for report in held]
    if len(given) != len(held):
        raise ValueError(f"{len(given)} names for {len(held)} reports; give one for each")
    if len(set(given)) < len(given):
        given = [path.stem for path in paths]
    if len(set(given)) < len(given):
        given = [f"{name} {number}" for number, name in enumerate(given, 1)]
    return given


def _find(row: Row, home: Path) -> Path | None:
    """The file of a clip: where it was, or there from the report's folder."""
    places = (Path(row["path"]), home / row["path"], home / Path(row["path"]).name)
    return next((place for place in places if place.is_file()), None)


def show(compared: Row) -> None:
    """The table and the findings on stdout."""
    console = stdout(WIDTH)
    table = Table(title=f"{compared['pairs']} pairs; differences to {compared['names'][0]}")
    table.add_column("metric")
    for name in compared["names"]:
        table.add_column(name, justify="right")
    for metric in dict.fromkeys(row["metric"] for row in compared["rows"] if row["value"] is not None):
        rows = [row for row in compared["rows"] if row["metric"] == metric]
        table.add_row(metric, *(_cell(row) for row in rows))
    console.print(table)
    for line in (*(finding["text"] for finding in compared["findings"]), *compared["left_out"]):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _cell(row: Row) -> str:
    if row["value"] is None:
        return "-"
    wins = "" if row["win_rate"] is None else f" {100 * row['win_rate']:.0f} %"
    sign = {"better": " +", "worse": " -"}.get(row["verdict"] or "", "")
    return f"{row['value']:.4g}{wins}{sign}"
