"""The table of levels a published flow model was trained at, and what a list of timesteps means on it.

Knows: 1000 timesteps, the shift, and that the original code looks every timestep up in the table before it uses sigma
(Self-Forcing, 2506.08009; CausVid, 2412.07772). Does not know: models, blocks, noise.

The network is told the timestep as it stands in the list; x0 = x - sigma v and the re-noising take the sigma of the
nearest entry. The two differ where the list is not on the table: t = 0 meets sigma 0.00498 at shift 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from arvid.samplers.grids import SHIFT, shifted

TRAIN_STEPS = 1000


@dataclass(frozen=True)
class Timetable:
    """sigma_i = shifted(1 - i / 1000) and t_i = 1000 sigma_i for i = 0 .. 999."""

    shift: float = SHIFT

    def __post_init__(self) -> None:
        if not self.shift > 0:
            raise ValueError(f"shift {self.shift} must be above 0; Wan models were trained with 5 or 8")

    @property
    def sigmas(self) -> tuple[float, ...]:
        """All levels, falling from 1."""
        return tuple(shifted(1 - i / TRAIN_STEPS, self.shift) for i in range(TRAIN_STEPS))

    def warped(self, steps: Sequence[int]) -> tuple[float, ...]:
        """Timesteps of a list of places on the unshifted scale, as configurations write them: 1000, 750, 500, 250 is
        1000, 937.5, 833.33, 625 at shift 5. Place 0 is timestep 0.

        Raises ValueError for a place outside 0 .. 1000.
        """
        if not all(0 <= step <= TRAIN_STEPS for step in steps):
            raise ValueError(f"steps {list(steps)} must lie between 0 and {TRAIN_STEPS}")
        table = (*self.sigmas, 0.0)
        return tuple(TRAIN_STEPS * table[TRAIN_STEPS - step] for step in steps)

    def nearest(self, timestep: float) -> float:
        """Sigma of the entry next to a timestep."""
        return min(self.sigmas, key=lambda sigma: abs(TRAIN_STEPS * sigma - timestep))

    def levels(self, timesteps: Sequence[float]) -> tuple[float, ...]:
        """The levels of a walk that looks at every timestep once: their sigmas, then 0.

        Raises ValueError for no timesteps, one outside 0 .. 1000, and a list that does not fall by at least one entry.
        """
        if not timesteps or not all(0 <= timestep <= TRAIN_STEPS for timestep in timesteps):
            raise ValueError(f"timesteps {list(timesteps)}: expected at least one, each between 0 and {TRAIN_STEPS}")
        found = tuple(self.nearest(timestep) for timestep in timesteps)
        if any(a <= b for a, b in pairwise(found)):
            raise ValueError(
                f"timesteps {list(timesteps)} meet the levels {[round(sigma, 5) for sigma in found]} of the table at "
                f"shift {self.shift:g}, which must fall; leave out what repeats"
            )
        return (*found, 0.0)
