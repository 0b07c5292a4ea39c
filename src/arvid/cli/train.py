"""`arvid train`: the stages of a recipe, one after the other, shown as they go.

Knows: which recipes there are, how a stage is chosen and shown. Does not know: what a stage does, when it is done (it
resumes by itself).
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Collection
from dataclasses import fields, replace
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any

import typer

from arvid.cli.options import Device, Quiet, Threads
from arvid.cli.places import folder_for

RECIPES = {
    "embedded": "arvid.recipes.embedded",
    "distill": "arvid.recipes.distill",
    "feedback": "arvid.recipes.feedback",
    "resampling": "arvid.recipes.resampling",
    "judges": "arvid.recipes.judges",
    "own_videos": "arvid.recipes.own_videos",
    "compressors": "arvid.recipes.compressors",
    "packing": "arvid.recipes.packing",
}
"""Recipes by name, and the module that holds their `Sizes` and `STAGES`."""


def train(
    recipe: Annotated[str, typer.Argument(help=f"One of: {', '.join(RECIPES)}.")],
    stage: Annotated[
        list[str] | None,
        typer.Option("--stage", metavar="NAME", help="A stage; may be repeated. Default: all."),
    ] = None,
    runs: Annotated[Path, typer.Option("--runs", metavar="DIR", help="Where runs and checkpoints are kept.")] = Path(
        "runs"
    ),
    steps: Annotated[
        int | None,
        typer.Option("--steps", min=1, metavar="N", help="Steps of the chosen stages, not the recipe's."),
    ] = None,
    sized: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Another size of the recipe, like batch=2; may be repeated."),
    ] = None,
    workers: Annotated[
        int, typer.Option("--workers", min=1, max=256, metavar="N", help="Processes that train a transformer together.")
    ] = 1,
    device: Device = "cpu",
    threads: Threads = 0,
    quiet: Quiet = False,
) -> None:
    """Train the parts of a family. A killed run goes on where it was when the same command is given again."""
    if recipe not in RECIPES:
        raise ValueError(f"unknown recipe {recipe!r}; known: {', '.join(RECIPES)}")
    runs = runs.absolute()
    folder_for(runs, "--runs")
    from arvid.cli.families import checked_device, set_up

    module = importlib.import_module(RECIPES[recipe])
    chosen = _chosen(recipe, stage, module.STAGES)
    sizes = _sized(_set(module.Sizes(), sized or []), chosen, steps)
    called = workers == 1 and int(os.environ.get("WORLD_SIZE", "1")) > 1  # torchrun has begun this process and others
    several = "--workers" if workers > 1 else "torchrun" if called else ""
    elsewhere = "--device" if checked_device(device) != "cpu" else ""
    for asked, what, able in ((several, "several workers", "SHARED"), (elsewhere, device, "PLACED")):
        if asked:
            _check(f"{asked} asks for {what}", recipe, chosen, getattr(module, able, ()))
    if workers > 1:
        threads = threads or max(1, (os.cpu_count() or 1) // workers)
    set_up(threads)
    runs.mkdir(exist_ok=True)
    from arvid.train.placing import settle
    from arvid.train.workers import Workers, hired, join, leave, meet

    if called:
        join()
        quiet = quiet or not Workers.here().leads
    for name in chosen:
        with (
            hired(workers, _help, module.__name__, name, runs, sizes, threads, device),
            Watch(name, _length(sizes, name), quiet) as watch,
        ):
            settle(Workers.here().device(device))
            module.STAGES[name](runs, sizes, watch.report)
    if called:
        meet()
        leave()


def _help(module: str, stage: str, runs: Path, sizes: Any, threads: int, device: str) -> None:
    """What a worker does that does not lead: the same stage, and says nothing of it."""
    from arvid.cli.families import set_up
    from arvid.train.placing import settle
    from arvid.train.workers import Workers

    set_up(threads)
    settle(Workers.here().device(device))
    importlib.import_module(module).STAGES[stage](runs, sizes, lambda row: None)


def _chosen(recipe: str, stages: list[str] | None, known: Collection[str]) -> list[str]:
    """The stages asked for, all of them if none is. Raises ValueError for one that is not known."""
    for name in stages or ():
        if name not in known:
            raise ValueError(f"recipe {recipe!r} has no stage {name!r}; its stages: {', '.join(known)}")
    return stages or list(known)


def _check(asked: str, recipe: str, stages: list[str], able: Collection[str]) -> None:
    """Raises ValueError for stages that are not among those that are able to do what is asked."""
    for name in stages:
        if name not in able:
            these = f"these can: {', '.join(able)}" if able else "none of its stages can"
            raise ValueError(f"{asked}, but stage {name} of {recipe!r} is not for that; {these}")


def _set(sizes: Any, settings: list[str]) -> Any:
    """The recipe's sizes with some of them replaced, each in the type it has."""
    known: dict[str, Any] = {field.name: vars(sizes)[field.name] for field in fields(sizes)}
    changed: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or name not in known:
            raise ValueError(f"--set {setting!r}; give NAME=VALUE with one of: {', '.join(known)}")
        try:
            changed[name] = type(known[name])(value)
        except ValueError as error:
            kind = "a whole number" if isinstance(known[name], int) else "a number"
            raise ValueError(f"--set {setting!r}; {name} is {kind}, {known[name]} by default") from error
        least = int(name == "batch" or name.endswith("_steps"))
        if isinstance(changed[name], int) and changed[name] < least:
            raise ValueError(f"--set {setting!r}; {name} is at least {least}, {known[name]} by default")
    return replace(sizes, **changed)


def _sized(sizes: Any, stages: list[str], steps: int | None) -> Any:
    """The recipe's sizes with the steps of the chosen stages replaced."""
    if steps is None:
        return sizes
    known = {field.name for field in fields(sizes)}
    changed = [f"{name}_steps" for name in stages if f"{name}_steps" in known]
    if not changed:
        stepped = [name.removesuffix("_steps") for name in sorted(known) if name.endswith("_steps")]
        raise ValueError(f"--steps {steps}, but stage {', '.join(stages)} takes none; these do: {', '.join(stepped)}")
    return replace(sizes, **dict.fromkeys(changed, steps))


def _length(sizes: Any, stage: str) -> int:
    """Steps (or clips) a stage will count to, 0 when it does not say."""
    values: dict[str, Any] = {field.name: vars(sizes)[field.name] for field in fields(sizes)}
    length = values.get(f"{stage}_steps", values.get(stage, 0))
    return length if isinstance(length, int) else 0


class Watch:
    """Shows what a stage reports: a bar on a terminal, a line per report elsewhere."""

    def __init__(self, stage: str, length: int, quiet: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._stage, self._length, self._quiet = stage, length, quiet
        self._idle = length > 0
        console = Console(stderr=True)
        self._terminal = console.is_terminal and not quiet
        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[numbers]}"))
        self._bar = Progress(
            TextColumn("{task.description}"), *columns, console=console, disable=not self._terminal,
            refresh_per_second=2,
        )  # fmt: skip
        self._task = self._bar.add_task(stage, total=length or None, numbers="")

    def __enter__(self) -> Watch:
        self._bar.start()
        if not self._terminal:
            self._say(f"{self._stage}: begun")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        idle = self._idle and kind is None
        # A run that has ended reads nothing again: neither new data nor another rate.
        done = f"done before; more than {self._length} is --steps or --set" if idle else "done"
        stopped = "stopped; the same command goes on from here" if kind is KeyboardInterrupt else "failed"
        if idle or not self._terminal:  # a bar says the rest, and at 0 the opposite of this
            self._say(f"{self._stage}: {done if kind is None else stopped}")

    def report(self, row: dict[str, float]) -> None:
        """A row of numbers: `step` (or `clips`) moves the bar, the rest is shown."""
        self._idle = False
        at = int(row.get("step", row.get("clips", 0)))
        numbers = "  ".join(f"{name} {value:.4g}" for name, value in row.items() if name not in ("step", "clips"))
        self._bar.update(self._task, completed=at, numbers=numbers)
        if not self._terminal:
            self._say(f"{self._stage}: {at}{f'/{self._length}' if self._length else ''}  {numbers}".rstrip())

    def _say(self, line: str) -> None:
        if not self._quiet:
            print(line, file=sys.stderr, flush=True)
