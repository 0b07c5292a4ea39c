"""`arvid batch`: a file of rows becomes a folder of videos, here or on a cluster.

Knows: the options of this verb, the order of its checks, exit codes. Does not know: what a row is (cli/rows.py), where
it goes (cli/folder.py), how it is made (cli/batching.py).
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from arvid.cli import options

if TYPE_CHECKING:
    from arvid.cli.batching import Models
    from arvid.cli.folder import Folder, Told
    from arvid.cli.rows import Row

Source = Annotated[
    str, typer.Argument(metavar="FILE", help="Rows, one JSON object per line; - reads stdin.", show_default=False)
]
Output = Annotated[
    Path,
    typer.Option(
        "--output", "-o", metavar="DIR", help="Where videos, reports and the manifest go.", show_default=False
    ),
]
Engine = Annotated[
    str,
    typer.Option("--engine", metavar="SPEC", help="Who makes them: local, ray, or ray:workers=4,gpus=1,cpus=4."),
]


def batch(
    rows: Source,
    output: Output,
    engine: Engine = "local",
    seconds: options.Seconds = 5.0,
    seed: options.Seed = 0,
    model: options.Model = "embedded",
    drafter: options.Drafter = "",
    router: options.Router = "",
    past: options.Past = "",
    positions: options.Positions = "",
    noise: options.Noise = "",
    guard: options.Guard = "",
    scale: options.Scale = 0,
    threads: options.Threads = 0,
    device: options.Device = "cpu",
    quiet: options.Quiet = False,
) -> None:
    """Make a video of every row, and go on where an earlier run ended: rows that are done are left as they are.

    A row has a prompt and perhaps id, seconds, seed, router, memory, positions, noise, guard, size, scale, timeline,
    image, continue; options here hold for rows that do not say. A row that fails is told of by its line and stops
    nothing. Ends with code 0 when all rows are done, 2 when some ask for what cannot be made, 1 when something else
    failed.
    """
    from arvid.cli.batching import Models
    from arvid.cli.clusters import absolute, spread, workers_of
    from arvid.cli.families import check_specs
    from arvid.cli.folder import Folder
    from arvid.cli.rows import read_rows

    workers = workers_of(engine)
    text, beside = _text(rows)
    defaults = {
        "seconds": seconds, "seed": seed, "router": router, "memory": past, "positions": positions, "guard": guard,
        "noise": noise, "scale": scale,
    }  # fmt: skip
    check_specs(router, past, positions, guard, noise)
    found = read_rows(text, beside, defaults)
    models = Models(absolute(model), absolute(drafter), device, threads)
    with Folder(output) as folder:
        make = _here(models, folder) if workers is None else spread(workers, models, folder, quiet)
        told = run(found, folder, models, make, quiet)
    _end(told, output, quiet)


def run(rows: list[Row], folder: Folder, models: Models, make: Any, quiet: bool) -> list[Told]:
    """What became of all rows. `make` takes the rows that wait and yields what is told of each as it ends."""
    from arvid.cli.batching import waiting
    from arvid.cli.folder import DONE

    told, left = [], []
    for row, known in waiting(rows, folder, models.made_with):
        if known is None:
            left.append(row)
        else:
            told.append({**known, "line": row.line})
            folder.note(told[-1])
            if known["status"] != DONE:
                _say(told[-1], False)
    if skipped := sum(entry["status"] == DONE for entry in told):
        _line(f"{skipped} of {len(rows)} rows are done already", quiet)
    with closing(make(left)) as ends:
        for entry in ends:
            told.append(entry)
            folder.note(entry)
            _say(entry, quiet)
    return told


def _here(models: Models, folder: Folder) -> Any:
    from arvid.cli.batching import Maker

    maker = Maker(models, folder)

    def make(rows: Iterable[Row]) -> Iterator[Told]:
        for row in rows:
            yield maker(row)

    return make


def _end(told: list[Told], output: Path, quiet: bool) -> None:
    """Say what came of it. Raises Exit with 1 or 2 when rows failed."""
    from arvid.cli.batching import FAULT
    from arvid.cli.folder import DONE, MANIFEST

    counted = Counter(entry["status"] for entry in told)
    _line(f"{counted[DONE]} of {len(told)} rows are done; {output / MANIFEST} tells of all", quiet)
    failed = [entry for entry in told if entry["status"] != DONE]
    if failed:
        lines = ", ".join(str(entry["line"]) for entry in sorted(failed, key=lambda entry: entry["line"])[:20])
        more = f" and {len(failed) - 20} more" if len(failed) > 20 else ""
        _line(f"error: {len(failed)} of {len(told)} rows failed: line {lines}{more}", False)
        raise typer.Exit(1 if any(entry["kind"] == FAULT for entry in failed) else 2)


def _say(told: Told, quiet: bool) -> None:
    if told["status"] == "done":
        _line(f"line {told['line']}: {told['video']}, {told['frames']} frames", quiet)
    else:
        _line(f"error: line {told['line']}: {told['error']}", False)


def _line(text: str, quiet: bool) -> None:
    if not quiet:
        print(text, file=sys.stderr, flush=True)


def _text(source: str) -> tuple[str, Path]:
    """The rows, and the folder that their files are named from."""
    beside = Path.cwd() if source == "-" else Path(source).absolute().parent
    return options.text_of(source, "rows", "one JSON object per line"), beside
