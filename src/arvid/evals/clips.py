"""Videos to be measured, frame by frame: where they are, what they were asked to show, and what several metrics need of
a frame, computed once and only if somebody asks.

Knows: files, scaling down, optical flow (DIS, Kroeger et al. 1603.03590). Does not know: how a file is decoded, any
metric. However long a video is, four of its frames are in memory at a time.

Legend: H height, W width, C channels; rgb_HWC uint8; small: scaled down by area so that the longer side has at most
SMALL pixels; lengths on small pictures are in small pixels.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from arvid import video

ENDINGS = frozenset({".mp4", ".webm", ".mkv", ".mov", ".avi", ".m4v", ".gif"})
SMALL = 448
SAMPLED_FPS = 8.0
"""How often motion is looked at, frames per second (the rate of VBench's dynamic degree)."""

Pixels = NDArray[np.uint8]
Numbers = NDArray[np.float32]


@dataclass(frozen=True)
class Clip:
    """One video: its file, what it was asked to show (empty: not known) and the seed, the frames at which a new block
    begins (0 left out; empty: not known), its rate and size, and how long it took to make (see `evals.timing`)."""

    path: Path
    prompt: str = ""
    seed: int | None = None
    starts: tuple[int, ...] = ()
    fps: float = 16.0
    width: int = 0
    height: int = 0
    speed: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """The file's name without its ending."""
        return self.path.stem


def opened(path: Path) -> Clip:
    """A clip with the rate of a file and the size it is shown in, nothing else said about it. Raises ValueError when it
    cannot be read."""
    with video.open_video(path) as (_, stream):
        rate = stream.average_rate or stream.guessed_rate
    # The size that a file names is that of its frames before they are turned upright.
    high, wide = next(pictures_of(path)).shape[:2]
    return Clip(path, fps=float(rate or 16), width=wide, height=high)


def pictures_of(path: Path) -> Iterator[Pixels]:
    """Frames [H, W, 3] of a file, upright, one after the other. Raises ValueError when it is damaged or without
    frames."""
    return map(_u8, video.frames_of(path))


def videos_in(places: Iterable[Path]) -> list[Path]:
    """The files named, and those with a video's ending in the folders named (their own level), sorted, each once.

    Raises ValueError for a place that does not exist and for a folder without videos.
    """
    found: dict[Path, None] = {}
    for place in places:
        if place.is_dir():
            inside = sorted(path for path in place.iterdir() if path.suffix.lower() in ENDINGS and path.is_file())
            if not inside:
                raise ValueError(f"no video in {place}; expected files that end in {', '.join(sorted(ENDINGS))}")
            found.update(dict.fromkeys(inside))
        elif place.is_file():
            found[place] = None
        else:
            raise ValueError(f"{place} does not exist; name video files or folders of them")
    return list(found)


# ---------------------------------------------------------------- frames


class Frame:
    """One frame and its looks. `before` is the frame before it; `sampled` the one before it in a walk of SAMPLED_FPS,
    for frames of that walk. Both are there only while the frame is being looked at: whoever needs one later keeps it.
    """

    def __init__(self, rgb_HWC: Pixels, index: int, before: Frame | None = None, sampled: Frame | None = None) -> None:
        self.rgb_HWC, self.index = rgb_HWC, index
        self.before, self.sampled = before, sampled
        self.memo: dict[Any, Any] = {}
        """What somebody outside computed of this frame for several readers (an encoder's features)."""

    @cached_property
    def grey_HW(self) -> Pixels:
        """Luma of BT.601, rounded."""
        return _u8(cv2.cvtColor(self.rgb_HWC, cv2.COLOR_RGB2GRAY))

    @cached_property
    def small_HWC(self) -> Pixels:
        """The frame scaled down."""
        high, wide = self.rgb_HWC.shape[:2]
        if max(high, wide) <= SMALL:
            return self.rgb_HWC
        scale = SMALL / max(high, wide)
        size = (max(1, round(wide * scale)), max(1, round(high * scale)))
        return _u8(cv2.resize(self.rgb_HWC, size, interpolation=cv2.INTER_AREA))

    @cached_property
    def small_grey_HW(self) -> Pixels:
        """Luma of the frame scaled down."""
        return _u8(cv2.cvtColor(self.small_HWC, cv2.COLOR_RGB2GRAY))

    @cached_property
    def exposure(self) -> float:
        """Mean luma in [0, 1]."""
        return self._brightness[0]

    @cached_property
    def contrast(self) -> float:
        """Standard deviation of luma in [0, 0.5]."""
        return self._brightness[1]

    @cached_property
    def _brightness(self) -> tuple[float, float]:
        mean, deviation = cv2.meanStdDev(self.grey_HW)
        return float(mean[0, 0]) / 255, float(deviation[0, 0]) / 255

    @cached_property
    def saturation(self) -> float:
        """Mean saturation of HSV in [0, 1], of the frame scaled down."""
        return float(cv2.cvtColor(self.small_HWC, cv2.COLOR_RGB2HSV)[..., 1].mean()) / 255

    @cached_property
    def sharpness(self) -> float:
        """Variance of the Laplacian (the cross of four neighbours) of luma, grey levels squared."""
        _, deviation = cv2.meanStdDev(cv2.Laplacian(self.grey_HW, cv2.CV_16S))
        return float(deviation[0, 0]) ** 2

    @cached_property
    def change(self) -> float | None:
        """Mean absolute difference to the frame before, grey levels over all channels; None for the first frame."""
        if self.before is None:
            return None
        return float(cv2.mean(cv2.absdiff(self.rgb_HWC, self.before.rgb_HWC).reshape(-1, 1))[0])

    @cached_property
    def sampled_flow_HW2(self) -> Numbers | None:
        """Flow of the scaled-down picture since `sampled`; None for frames without one."""
        return None if self.sampled is None else flow(self.sampled.small_grey_HW, self.small_grey_HW)


def frames_of(clip: Clip) -> Iterator[Frame]:
    """The frames of a clip. Raises ValueError when its file is damaged or empty."""
    return looks(pictures_of(clip.path), clip.fps)


def looks(pictures: Iterable[Pixels], fps: float) -> Iterator[Frame]:
    """Pictures [H, W, 3] as frames."""
    every = stride(fps)
    before: Frame | None = None
    sampled: Frame | None = None
    for index, picture in enumerate(pictures):
        frame = Frame(picture, index, before, sampled if index % every == 0 else None)
        yield frame
        frame.before = frame.sampled = None
        before = frame
        if index % every == 0:
            sampled = frame


def stride(fps: float, rate: float = SAMPLED_FPS) -> int:
    """Frames from one sample to the next in a walk of about `rate` frames per second."""
    return max(1, round(fps / rate))


# ---------------------------------------------------------------- flow

_own = threading.local()


def flow(first_HW: Pixels, second_HW: Pixels) -> Numbers:
    """Dense optical flow [H, W, 2] (right, down) in pixels from one grey picture to another of its size."""
    if not hasattr(_own, "flow"):
        # One estimator per thread: it holds buffers.
        _own.flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    found: Numbers = _own.flow.calc(first_HW, second_HW, None)
    return found


def _u8(picture: Any) -> Pixels:
    shown: Pixels = picture
    return shown
