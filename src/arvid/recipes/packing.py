"""The recipe that makes a family, which `--model` reads, of a distilled model alone.

Knows: what a lender's family holds, how a distilled model walks, which numbers of passes it was made for. Does not
know: how it was distilled (recipes/distill).

    runs/START/model.safetensors, made.json   what a stage of `distill` left
    runs/START/family/                        what this makes of it
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from arvid.cli.checkpoints import DISTILLED, step_of
from arvid.models.family import CARD, read_card
from arvid.recipes.distill import MADE
from arvid.recipes.embedded import Report
from arvid.recipes.transformers import kind_of, lent, seal, sizes_of, weights_of
from arvid.samplers.grids import few_step


@dataclass(frozen=True)
class Sizes:
    """Which folder of `runs` becomes a family, passes of a block and of what opens a scene (0: as many), and the family
    that lends everything else (a directory, or `embedded`)."""

    start: str = "target-consistency"
    passes: int = 2
    first: int = 0
    family: str = "embedded"


def pack(runs: Path, sizes: Sizes, report: Report) -> None:
    """Put the family together in `runs/START/family`: its card walks as the model was taught.

    Raises ValueError for weights that are missing and for passes whose levels it was not distilled at.
    """
    weights, kind, lender = weights_of(runs, sizes.start), kind_of(sizes.start), lent(sizes.family)
    card, out = read_card(lender), runs / sizes.start / "family"
    step = step_of(runs / sizes.start, card)
    known = levels_of(runs / sizes.start) if step == DISTILLED else 0
    for name, passes in (("passes", sizes.passes), ("first", sizes.first or sizes.passes)):
        if passes < 1 or (known and not {*few_step(passes)} <= {*few_step(known)}):
            fit = f"one of {', '.join(map(str, _divisors(known)))}" if known else "at least 1"
            raise ValueError(f"{name}={passes} of {sizes.start}; give {fit}, the passes it was made for")
    # The card comes last: without one a folder is no family, whatever was copied before somebody pressed Ctrl-C.
    (out / CARD).unlink(missing_ok=True)
    leave = shutil.ignore_patterns("*.md", CARD, "drafter.safetensors", "target.safetensors")
    shutil.copytree(lender, out, ignore=leave, dirs_exist_ok=True)
    shutil.copyfile(weights, out / "target.safetensors")
    own = {"target": asdict(sizes_of(weights, card, kind))}
    parts = {name: part for name, part in card.parts.items() if name != "drafter"} | own
    router = f"target:first_steps={sizes.first}" if sizes.first else "target"
    told = replace(
        card, name=f"{card.name}-{sizes.start}", steps=sizes.passes, step=step, router=router, parts=parts,
        temperature=1.0,  # what narrower noise does to a model of few passes has not been measured
    )  # fmt: skip
    seal(out, told, report)


def levels_of(directory: Path) -> int:
    """The number of levels a model was distilled at. Raises ValueError when its folder does not say."""
    try:
        return int(json.loads((directory / MADE).read_text(encoding="utf-8"))["sizes"]["levels"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{directory / MADE} does not say at how many levels ({error}); distil again") from error


def _divisors(number: int) -> list[int]:
    return [part for part in range(1, number + 1) if number % part == 0]


STAGES: dict[str, Callable[[Path, Sizes, Report], None]] = {"pack": pack}
