"""Many clips through many metrics, and the report of it.

Knows: how clips become rows and rows become totals with intervals, several clips at a time, what a report holds
(docs/evaluation.md), how a run is taken up again. Does not know: files of reports, tables, which metrics were chosen.
"""

from __future__ import annotations

import importlib.metadata
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from arvid.evals import timing
from arvid.evals.beside import blocks_of
from arvid.evals.clips import Clip, Frame, frames_of
from arvid.evals.metric import Metric, Reading, measure_frames
from arvid.evals.statistics import PairedBootstrap
from arvid.evals.vbench import Dimension

KIND = "eval"
LIBRARIES = ("av", "numpy", "opencv-python-headless", "scipy", "torch", "transformers")
Row = dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What became of one clip: its frames and what every metric says, or why it could not be read."""

    clip: Clip
    readings: Mapping[str, Reading]
    frames: int = 0
    error: str = ""


def evaluate(clips: Iterable[Clip], metrics: Sequence[Metric], jobs: int = 1) -> Iterator[Outcome]:
    """The outcomes in the order of the clips, as they come, each counted by its metrics. `jobs` clips are read at a
    time; closing the iterator leaves the rest."""
    waiting: deque[Future[Outcome]] = deque()
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        try:
            for clip in clips:
                waiting.append(pool.submit(_outcome, clip, metrics))
                if len(waiting) > jobs:
                    yield _counted(waiting.popleft().result(), metrics)
            while waiting:
                yield _counted(waiting.popleft().result(), metrics)
        finally:
            for future in waiting:
                future.cancel()


def _outcome(clip: Clip, metrics: Sequence[Metric]) -> Outcome:
    seen = 0

    def counted() -> Iterator[Frame]:
        nonlocal seen
        for frame in frames_of(clip):
            seen += 1
            yield frame

    try:
        return Outcome(clip, measure_frames(clip, metrics, counted()), seen)
    except ValueError as error:
        return Outcome(clip, {}, error=str(error))


def _counted(outcome: Outcome, metrics: Sequence[Metric]) -> Outcome:
    for metric in metrics:
        if metric.about.name in outcome.readings:
            metric.add(outcome.readings[metric.about.name])
    return outcome


# ---------------------------------------------------------------- rows


def row_of(outcome: Outcome) -> Row:
    """A clip as plain data: what it is, its values, curves, parts and notes by metric, its speed."""
    clip, readings = outcome.clip, outcome.readings
    return {
        "name": clip.name,
        "path": str(clip.path),
        **_measured(clip, outcome.frames),
        "frames": outcome.frames,
        "fps": clip.fps,
        "size": [clip.width, clip.height],
        "values": {name: _short(found.value) for name, found in readings.items() if found.value is not None},
        "curves": {name: [found.curve_of, *found.curve] for name, found in readings.items() if found.curve},
        "parts": {name: dict(found.parts) for name, found in readings.items() if found.parts},
        "notes": {name: found.note for name, found in readings.items() if found.note},
        "speed": clip.speed,
    }


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.9g}")


def _measured(clip: Clip, frames: int) -> Row:
    """What the values of a clip of so many frames depend on, besides metrics: its file, and what was said about it."""
    stat = clip.path.stat()
    return {
        "bytes": stat.st_size,
        "changed": stat.st_mtime,
        "prompt": clip.prompt or None,
        "seed": clip.seed,
        "blocks": blocks_of(clip, frames),
    }


def is_current(row: Row, clip: Clip) -> bool:
    """Whether a row of an earlier report still speaks of a clip: the same file with the same prompt, seed and blocks.
    A row that does not tell one of them does not."""
    now = _measured(clip, row.get("frames", 0))
    return {name: row[name] for name in now if name in row} == now


def take_up(row: Row, metrics: Sequence[Metric]) -> bool:
    """Count the values of an earlier row; False, and nothing is counted, when the row lacks one of the metrics or a
    metric is about sets (its sums are not in the row)."""
    told = {**dict.fromkeys(row["notes"]), **row["values"]}
    if any(metric.about.name not in told for metric in metrics):
        return False
    for metric in metrics:
        metric.add(Reading(told[metric.about.name]))
    return True


def with_suite(rows: Sequence[Row], dimensions: Sequence[Dimension]) -> None:
    """Write what another suite says about single videos into their rows."""
    for dimension in dimensions:
        for row in rows:
            if row["name"] in dimension.videos:
                row["values"][f"vbench.{dimension.name}"] = dimension.videos[row["name"]]


# ---------------------------------------------------------------- report


def protocol(metrics: Sequence[Metric], suite: str = "", dimensions: Sequence[Dimension] = ()) -> Row:
    """What was measured and how: every metric with its options and what its number means."""
    return {
        "suite": suite or None,
        "metrics": {
            **{metric.about.name: {**_told(metric), "options": metric.options()} for metric in metrics},
            **{f"vbench.{dimension.name}": {"tier": "suite", "better": 1, "what": "as VBench computes it",
               "unit": "", "options": {}} for dimension in dimensions},
        },
        "versions": {name: _version(name) for name in LIBRARIES},
    }  # fmt: skip


def _told(metric: Metric) -> Row:
    told = asdict(metric.about)
    told.pop("name")
    return {key: None if value in (float("inf"), float("-inf")) else value for key, value in told.items()}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def totals(rows: Sequence[Row], metrics: Sequence[Metric], dimensions: Sequence[Dimension] = ()) -> Row:
    """Every metric's value over all clips, with a 95 % interval over prompts where clips have values of their own."""
    found: Row = {}
    for metric in metrics:
        name = metric.about.name
        try:
            value, note = metric.value(), ""
        except ValueError as error:
            value, note = None, str(error)
        found[name] = {**_interval(rows, name), "value": _short(value), **({"note": note} if note else {})}
    for dimension in dimensions:
        name = f"vbench.{dimension.name}"
        found[name] = {**_interval(rows, name), "value": _short(dimension.total)}
    return found


def _interval(rows: Sequence[Row], name: str) -> Row:
    some = [row for row in rows if name in row["values"]]
    if not some:
        return {"value": None, "ci95": None, "clips": 0}
    bootstrap = PairedBootstrap([row["prompt"] or row["name"] for row in some])
    spread = bootstrap.ratio([row["values"][name] for row in some], [1.0] * len(some))
    return {"value": None, "ci95": spread.ci95, "clips": len(some)}


def notes(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Why metrics have no value: for every reason the first of its words and how many clips, by metric."""
    found: dict[str, list[Any]] = {}
    for row in rows:
        for name, note in row["notes"].items():
            known = found.setdefault(name, [note, 0])
            known[1] += 1
    return found


def speed_of(rows: Sequence[Row]) -> Row | None:
    """The pooled timing record of the clips; None unless every clip carries one."""
    records = [row["speed"] for row in rows if row["speed"]]
    return timing.pooled(records) if records and len(records) == len(rows) else None
