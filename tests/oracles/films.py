"""Small films whose every number is known, and ways to spoil them.

Knows: numpy and scipy, where an mp4 says how it is held. Does not know: how anything is measured.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from arvid.video import VideoWriter

Film = NDArray[np.uint8]


def moving(seed: int = 0, frames: int = 40, size: tuple[int, int] = (96, 64), step: tuple[int, int] = (1, 0)) -> Film:
    """Frames [T, H, W, 3] of a smooth coloured texture that moves by `step` (right, down) pixels per frame."""
    wide, high = size
    across, down = step
    rng = np.random.default_rng(seed)
    canvas = rng.uniform(0, 255, (high + abs(down) * frames, wide + abs(across) * frames, 3))
    canvas = ndimage.gaussian_filter(canvas, (2.5, 2.5, 0), mode="wrap")
    canvas = (canvas - canvas.min()) / (canvas.max() - canvas.min()) * 200 + 27
    shown = canvas.round().astype(np.uint8)
    left = [(frames - t) * across if across > 0 else -t * across for t in range(frames)]
    top = [(frames - t) * down if down > 0 else -t * down for t in range(frames)]
    return np.stack([shown[y : y + high, x : x + wide] for x, y in zip(left, top, strict=True)])


def grey(film: Film) -> Film:
    """The first channel in all three: luma is exactly the value."""
    return np.repeat(film[..., :1], 3, axis=-1)


def blurred(film: Film, start: int, sigma: float = 2.0) -> Film:
    """Out of focus from a frame on."""
    spoilt = film.copy()
    for index in range(start, len(film)):
        spoilt[index] = ndimage.gaussian_filter(film[index], (sigma, sigma, 0)).astype(np.uint8)
    return spoilt


def fading(film: Film, left: float = 0.3) -> Film:
    """Colours that fade towards grey, evenly, until `left` of them is left."""
    share = np.linspace(1, left, len(film))[:, None, None, None]
    mean = film.mean(axis=-1, keepdims=True)
    return (mean + (film - mean) * share).round().clip(0, 255).astype(np.uint8)


def frozen(film: Film, start: int, frames: int = 3) -> Film:
    """A picture that stands still for `frames` frames."""
    spoilt = film.copy()
    spoilt[start + 1 : start + 1 + frames] = film[start]
    return spoilt


def seamed(film: Film, block: int = 12, jump: int = 14) -> Film:
    """A jump of brightness at the beginning of every block, up and down in turn."""
    sign = np.where(np.arange(len(film)) // block % 2 == 0, -1, 1)[:, None, None, None]
    return (film.astype(int) + sign * jump // 2).clip(0, 255).astype(np.uint8)


def write(path: Path, film: Film, fps: float = 16, crf: int = 4) -> Path:
    """A film as an mp4 of high quality."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with VideoWriter(path, fps, film.shape[2], film.shape[1], crf=crf) as file:
        file.append_bytes(film)
    return path


TURNS = {
    "clockwise": (0, 1, -1, 0),
    "upside down": (-1, 0, 0, -1),
    "counterclockwise": (0, -1, 1, 0),
    "mirrored": (-1, 0, 0, 1),
    "flipped": (1, 0, 0, -1),
    "mirrored clockwise": (0, 1, 1, 0),
    "mirrored counterclockwise": (0, -1, -1, 0),
}
"""Display matrices (a, b, c, d): what is stored at (x, y), y downwards, is shown at (a x + c y, b x + d y)."""


def turned(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Ask players of an mp4 to turn it: the matrix of its track header (ISO 14496-12, 8.3.2, version 0; 16.16 numbers,
    the last column 2.30), byte by byte."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44
    a, b, c, d = (number << 16 for number in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path
