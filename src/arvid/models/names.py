"""Weight maps: other people's names for the weights of a model, and filling a model with them strictly.

Knows: how a table of patterns is applied to names, how a model built without data takes tensors over without a copy.
Does not know: any family, how files are read (checkpoints/files.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor, nn

from arvid.models.checkpoints.files import open_file

Rules = tuple[tuple[str, str], ...]
"""Patterns and what they become, applied in this order to one name; data, one table per family."""
SHOWN = 10
"""How many names an error lists."""


def rename(name: str, rules: Rules) -> str:
    """A name after all rules."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def take(model: nn.Module, weights: Mapping[str, Tensor], names: Mapping[str, str], what: str) -> None:
    """Let a model take `weights` over, without a copy and in the type they have; its own may be on the meta device.

    `names` gives for each name of the model the name in `weights`. Raises ValueError listing the first names that
    are missing, surplus or of another shape; `what` says in the error what was expected.
    """
    wanted = {names[own]: tuple(value.shape) for own, value in model.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in weights.items()}
    refuse(wanted, given, what)
    model.load_state_dict({own: weights[other] for own, other in names.items()}, assign=True)


def refuse(wanted: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]], what: str) -> None:
    """Raise ValueError unless both tables of names and shapes are the same."""
    missing, surplus = wanted.keys() - given.keys(), given.keys() - wanted.keys()
    bent = [
        f"{name} {[*given[name]]} for {[*wanted[name]]}"
        for name in sorted(wanted.keys() & given.keys())
        if wanted[name] != given[name]
    ]
    if missing or surplus or bent:
        raise ValueError(
            f"not the weights of {what}: {len(missing)} missing {_first(missing)}, {len(surplus)} surplus "
            f"{_first(surplus)}, {len(bent)} of another shape {bent[:SHOWN]}; pass the whole file of {what}"
        )


def _first(names: Iterable[str]) -> list[str]:
    return sorted(names)[:SHOWN]


def tensors_of(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, mapped into memory.

    Raises ValueError for a file that is missing, damaged or not weights.
    """
    if not path.is_file():
        raise ValueError(f"no weights at {path}; fetch the file or name another")
    container = open_file(path)
    return dict(container.read(list(container.entries)))
