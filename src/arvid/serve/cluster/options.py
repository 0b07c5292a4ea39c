"""What a cluster gives to a run: how many workers or replicas, and which part of a machine each of them holds.

Knows: CPUs and GPUs as amounts, how roles share the GPUs of a replica. Does not know: Ray, models, what runs there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

ROLES = ("target", "drafter", "vae", "reward", "text")
"""Parts of a family that may stand on a GPU of their own, the largest first (`arvid.models.placement`)."""


@dataclass(frozen=True)
class Workers:
    """Of a batch: how many processes make rows at the same time, and what each of them holds."""

    workers: int = 1
    cpus: float = 1.0
    gpus: float = 0.0

    def __post_init__(self) -> None:
        _least("workers", self.workers, 1)
        _least("cpus", self.cpus, 0)
        _least("gpus", self.gpus, 0)


@dataclass(frozen=True)
class Replicas:
    """Of a server: how many replicas of the model there are, the CPUs of each, and how much of a GPU each role needs
    (0: it stands with the target, and the target on the CPU). A role stands on one GPU; several share one while they
    fit. `accelerator` names a kind of GPU to Ray.

    Raises ValueError for amounts that cannot be had.
    """

    replicas: int = 1
    cpus: float = 1.0
    target: float = 0.0
    drafter: float = 0.0
    vae: float = 0.0
    reward: float = 0.0
    text: float = 0.0
    accelerator: str = ""

    def __post_init__(self) -> None:
        _least("replicas", self.replicas, 1)
        _least("cpus", self.cpus, 0)
        for role in ROLES:
            if not 0 <= self.amount(role) <= 1:
                raise ValueError(f"{role}={self.amount(role):g}; a role takes 0 to 1 GPU, like {role}=0.25")

    def amount(self, role: str) -> float:
        """How much of a GPU a role needs."""
        return float(getattr(self, role))

    @property
    def places(self) -> dict[str, int]:
        """The GPU of each role that needs one, counted from 0: each stands on the first that has room."""
        room: list[float] = []
        found: dict[str, int] = {}
        for role in ROLES:
            needed = self.amount(role)
            if not needed:
                continue
            place = next((place for place, left in enumerate(room) if left >= needed - 1e-9), len(room))
            if place == len(room):
                room.append(1.0)
            room[place] -= needed
            found[role] = place
        return found

    @property
    def gpus(self) -> float:
        """GPUs of a replica: a part of one, or whole ones, because Ray gives no parts of several."""
        needed = sum(self.amount(role) for role in ROLES)
        return needed if len(set(self.places.values())) <= 1 else float(len(set(self.places.values())))

    @property
    def devices(self) -> dict[str, str]:
        """The device of each role, as a replica sees them; empty where it stands with the target."""
        named = {role: f"cuda:{place}" for role, place in self.places.items()}
        return {role: named.get(role, "" if role != "target" else "cpu") for role in ROLES}


def _least(name: str, value: float, least: float) -> None:
    if not (math.isfinite(value) and value >= least):
        raise ValueError(f"{name}={value:g}; give at least {least:g}")
