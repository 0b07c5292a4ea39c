"""`arvid eval`: measure videos, anybody's, and leave a table, a report and a page.

Knows: arguments, how a family makes the missing videos of a suite, the terminal. Does not know: how a run goes
(`cli.evaluating`), metrics, suites (`arvid.evals`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from arvid.cli import options
from arvid.cli.places import Places, stdout, writable

if TYPE_CHECKING:
    from arvid.evals.metric import Metric
    from arvid.evals.suites import Case, Suite
    from arvid.pipeline import Pipeline, Request

UNREAD, STOPPED = 2, 130
WIDTH = 120
"""Columns of the table where no terminal says how many there are."""
WARM_SECONDS = 1.0
"""Length of the video that is made before the first one that counts."""
Row = dict[str, Any]

Prompts = Annotated[
    Path | None,
    typer.Option("--prompts", metavar="FILE", help="One prompt per video, sorted by name; or JSON, names to prompts."),
]
SuiteSpec = Annotated[
    str,
    typer.Option("--suite", metavar="SPEC", help="A suite: world-short, moviegen:file=FILE,prompts=32, ..."),
]
Metrics = Annotated[
    list[str] | None,
    typer.Option(
        "--metrics", metavar="NAMES", help="Names with commas, or name:key=value,...; repeat for more. Default: basic."
    ),
]
Reference = Annotated[
    Path | None, typer.Option("--reference", metavar="DIR", help="Videos of the same names: adds psnr and ssim.")
]
Blocks = Annotated[
    str, typer.Option("--block", metavar="N", help="Frames of a block, or of the first and of the others: 12, 9+12.")
]
VBenchSpec = Annotated[
    list[str] | None,
    typer.Option(
        "--vbench", metavar="SPEC", help="run:python=PATH,dimensions=a+b in an environment of its own; read:file=FILE."
    ),
]
Make = Annotated[bool, typer.Option("--make", help="Make the videos of the suite that are missing.")]
Jobs = Annotated[int, typer.Option("--jobs", min=0, metavar="N", help="Videos read at a time; 0: one per core.")]
Name = Annotated[str, typer.Option("--name", metavar="TEXT", help="What the report calls these videos.")]
Resume = Annotated[bool, typer.Option("--resume", help="Keep what the file of --json already holds.")]
Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the report here.")]
Html = Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Write the page here.")]


@dataclass(frozen=True)
class Making:
    """How missing videos of a suite are made."""

    model: str
    drafter: str
    router: str
    past: str
    device: str


def evaluate(
    videos: Annotated[list[Path], typer.Argument(help="Video files, and folders of them.", show_default=False)],
    prompts: Prompts = None,
    suite: SuiteSpec = "",
    metrics: Metrics = None,
    reference: Reference = None,
    block: Blocks = "",
    vbench: VBenchSpec = None,
    make: Make = False,
    router: options.Router = "",
    past: options.Past = "",
    model: options.Model = "embedded",
    drafter: options.Drafter = "",
    device: options.Device = "cpu",
    threads: options.Threads = 0,
    jobs: Jobs = 0,
    name: Name = "",
    resume: Resume = False,
    json_file: Json = None,
    html_file: Html = None,
    quiet: options.Quiet = False,
) -> None:
    """Measure videos: any mp4, webm, mov, mkv, avi or gif.

    Ends with code 2 when a video could not be read; the others are measured all the same.
    """
    for path in filter(None, (json_file, html_file)):
        check_place(path)
    if resume and json_file is None:
        raise ValueError("--resume without --json; name the report to take up")
    if reference is not None and not reference.is_dir():
        raise ValueError(f"no folder {reference}; --reference names one with videos of the same names")
    lengths = _lengths(block)
    # What is heavy is imported when it is needed: `arvid --help` answers at once.
    from arvid.cli import evaluating, families

    families.set_up(threads)
    asked = _suite(suite)
    wanted = evaluating.Wanted(
        _metrics(metrics or ["basic"], reference), asked, tuple(vbench or ()), prompts, lengths,
        jobs or os.cpu_count() or 1, resume, device, name or _name(videos[0]), json_file,
    )  # fmt: skip
    if make:
        fill(videos, asked, Making(model, drafter, router, past, device), quiet)
    report = evaluating.Evaluation(videos, wanted, quiet).run()
    evaluating.leave(report, json_file, html_file)
    _tell(report, quiet)


def _tell(report: Row, quiet: bool) -> None:
    """Show a report, name what could not be read, and end with the code that says so."""
    if not quiet:
        show(report)
    for failure in report["failures"]:
        typer.echo(f"not read: {failure['path']}: {failure['error']}", err=True)
    if report["interrupted"]:
        raise typer.Exit(STOPPED)
    if report["failures"]:
        raise typer.Exit(UNREAD)


# ---------------------------------------------------------------- options


def check_place(path: Path) -> None:
    """Raises ValueError, before minutes of work, when a file cannot be written."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name a file in it")
    writable(path.absolute().parent)


def _lengths(text: str) -> tuple[int, ...]:
    try:
        found = tuple(int(part) for part in text.split("+")) if text else ()
    except ValueError as error:
        raise ValueError(f"--block {text!r}; expected frames like 12, or 9+12") from error
    if found and min(found) < 1:
        raise ValueError(f"--block {text!r}; every block has at least 1 frame")
    return found


def _metrics(named: Sequence[str], reference: Path | None) -> list[Metric]:
    """The metrics of `--metrics`; `basic` stands for all that need nothing but the videos."""
    from arvid import spec
    from arvid.evals.registry import BASIC, METRICS

    basic = [kind.about.name for kind in BASIC]
    texts = [part.strip() for text in named for part in ([text] if ":" in text else text.split(","))]
    texts = [part for text in texts for part in (basic if text == "basic" else [text])]
    if reference is not None:
        texts += [f"{name}:reference={reference}" for name in ("psnr", "ssim")]
    found: dict[str, Metric] = {}
    for text in dict.fromkeys(texts):
        metric = spec.build(text, METRICS, "metric")
        if metric.about.name in found:
            raise ValueError(f"{metric.about.name} is asked for twice; name each metric once")
        found[metric.about.name] = metric
    return [*found.values()]


def _suite(text: str) -> Suite | None:
    from arvid import spec
    from arvid.evals.suites import SUITES

    return spec.build(text, SUITES, "suite").build() if text else None


def _name(place: Path) -> str:
    return place.resolve().name if place.is_dir() or not place.suffix else place.stem


# ---------------------------------------------------------------- making


def fill(videos: Sequence[Path], suite: Suite | None, making: Making, quiet: bool) -> None:
    """Make what a folder lacks of a suite, each with its report beside it, after a short video that does not count.

    Raises ValueError without a suite and one folder.
    """
    from arvid.cli import families
    from arvid.cli.evaluating import progress_bar
    from arvid.evals import suites

    if suite is None or len(videos) != 1 or videos[0].suffix:
        raise ValueError("--make needs --suite and one folder for its videos")
    lacking = suites.missing(suite, videos[0])
    if not lacking:
        return
    pipeline = families.open_pipeline(making.model, making.drafter, making.device)
    warm(pipeline, request_for(lacking[0], making.router, making.past))
    with progress_bar(quiet) as progress:
        task = progress.add_task("making", total=len(lacking))
        one = partial(make_case, pipeline, making.router, making.past, 0)
        for case in suites.fill(suite, videos[0], one):
            progress.update(task, advance=1, description=f"making {case.name}")


def request_for(case: Case, router: str, past: str = "") -> Request:
    """What a case of a suite asks for; later prompts become a timeline."""
    from arvid.pipeline import Request
    from arvid.rollout.timeline import Entry

    later = tuple(Entry(second, prompt) for second, prompt in case.changes)
    return Request(case.prompts[0], case.seconds, case.seed, router, past, timeline=later)


def warm(pipeline: Pipeline, request: Request) -> float:
    """Make a short video that does not count; its seconds. Raises ValueError when the request cannot be met."""
    pipeline.check(request)
    return pipeline.generate(replace(request, seconds=min(request.seconds, WARM_SECONDS), timeline=())).seconds


def make_case(pipeline: Pipeline, router: str, past: str, scale: int, case: Case, path: Path) -> None:
    """The video of a case, enlarged `scale` times (0: as fits), with its report beside it. Raises KeyboardInterrupt,
    and leaves nothing, when it was interrupted."""
    from arvid.cli.making import Job, make
    from arvid.cli.progress import Display

    places = Places(path, path.with_suffix(".json"))
    if make(pipeline, Job(request_for(case, router, past), places, scale), Display()).interrupted:
        path.unlink(missing_ok=True)
        raise KeyboardInterrupt


# ---------------------------------------------------------------- what is shown


def show(report: Row) -> None:
    """The table on stdout, and why what is not in it was not measured."""
    console = stdout(WIDTH)
    suite = report["protocol"]["suite"]
    table = Table(title=f"{report['name']}: {len(report['clips'])} videos" + (f", {suite}" if suite else ""))
    table.add_column("metric")
    for column in ("value", "95 %"):
        table.add_column(column, justify="right")
    for column in ("better", "videos", "unit"):
        table.add_column(column)
    for name, total in report["totals"].items():
        if total["value"] is not None:
            about, ends = report["protocol"]["metrics"][name], total["ci95"]
            table.add_row(
                name, f"{total['value']:.4g}", f"{ends[0]:.4g} to {ends[1]:.4g}" if ends else "-",
                {1: "more", -1: "less", 0: "-"}[about["better"]], str(total["clips"]), about["unit"],
            )  # fmt: skip
    console.print(table)
    for name, (note, count) in report["notes"].items():
        console.print(f"not measured: {name} of {count} videos: {note}", markup=False, highlight=False, soft_wrap=True)
