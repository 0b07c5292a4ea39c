"""`arvid bench curves`: how training went, as one picture.

Knows: arguments, the file. Does not know: what a log holds, how it is drawn (`evals.curves`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from arvid.cli.places import file_for, write


def curves(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of runs, like runs/target runs/drafter.", metavar="DIR...")
    ],
    svg_file: Annotated[Path, typer.Option("--svg", metavar="FILE", help="Draw the curves here, .svg.")],
    number: Annotated[
        list[str] | None,
        typer.Option("--number", metavar="NAME", help="A number of the logs; repeat for more. Default: loss."),
    ] = None,
    over: Annotated[int, typer.Option(min=1, metavar="N", help="Steps of the running mean.")] = 100,
) -> None:
    """Draw training curves from the logs of `arvid train`: a panel for each number, a line for each run."""
    file_for(svg_file, ".svg", "--svg")
    # What is heavy is imported when it is needed: `arvid --help` answers at once.
    from arvid.evals import curves as drawing

    found = drawing.curves(list(dict.fromkeys(runs)), list(dict.fromkeys(number or ["loss"])), over)
    write(svg_file, drawing.render(found, over))
    for line in drawing.told(found):
        typer.echo(line)
