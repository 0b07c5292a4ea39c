"""Families for a command: found, checked, planned for, put together, and what a prompt asks beyond what they know.

Knows: the groups of options that name a family and say how it runs, the grammar of the embedded family's world. Does
not know: how a family is put together (`arvid.families`), blocks, files of results.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import typer

from arvid import spec
from arvid.caches.policies import POLICIES
from arvid.caches.positions import POSITIONS
from arvid.cli import doctor
from arvid.cli.needs import Ask, needs_of, parts_as_found, parts_of
from arvid.cli.options import Parts, Running
from arvid.families import Source, bytes_at, find, is_checkpoint, open_family, open_packaged, overlapped
from arvid.families import directory_of as directory_of
from arvid.models.family import Card, read_card
from arvid.models.placement import Placement
from arvid.models.planning import after_text, most
from arvid.models.preparing import How
from arvid.models.text import TextEncoder
from arvid.pipeline import Family, Pipeline, Request
from arvid.rollout.flow import together
from arvid.rollout.guard import GUARDS
from arvid.rollout.routers import ROUTERS
from arvid.samplers.noise import NOISES
from arvid.worlds import grammar

OF_FILES = ("weights", "profile")
"""Options of specs that name a file."""


def set_up(threads: int) -> None:
    """Threads of torch (0: as torch finds the machine), and no progress bars of others."""
    from transformers.utils import logging

    if threads:
        torch.set_num_threads(threads)
    logging.disable_progress_bar()


def check_specs(router: str, past: str, positions: str = "", guard: str = "", noise: str = "") -> None:
    """Raises ValueError for a router, a past, positions, a guard or noise that does not exist, and for a file that one
    of them names and that is not there, before anything is loaded."""
    known: tuple[tuple[str, Mapping[str, Callable[..., Any]], str], ...] = (
        (router, ROUTERS, "router"), (past, POLICIES, "past"), (positions, POSITIONS, "positions"),
        (guard, GUARDS, "guard"), (noise, NOISES, "noise"),
    )  # fmt: skip
    for text, registry, what in known:
        found = spec.build(text, registry, what) if text else None
        for option in OF_FILES:
            file = getattr(found, option, "")
            if isinstance(file, str) and file and not Path(file).is_file():
                raise ValueError(f"no file {file}; {option}= names one that arvid train compressors wrote")


def open_pipeline(model: str, drafter: str, device: str) -> Pipeline:
    """The pipeline of a family directory, `embedded` or a checkpoint, with another drafter when one is named, all on
    one device. Raises ValueError for a device that is not there, missing or damaged files, and a drafter that does not
    fit."""
    return opened(Parts(model, drafter), Running(device))


def opened(parts: Parts, running: Running, ask: Ask | None = None, prompts: Sequence[str] = ()) -> Pipeline:
    """The pipeline of what the options name, run as they say. With `ask` the run is planned before anything is loaded;
    `prompts` are those that are known (a large text encoder then leaves before the other parts come).

    Raises ValueError for what cannot be done or does not fit the machine, and for missing or damaged files.
    """
    placement, how = placement_of(running), how_of(running)
    joint = together(placement.home.type)
    size = ask.size if ask else None
    if is_checkpoint(parts.model):
        found = find(source_of(parts, size))
        if ask and not doctor.small(found.bytes, ask):
            doctor.require(needs_of(parts_as_found(found), ask, joint), placement, how, after_text)
        return _pipeline(open_family(found, placement, how, prompts), running, placement)
    if alien := parts.of_checkpoints:
        raise ValueError(f"{', '.join(alien)} with {parts.model}, a family directory that has its own; leave it out")
    if ask and not doctor.small(bytes_at(directory_of(parts.model)), ask):
        known = parts_of(parts.model, parts.drafter)
        doctor.require(needs_of(known, ask, joint), placement, how, most)
    return _pipeline(open_packaged(directory_of(parts.model), parts.drafter, placement, how), running, placement)


def _pipeline(family: Family, running: Running, placement: Placement) -> Pipeline:
    return Pipeline(overlapped(family, placement) if running.overlap else family)


def card_of(parts: Parts) -> Card:
    """How a family is run, before it is loaded. Raises ValueError when it or its drafter is not there, or lacks a
    part."""
    if is_checkpoint(parts.model):
        return find(source_of(parts)).card
    if parts.drafter and not is_checkpoint(parts.drafter):
        read_card(directory_of(parts.drafter))
    return read_card(directory_of(parts.model))


def source_of(parts: Parts, size: tuple[int, int] | None = None) -> Source:
    """A checkpoint and what belongs to it, as the options name them."""
    loras = tuple(parts.lora or ())
    return Source(
        parts.model, parts.drafter, parts.family, parts.heads, loras, parts.text, parts.vae, parts.reward, size
    )


def placement_of(running: Running) -> Placement:
    """The device of every role. Raises ValueError for one that is not there."""
    return Placement.parse(running.place, checked_device(running.device))


def how_of(running: Running) -> How:
    """How transformers run. Raises ValueError for what does not exist or does not go together."""
    roles = tuple(role.strip() for role in running.offload.split(",") if role.strip())
    return How(running.quantise, roles, running.compiled)


def check(pipeline: Pipeline, request: Request) -> int:
    """The number of blocks of a request. Raises ValueError when it cannot be met."""
    _, plan = pipeline.check(request)
    return len(plan)


def checked_device(name: str) -> str:
    """The device. Raises ValueError for one that is not there."""
    try:
        where = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"unknown device {name!r}; use cpu, cuda or cuda:NUMBER") from error
    if where.type not in ("cpu", "cuda"):
        raise ValueError(f"device {name!r} cannot be used here; use cpu, cuda or cuda:NUMBER")
    if where.type == "cuda" and (where.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {name!r} asked for; torch sees {torch.cuda.device_count()} GPUs; use cpu")
    return name


def warn(text: str) -> None:
    """One line on stderr."""
    typer.echo(f"warning: {text}", err=True)


def doubts(family: Family, prompt: str) -> str:
    """What a person should know about a prompt before the video is made: an end that is not read, or words the family
    never learned, and a prompt without anything its world can show, with an example of what it knows. Empty when all is
    well."""
    if surplus := _unread(family, prompt):
        return surplus
    strange = family.text.unknown(prompt) if isinstance(family.text, TextEncoder) else []
    shapes, empty = family.card.world == "shapes", False
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


def _unread(family: Family, prompt: str) -> str:
    """That a prompt, or an act of the story it tells, is longer than the text encoder reads; empty when it is not."""
    if not isinstance(family.text, TextEncoder):
        return ""
    read = family.text.tokenizer
    count = max(len(read(act.prompt, truncation=False)["input_ids"]) for act in family.acts(prompt))
    most = family.text.length
    return (
        f"the prompt has {count} tokens, {family.card.name} reads {most}; what follows is lost" if count > most else ""
    )
