"""`arvid generate`: prompts become videos.

Knows: the options of this verb and the order of its checks (names and paths, then the family, then the request; nothing
is made before all prompts are known to be possible). Does not know: how a video is made and kept (cli/making.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from arvid.cli import options
from arvid.cli.options import prompts_of, size_of
from arvid.cli.places import places_for

if TYPE_CHECKING:
    from arvid.cli.keeping import Job
    from arvid.pipeline import Pipeline
    from arvid.rollout.timeline import Entry

WITH_RESUME = {"resume", "threads", "device", "quiet"}
"""Options that say how a run is gone on with; all others were settled when it began."""


def generate(
    context: typer.Context,
    prompt: Annotated[str | None, typer.Argument(help="What the video shows.", show_default=False)] = None,
    output: options.Output = "",
    seconds: options.Seconds = 5.0,
    seed: options.Seed = 0,
    model: options.Model = "embedded",
    drafter: options.Drafter = "",
    router: options.Router = "",
    past: options.Past = "",
    positions: options.Positions = "",
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
    device: options.Device = "cpu",
    quiet: options.Quiet = False,
) -> None:
    """Make a video of a prompt or of a timeline of prompts, block by block.

    Interrupt it (Ctrl-C) at any time: the video of the finished blocks stays.
    """
    if resume:
        go_on(context, Path(resume), threads, device, quiet)
        return
    entries = _entries(timeline)
    texts = _texts(prompt, prompts, entries)
    many = prompts is not None
    name = output or ("video-{n}.mp4" if many else "video.mp4")
    places = places_for(len(texts), many, name, report, latents, sheet)
    wanted = size_of(size)
    from arvid.cli.families import check_specs, open_pipeline, set_up
    from arvid.cli.keeping import Job, start_of
    from arvid.pipeline import Request

    set_up(threads)
    check_specs(router, past)
    start = start_of(image, clip)
    requests = [Request(text, seconds, seed, router, past, wanted, entries, guard, positions) for text in texts]
    jobs = [
        Job(request, place, scale, model, drafter, start, save_every)
        for request, place in zip(requests, places, strict=True)
    ]
    for job in jobs:
        job.check_folder()
    run(open_pipeline(model, drafter, device), jobs, quiet)


def go_on(context: typer.Context, folder: Path, threads: int, device: str, quiet: bool) -> None:
    """Go on with the run of a folder. Raises ValueError when there is none, or something else is asked for."""
    asked = [
        name for name in context.params if (found := context.get_parameter_source(name)) and found.name == "COMMANDLINE"
    ]
    if surplus := sorted(set(asked) - WITH_RESUME):
        raise ValueError(f"--resume {folder} goes on with what was asked for then; leave out {', '.join(surplus)}")
    from arvid.cli.families import open_pipeline, set_up
    from arvid.cli.saving import read_job

    job = read_job(folder)
    set_up(threads)
    run(open_pipeline(job.model, job.drafter, device), [job], quiet)


def run(pipeline: Pipeline, jobs: list[Job], quiet: bool) -> None:
    """Check all jobs, warn, and do them one after the other. Ends with code 130 when interrupted."""
    from arvid.cli.families import doubts, warn
    from arvid.cli.keeping import begin
    from arvid.cli.making import make
    from arvid.cli.progress import choose

    given = begin(pipeline, jobs[0].start)
    for job in jobs:
        pipeline.check(job.request, 0 if given is None else given.shape[1])
    for number, job in enumerate(jobs, 1):
        for text in dict.fromkeys((job.request.prompt, *(entry.prompt for entry in job.request.timeline))):
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
