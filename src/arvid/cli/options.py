"""Options that several verbs share, and what they mean.

Knows: names, defaults, help texts, groups of options, how a size or a list of prompts is written. Does not know: what
is done with them.
"""

from __future__ import annotations

import functools
import importlib.metadata
import inspect
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

Model = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="PATH",
        help="A family directory, 'embedded' for the one that ships, or a checkpoint: file, folder, Hugging Face id.",
    ),
]
Drafter = Annotated[
    str, typer.Option("--drafter", metavar="PATH", help="The drafter: of another family directory, or a checkpoint.")
]
FamilyName = Annotated[
    str, typer.Option("--family", metavar="NAME", help="The family of a checkpoint whose files do not tell it.")
]
Heads = Annotated[
    int, typer.Option("--heads", min=0, metavar="N", help="Attention heads of a checkpoint of no published width.")
]
Loras = Annotated[
    list[str] | None,
    typer.Option("--lora", metavar="PATH", help="An adapter to merge into the model; repeat for more."),
]
TextEncoder = Annotated[
    str, typer.Option("--text", metavar="PATH", help="Text encoder of a checkpoint. Default: found beside it.")
]
Vae = Annotated[
    str,
    typer.Option("--vae", metavar="PATH", help="Autoencoder of a checkpoint, or a tiny one. Default: found beside it."),
]
Reward = Annotated[
    str, typer.Option("--reward", metavar="PATH", help="ImageReward, HPSv2 or a CLIP directory, to score drafts with.")
]
Place = Annotated[
    str,
    typer.Option(
        "--place",
        metavar="ROLES",
        help="Where parts stand, for example target=cuda:0,vae=cuda:1,reward=cuda:1. Default: all on --device.",
    ),
]
Quantise = Annotated[
    str,
    typer.Option(
        "--quantise", metavar="KIND", help="Weights of 8 bits: int8, int8-dynamic, fp8, fp8-dynamic. Default: none."
    ),
]
Offload = Annotated[
    str,
    typer.Option(
        "--offload", metavar="ROLES", help="Whose layers rest on the CPU: target, drafter, or both with a comma."
    ),
]
Overlap = Annotated[
    bool, typer.Option("--overlap", help="Decode a block on a GPU while the next one is made; blocks come one later.")
]
Compiled = Annotated[bool, typer.Option("--compile", help="Compile the blocks of the transformers.")]
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
Noise = Annotated[
    str,
    typer.Option(
        "--noise",
        metavar="SPEC",
        help="What blocks begin from: white, or antiphase:rho=-0.5 for more motion. Default: white.",
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
Seed = Annotated[int, typer.Option("--seed", min=0, metavar="N", help="The same seed gives the same video.")]
Threads = Annotated[
    int, typer.Option("--threads", min=0, max=1024, metavar="N", help="CPU threads; 0 takes all cores.")
]
Device = Annotated[str, typer.Option("--device", metavar="NAME", help="Where it runs: cpu, cuda, cuda:1.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but warnings and errors.")]


# ---------------------------------------------------------------- groups


@dataclass(frozen=True)
class Parts:
    """What a family is made of."""

    model: Model = "embedded"
    drafter: Drafter = ""
    family: FamilyName = ""
    heads: Heads = 0
    lora: Loras = None
    text: TextEncoder = ""
    vae: Vae = ""
    reward: Reward = ""

    @property
    def of_checkpoints(self) -> list[str]:
        """Options in use that say something of a checkpoint, and nothing of a family directory."""
        return [f"--{field.name}" for field in fields(self)[2:] if getattr(self, field.name)]


@dataclass(frozen=True)
class Running:
    """How and where a family runs."""

    device: Device = "cpu"
    place: Place = ""
    quantise: Quantise = ""
    offload: Offload = ""
    compiled: Compiled = False
    overlap: Overlap = False


def grouped(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb as the command line sees it: a parameter whose type is a group of options (a dataclass) is spelled out,
    option by option, and the verb is called with the group."""
    hints = get_type_hints(verb, include_extras=True)
    groups = {name: kind for name, kind in hints.items() if isinstance(kind, type) and is_dataclass(kind)}
    shown: list[inspect.Parameter] = []
    for parameter in inspect.signature(verb).parameters.values():
        kind = groups.get(parameter.name)
        if kind is None:
            shown.append(parameter.replace(annotation=hints[parameter.name], kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        inner = get_type_hints(kind, include_extras=True)
        shown += [
            inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=inner[f.name])
            for f in fields(kind)
        ]

    @functools.wraps(verb)
    def spelled(**given: Any) -> None:
        for name, kind in groups.items():
            given[name] = kind(**{f.name: given.pop(f.name) for f in fields(kind)})
        verb(**given)

    spelled.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    spelled.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
    return spelled


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

    Raises ValueError when there are none, both ways are used at once, or they are no UTF-8 text.
    """
    if source is None:
        if prompt is None or not prompt.strip():
            raise ValueError("the prompt is empty; say what the video shows, or give --prompts FILE (- is stdin)")
        return [_writable(prompt.strip(), "the prompt")]
    if prompt is not None:
        raise ValueError(f"a prompt and --prompts {source} at once; give one of them")
    text, name = text_of(source, "--prompts", "one prompt per line"), "stdin" if source == "-" else source
    found = [line.strip() for line in text.splitlines() if line.strip()]
    if not found:
        raise ValueError(f"0 prompts in {name}; write one per line")
    return [_writable(line, name) for line in found]


def text_of(source: str, option: str, wanted: str) -> str:
    """The text of a file, or of stdin for '-', without a byte order mark. Raises ValueError, naming the `option` and
    what is `wanted` there, when it is not there or no UTF-8."""
    if source == "-" and sys.stdin is None:
        raise ValueError(f"{option} - reads stdin, which is closed; give a file: {wanted}")
    if source != "-" and not Path(source).is_file():
        raise ValueError(f"no file {source} for {option}; give a text file: {wanted}, or - for stdin")
    try:
        found = sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{source} is no UTF-8 text ({error}); save it as UTF-8: {wanted}") from error
    return found.removeprefix("\ufeff")


def _writable(text: str, name: str) -> str:
    """The text, when a report can hold it: bytes of an argument that are no UTF-8 come as half characters."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} holds {text[error.start]!r}, which is no character; write it as UTF-8") from error
    return text
