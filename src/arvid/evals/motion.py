"""Metrics of motion, from dense optical flow: is there any, how much, and is it smooth.

Knows: the formulas of VBench (2311.17982) for motion smoothness and dynamic degree, with OpenCV's DIS flow (1603.03590)
where VBench uses networks (AMT to interpolate, RAFT for flow). Does not know: files, prompts.

Everything is computed on pictures scaled down to `clips.SMALL`; thresholds are relative to the picture's shorter side.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from arvid.evals.clips import Clip, Frame, Numbers, Pixels, flow, stride
from arvid.evals.metric import About, Mean, Reading, Track, Watcher
from arvid.evals.signals import Tracked

FASTEST_SHARE = 0.05
"""The share of pixels that move most, whose mean is a picture's motion."""
THRESHOLD, REFERENCE_SIDE, REFERENCE_FPS = 6.0, 256.0, 8.0
"""Pixels at a shorter side of REFERENCE_SIDE and at REFERENCE_FPS from which a pair of samples is moving."""
MOVING_SHARE = 4 / 16
"""Share of samples that have to be moving in a dynamic clip."""


@dataclass(eq=False)
class MotionSmoothness(Mean):
    """(255 - mean absolute difference) / 255 between every other frame and what its two neighbours say it should be."""

    about = About(
        "motion_smoothness", 1, 0.0, 1.0, "", "signal",
        "how well every other frame is foretold by the frames around it, carried along half of the flow between them",
        "VBench 2311.17982, motion smoothness, with DIS flow in place of the AMT interpolator",
    )  # fmt: skip

    def watch(self, clip: Clip) -> Watcher:
        """Interpolate every other frame."""
        return _Interpolating()


class _Interpolating:
    def __init__(self) -> None:
        self._track = Track()
        self._even: Frame | None = None
        self._odd: Frame | None = None

    def see(self, frame: Frame) -> None:
        if frame.index % 2:
            self._odd = frame
            return
        if self._even is not None and self._odd is not None:
            motion = flow(self._even.small_grey_HW, frame.small_grey_HW)
            guess = between(self._even.small_HWC, frame.small_HWC, motion)
            self._track.add(float(cv2.absdiff(guess, self._odd.small_HWC).mean()))
        self._even = frame

    def reading(self) -> Reading:
        return Reading(1 - self._track.mean / 255, tuple(round(1 - gap / 255, 6) for gap in self._track.curve()))


def between(first_HWC: Pixels, last_HWC: Pixels, flow_HW2: Numbers) -> Pixels:
    """The picture half-way between two, each carried half of the flow from the first to the last."""
    high, wide = flow_HW2.shape[:2]
    x, y = np.meshgrid(np.arange(wide, dtype=np.float32), np.arange(high, dtype=np.float32))
    right, down = flow_HW2[..., 0] / 2, flow_HW2[..., 1] / 2
    early = cv2.remap(first_HWC, x - right, y - down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    late = cv2.remap(last_HWC, x + right, y + down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    guess: Pixels = cv2.addWeighted(early, 0.5, late, 0.5, 0)  # type: ignore[assignment]
    return guess


def motion_of(flow_HW2: Numbers) -> float:
    """The mean length of the longest FASTEST_SHARE of flow vectors, pixels."""
    lengths = np.hypot(flow_HW2[..., 0], flow_HW2[..., 1]).ravel()
    count = max(1, int(len(lengths) * FASTEST_SHARE))
    return float(np.partition(lengths, len(lengths) - count)[-count:].mean(dtype=np.float64))


def _sampled_motion(frame: Frame) -> float | None:
    """Motion since the last sample, in shorter sides."""
    found = frame.sampled_flow_HW2
    return None if found is None else motion_of(found) / min(found.shape[:2])


@dataclass(eq=False)
class Motion(Mean):
    """How fast the fastest twentieth of the picture moves."""

    about = About(
        "motion", 0, 0.0, float("inf"), "shorter sides per second", "signal",
        "mean speed of the 5 % of pixels that move most, sampled at 8 frames per second",
        "the flow statistic of VBench 2311.17982, dynamic degree",
    )  # fmt: skip

    def watch(self, clip: Clip) -> Watcher:
        """Follow the motion between samples."""
        per_second = clip.fps / stride(clip.fps)

        def speed(frame: Frame) -> float | None:
            found = _sampled_motion(frame)
            return None if found is None else found * per_second

        return Tracked(speed)


@dataclass(eq=False)
class DynamicDegree(Mean):
    """1 for a clip in which enough samples move enough, 0 otherwise; the share of such clips."""

    about = About(
        "dynamic_degree", 0, 0.0, 1.0, "", "signal",
        "share of clips in which at least a quarter of the samples move by more than 6 pixels at 256 and 8 per second",
        "VBench 2311.17982, dynamic degree, with DIS flow in place of RAFT",
    )  # fmt: skip

    def watch(self, clip: Clip) -> Watcher:
        """Count the samples that move."""
        return _Moving(clip.fps)


class _Moving:
    def __init__(self, fps: float) -> None:
        self._threshold = max(1.0, REFERENCE_FPS / fps) * THRESHOLD / REFERENCE_SIDE
        self._every = stride(fps)
        self._samples = self._moving = 0

    def see(self, frame: Frame) -> None:
        self._samples += frame.index % self._every == 0
        found = _sampled_motion(frame)
        self._moving += found is not None and found > self._threshold

    def reading(self) -> Reading:
        if self._samples < 2:
            raise ValueError("too few frames to see motion; give a longer clip")
        needed = max(1, round(MOVING_SHARE * self._samples))
        parts = {"moving": float(self._moving), "needed": float(needed)}
        return Reading(float(self._moving >= needed), parts=parts)
