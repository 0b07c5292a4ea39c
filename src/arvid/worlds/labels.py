"""What stands in every cell of a rendered clip: the renderer's own truth, as dense labels for training.

Knows: which thing covers a cell, its shape, its size and how it moves. Does not know: prompts' words beyond the story,
models, scores. Never used for judging: the oracle looks at pixels alone.

Legend: T frames, H W pixel sides, Y X cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from arvid.worlds import shapes
from arvid.worlds.grammar import SHAPES, SIZES, THING_COLOURS

CELL = 8
"""Pixels along one side of a cell: one latent cell of an autoencoder that shrinks by 8."""
COVERED = 0.12
"""Share of a cell that a thing must cover to count as what stands there."""


@dataclass(frozen=True)
class Labels:
    """Per cell: `shape_TYX`, `size_TYX` and `colour_TYX` uint8 (0 nothing, else 1 + index in SHAPES, SIZES,
    THING_COLOURS), `velocity_TYX2` float16, x and y in pixels per frame of a 64-pixel film (0 where nothing stands
    and in a film's first frame), and `offset_TYX2` float16, the way from the cell's middle to that of what stands
    there, x and y in cells, over an edge where that is shorter (0 where nothing stands); `things_THW` bool, the pixels
    that belong to things."""

    shape_TYX: np.ndarray
    size_TYX: np.ndarray
    colour_TYX: np.ndarray
    velocity_TYX2: np.ndarray
    offset_TYX2: np.ndarray
    things_THW: np.ndarray


def label(prompt: str, seed: int, frames: int, size: int = shapes.SIZE, begins: Sequence[int] | None = None) -> Labels:
    """Labels of the film that `shapes.render` makes of the same arguments.

    Raises ValueError for what `render` refuses, and for a size that is not a multiple of CELL.
    """
    if size % CELL:
        raise ValueError(f"a film of {size} pixels has no whole cells of {CELL}; give a multiple of {CELL}")
    cells = size // CELL
    shape = np.zeros((frames, cells, cells), np.uint8)
    large, colour, things = np.zeros_like(shape), np.zeros_like(shape), np.zeros((frames, size, size), bool)
    velocity, offset = (np.zeros((frames, cells, cells, 2), np.float16) for _ in range(2))
    middles_YX2 = np.stack(np.meshgrid(np.arange(cells) + 0.5, np.arange(cells) + 0.5), -1)
    for take in shapes.takes(prompt, seed, frames, begins):
        most = np.full((take.stop - take.start, cells, cells), COVERED, np.float32)
        for track in (track for track in take.tracks if track.visible):
            cover = _cover(take, track, size)
            part = slice(take.start, take.stop)
            things[part] |= cover > 0.1
            share = cover.reshape(-1, cells, CELL, cells, CELL).mean((2, 4))
            here = share > most
            most = np.maximum(most, share)
            shape[part][here] = 1 + SHAPES.index(track.thing.shape)
            large[part][here] = 1 + SIZES.index(track.thing.size)
            colour[part][here] = 1 + THING_COLOURS.index(track.thing.colour)
            pace = np.diff(track.path_T2, axis=0, prepend=track.path_T2[:1]) * shapes.SIZE
            velocity[part][here] = np.broadcast_to(pace[:, None, None], (*here.shape, 2))[here]
            way = ((track.path_T2 + take.camera_T2) * cells)[:, None, None] - middles_YX2
            offset[part][here] = ((way + cells / 2) % cells - cells / 2)[here]
    return Labels(shape, large, colour, velocity, offset, things)


def _cover(take: shapes.Take, track: shapes.Track, size: int) -> np.ndarray:
    """Coverage [T, size, size] of one thing over one take."""
    mask, rows, columns = shapes.coverage(track.thing, track.path_T2 + take.camera_T2, size)
    cover = np.zeros((take.stop - take.start, size, size), np.float32)
    cover[np.arange(len(cover))[:, None, None], rows[:, :, None], columns[:, None, :]] = mask
    return cover
