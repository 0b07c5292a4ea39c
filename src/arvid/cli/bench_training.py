"""`arvid bench training`: what each training method buys, checkpoint by checkpoint.

Knows: arguments, which passes are measured, files of results. Does not know: how a checkpoint makes videos
(`cli.checkpoints`), what is measured (`evals.training`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from arvid.cli import options
from arvid.cli.eval import check_place


def training(
    checkpoints: Annotated[
        list[Path], typer.Argument(help="Folders of runs, like runs/target runs/target-consistency.", metavar="DIR...")
    ],
    prompts: Annotated[int, typer.Option(min=2, help="Held-out prompts.")] = 32,
    steps: Annotated[str, typer.Option(metavar="LIST", help="Passes of a block.")] = "1,2,4",
    first: Annotated[
        str, typer.Option(metavar="LIST", help="Passes of the first block; 0: as many as the others.")
    ] = "0,4",
    levels: Annotated[str, typer.Option(help="Levels of the prompt grammar: 1-2, or 1,3.")] = "1-2",
    seconds: options.Seconds = 5.0,
    quick: Annotated[bool, typer.Option("--quick", help="Few prompts and passes, short videos.")] = False,
    model: options.Model = "embedded",
    device: options.Device = "cpu",
    threads: options.Threads = 0,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the report here.")] = None,
    html_file: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write the page here.")] = None,
    text_file: Annotated[Path | None, typer.Option("--markdown", metavar="FILE", help="Write the table here.")] = None,
) -> None:
    """Compare checkpoints of `arvid train` on held-out prompts: score, motion, exposure bias, cost.

    --model gives autoencoder and text encoder. Ctrl-C ends the run and reports the rows it finished.
    """
    for path in filter(None, (json_file, html_file, text_file)):
        check_place(path)
    # What is heavy is imported when it is needed: `arvid --help` answers at once.
    from arvid.cli import checkpoints as running
    from arvid.cli import families
    from arvid.cli.bench import level_numbers
    from arvid.cli.report import as_json, leave, nothing
    from arvid.evals import training as table
    from arvid.evals import training_page

    asked = running.Asked(
        tuple(checkpoints), prompts, numbers(steps, "--steps", 1), numbers(first, "--first", 0), level_numbers(levels),
        seconds,
    )  # fmt: skip
    families.set_up(threads)
    report = running.run(families.open_pipeline(model, "", device), asked.quickly() if quick else asked)
    if not report["rows"]:
        nothing("a row was finished")
    files = ((text_file, table.markdown), (html_file, training_page.render), (json_file, as_json))
    leave(report, files, lambda report: typer.echo(table.markdown(report), nl=False))


def numbers(text: str, option: str, least: int) -> tuple[int, ...]:
    """1,2,4 as numbers. Raises ValueError for anything else, and for numbers below `least`."""
    try:
        found = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError as error:
        raise ValueError(f"{option} {text!r}; expected whole numbers like 1,2,4") from error
    if min(found) < least:
        raise ValueError(f"{option} {text!r}; expected numbers of at least {least}")
    return found
