"""`arvid bench`: measure, and leave a table, a JSON report and a page.

Knows: arguments and files. Does not know: how a run goes (`cli.bench_speculation`) or what is measured (`arvid.evals`).
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from arvid.cli import (
    bench_comparison,
    bench_curves,
    bench_judges,
    bench_memory,
    bench_serve,
    bench_training,
    options,
)
from arvid.cli.eval import check_place
from arvid.cli.places import file_for

app = typer.Typer(help="Measure speed and quality.", no_args_is_help=True)


@app.callback()
def bench() -> None:
    """Measure speed and quality."""


@app.command("speculation")
def speculation(
    prompts: Annotated[int, typer.Option(min=1, help="Held-out prompts.")] = 64,
    seeds: Annotated[int, typer.Option(min=1, help="Videos of each prompt by each policy.")] = 1,
    seconds: options.Seconds = 5.0,
    policy: Annotated[
        list[str] | None, typer.Option("--policy", metavar="SPEC", help="A router to compare; repeat for more.")
    ] = None,
    policies: Annotated[Path | None, typer.Option(metavar="FILE", help="Routers to compare, one per line.")] = None,
    levels: Annotated[str, typer.Option(help="Levels of the prompt grammar: 1-2, or 1,3.")] = "1-2",
    quick: Annotated[bool, typer.Option("--quick", help="End within two minutes: fewer prompts and policies.")] = False,
    model: options.Model = "embedded",
    device: options.Device = "cpu",
    threads: options.Threads = 0,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the report here.")] = None,
    html_file: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write the page here.")] = None,
    random_weights: Annotated[
        bool,
        typer.Option(
            "--random-weights",
            help="Time forced acceptance with random weights: published sizes on a GPU, tiny ones on a CPU.",
        ),
    ] = False,
) -> None:
    """Compare routers of speculative generation over the same held-out prompts and seeds.

    Without --policy and --policies: those of the benchmark. Ctrl-C ends the run and reports its complete rounds.
    """
    for path in filter(None, (json_file, html_file)):
        check_place(path)
    if random_weights:
        if html_file or policy or policies:
            raise ValueError(
                "--random-weights times forced shares of its own and writes no page; leave out policies and --html"
            )
        from arvid.cli import bench_forced

        # The defaults of the other kind of run stand for "choose": a GPU if there is one.
        pair, place = ("" if model == "embedded" else model), ("" if device == "cpu" else device)
        bench_forced.forced(pair, place, threads, quick, json_file=json_file)
        return
    begin = time.monotonic()
    named = (*(policy or ()), *(_read_policies(policies) if policies else ()))
    # What is heavy is imported when it is needed: `arvid --help` answers at once.
    from arvid.cli import bench_speculation as running
    from arvid.cli import families
    from arvid.cli.report import leave, nothing
    from arvid.evals import page

    wanted = running.Wanted(prompts, seeds, seconds, named, level_numbers(levels), quick)
    families.set_up(threads)
    report, videos = running.Bench(families.open_pipeline(model, "", device), wanted, begin).run()
    if not videos:
        nothing("every policy had made one video")
    leave(report, ((json_file, running.as_text), (html_file, partial(page.render, videos=videos))), running.show)


@app.command("family")
def family(
    prompts: Annotated[int, typer.Option(min=2, help="Held-out prompts.")] = 32,
    levels: Annotated[str, typer.Option(help="Levels of the prompt grammar: 1-2, or 1,3.")] = "1-2",
    model: options.Model = "embedded",
    device: options.Device = "cpu",
    threads: options.Threads = 0,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the report here.")] = None,
    picture: Annotated[
        Path | None,
        typer.Option("--pictures", metavar="FILE", help="Draw the target's best, middle and worst videos here, .png."),
    ] = None,
) -> None:
    """Measure what the card of a family promises: autoencoder, target, drafter, long videos, cost."""
    if json_file:
        check_place(json_file)
    if picture:
        file_for(picture, ".png", "--pictures")
    from arvid.cli import bench_family as running
    from arvid.cli import families
    from arvid.cli.report import write_report
    from arvid.evals import pictures

    chosen = level_numbers(levels)
    families.set_up(threads)
    films: list[pictures.Film] = []
    report = running.measure(families.open_pipeline(model, "", device), prompts, chosen, device, films.append)
    if json_file:
        write_report(report, json_file)
    if picture:
        pictures.draw(films, report["config"]["model"], picture)
    for line in running.told(report):
        typer.echo(line)


@app.command("engine")
def engine(
    model: Annotated[
        list[str] | None, typer.Option("--model", metavar="NAME", help="A size, like wan-1.3b; repeat for more.")
    ] = None,
    window: Annotated[
        list[int] | None, typer.Option("--window", metavar="N", help="Frames in sight with the block's own; repeat.")
    ] = None,
    how: Annotated[
        list[str] | None,
        typer.Option("--how", metavar="WORDS", help="A way to run, like eager or compiled+fp8-dynamic; repeat."),
    ] = None,
    blocks: Annotated[int, typer.Option(min=0, metavar="N", help="Timed blocks of a row. Default: 6, quick 2.")] = 0,
    forced: Annotated[
        bool, typer.Option("--speculation/--no-speculation", help="Also time forced shares of kept drafts.")
    ] = True,
    profile: Annotated[
        Path | None, typer.Option("--profile", metavar="FILE", help="Write a Chrome trace of one block, .json.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer ways to run, fewer blocks.")] = False,
    seed: options.Seed = 0,
    note: Annotated[str, typer.Option(metavar="TEXT", help="A remark that goes into the report.")] = "",
    device: Annotated[
        str, typer.Option(metavar="NAME", help="cpu, cuda, cuda:1. Default: a GPU if there is one.")
    ] = "",
    threads: options.Threads = 0,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the report here.")] = None,
) -> None:
    """Time the engine with random weights: published sizes on a GPU, tiny ones on a CPU, beside a plain loop."""
    for path in filter(None, (json_file, profile)):
        check_place(path)
    import torch

    from arvid.cli import bench_engine as running
    from arvid.cli import engine_table, families
    from arvid.cli.report import as_json, leave
    from arvid.models.placement import Placement

    families.set_up(threads)
    where = Placement(device or ("cuda:0" if torch.cuda.is_available() else "cpu")).home
    wanted = running.Wanted(
        tuple(model or ()), tuple(window or ()), tuple(how or ()), blocks, seed, quick, forced, note
    )  # fmt: skip
    leave(running.Bench(wanted, where).run(profile), ((json_file, as_json),), engine_table.show)


app.command("memory")(bench_memory.memory)
app.command("serve")(bench_serve.serve)
app.command("comparison")(bench_comparison.comparison)
app.command("training")(bench_training.training)
app.command("judges")(bench_judges.judges)
app.command("curves")(bench_curves.curves)


def level_numbers(text: str) -> tuple[int, ...]:
    """1-2 or 1,3 as numbers."""
    try:
        low, dash, high = text.partition("-")
        found = tuple(range(int(low), int(high) + 1)) if dash else tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise ValueError(f"--levels {text!r}; expected levels from 1 to 4 like 1-2 or 1,3") from error
    if not found or not set(found) <= {1, 2, 3, 4}:
        raise ValueError(f"--levels {text!r}; expected levels from 1 to 4 like 1-2 or 1,3")
    return found


def _read_policies(path: Path) -> tuple[str, ...]:
    """Policies of a file, one per line; what follows a # is a remark."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read the policies in {path} ({error}); give a text file") from error
    found = tuple(filter(None, (line.partition("#")[0].strip() for line in lines)))
    if not found:
        raise ValueError(f"no policy in {path}; write one per line, like reward:tau=q50")
    return found
