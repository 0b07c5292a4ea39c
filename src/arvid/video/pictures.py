"""Frames as pictures: contact sheets, two videos side by side.

Knows: colours, captions, how frames of each maker are marked. Does not know: files of video, how a block was decided
(it is told who made each frame).

Legend: T frames, C channels, H height, W width; v_TCHW in [-1, 1]; frames_THWC and picture_HWC are uint8 RGB.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from arvid.video.files import enlarge, to_bytes


@dataclass(frozen=True)
class Maker:
    """How frames of one source are marked."""

    letter: str
    colour: str
    words: str


MAKERS = {
    "target": Maker("T", "#5b8def", "target"),
    "draft": Maker("D", "#4cc38a", "drafter"),
    "refined": Maker("R", "#f2b84b", "drafted, refined by the target"),
    "repaired": Maker("M", "#c77dff", "drafted, repaired by the target"),
    "verified": Maker("V", "#3fb8c4", "drafted, seen by the target"),
    "given": Maker("G", "#b7a58a", "given to begin with"),
}
"""Marks by `Block.source`."""
OTHER = Maker("?", "#8a8f98", "another maker")
PAPER, INK, FAINT = "#14161b", "#eceef2", "#9aa0ab"


@dataclass(frozen=True, eq=False)
class Strip:
    """Frames [T, H, W, 3] uint8 with a label, the second each is shown at, and who made it (`Block.source`)."""

    frames_THWC: np.ndarray
    label: str = ""
    seconds: tuple[float, ...] = ()
    sources: tuple[str, ...] = ()


class Album:
    """Collects the frames of a stream for a picture and keeps at most 2 x `least` of them, evenly spaced, so that a
    day of video needs no more memory than a minute."""

    def __init__(self, fps: float, least: int = 256) -> None:
        self._fps, self._least, self._stride, self._seen = fps, least, 1, 0
        self._kept: list[tuple[np.ndarray, float, str]] = []

    def add(self, v_TCHW: Tensor, source: str) -> None:
        """The frames of a block and who made it."""
        for picture_HWC in to_bytes(v_TCHW):
            if self._seen % self._stride == 0:
                self._kept.append((picture_HWC.copy(), self._seen / self._fps, source))
            self._seen += 1
            if len(self._kept) >= 2 * self._least:
                self._kept, self._stride = self._kept[::2], self._stride * 2

    def strip(self, label: str = "") -> Strip:
        """What was kept. Raises ValueError when nothing was added."""
        if not self._kept:
            raise ValueError("0 frames in the album; add a block first")
        pictures, seconds, sources = zip(*self._kept, strict=True)
        return Strip(np.stack(pictures), label, seconds, sources)


def contact_sheet(strips: Sequence[Strip], path: Path, title: str = "", columns: int = 8, lines: int = 1) -> None:
    """A PNG of `columns` x `lines` evenly spaced frames per strip, enlarged to at least 128 pixels; below each one a
    bar in the colour of its maker, a letter and its second; the title on top, the colours explained at the bottom.

    Raises ValueError when there is nothing to show.
    """
    if not strips or any(len(strip.frames_THWC) == 0 for strip in strips):
        raise ValueError(f"{len(strips)} strips for a contact sheet, each needs at least one frame")
    rows = [row for strip in strips for row in _rows(strip, columns, lines)]
    high, wide = strips[0].frames_THWC.shape[1:3]
    scale = max(1, -(-128 // min(wide, high)))
    width = 2 * MARGIN + columns * (wide * scale + GAP) - GAP
    caption = _wrapped(title, 25, width - 2 * MARGIN)
    top = MARGIN + 34 * len(caption) + (10 if caption else 0)
    labels = [_wrapped(row.label, 18, width - 2 * MARGIN) for row in rows]
    height = top + sum(high * scale + FOOT + HEAD * len(label) for label in labels) + MARGIN + 24
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(caption):
        draw.text((MARGIN, MARGIN - 6 + 34 * number), line, INK, _font(25))
    for row, label in zip(rows, labels, strict=True):
        draw.text((MARGIN, top), "\n".join(label), INK, _font(18))
        top += HEAD * len(label)
        for column, picture_HWC in enumerate(row.frames_THWC):
            left = MARGIN + column * (wide * scale + GAP)
            sheet.paste(Image.fromarray(enlarge(picture_HWC, scale)), (left, top))
            _mark(draw, row, column, left, top + high * scale, wide * scale)
        top += high * scale + FOOT
    _legend(draw, [source for strip in strips for source in strip.sources], MARGIN, top + 4)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        sheet.save(part, format="PNG")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


MARGIN, GAP, HEAD, FOOT = 28, 8, 30, 40


def _rows(strip: Strip, columns: int, lines: int) -> list[Strip]:
    """A strip as rows of at most `columns` frames; the label stays with the first."""
    count = min(columns * lines, len(strip.frames_THWC))
    chosen = sorted({round(number) for number in np.linspace(0, len(strip.frames_THWC) - 1, count)})
    parts = [chosen[start : start + columns] for start in range(0, len(chosen), columns)]
    return [
        Strip(
            strip.frames_THWC[part], "" if number else strip.label,
            tuple(strip.seconds[i] for i in part) if strip.seconds else (),
            tuple(strip.sources[i] for i in part) if strip.sources else (),
        )
        for number, part in enumerate(parts)
    ]  # fmt: skip


def _mark(draw: ImageDraw.ImageDraw, row: Strip, column: int, left: int, top: int, width: int) -> None:
    """The bar, the letter and the second below a frame."""
    if row.sources:
        maker = MAKERS.get(row.sources[column], OTHER)
        draw.rectangle((left, top + 3, left + width - 1, top + 8), maker.colour)
        draw.text((left, top + 12), maker.letter, maker.colour, _font(15))
    if row.seconds:
        draw.text((left + width, top + 13), f"{row.seconds[column]:.2f} s", FAINT, _font(13), anchor="ra")


def _legend(draw: ImageDraw.ImageDraw, sources: Sequence[str], left: float, top: float) -> None:
    for source in dict.fromkeys(sources):
        maker = MAKERS.get(source, OTHER)
        draw.rectangle((left, top + 3, left + 13, top + 16), maker.colour)
        text = f"{maker.letter}  {maker.words}"
        draw.text((left + 21, top), text, FAINT, _font(15))
        left += 21 + draw.textlength(text, _font(15)) + 32


def side_by_side(left: Strip, right: Strip, scale: int) -> Iterator[np.ndarray]:
    """Pictures [H, W, 3] uint8 of two videos next to each other, both sides even: labels above, and below each a line
    of time in the colours of its makers. The shorter one holds its last frame."""
    high, wide = left.frames_THWC.shape[1:3]
    width, top, gap = wide * scale, 46, 16
    size = (2 * (width + gap) + gap, top + high * scale + 34)
    plate = Image.new("RGB", (size[0] + size[0] % 2, size[1] + size[1] % 2), PAPER)
    for number in range(max(len(left.frames_THWC), len(right.frames_THWC))):
        picture = plate.copy()
        draw = ImageDraw.Draw(picture)
        for strip, x in ((left, gap), (right, width + 2 * gap)):
            at = min(number, len(strip.frames_THWC) - 1)
            draw.text((x, 13), strip.label, INK, _font(19))
            picture.paste(Image.fromarray(enlarge(strip.frames_THWC[at], scale)), (x, top))
            _timeline(draw, strip, at, x, top + high * scale + 10, width)
        yield np.asarray(picture)


def _timeline(draw: ImageDraw.ImageDraw, strip: Strip, at: int, left: int, top: int, width: int) -> None:
    """One segment per frame, bright once it was played."""
    count = len(strip.frames_THWC)
    for number in range(count):
        maker = MAKERS.get(strip.sources[number], OTHER) if strip.sources else OTHER
        start, stop = left + width * number // count, left + width * (number + 1) // count - 1
        high = 10 if number <= at else 3
        draw.rectangle((start, top + (10 - high) // 2, stop, top + (10 + high) // 2), maker.colour)


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def _wrapped(text: str, size: int, width: int) -> list[str]:
    """A text in lines of about `width` pixels, at most three of them."""
    return textwrap.wrap(text, max(20, int(width / (0.47 * size))), max_lines=3, placeholder=" ...")
