"""`arvid generate`: prompts become videos.

Knows: the options of this verb and the order of its checks (names and paths, then the family, then the request; nothing
is made before all prompts are known to be possible). Does not know: how a video is made or kept (cli/making.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from arvid.cli.options import (
    Device,
    Drafter,
    Model,
    Past,
    Quiet,
    Router,
    Seconds,
    Seed,
    Threads,
    prompts_of,
    size_of,
)  # fmt: skip
from arvid.cli.places import places_for

if TYPE_CHECKING:
    from arvid.cli.making import Job
    from arvid.pipeline import Pipeline


def generate(
    prompt: Annotated[str | None, typer.Argument(help="What the video shows.", show_default=False)] = None,
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="The video, .mp4. With --prompts: a folder, or a name with {n}. Default: video.mp4 or video-{n}.mp4.",
        ),
    ] = "",
    seconds: Seconds = 5.0,
    seed: Seed = 0,
    model: Model = "embedded",
    drafter: Drafter = "",
    router: Router = "",
    past: Past = "",
    size: Annotated[
        str, typer.Option("--size", metavar="WxH", help="Width and height, for example 64x64. Default: the family's.")
    ] = "",
    scale: Annotated[
        int, typer.Option("--scale", min=0, help="Enlarge frames by a whole number in the video; 0 fits small ones.")
    ] = 0,
    report: Annotated[str, typer.Option("--json", metavar="FILE", help="Report of every block, .json.")] = "",
    latents: Annotated[str, typer.Option("--latents", metavar="FILE", help="Latents, .safetensors.")] = "",
    sheet: Annotated[str, typer.Option("--contact-sheet", metavar="FILE", help="Picture of frames, .png.")] = "",
    prompts: Annotated[
        str | None, typer.Option("--prompts", metavar="FILE", help="One prompt per line; - reads stdin.")
    ] = None,
    threads: Threads = 0,
    device: Device = "cpu",
    quiet: Quiet = False,
) -> None:
    """Make a video of a prompt, block by block.

    Interrupt it (Ctrl-C) at any time: the video of the finished blocks stays.
    """
    texts = prompts_of(prompt, prompts)
    many = prompts is not None
    name = output or ("video-{n}.mp4" if many else "video.mp4")
    places = places_for(len(texts), many, name, report, latents, sheet)
    wanted = size_of(size)
    from arvid.cli.families import check_specs, open_pipeline, set_up
    from arvid.cli.making import Job
    from arvid.pipeline import Request

    set_up(threads)
    check_specs(router, past)
    requests = [Request(text, seconds, seed, router, past, wanted) for text in texts]
    pipeline = open_pipeline(model, drafter, device)
    run(pipeline, [Job(*pair, scale, drafter) for pair in zip(requests, places, strict=True)], quiet)


def run(pipeline: Pipeline, jobs: list[Job], quiet: bool) -> None:
    """Check all jobs, warn, and do them one after the other. Ends with code 130 when interrupted."""
    from arvid.cli.families import check, doubts, warn
    from arvid.cli.making import make
    from arvid.cli.progress import choose

    for job in jobs:
        check(pipeline, job.request)
    for number, job in enumerate(jobs, 1):
        if doubt := doubts(pipeline.family, job.request.prompt):
            warn(doubt if len(jobs) == 1 else f"prompt {number}: {doubt}")
    display = choose(quiet)
    for job in jobs:
        if make(pipeline, job, display).interrupted:
            raise typer.Exit(130)
