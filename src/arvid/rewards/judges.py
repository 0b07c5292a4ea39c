"""The judges of whole blocks that a family brings, by the names that routers give them.

Knows: names, folders, which judge listens to another, which is shown frames. Does not know: what any of them does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from arvid.rewards.block import BlockJudge
from arvid.rewards.latent import LatentJudge
from arvid.rewards.marking import MarkingJudge
from arvid.rewards.reading import ReadingJudge
from arvid.rewards.rereading import Encode, RereadingJudge, Seeing
from arvid.types import BlockReward

JUDGES: dict[str, type[LatentJudge | BlockJudge | ReadingJudge]] = {
    "latent": LatentJudge, "block": BlockJudge, "reading": ReadingJudge,
}  # fmt: skip
"""Judges on their own; NAME lies in a family's folder `NAME_judge`."""
REREADING = "rereading"
"""Who has the reading judge read twice, and needs no folder."""
MARKING, REMARKING = "marking", "remarking"
"""Who marks what the reading judge reads, of latents and of frames; in `marking_judge` and `remarking_judge`."""


def judges_of(directory: Path, encode: Encode | None, device: torch.device) -> dict[str, BlockReward]:
    """The judges in the folders of a family, and those that are made of them. Raises ValueError for damaged ones, and
    for those that lack whom they listen to, or an autoencoder that encodes."""
    found: dict[str, BlockReward] = {
        name: kind.load(directory / f"{name}_judge").to(device)
        for name, kind in JUDGES.items() if (directory / f"{name}_judge").is_dir()
    }  # fmt: skip
    found |= reread(found, encode)
    for name in (MARKING, REMARKING):
        place = directory / f"{name}_judge"
        if not place.is_dir():
            continue
        reading = found.get("reading")
        if not isinstance(reading, ReadingJudge):
            raise ValueError(f"the judge in {place} listens to the reading judge, which the family lacks; remove it")
        found[name] = marking = MarkingJudge.load(place, reading).to(device)
        if name == REMARKING:
            if encode is None:
                raise ValueError(f"the judge in {place} has frames encoded, and the family only decodes; remove it")
            found[name] = Seeing(marking, encode)
    return found


def reread(judges: Mapping[str, BlockReward], encode: Encode | None) -> dict[str, BlockReward]:
    """The rereading judge by its name, where there is a reading judge and an autoencoder that can encode."""
    reading = judges.get("reading")
    if encode is None or not isinstance(reading, ReadingJudge):
        return {}
    return {REREADING: RereadingJudge(reading, encode)}
