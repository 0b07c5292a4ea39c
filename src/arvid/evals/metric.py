"""What a metric is: a sum and a count that add up, fed by watchers that see one clip frame by frame.

Knows: how clips are read once for many metrics, how readings are added and merged, how a number per frame is kept in
constant memory. Does not know: what any metric measures.

Sums are fractions, so they are exact: the clips one by one, in any order, or in parts that are merged later give the
same value to the last digit. A score that means frames on one machine and videos on several is not possible here.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from fractions import Fraction
from itertools import pairwise
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from arvid.evals.clips import Clip, Frame, frames_of

SEGMENTS = 5
"""Equal parts of a clip whose means a drift slope is fitted to."""
BINS = 640
"""Most bins that a track keeps; up to so many frames nothing is rounded."""
CURVE = 40
"""Most points of a curve in a report."""


@dataclass(frozen=True)
class About:
    """What a number means: its name, +1 when more is better, -1 when less is, 0 when neither; its range, its unit
    (empty: none), the tier (signal, model, suite), what it measures in a few words, and the source of the formula."""

    name: str
    better: int
    low: float
    high: float
    unit: str
    tier: str
    what: str
    source: str = ""


@dataclass(frozen=True)
class Reading:
    """What one metric says about one clip: a value (None: it does not apply, and `note` says why), a curve of evenly
    spaced points over the clip (`curve_of` says what along), named parts of the value, and what a metric of sets adds
    up (never written to a report)."""

    value: float | None
    curve: tuple[float, ...] = ()
    note: str = ""
    parts: dict[str, float] = field(default_factory=dict)
    curve_of: str = "time"
    features: NDArray[np.float64] | None = None


class Watcher(Protocol):
    """Sees the frames of one clip, in their order; holds a bounded amount of memory."""

    def see(self, frame: Frame) -> None:
        """The next frame."""
        ...

    def reading(self) -> Reading:
        """What the frames so far say."""
        ...


class Metric(ABC):
    """A number about a set of clips. Subclasses are dataclasses whose fields are the options of the metric."""

    about: ClassVar[About]

    @abstractmethod
    def watch(self, clip: Clip) -> Watcher:
        """A watcher for one clip. Raises ValueError when the metric does not apply to it."""

    @abstractmethod
    def add(self, reading: Reading) -> None:
        """Count what was read of one clip."""

    @abstractmethod
    def merge(self, other: Metric) -> None:
        """Count what another one has counted. Raises ValueError unless it is of the same kind and options."""

    def check_same(self, other: Metric) -> None:
        """Raises ValueError unless the other measures the same thing in the same way."""
        if type(self) is not type(other) or self.options() != other.options():
            raise ValueError(
                f"{self.about.name} with {self.options()} and {other.about.name} with {other.options()} do not add up; "
                "merge equal metrics"
            )

    @abstractmethod
    def value(self) -> float | None:
        """The number over all clips counted; None when there are none."""

    def update(self, clip: Clip) -> Reading:
        """Read a clip and count it."""
        reading = measure(clip, [self])[self.about.name]
        self.add(reading)
        return reading

    def options(self) -> dict[str, Any]:
        """What was chosen, for the protocol of a report."""
        return {part.name: getattr(self, part.name) for part in fields(self)}  # type: ignore[arg-type]


class Mean(Metric):
    """A metric whose value is the mean over clips of the clips' values: every clip counts alike, however long."""

    def __post_init__(self) -> None:
        self.total, self.count = Fraction(0), 0

    def add(self, reading: Reading) -> None:
        """Count a clip's value, if it has one."""
        if reading.value is not None:
            self.total += Fraction(reading.value)
            self.count += 1

    def merge(self, other: Metric) -> None:
        """Add the other's sum and count."""
        self.check_same(other)
        assert isinstance(other, Mean)
        self.total += other.total
        self.count += other.count

    def value(self) -> float | None:
        """The mean."""
        return float(self.total / self.count) if self.count else None


def measure(clip: Clip, metrics: Sequence[Metric]) -> dict[str, Reading]:
    """What metrics say about a clip, which is read once. A metric that does not apply leaves a note, not a value.

    Raises ValueError when the file is damaged or without frames.
    """
    return measure_frames(clip, metrics, frames_of(clip))


def measure_frames(clip: Clip, metrics: Sequence[Metric], frames: Iterable[Frame]) -> dict[str, Reading]:
    """`measure` for frames that are already at hand."""
    watchers: dict[str, Watcher] = {}
    found: dict[str, Reading] = {}
    for metric in metrics:
        name = metric.about.name
        try:
            watchers[name] = metric.watch(clip)
        except ValueError as error:
            found[name] = Reading(None, note=str(error))
    for frame in frames:
        for name, watcher in [*watchers.items()]:
            try:
                watcher.see(frame)
            except ValueError as error:
                found[name] = Reading(None, note=str(error))
                del watchers[name]
    for name, watcher in watchers.items():
        try:
            found[name] = _checked(watcher.reading())
        except ValueError as error:
            found[name] = Reading(None, note=str(error))
    return found


def _checked(reading: Reading) -> Reading:
    if reading.value is not None and not math.isfinite(reading.value):
        raise ValueError(f"the value is {reading.value}, not a finite number")
    return reading


# ---------------------------------------------------------------- a number per frame


class Track:
    """Numbers in their order, one per frame, in at most BINS bins of equal width: when they are full, neighbours are
    joined. Means of parts are exact up to BINS numbers; beyond, their borders move by less than T / BINS numbers."""

    def __init__(self) -> None:
        self.count, self._width = 0, 1
        self._sums: list[float] = []

    def add(self, value: float) -> None:
        """The next number."""
        if self.count == len(self._sums) * self._width:
            if len(self._sums) == BINS:
                self._sums = [first + second for first, second in zip(self._sums[::2], self._sums[1::2], strict=True)]
                self._width *= 2
            self._sums.append(0.0)
        self._sums[-1] += value
        self.count += 1

    @property
    def mean(self) -> float:
        """Of all numbers. Raises ValueError when there are none."""
        if not self.count:
            raise ValueError("too few frames for this metric; give a longer clip")
        return math.fsum(self._sums) / self.count

    def parts(self, count: int) -> list[float]:
        """Means of `count` equal parts (fewer when there are fewer numbers), in their order."""
        count = min(count, len(self._sums))
        sizes = np.full(len(self._sums), self._width)
        if len(sizes):
            sizes[-1] = self.count - self._width * (len(self._sums) - 1)
        edges = [round(len(self._sums) * part / count) for part in range(count + 1)] if count else []
        return [math.fsum(self._sums[start:stop]) / float(sizes[start:stop].sum()) for start, stop in pairwise(edges)]

    def curve(self) -> tuple[float, ...]:
        """At most CURVE evenly spaced means."""
        return tuple(round(value, 6) for value in self.parts(CURVE))

    def slope(self) -> float:
        """How much the numbers rise from the first to the last of SEGMENTS equal parts, by the straight line of least
        squares through the means of the parts. Raises ValueError for fewer numbers than parts."""
        if self.count < SEGMENTS:
            raise ValueError(f"{self.count} frames; a drift slope needs at least {SEGMENTS}")
        return rise(self.parts(SEGMENTS))


def rise(values: ArrayLike) -> float:
    """The rise of the least-squares line through evenly spaced values, from the first to the last."""
    heights = np.asarray(values, float)
    places = np.arange(len(heights)) - (len(heights) - 1) / 2
    return float((places * heights).sum() / (places**2).sum() * (len(heights) - 1))


class Lags:
    """Distances between vectors of a sequence, by how far apart they are: for each lag up to `most` the mean of
    `compare(earlier [K, D], now [D]) -> [K]`. The last `most` vectors are kept."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.sums: NDArray[np.float64] = np.zeros(most)
        self.counts: NDArray[np.int64] = np.zeros(most, np.int64)
        self._kept: list[NDArray[np.float32]] = []

    def add(self, vector: NDArray[np.float32], compare: Any) -> None:
        """The next vector [D]."""
        if self._kept:
            near = np.asarray(compare(np.stack(self._kept[::-1]), vector), float)
            self.sums[: len(near)] += near
            self.counts[: len(near)] += 1
        self._kept = [*self._kept[-self.most + 1 :], vector]

    def means(self, fewest: int = 1) -> NDArray[np.float64]:
        """Means for lags 1, 2, ...; as far as every lag has at least `fewest` pairs."""
        enough = self.counts >= max(1, fewest)
        last = len(enough) if enough.all() else int(np.argmin(enough))
        found: NDArray[np.float64] = self.sums[:last] / self.counts[:last]
        return found
