"""Metrics against something that is known: a reference video (PSNR, SSIM), or the world a prompt speaks of.

Knows: reference folders, the oracle of the shapes world. Does not know: models, other worlds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from arvid.evals.clips import ENDINGS, Clip, Frame, Numbers, Pixels, pictures_of
from arvid.evals.metric import About, Mean, Reading, Track, Watcher
from arvid.worlds import grammar, oracle

WORLD_SIDE = 64
"""Pixels at which the oracle was made; larger squares are brought to it by area."""
BEST_PSNR = 100.0
"""Decibels that stand for identical pictures."""
SIGMA, MARGIN = 1.5, 5
"""The window of SSIM: a Gaussian of this deviation, cut at 3.5 deviations (11 pixels); borders do not count."""
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def _reference_of(clip: Clip, folder: str) -> Path:
    """The file in a folder that bears the clip's name, whatever its ending."""
    found = [path for path in sorted(Path(folder).glob("*")) if path.stem == clip.name and path.suffix in ENDINGS]
    if not found:
        raise ValueError(f"no reference named {clip.name} in {folder}; references bear the names of the videos")
    return found[0]


class _Beside:
    """Hands the picture of a reference to every frame of a clip."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pictures: Iterator[Pixels] = pictures_of(path)
        self.track = Track()

    def next_to(self, frame: Frame) -> Pixels:
        picture = next(self._pictures, None)
        if picture is None:
            raise ValueError(f"{self._path} has only {frame.index} frames; compare videos of equal length")
        if picture.shape != frame.rgb_HWC.shape:
            raise ValueError(f"{self._path} is {_size(picture)}, the video {_size(frame.rgb_HWC)}; compare equal sizes")
        return picture

    def check_end(self) -> None:
        if next(self._pictures, None) is not None:
            raise ValueError(f"{self._path} goes on where the video ends; compare videos of equal length")


def _size(picture: Pixels) -> str:
    return f"{picture.shape[1]}x{picture.shape[0]}"


@dataclass(eq=False)
class Psnr(Mean):
    """Peak signal-to-noise ratio against the video of the same name in the folder `reference`."""

    reference: str
    about = About(
        "psnr", 1, 0.0, BEST_PSNR, "dB", "signal",
        f"of the mean squared error over all pixels, channels and frames of a clip; {BEST_PSNR:g} when they are equal",
    )  # fmt: skip

    def watch(self, clip: Clip) -> Watcher:
        """Compare frame by frame."""
        return _Errors(_reference_of(clip, self.reference))


class _Errors(_Beside):
    def see(self, frame: Frame) -> None:
        gap = cv2.absdiff(frame.rgb_HWC, self.next_to(frame))
        self.track.add(float(cv2.norm(gap, cv2.NORM_L2SQR)) / gap.size)

    def reading(self) -> Reading:
        self.check_end()
        return Reading(_decibel(self.track.mean), tuple(round(_decibel(part), 4) for part in self.track.curve()))


def _decibel(error: float) -> float:
    return min(BEST_PSNR, 10 * math.log10(255**2 / error)) if error > 0 else BEST_PSNR


@dataclass(eq=False)
class Ssim(Mean):
    """Structural similarity against the video of the same name in the folder `reference`."""

    reference: str
    about = About(
        "ssim", 1, -1.0, 1.0, "", "signal", "mean over frames of the mean SSIM of luma, Gaussian window of 11 pixels",
        "Wang et al., IEEE TIP 13(4), 2004",
    )  # fmt: skip

    def watch(self, clip: Clip) -> Watcher:
        """Compare frame by frame."""
        return _Structure(_reference_of(clip, self.reference))


class _Structure(_Beside):
    def see(self, frame: Frame) -> None:
        other = cv2.cvtColor(self.next_to(frame), cv2.COLOR_RGB2GRAY)
        self.track.add(ssim(frame.grey_HW, np.asarray(other, np.uint8)))

    def reading(self) -> Reading:
        self.check_end()
        return Reading(self.track.mean, self.track.curve())


def ssim(first_HW: Pixels, second_HW: Pixels) -> float:
    """Mean SSIM of two grey pictures. Raises ValueError when they are smaller than the window."""
    if min(first_HW.shape) <= 2 * MARGIN:
        raise ValueError(f"pictures of {first_HW.shape[1]}x{first_HW.shape[0]}; SSIM needs at least {2 * MARGIN + 1}")
    one, two = first_HW.astype(np.float32), second_HW.astype(np.float32)
    mean_one, mean_two = _blur(one), _blur(two)
    square_one, square_two, product = mean_one * mean_one, mean_two * mean_two, mean_one * mean_two
    spread = _blur(one * one) - square_one + _blur(two * two) - square_two
    shared = _blur(one * two) - product
    index = (2 * product + C1) * (2 * shared + C2) / ((square_one + square_two + C1) * (spread + C2))
    return float(index[MARGIN:-MARGIN, MARGIN:-MARGIN].mean(dtype=np.float64))


def _blur(picture: Numbers) -> Numbers:
    side = 2 * MARGIN + 1
    return np.asarray(cv2.GaussianBlur(picture, (side, side), SIGMA), np.float32)


# ---------------------------------------------------------------- the world


@dataclass(eq=False)
class World(Mean):
    """The score of the shapes world's oracle."""

    about = About(
        "world", 1, 0.0, 1.0, "", "signal",
        "how well the frames show what the prompt says, times how cleanly they do; square videos of the shapes world",
    )  # fmt: skip

    def watch(self, clip: Clip) -> Watcher:
        """Collect the frames, 12 KB each: an act can only be judged whole."""
        if not clip.prompt:
            raise ValueError("no prompt is known; give --prompts FILE")
        grammar.parse(clip.prompt)
        if clip.width != clip.height or clip.width < WORLD_SIDE:
            raise ValueError(f"{clip.width}x{clip.height} is no picture of the shapes world; those are squares from 64")
        return _Judging(clip.prompt)


class _Judging:
    def __init__(self, prompt: str) -> None:
        self._prompt = prompt
        self._frames: list[Pixels] = []

    def see(self, frame: Frame) -> None:
        small = cv2.resize(frame.rgb_HWC, (WORLD_SIDE, WORLD_SIDE), interpolation=cv2.INTER_AREA)
        self._frames.append(np.asarray(small, np.uint8))

    def reading(self) -> Reading:
        found = oracle.judge(np.stack(self._frames), self._prompt)
        parts = {"alignment": found.alignment, "quality": found.quality, **found.attributes}
        return Reading(found.score, parts=parts)
