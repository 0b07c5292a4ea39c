"""Which heads look at the last frames alone: a profile that is made once per model, and the past that makes it.

Knows: attention mass per head between frames, a threshold, a JSON file. Does not know: what is done with a static head.
After Forcing-KV (2605.09681): static is a head with at least `threshold` of its mass on the last frames.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from arvid.caches.pieces import Pieces, joined
from arvid.caches.policy import ByContent, Look, Moment
from arvid.types import Asking

Static = tuple[frozenset[int], ...]
"""Per layer the static heads."""


class Profiling(ByContent):
    """The full past, and a record of who looks where: per layer the attention mass [H] of a block's queries on the last
    `last` frames before it and on all frames but the first `skip`, added up over blocks. Positions must be absolute."""

    def __init__(self, last: int = 4, skip: int = 1) -> None:
        self.last, self.skip = last, skip
        self._mass: dict[int, tuple[Tensor, Tensor]] = {}

    def keep(self, past: Pieces, moment: Moment) -> Pieces:
        """Everything."""
        return past

    def look(self, layer: int, past: Pieces, moment: Moment, ask: Asking) -> Sequence[Look]:
        """Everything; and the mass is taken down once there is more than the last frames."""
        frames = [piece.frames[0] for piece in past]
        if len(frames) > self.last + self.skip:
            tokens = ask.queries_BLHD.shape[1] // (ask.grid[0] * ask.grid[1])
            own = tuple(float(moment.start + i) for i in range(tokens))
            q = ask(ask.queries_BLHD, own).transpose(1, 2).float()
            k = ask(joined(past, layer, 0), tuple(float(f) for f in frames)).transpose(1, 2).float()
            mine = ask(ask.pair[0], own).transpose(1, 2).float()
            logits = q @ torch.cat([k, mine], 2).transpose(2, 3) * q.shape[-1] ** -0.5
            share_HF = logits.softmax(-1).mean((0, 2))[:, : k.shape[2]].unflatten(1, (len(frames), -1)).sum(2).cpu()
            near, all_but = share_HF[:, -self.last :].sum(1), share_HF[:, self.skip :].sum(1)
            old = self._mass.get(layer, (torch.zeros_like(near), torch.zeros_like(near)))
            self._mass[layer] = (old[0] + near, old[1] + all_but)
        return [(piece, None) for piece in past]

    def static(self, threshold: float = 0.8) -> Static:
        """Heads of each layer with at least `threshold` of their mass on the last frames. Raises ValueError before
        anything was seen."""
        if not self._mass:
            raise ValueError(f"no block had more than {self.last + self.skip} frames before it; profile longer videos")
        return tuple(
            frozenset((near / total.clamp_min(1e-12) >= threshold).nonzero()[:, 0].tolist())
            for near, total in (self._mass[layer] for layer in sorted(self._mass))
        )


def write_profile(static: Static, path: Path) -> None:
    """A JSON file: {"static": [heads of layer 0, heads of layer 1, ...]}."""
    path.write_text(json.dumps({"static": [sorted(heads) for heads in static]}) + "\n", encoding="utf-8")


@lru_cache(maxsize=8)
def read_profile(path: str, layers: int, heads: int) -> Static:
    """The static heads of a file; none for an empty path. Raises ValueError for a file that does not fit the model."""
    if not path:
        return (frozenset(),) * layers
    try:
        static = tuple(frozenset(map(int, found)) for found in json.loads(Path(path).read_text("utf-8"))["static"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no head profile ({error}); write one with write_profile") from error
    highest = max((head for found in static for head in found), default=-1)
    if len(static) != layers or highest >= heads:
        raise ValueError(
            f"{path} profiles {len(static)} layers and heads up to {highest}, the model has {layers} layers of {heads} "
            "heads; profile this model"
        )
    return static
