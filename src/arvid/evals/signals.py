"""Metrics of single frames and of neighbours that need no model: sharpness, drift, flicker, freezes, loops, seams.

Knows: their formulas (docs/evaluation.md lists them with ranges and sources). Does not know: motion (`evals.motion`),
references and prompts (`evals.fidelity`), files.

Every metric is the mean over clips of one value per clip; the watchers keep a bounded track of a number per frame.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from arvid.evals.clips import Clip, Frame, Numbers
from arvid.evals.metric import About, Lags, Mean, Reading, Track, Watcher

STILL = 2.0
"""Grey levels: a transition in which no cell changes by more shows a frozen picture (less is what a codec leaves)."""
CELL = 8
"""Side of a cell in small pixels."""
LONGEST_LOOP = 256
"""Frames of the longest period that repetition sees."""
THUMB = (32, 18)
SEAM_FLOOR = 1.0
"""Grey levels added to both changes, so that a still clip has no infinite seam."""
FLOORS = {"exposure": 0.05, "contrast": 0.02, "saturation": 0.02, "sharpness": 5.0}
"""Least mean that a relative drift is divided by."""
FIVE_SEGMENTS = "slope over five segments: HiAR 2603.08703"

Look = Callable[[Frame], float | None]


class Tracked:
    """Follows one number per frame; `conclude` makes the value of its track."""

    def __init__(self, look: Look, conclude: Callable[[Track], float] | None = None) -> None:
        self._look, self._conclude = look, conclude
        self.track = Track()

    def see(self, frame: Frame) -> None:
        """Keep the frame's number, if it has one."""
        number = self._look(frame)
        if number is not None:
            self.track.add(number)

    def reading(self) -> Reading:
        """The mean, or what is concluded, with the curve."""
        value = self.track.mean if self._conclude is None else self._conclude(self.track)
        return Reading(value, self.track.curve())


@dataclass(eq=False)
class Sharpness(Mean):
    """Mean over frames of the variance of the Laplacian of luma, at full size."""

    about = About(
        "sharpness", 1, 0.0, float("inf"), "grey levels squared", "signal",
        "variance of the Laplacian of luma; noise counts as sharp", "Pech-Pacheco et al., ICPR 2000",
    )  # fmt: skip

    def watch(self, clip: Clip) -> Watcher:
        """Follow the frames' sharpness."""
        return Tracked(lambda frame: frame.sharpness)


@dataclass(eq=False)
class SharpnessDrift(Mean):
    """The rise of sharpness over five segments, relative to its mean, without its sign."""

    about = About(
        "sharpness_drift", -1, 0.0, float("inf"), "of the mean", "signal",
        "how much sharpness rises or falls from the first to the last fifth", FIVE_SEGMENTS,
    )  # fmt: skip

    def watch(self, clip: Clip) -> Watcher:
        """Follow the frames' sharpness."""
        return Tracked(lambda frame: frame.sharpness, lambda track: _relative(track, "sharpness"))


@dataclass(eq=False)
class ExposureDrift(Mean):
    """The rise of mean luma over five segments, without its sign."""

    about = About(
        "exposure_drift", -1, 0.0, 1.2, "of full scale", "signal",
        "how much mean luma rises or falls from the first to the last fifth", FIVE_SEGMENTS,
    )  # fmt: skip

    def watch(self, clip: Clip) -> Watcher:
        """Follow the frames' exposure."""
        return Tracked(lambda frame: frame.exposure, lambda track: abs(track.slope()))


@dataclass(eq=False)
class SaturationDrift(Mean):
    """The rise of mean saturation over five segments, without its sign."""

    about = About(
        "saturation_drift", -1, 0.0, 1.2, "of full scale", "signal",
        "how much mean HSV saturation rises or falls from the first to the last fifth",
        FIVE_SEGMENTS,
    )  # fmt: skip

    def watch(self, clip: Clip) -> Watcher:
        """Follow the frames' saturation."""
        return Tracked(lambda frame: frame.saturation, lambda track: abs(track.slope()))


@dataclass(eq=False)
class Drift(Mean):
    """The mean of the relative rises of exposure, contrast, saturation and sharpness over five segments."""

    about = About(
        "drift", -1, 0.0, float("inf"), "of the means", "signal",
        "mean relative change of exposure, contrast, saturation and sharpness from the first to the last fifth",
        FIVE_SEGMENTS + ", with signal statistics in place of its models",
    )  # fmt: skip

    def watch(self, clip: Clip) -> Watcher:
        """Follow all four."""
        return _Drifting()


class _Drifting:
    def __init__(self) -> None:
        self._tracks = {name: Track() for name in FLOORS}

    def see(self, frame: Frame) -> None:
        for name, track in self._tracks.items():
            track.add(float(getattr(frame, name)))

    def reading(self) -> Reading:
        parts = {name: _relative(track, name) for name, track in self._tracks.items()}
        # The curve shows how far the clip has come from how it began, in the same relative units.
        curves = [
            np.abs(np.array(track.curve()) - track.parts(5)[0]) / max(track.mean, FLOORS[name])
            for name, track in self._tracks.items()
        ]
        curve = tuple(round(float(value), 6) for value in np.mean(curves, axis=0))
        return Reading(float(np.mean([*parts.values()])), curve, parts=parts)


def _relative(track: Track, name: str) -> float:
    return abs(track.slope()) / max(track.mean, FLOORS[name])


# ---------------------------------------------------------------- neighbours


@dataclass(eq=False)
class Flicker(Mean):
    """(255 - mean absolute difference of neighbouring frames) / 255."""

    about = About(
        "temporal_flicker", 1, 0.0, 1.0, "", "signal",
        "1 minus the mean change from frame to frame; motion counts as change",
        "VBench 2311.17982, temporal flickering",
    )  # fmt: skip

    def watch(self, clip: Clip) -> Watcher:
        """Follow the change."""
        return Tracked(lambda frame: frame.change, lambda track: 1 - track.mean / 255)


@dataclass(eq=False)
class Freeze(Mean):
    """The share of transitions in which nothing moves."""

    about = About(
        "freeze", -1, 0.0, 1.0, "", "signal",
        f"share of transitions in which no cell of {CELL} small pixels changes by more than {STILL:g} grey levels",
    )  # fmt: skip

    def watch(self, clip: Clip) -> Watcher:
        """Follow the largest change of a cell."""
        return Tracked(lambda frame: None if frame.before is None else float(largest_change(frame) <= STILL))


def largest_change(frame: Frame) -> float:
    """The largest change of a cell's luma since the frame before, grey levels."""
    assert frame.before is not None
    gap = cv2.absdiff(frame.small_grey_HW, frame.before.small_grey_HW)
    high, wide = gap.shape
    cells = cv2.resize(gap, (-(-wide // CELL), -(-high // CELL)), interpolation=cv2.INTER_AREA)
    return float(cells.max())


@dataclass(eq=False)
class Repetition(Mean):
    """How nearly the clip comes back to what it showed: the largest drop of the mean difference at some lag below the
    largest difference at a shorter lag, as a fraction of the latter."""

    about = About(
        "repetition", -1, 0.0, 1.0, "", "signal",
        f"1 for an exact loop of up to {LONGEST_LOOP} frames, 0 for a clip that never comes back",
    )  # fmt: skip

    def watch(self, clip: Clip) -> Watcher:
        """Compare thumbnails by lag."""
        return _Returning()


class _Returning:
    def __init__(self) -> None:
        self._lags = Lags(LONGEST_LOOP)
        self._seen = 0

    def see(self, frame: Frame) -> None:
        thumb = cv2.resize(frame.small_grey_HW, THUMB, interpolation=cv2.INTER_AREA)
        self._lags.add(thumb.astype(np.float32).ravel(), _mean_gap)
        self._seen += 1

    def reading(self) -> Reading:
        # A lag counts only when at least half of the clip takes part: fewer pairs say little.
        gaps = self._lags.means(fewest=(self._seen + 1) // 2)
        if len(gaps) < 2:
            raise ValueError(f"{self._seen} frames; repetition needs at least 4")
        highest = np.maximum.accumulate(gaps)
        # One grey level keeps what a codec leaves of a still clip from looking like a return.
        drops = (highest - gaps) / (highest + 1.0)
        lag = int(drops.argmax())
        parts = {"period_frames": float(lag + 1)} if drops[lag] > 0 else {}
        return Reading(float(drops[lag]), tuple(round(float(gap), 4) for gap in gaps), parts=parts, curve_of="lag")


def _mean_gap(earlier_KD: Numbers, now_D: Numbers) -> Numbers:
    gaps: Numbers = np.abs(earlier_KD - now_D).mean(axis=1)
    return gaps


@dataclass(eq=False)
class Seams(Mean):
    """How much more changes where a block begins than elsewhere: (B + 1) / (I + 1) - 1 with the mean changes B at
    borders and I inside blocks, in grey levels."""

    about = About(
        "seams", -1, -1.0, float("inf"), "", "signal",
        "chunk discontinuity: excess of the change at block borders over that inside blocks; 0 when there is none",
    )  # fmt: skip

    def watch(self, clip: Clip) -> Watcher:
        """Follow the change on both sides."""
        if not clip.starts:
            raise ValueError("where blocks begin is not known; give --block N")
        return _Seaming(clip.starts)


class _Seaming:
    def __init__(self, starts: tuple[int, ...]) -> None:
        self._starts = frozenset(starts)
        self._at, self._inside = Track(), Track()
        self._all = Track()
        self._worst = (0.0, 0)

    def see(self, frame: Frame) -> None:
        if frame.change is None:
            return
        self._all.add(frame.change)
        if frame.index not in self._starts:
            self._inside.add(frame.change)
            return
        self._at.add(frame.change)
        self._worst = max(self._worst, (frame.change, frame.index))

    def reading(self) -> Reading:
        if not self._at.count or not self._inside.count:
            raise ValueError("no block begins inside the clip; give a longer clip or shorter blocks")
        value = (self._at.mean + SEAM_FLOOR) / (self._inside.mean + SEAM_FLOOR) - 1
        parts = {"at": self._at.mean, "inside": self._inside.mean, "worst_frame": float(self._worst[1])}
        return Reading(value, self._all.curve(), parts=parts)
