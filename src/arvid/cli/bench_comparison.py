"""`arvid bench comparison`: ways to make a family's videos against each other, on short and long stories of its world.

Knows: the suites, in which order videos are made, what is kept and which files come out. Does not know: how one video
is made (`cli.making`), metrics, intervals, pages (`arvid.evals`).

    FOLDER/weights.json                     whose videos these are
    FOLDER/short/target/0000-0.mp4, .json   a video and its report; what is there is not made again
    RESULTS/comparison.json                 everything but the videos
    RESULTS/comparison-short.html           a page for each suite, with everything in it
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from arvid.cli import options
from arvid.cli.places import writable, write

if TYPE_CHECKING:
    from arvid.evals.suites import Suite
    from arvid.pipeline import Pipeline

Row = dict[str, Any]
SHORT, LONG = "short", "long"
MORE = ("target", "draft", "first")
"""What is compared with the family's own router when nothing is chosen; the first is the baseline."""
SCALE = 2
"""How often frames are enlarged: colours in files are half as fine as pixels, so that nothing of them is lost."""
SHOWN = {SHORT: 4, LONG: 3}
"""Pairs with players on a page, so that it stays small."""


def comparison(
    short: Annotated[int, typer.Option("--short", min=2, help="Stories of 5 seconds.")] = 16,
    long: Annotated[int, typer.Option("--long", min=2, help="Stories of 15 seconds.")] = 6,
    router: Annotated[
        list[str] | None,
        typer.Option(
            "--router", metavar="SPEC", help="A way to compare; repeat. Default: four, the family's own last."
        ),
    ] = None,
    model: options.Model = "embedded",
    device: options.Device = "cpu",
    threads: options.Threads = 0,
    folder: Annotated[Path, typer.Option("--folder", metavar="DIR", help="Where videos are kept.")] = Path(
        "out/comparison"
    ),
    results: Annotated[Path, typer.Option("--results", metavar="DIR", help="Where the report and pages go.")] = Path(
        "benchmarks/results"
    ),
    quiet: options.Quiet = False,
) -> None:
    """Make, measure and compare videos of the family's world by several routers; stopped, it goes on where it was."""
    writable(results)
    from arvid.cli import families
    from arvid.cli.report import write_report
    from arvid.pipeline import Request

    families.set_up(threads)
    pipeline = families.open_pipeline(model, "", device)
    routers = tuple(dict.fromkeys(router or (*MORE, pipeline.family.card.router)))
    if len(routers) < 2:
        raise ValueError(f"{len(routers)} router to compare; give --router at least twice")
    work = Work(routers, {SHORT: short, LONG: long}, folder, threads or os.cpu_count() or 1, quiet)
    for name in routers:
        families.check(pipeline, Request("a video", router=name))
    weights = check_folder(folder, families.directory_of(model))
    warmed = make(pipeline, work)
    found = [measure(work, name, suite, device) for name, suite in work.suites().items()]
    for part in found:
        write(results / f"comparison-{part.name}.html", page(part))
    write_report(
        report_of(pipeline, work, {"weights_sha256": weights, "warm_up_s": warmed}, found), results / "comparison.json"
    )
    if not quiet:
        show(found)


@dataclass(frozen=True)
class Work:
    """What is compared, on how many stories of each suite, where videos are kept, and how many are read at a time."""

    routers: tuple[str, ...]
    prompts: dict[str, int]
    folder: Path
    jobs: int
    quiet: bool

    def suites(self) -> dict[str, Suite]:
        """The held-out suites by name."""
        from arvid import spec
        from arvid.evals.suites import SUITES

        named = {name: f"world-{name}:prompts={count}" for name, count in self.prompts.items()}
        return {name: spec.build(text, SUITES, "suite").build() for name, text in named.items()}

    def place(self, suite: str, router: str) -> Path:
        """The folder of a router's videos."""
        return self.folder / suite / re.sub(r"[^\w.=+-]+", "-", router)


@dataclass(frozen=True, eq=False)
class Part:
    """One suite: the reports of all routers as `arvid eval` makes them, and their comparison."""

    name: str
    reports: list[Row]
    compared: Row


# ---------------------------------------------------------------- making


def check_folder(folder: Path, family: Path) -> str:
    """The sum of a family's weights, written into the folder. Raises ValueError when its videos are by other weights:
    a comparison of old videos with new ones says nothing."""
    seen = hashlib.sha256()
    for path in sorted(path for path in family.rglob("*") if path.suffix in (".safetensors", ".json")):
        seen.update(path.relative_to(family).as_posix().encode())
        seen.update(path.read_bytes())
    mine, note = seen.hexdigest(), folder / "weights.json"
    if note.is_file() and json.loads(note.read_text(encoding="utf-8"))["sha256"] != mine:
        raise ValueError(f"{folder} holds videos by other weights; remove it, or name another --folder")
    folder.mkdir(parents=True, exist_ok=True)
    write(note, json.dumps({"sha256": mine}) + "\n")
    return mine


def make(pipeline: Pipeline, work: Work) -> dict[str, float]:
    """The videos that are missing. All routers make a story before the next one is begun, another one first each time:
    whatever else the machine does meets them alike. Seconds of the videos that do not count, by router."""
    from arvid.cli.eval import make_case, request_for, warm
    from arvid.cli.evaluating import progress_bar
    from arvid.evals.suites import missing

    suites = work.suites()
    lacking = {
        (name, router): {
            case.name for end in (".mp4", ".json") for case in missing(suite, work.place(name, router), end)
        }
        for name, suite in suites.items()
        for router in work.routers
    }
    example = suites[SHORT].cases[0]
    new = [router for router in work.routers if any(lacking[name, router] for name in suites)]
    warmed = {router: round(warm(pipeline, request_for(example, router)), 4) for router in new}
    with progress_bar(work.quiet) as progress:
        task = progress.add_task("making", total=sum(map(len, lacking.values())))
        for name, suite in suites.items():
            for number, case in enumerate(suite.cases):
                turn = number % len(work.routers)
                for router in (*work.routers[turn:], *work.routers[:turn]):
                    if case.name in lacking[name, router]:
                        folder = work.place(name, router)
                        folder.mkdir(parents=True, exist_ok=True)
                        make_case(pipeline, router, "", SCALE, case, folder / f"{case.name}.mp4")
                        progress.update(task, advance=1, description=f"making {name} {case.name} by {router}")
    return warmed


# ---------------------------------------------------------------- measuring


def measure(work: Work, name: str, suite: Suite, device: str) -> Part:
    """Evaluate all videos of a suite. Raises KeyboardInterrupt when it is interrupted."""
    from arvid.cli.evaluating import Evaluation, Wanted
    from arvid.evals import compare
    from arvid.evals.registry import BASIC

    reports = []
    for router in work.routers:
        wanted = Wanted([kind() for kind in BASIC], suite, (), None, (), work.jobs, False, device, router, None)
        paths = [work.place(name, router) / f"{case.name}.mp4" for case in suite.cases]
        reports.append(Evaluation(paths, wanted, work.quiet).run())
        if reports[-1]["interrupted"]:
            raise KeyboardInterrupt
    return Part(name, reports, compare.compare(reports, work.routers))


def speedups(part: Part) -> list[Row]:
    """How many times as fast as the first router each is, with decoding: sums of seconds, intervals over stories."""
    from arvid.evals import compare
    from arvid.evals.statistics import PairedBootstrap

    keyed = [compare.keyed(report) for report in part.reports]
    keys = compare.shared(part.reports)
    seconds = [[sum(rows[key]["speed"]["seconds"][stage] for stage in ("denoise", "decode")) for key in keys]
               for rows in keyed]  # fmt: skip
    bootstrap = PairedBootstrap([str(key[0]) for key in keys])
    ratios = [bootstrap.ratio(seconds[0], own) for own in seconds]
    return [{"value": None if one.value is None else round(one.value, 4), "ci95": one.ci95} for one in ratios]


# ---------------------------------------------------------------- what leaves


def report_of(pipeline: Pipeline, work: Work, about: Row, found: list[Part]) -> Row:
    """Everything that was measured, but for the curves of single videos; `about` goes into the configuration."""
    from arvid.cli.report import head

    return {
        **head("bench comparison", str(pipeline.family.device)),
        "config": {
            "model": pipeline.family.card.name,
            **about,
            "routers": list(work.routers),
            "stories": work.prompts,
            "scale": SCALE,
        },
        "suites": {part.name: _told(part) for part in found},
    }


def _told(part: Part) -> Row:
    from arvid.evals import compare

    names = part.compared["names"]
    metrics = [*dict.fromkeys(row["metric"] for row in part.compared["rows"] if row["value"] is not None)]
    curves = {metric: compare.curves(part.reports, names, metric) for metric in metrics}
    kept = ("name", "prompt", "seed", "frames", "values")
    return {
        "protocol": part.reports[0]["protocol"],
        "comparison": part.compared,
        "curves": {metric: drawn for metric, drawn in curves.items() if drawn},
        "routers": {
            report["name"]: {
                "totals": report["totals"], "speed": report["speed"], "speedup": speedup,
                "notes": report["notes"], "failures": report["failures"],
                "clips": [{name: clip[name] for name in kept} for clip in report["clips"]],
            }
            for report, speedup in zip(part.reports, speedups(part), strict=True)
        },
    }  # fmt: skip


def page(part: Part) -> str:
    """The page of a suite as one HTML text."""
    from arvid.evals import compare, gallery

    axes = (compare.COST, "world")
    names = part.compared["names"]
    return gallery.render(part.reports, names, part.compared, lambda clip: Path(clip["path"]), axes, SHOWN[part.name])


def show(found: list[Part]) -> None:
    """The tables and the speeds on stdout."""
    from arvid.cli.compare import show as show_table

    for part in found:
        typer.echo(f"\n{part.reports[0]['protocol']['suite']}")
        show_table(part.compared)
        baseline = part.reports[0]["name"]
        for report, speedup in zip(part.reports, speedups(part), strict=True):
            speed, (low, high) = report["speed"], speedup["ci95"] or (0.0, 0.0)
            typer.echo(
                f"{report['name']}: {speed['seconds_per_video']:.2f} s a video with decoding, "
                f"{speed['fps']['with_decode']:.0f} frames per second, "
                f"{speedup['value']:.2f} times as fast as {baseline} ({low:.2f} to {high:.2f})"
            )
