"""`arvid bench memory`: what a block may read, compared at equal budgets on videos long and short.

Knows: arguments and files. Does not know: how a run goes (`cli.memory_run`) or what is measured (`arvid.evals.memory`).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from arvid.cli import options
from arvid.cli.eval import check_place


def memory(
    policies: Annotated[
        str, typer.Option(metavar="A,B", help="Policies to compare, joined by commas. Default: all.")
    ] = "",
    budgets: Annotated[str, typer.Option(metavar="N,N", help="Latent frames on view.")] = "6,9,12,16",
    horizons: Annotated[str, typer.Option(metavar="N,N", help="Lengths, in training lengths.")] = "1,4,12",
    positions: Annotated[
        list[str] | None,
        typer.Option(metavar="SPEC", help="own: each policy's; all: every scheme; or a spec. Repeat for more."),
    ] = None,
    past_levels: Annotated[
        str, typer.Option(metavar="N,N", help="Noise levels at which blocks are remembered, 0 or more and below 1.")
    ] = "0",
    prompts: Annotated[int, typer.Option(min=1, help="Held-out prompts.")] = 8,
    scenes: Annotated[int, typer.Option(min=0, help="Scenes that return, and changes of the prompt.")] = 8,
    blocks: Annotated[int, typer.Option(min=0, metavar="N", help="Instead: one video of N blocks by each policy.")] = 0,
    levels: Annotated[str, typer.Option(help="Levels of the prompt grammar: 1-2, or 1,3.")] = "1-2",
    weights: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Also with the trained merging weights of a folder.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="End within three minutes: one budget, short videos.")] = False,
    model: options.Model = "embedded",
    device: options.Device = "cpu",
    threads: options.Threads = 0,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the report here.")] = None,
    html_file: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write the page here.")] = None,
) -> None:
    """Compare what a block may read: every policy of the past at equal budgets, on videos long and short.

    With --json a run that was killed goes on where it was when the same command is given again.
    """
    begin = time.monotonic()
    for path in filter(None, (json_file, html_file)):
        check_place(path)
    from arvid.cli import families
    from arvid.cli import memory_run as running
    from arvid.cli.bench import level_numbers
    from arvid.cli.bench_judges import noise_levels
    from arvid.cli.bench_training import numbers

    default = running.Wanted()
    named = tuple(filter(None, (name.strip() for name in policies.split(",")))) or default.policies
    counts, lengths = (
        tuple(sorted(numbers(text, name, 1))) for text, name in ((budgets, "--budgets"), (horizons, "--horizons"))
    )
    wanted = running.Wanted(
        named, counts, lengths, tuple(positions or default.positions), prompts, scenes, level_numbers(levels), weights,
        past_levels=noise_levels(past_levels, "--past-levels") or default.past_levels,
    )  # fmt: skip
    running.check(wanted)
    families.set_up(threads)
    pipeline = families.open_pipeline(model, "", device)
    journal = json_file.with_name(f"{json_file.name}.journal") if json_file and not blocks else None
    if blocks:
        report = running.endurance(pipeline, wanted, blocks)
    else:
        wanted = running.quick(wanted, default) if quick else wanted
        report = running.Bench(pipeline, wanted, begin, journal).run()
    _leave(report, json_file, html_file, journal)


def _leave(report: dict[str, Any], json_file: Path | None, html_file: Path | None, journal: Path | None) -> None:
    """Files and tables, unless nothing was measured; a journal only of a run that is not complete. Raises typer.Exit
    when the run was interrupted."""
    from arvid.cli import memory_table
    from arvid.cli.places import write
    from arvid.cli.report import STOPPED, write_report
    from arvid.evals.memory_page import render

    if report["rows"] or report["endurance"]:
        if json_file:
            write_report(report, json_file)
        if html_file:
            write(html_file, render(report))
        memory_table.show(report)
    if journal and report["config"]["complete"]:
        journal.unlink()
    if report["config"]["interrupted"]:
        more = "; the same command goes on from here" if journal else ""
        typer.echo(f"interrupted{more}", err=True)
        raise typer.Exit(STOPPED)
