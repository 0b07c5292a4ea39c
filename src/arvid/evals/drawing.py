"""What pages are made of: templates on one frame, plots as SVG, pictures and small videos as data addresses. Everything
is in the page itself.

Knows: matplotlib figures, PNG, JPEG, WebM. Does not know: which page, which numbers.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import jinja2
import numpy as np
from av.video.stream import VideoStream
from matplotlib import rc_context
from PIL import Image

from arvid.evals.clips import Pixels, opened, pictures_of

PLAYER_HEIGHT, PLAYER_SECONDS = 256, 20.0
SHEET_FRAMES, SHEET_HEIGHT = 8, 72
COLOURS = ("#2a78d6", "#eb6834", "#1baa7d", "#8a5cc2", "#b8860b", "#52514e", "#d6418a", "#3aa0a8")

PAGES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
)
"""The templates of this folder; those of whole pages extend frame.html."""


@contextmanager
def plain() -> Iterator[None]:
    """The look of plots; the same numbers give the same text."""
    with rc_context({"svg.hashsalt": "arvid", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10}):
        yield


def as_svg(figure: Any) -> str:
    """A figure as an SVG element."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    drawn = text.getvalue()
    return drawn[drawn.index("<svg") :]


def png(pixels: Pixels) -> str:
    """A picture as a data address, without loss."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format="PNG", optimize=True)
    return _address("image/png", buffer)


def jpeg(pixels: Pixels) -> str:
    """A picture as a data address, small."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format="JPEG", quality=85)
    return _address("image/jpeg", buffer)


def shown(path: Path, frames: int) -> tuple[str, str]:
    """A video of `frames` frames as a player's data address (WebM, at most PLAYER_SECONDS of it and PLAYER_HEIGHT
    pixels high; a smaller one stays as it is, the page enlarges it) and as a strip of SHEET_FRAMES evenly spaced
    frames. Raises ValueError when it cannot be read."""
    clip = opened(path)
    chosen = set(np.linspace(0, max(frames - 1, 0), SHEET_FRAMES).round().astype(int).tolist())
    kept: list[Pixels] = []
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="webm") as file:
        rate = Fraction(clip.fps).limit_denominator(1001)
        stream = file.add_stream("libvpx", rate=rate, options={"crf": "20", "b": "2M", "cpu-used": "8"})
        assert isinstance(stream, VideoStream)
        stream.width, stream.height = _even(clip.width, clip.height, min(PLAYER_HEIGHT, clip.height // 2 * 2))
        stream.pix_fmt = "yuv420p"
        for index, picture in enumerate(pictures_of(path)):
            if index < PLAYER_SECONDS * clip.fps:
                small = _to(picture, stream.width, stream.height)
                file.mux(stream.encode(av.VideoFrame.from_ndarray(small, format="rgb24")))
            if index in chosen:
                kept.append(_to(picture, *_even(clip.width, clip.height, SHEET_HEIGHT)))
        file.mux(stream.encode(None))
    return _address("video/webm", buffer), jpeg(np.concatenate(kept, axis=1))


def _even(wide: int, high: int, height: int) -> tuple[int, int]:
    return max(2, round(wide * height / high / 2) * 2), height


def _to(picture: Pixels, wide: int, high: int) -> Pixels:
    way = cv2.INTER_AREA if picture.shape[0] >= high else cv2.INTER_NEAREST
    return np.ascontiguousarray(cv2.resize(picture, (wide, high), interpolation=way), np.uint8)


def _address(kind: str, buffer: io.BytesIO) -> str:
    return f"data:{kind};base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
