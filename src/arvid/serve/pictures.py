"""Two pictures of a finished video: a thumbnail and a sheet of frames.

Knows: how many frames are shown and how large. Does not know: jobs, where pictures are kept.

Legend: H height, W width; picture_HWC is uint8 RGB.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from arvid.serve.place import whole
from arvid.video import frames_of

COLUMNS, ROWS = 5, 4
CELL = 320
"""Most pixels of the wider side of a frame on the sheet."""


def draw(video: Path, frames: int, thumbnail: Path, sheet: Path) -> None:
    """Pictures of a video of `frames` frames: its middle one as WebP, evenly spaced ones as JPEG. Raises ValueError
    when the video cannot be read."""
    count = min(frames, COLUMNS * ROWS)
    chosen = {round(number) for number in np.linspace(0, frames - 1, count)}
    cells: list[Image.Image] = []
    for number, picture_HWC in enumerate(frames_of(video)):
        if number == frames // 2:
            with whole(thumbnail) as part:
                Image.fromarray(picture_HWC).save(part, format="WEBP", quality=90)
        if number in chosen:
            cells.append(_cell(picture_HWC))
    width, height = cells[0].size
    columns = min(COLUMNS, len(cells))
    plate = Image.new("RGB", (columns * width, -(-len(cells) // columns) * height))
    for number, cell in enumerate(cells):
        plate.paste(cell, (number % columns * width, number // columns * height))
    with whole(sheet) as part:
        plate.save(part, format="JPEG", quality=88)


def _cell(picture_HWC: np.ndarray) -> Image.Image:
    picture = Image.fromarray(picture_HWC)
    picture.thumbnail((CELL, CELL))
    return picture
