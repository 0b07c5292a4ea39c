"""`arvid generate`: prompts become videos.

Knows: the options of this verb and the order of its checks (names and paths, then whether the family fits the machine,
then the request; nothing is made before all prompts are known to be possible). Does not know: how a family is put
together (cli/families.py), how a video is made and kept (cli/making.py).
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from arvid.cli import options
from arvid.cli.options import prompts_of, size_of
from arvid.cli.places import places_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from arvid.cli.keeping import Job
    from arvid.pipeline import Pipeline, Request
    from arvid.rollout.timeline import Entry

WITH_RESUME = {"resume", "threads", "device", "place", "offload", "compiled", "overlap", "quiet"}
"""Options that say how a run is gone on with; all others were settled when it began."""


@options.grouped
def generate(
    context: typer.Context,
    prompt: Annotated[str | None, typer.Argument(help="What the video shows.", show_default=False)] = None,
    output: options.Output = "",
    seconds: options.Seconds = 5.0,
    seed: options.Seed = 0,
    router: options.Router = "",
    past: options.Past = "",
    positions: options.Positions = "",
    noise: options.Noise = "",
    timeline: options.Timeline = "",
    guard: options.Guard = "",
    image: options.Picture = "",
    clip: options.Clip = "",
    size: options.Size = "",
    scale: options.Scale = 0,
    report: options.Report = "",
    latents: options.Latents = "",
    sheet: options.Sheet = "",
    prompts: options.Prompts = None,
    save_every: options.SaveEvery = 0,
    resume: options.Resume = "",
    threads: options.Threads = 0,
    quiet: options.Quiet = False,
    *,
    parts: options.Parts,
    running: options.Running,
) -> None:
    """Make a video of a prompt or of a timeline of prompts, block by block.

    Interrupt it (Ctrl-C) at any time: the video of the finished blocks stays.
    """
    if resume:
        go_on(context, Path(resume), threads, running, quiet)
        return
    entries = _entries(timeline)
    texts = _texts(prompt, prompts, entries)
    many = prompts is not None
    name = output or ("video-{n}.mp4" if many else "video.mp4")
    places = places_for(len(texts), many, name, report, latents, sheet)
    wanted = size_of(size)
    from arvid.cli.families import check_specs, opened, set_up
    from arvid.cli.keeping import start_of
    from arvid.cli.making import Order
    from arvid.cli.needs import Ask
    from arvid.pipeline import Request

    set_up(threads)
    check_specs(router, past, positions, guard, noise)
    start = start_of(image, clip)
    asked = Request("", seconds, seed, router, past, wanted, entries, guard, positions, noise)
    requests = [replace(asked, prompt=text) for text in texts]
    made_of = {**asdict(parts), "quantise": running.quantise}
    jobs = [
        Order(request, place, scale, parts.model, parts.drafter, start, save_every, made_of=made_of)
        for request, place in zip(requests, places, strict=True)
    ]
    for job in jobs:
        job.check_folder()
    run(opened(parts, running, Ask(wanted, seconds, past, router), prompts_in(jobs)), jobs, quiet)


def go_on(context: typer.Context, folder: Path, threads: int, running: options.Running, quiet: bool) -> None:
    """Go on with the run of a folder. Raises ValueError when there is none, or something else is asked for."""
    named = {
        name for name in context.params if (found := context.get_parameter_source(name)) and found.name == "COMMANDLINE"
    }
    if surplus := sorted(named - WITH_RESUME):
        raise ValueError(f"--resume {folder} goes on with what was asked for then; leave out {', '.join(surplus)}")
    from arvid.cli.families import opened, set_up
    from arvid.cli.making import made_of
    from arvid.cli.needs import Ask
    from arvid.cli.saving import read_job

    job = read_job(folder)
    parts, quantise = made_of(job)
    asked = job.request
    set_up(threads)
    ask = Ask(asked.size, asked.seconds, asked.past, asked.router)
    run(opened(parts, replace(running, quantise=quantise), ask, prompts_in([job])), [job], quiet)


def prompts_in(jobs: Sequence[Job]) -> list[str]:
    """All prompts that are known before anything is made, each once."""
    return list(dict.fromkeys(text for job in jobs for text in _said(job.request)))


def _said(request: Request) -> list[str]:
    return [text for text in (request.prompt, *(entry.prompt for entry in request.timeline)) if text]


def run(pipeline: Pipeline, jobs: Sequence[Job], quiet: bool) -> None:
    """Check all jobs, warn, and do them one after the other. Ends with code 130 when interrupted."""
    from arvid.cli.families import doubts, warn
    from arvid.cli.keeping import begin
    from arvid.cli.making import make
    from arvid.cli.progress import choose

    given = begin(pipeline, jobs[0].start)
    for job in jobs:
        pipeline.check(job.request, 0 if given is None else given.shape[1])
    for number, job in enumerate(jobs, 1):
        for text in dict.fromkeys(_said(job.request)):
            if doubt := doubts(pipeline.family, text):
                warn(doubt if len(jobs) == 1 else f"prompt {number}: {doubt}")
    display = choose(quiet)
    for job in jobs:
        if make(pipeline, job, display, given).interrupted:
            raise typer.Exit(130)


def _entries(timeline: str) -> tuple[Entry, ...]:
    if not timeline:
        return ()
    from arvid.rollout.timeline import read

    return read(Path(timeline))


def _texts(prompt: str | None, prompts: str | None, entries: tuple[Entry, ...]) -> list[str]:
    """The prompts; a timeline that begins at 0 s is one."""
    if prompt is None and prompts is None and entries and entries[0].at == 0:
        return [entries[0].prompt]
    return prompts_of(prompt, prompts)
