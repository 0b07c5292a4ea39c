"""The judges of whole blocks that a family brings, by the names that routers give them.

Knows: names, folders, which judge hears others. Does not know: what any of them does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from arvid.rewards.block import BlockJudge
from arvid.rewards.jury import Jury
from arvid.rewards.latent import LatentJudge
from arvid.rewards.reading import ReadingJudge
from arvid.rewards.rereading import Encode, RereadingJudge
from arvid.types import BlockReward, Reward

JUDGES: dict[str, type[LatentJudge | BlockJudge | ReadingJudge]] = {
    "latent": LatentJudge, "block": BlockJudge, "reading": ReadingJudge,
}  # fmt: skip
"""Judges on their own; NAME lies in a family's folder `NAME_judge`."""
REREADING = "rereading"
"""Who has the reading judge read twice, and needs no folder."""
JURY = "jury"
"""Who hears some of them, in `jury_judge`."""


def judges_of(
    directory: Path, reward: Reward | None, encode: Encode | None, device: torch.device
) -> dict[str, BlockReward]:
    """The judges in the folders of a family, and those that are made of them. Raises ValueError for damaged ones, and a
    jury without its witnesses."""
    found: dict[str, BlockReward] = {
        name: kind.load(directory / f"{name}_judge").to(device)
        for name, kind in JUDGES.items() if (directory / f"{name}_judge").is_dir()
    }  # fmt: skip
    found |= reread(found, encode)
    place = directory / f"{JURY}_judge"
    if place.is_dir():
        found[JURY] = Jury.load(place, reward, found).to(device)
    return found


def reread(judges: Mapping[str, BlockReward], encode: Encode | None) -> dict[str, BlockReward]:
    """The rereading judge by its name, where there is a reading judge and an autoencoder that can encode."""
    reading = judges.get("reading")
    if encode is None or not isinstance(reading, ReadingJudge):
        return {}
    return {REREADING: RereadingJudge(reading, encode)}
