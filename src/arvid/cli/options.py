"""Options that several verbs share, and what they mean.

Knows: names, defaults, help texts, how a size or a list of prompts is written. Does not know: what is done with them.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str, typer.Option("--model", metavar="DIR", help="A family directory, or 'embedded' for the one that ships.")
]
Drafter = Annotated[
    str, typer.Option("--drafter", metavar="DIR", help="Take the drafter of another family (a family directory).")
]
Router = Annotated[
    str,
    typer.Option(
        "--router",
        metavar="SPEC",
        help="Who makes a block, for example target, first, reward:tau=0.6, refine:levels=0.8+0.4. "
        "Default: what the family's card says.",
    ),
]
Past = Annotated[
    str,
    typer.Option(
        "--memory",
        "--past",
        metavar="SPEC",
        help="What a block may read, for example window:frames=9,sink=3. Default: the card's.",
    ),
]
Positions = Annotated[
    str,
    typer.Option(
        "--positions",
        metavar="SPEC",
        help="Where frames of the past stand, for example relative:limit=21. Default: as in training.",
    ),
]
Guard = Annotated[
    str,
    typer.Option(
        "--guard",
        metavar="SPEC",
        help="Watch for drift: off, warn, act, or with limits like act:colour=0.2. Default: off.",
    ),
]
Timeline = Annotated[
    str,
    typer.Option("--timeline", metavar="FILE", help="What the video shows from which second on, YAML or JSON."),
]
Picture = Annotated[str, typer.Option("--image", metavar="FILE", help="Begin with this picture.")]
Clip = Annotated[str, typer.Option("--continue", metavar="FILE", help="Go on from the end of this video.")]
SaveEvery = Annotated[
    int,
    typer.Option("--save-every", min=0, metavar="N", help="Save the state every N blocks, to go on after a crash."),
]
Resume = Annotated[
    str, typer.Option("--resume", metavar="DIR", help="Go on with a run that was begun with --save-every.")
]
Output = Annotated[
    str,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="The video, .mp4. With --prompts: a folder, or a name with {n}. Default: video.mp4 or video-{n}.mp4.",
    ),
]
Size = Annotated[
    str, typer.Option("--size", metavar="WxH", help="Width and height, for example 64x64. Default: the family's.")
]
Scale = Annotated[
    int, typer.Option("--scale", min=0, help="Enlarge frames by a whole number in the video; 0 fits small ones.")
]
Report = Annotated[str, typer.Option("--json", metavar="FILE", help="Report of every block, .json.")]
Latents = Annotated[str, typer.Option("--latents", metavar="FILE", help="Latents, .safetensors.")]
Sheet = Annotated[str, typer.Option("--contact-sheet", metavar="FILE", help="Picture of frames, .png.")]
Prompts = Annotated[str | None, typer.Option("--prompts", metavar="FILE", help="One prompt per line; - reads stdin.")]
Seconds = Annotated[float, typer.Option("--seconds", metavar="N", help="Length of the video in seconds.")]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="The same seed gives the same video.")]
Threads = Annotated[int, typer.Option("--threads", min=0, metavar="N", help="CPU threads; 0 takes all cores.")]
Device = Annotated[str, typer.Option("--device", metavar="NAME", help="Where it runs: cpu, cuda, cuda:1.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but warnings and errors.")]


def version() -> str:
    """The version of the installed package."""
    try:
        return importlib.metadata.version("arvid")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def size_of(text: str) -> tuple[int, int] | None:
    """(width, height) from '64x64'; None from an empty text. Raises ValueError for anything else."""
    if not text:
        return None
    found = re.fullmatch(r"(\d+)[xX](\d+)", text.strip())
    if not found:
        raise ValueError(f"size {text!r} is not WIDTHxHEIGHT; write for example 64x64")
    return int(found[1]), int(found[2])


def prompts_of(prompt: str | None, source: str | None) -> list[str]:
    """The prompts of a command: one argument, or the lines of a file ('-' is stdin) that are not empty.

    Raises ValueError when there are none, or both ways are used at once.
    """
    if source is None:
        if prompt is None or not prompt.strip():
            raise ValueError("the prompt is empty; say what the video shows, or give --prompts FILE (- is stdin)")
        return [prompt.strip()]
    if prompt is not None:
        raise ValueError(f"a prompt and --prompts {source} at once; give one of them")
    if source == "-":
        text, name = sys.stdin.read(), "stdin"
    elif Path(source).is_file():
        text, name = Path(source).read_text(encoding="utf-8"), source
    else:
        raise ValueError(f"no prompt file {source}; give a text file with one prompt per line, or - for stdin")
    found = [line.strip() for line in text.splitlines() if line.strip()]
    if not found:
        raise ValueError(f"0 prompts in {name}; write one per line")
    return found
