"""Quality of a video while it is being made: signal metrics of every block, as soon as it is there.

Knows: frames of blocks, the numbers of `evals.clips.Frame`, how far a block has come from the first one. Does not know:
what is done about it (a guard decides), models.

It hears of blocks as a `Listener`, where the event `done` carries `frames_BTCHW`, or watches the stream itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor

from arvid.evals.clips import Frame, Pixels
from arvid.evals.signals import FLOORS, SEAM_FLOOR, STILL, largest_change
from arvid.types import Block
from arvid.video import to_bytes

FRAMES = "frames_BTCHW"
"""Where the event `done` keeps a block's frames."""


@dataclass(frozen=True)
class Quality:
    """One block: means of its frames (units as in docs/evaluation.md), the share of its transitions that are frozen,
    the mean change inside it, the excess of the change at its beginning over that inside (None where the frame before
    is not known: of the first block, and where blocks were taken back), and the mean relative distance of exposure,
    contrast, saturation and sharpness from the first block."""

    block: int
    exposure: float
    contrast: float
    saturation: float
    sharpness: float
    freeze: float
    change: float
    seam: float | None
    drift: float


class OnlineQuality:
    """Measures the first video of every block. `rows` holds the blocks so far; `latest` the last of them."""

    def __init__(self) -> None:
        self.rows: list[Quality] = []
        self._last: Frame | None = None

    @property
    def latest(self) -> Quality | None:
        """The newest block's numbers, None before the first."""
        return self.rows[-1] if self.rows else None

    def on(self, event: str, payload: dict[str, Any]) -> None:
        """Measure a finished block. Raises ValueError when the event does not carry its frames."""
        if event != "done":
            return
        if FRAMES not in payload:
            raise ValueError(f"the event 'done' carries {sorted(payload)}; online quality needs {FRAMES!r}")
        self.see(payload[FRAMES], payload["block"])

    def watch(self, blocks: Iterator[Block]) -> Iterator[Block]:
        """Pass blocks on, each measured before."""
        for block in blocks:
            self.see(block.frames_BTCHW, block.move.index)
            yield block

    def see(self, v_BTCHW: Tensor, block: int | None = None) -> Quality:
        """Measure a block's frames in [-1, 1]; the block before is remembered by its last frame. `block` is its number
        (None: the next one); one that is made again takes the place of itself and of all behind it."""
        return self.see_pictures([*to_bytes(v_BTCHW[0])], block)

    def see_pictures(self, pictures: list[Pixels], block: int | None = None) -> Quality:
        """Measure frames [H, W, 3] uint8 as `see` does. Raises ValueError when there are none."""
        if not pictures:
            raise ValueError("a block without frames; every block has at least one")
        expected = self.rows[-1].block + 1 if self.rows else 0
        number = expected if block is None else block
        if number < expected:
            self.rows = [row for row in self.rows if row.block < number]
            self._last = None
        frames: list[Frame] = []
        for index, picture in enumerate(pictures):
            frames.append(Frame(picture, index, self._last))
            self._last = frames[-1]
        means = {name: float(np.mean([getattr(frame, name) for frame in frames])) for name in FLOORS}
        inside = [frame.change for frame in frames[1:] if frame.change is not None]
        frozen = [largest_change(frame) <= STILL for frame in frames if frame.before is not None]
        border = frames[0].change
        within = float(np.mean(inside)) if inside else 0.0
        found = Quality(
            number, **means,
            freeze=float(np.mean(frozen)) if frozen else 0.0,
            change=within,
            seam=None if border is None else (border + SEAM_FLOOR) / (within + SEAM_FLOOR) - 1,
            drift=self._drift(means),
        )  # fmt: skip
        for frame in frames:
            frame.before = None
        self.rows.append(found)
        return found

    def _drift(self, means: dict[str, float]) -> float:
        if not self.rows:
            return 0.0
        first = asdict(self.rows[0])
        gaps = [abs(value - first[name]) / max(first[name], FLOORS[name]) for name, value in means.items()]
        return float(np.mean(gaps))
