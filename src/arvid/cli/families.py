"""Families for a command: found, checked, put together, and what a prompt asks beyond what they know.

Knows: the options --model, --drafter and --device, the grammar of the embedded family's world. Does not know: blocks,
files of results.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import typer

from arvid import spec
from arvid.caches.policies import POLICIES
from arvid.cli.report import world_of
from arvid.models.family import Card, load_transformer, read_card
from arvid.models.wan.transformer import WanConfig
from arvid.pipeline import EMBEDDED, Family, Pipeline, Request, load
from arvid.rollout.routers import ROUTERS
from arvid.worlds import grammar

MUST_FIT = ("in_dim", "out_dim", "text_dim", "text_len")


def set_up(threads: int) -> None:
    """Threads of torch (0: as torch finds the machine), and no progress bars of others."""
    from transformers.utils import logging

    if threads:
        torch.set_num_threads(threads)
    logging.disable_progress_bar()


def check_specs(router: str, past: str) -> None:
    """Raises ValueError for a router or a past that does not exist, before anything is loaded."""
    if router:
        spec.build(router, ROUTERS, "router")
    if past:
        spec.build(past, POLICIES, "past")


def open_pipeline(model: str, drafter: str, device: str) -> Pipeline:
    """The pipeline of a family directory (or `embedded`), with the drafter of another family when one is named.

    Raises ValueError for a device that is not there, missing or damaged files, and a drafter that does not fit.
    """
    where = _device(device)
    family = _load(directory_of(model), where)
    return Pipeline(_with_drafter(family, directory_of(drafter)) if drafter else family)


def directory_of(name: str) -> Path:
    """The directory of a family by name or path."""
    return EMBEDDED if name == "embedded" else Path(name)


def check(pipeline: Pipeline, request: Request) -> int:
    """The number of blocks of a request. Raises ValueError when it cannot be met."""
    _, plan = pipeline.check(request)
    return len(plan)


def _device(name: str) -> str:
    try:
        where = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"unknown device {name!r}; use cpu, cuda or cuda:NUMBER") from error
    if where.type == "cuda" and (where.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {name!r} asked for; torch sees {torch.cuda.device_count()} GPUs; use cpu")
    return name


def _load(directory: Path, device: str) -> Family:
    try:
        return load(directory, device)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{directory / 'card.json'} does not describe a family ({error}); fetch it again") from error


def _with_drafter(family: Family, directory: Path) -> Family:
    card = read_card(directory)
    if "drafter" not in card.parts:
        raise ValueError(f"{directory} has no drafter; its parts: {', '.join(sorted(card.parts))}")
    wanted, given = _widths(family.card, "target"), _widths(card, "drafter")
    bent = [f"{name} {given[name]}, expected {wanted[name]}" for name in MUST_FIT if wanted[name] != given[name]]
    if bent:
        raise ValueError(f"the drafter of {directory} does not fit {family.card.name}: {'; '.join(bent)}; use another")
    return replace(family, drafter=load_transformer(directory, card, "drafter", family.device))


def _widths(card: Card, part: str) -> dict[str, Any]:
    return {name: card.parts[part].get(name, WanConfig.__dataclass_fields__[name].default) for name in MUST_FIT}


def warn(text: str) -> None:
    """One line on stderr."""
    typer.echo(f"warning: {text}", err=True)


def doubts(family: Family, prompt: str) -> str:
    """What a person should know about a prompt before the video is made: words the family never learned, and a prompt
    without anything its world can show, with an example of what it knows. Empty when all is well."""
    strange = family.text.unknown(prompt)
    shapes, empty = world_of(family.card) == "shapes", False
    if shapes:
        seen = {stem for word in strange for stem in grammar.words(word)}
        try:
            strange += [word for word in grammar.parse(prompt).unknown if word not in seen]
        except ValueError:
            empty = True
    found = [f"{family.card.name} never learned {', '.join(map(repr, strange))}"] if strange else []
    found += [f"the prompt names no shape (known: {', '.join(grammar.SHAPES)})"] if empty else []
    found += [f"it knows for example {grammar.EXAMPLE!r}"] if found and shapes else []
    return "; ".join(found)
