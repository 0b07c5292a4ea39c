"""Every metric adds up: one process, many processes and one by one give the same number."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from arvid.evals import fvd, registry, run
from arvid.evals.clips import Clip, Frame, frames_of, looks, opened, videos_in
from arvid.evals.fidelity import Psnr, Ssim
from arvid.evals.metric import Mean, Metric, Reading, measure, measure_frames
from arvid.evals.signals import Sharpness
from arvid.worlds import shapes
from oracles import films

PROMPT = "a red circle moves right on a black background"
FRAMES = (12, 20, 25, 14)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Clip]:
    """Videos of different lengths, one of them of the shapes world."""
    folder = tmp_path_factory.mktemp("videos")
    for number, frames in enumerate(FRAMES[:-1]):
        films.write(folder / f"{number}.mp4", films.moving(number, frames, step=(number + 1, 0)))
    films.write(folder / "3.mp4", shapes.render(PROMPT, 0)[: FRAMES[-1]])
    return [replace(opened(path), prompt=PROMPT, starts=(5, 10)) for path in videos_in([folder])]


def kinds(clips: list[Clip]) -> list[Metric]:
    folder = str(clips[0].path.parent)
    return [*(kind() for kind in registry.BASIC), Psnr(folder), Ssim(folder)]


def test_every_metric_adds_up(clips: list[Clip]) -> None:
    whole, parts, single = kinds(clips), [kinds(clips), kinds(clips)], kinds(clips)
    read = [measure(clip, whole) for clip in clips]
    for readings in read:
        for metric in whole:
            metric.add(readings[metric.about.name])
    for number, readings in enumerate(read):
        for metric in parts[number % 2]:
            metric.add(readings[metric.about.name])
    for metric, other in zip(*parts, strict=True):
        metric.merge(other)
    shuffled = [*read]
    random.Random(1).shuffle(shuffled)
    for metric in single:
        for readings in shuffled:
            alone = type(metric)(**metric.options())
            alone.add(readings[metric.about.name])
            metric.merge(alone)
    for one, many, ordered in zip(whole, parts[0], single, strict=True):
        assert one.value() == many.value() == ordered.value(), one.about.name
        assert one.value() is not None, one.about.name


def test_a_clip_counts_as_one_however_long(clips: list[Clip]) -> None:
    metric = Sharpness()
    readings = [metric.update(clip).value for clip in clips]
    assert metric.value() == pytest.approx(np.mean([value for value in readings if value is not None]))
    assert metric.count == len(clips)


def test_reading_alone_or_with_others_gives_the_same(clips: list[Clip]) -> None:
    together = measure(clips[1], kinds(clips))
    for metric in kinds(clips):
        alone = measure(clips[1], [metric])[metric.about.name]
        assert alone == together[metric.about.name]


def test_several_at_a_time_give_the_same_rows(clips: list[Clip]) -> None:
    found = []
    for jobs in (1, 3):
        metrics = kinds(clips)
        rows = [run.row_of(outcome) for outcome in run.evaluate(clips, metrics, jobs)]
        found.append((rows, run.totals(rows, metrics)))
    assert found[0] == found[1]
    assert [row["frames"] for row in found[0][0]] == [*FRAMES]


def test_only_equal_metrics_are_merged(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="do not add up"):
        Psnr("a").merge(Psnr("b"))
    with pytest.raises(ValueError, match="do not add up"):
        Psnr("a").merge(Ssim("a"))


def test_a_value_that_is_no_number_is_not_counted() -> None:
    @dataclass(eq=False)
    class Broken(Mean):
        about = Sharpness.about

        def watch(self, clip: Clip) -> Broken:
            return self

        def see(self, frame: Frame) -> None:
            return None

        def reading(self) -> Reading:
            return Reading(float("nan"))

    metric = Broken()
    found = measure_frames(Clip(Path("film.mp4")), [metric], looks(films.moving(frames=2), 16))["sharpness"]
    assert found.value is None and "not a finite number" in found.note
    metric.add(found)
    assert metric.value() is None and (metric.total, metric.count) == (Fraction(0), 0)


def test_at_most_four_frames_are_in_memory(clips: list[Clip]) -> None:
    import gc
    import weakref

    alive: list[weakref.ref[Frame]] = []
    most = 0
    for frame in frames_of(clips[2]):
        alive.append(weakref.ref(frame))
        gc.collect()
        most = max(most, sum(ref() is not None for ref in alive))
    assert len(alive) == FRAMES[2] and most <= 4


def test_moments_add_up_and_are_numpys() -> None:
    rows = np.random.default_rng(0).normal(size=(20, 3))
    whole, first, second = (fvd.Moments(3) for _ in range(3))
    whole.add(rows)
    first.add(rows[:7])
    second.add(rows[7:])
    first.merge(second)
    for one, two in zip(whole.gaussian(), first.gaussian(), strict=True):
        assert one == pytest.approx(two, abs=1e-12)
    assert whole.gaussian()[0] == pytest.approx(rows.mean(axis=0))
    assert whole.gaussian()[1] == pytest.approx(np.cov(rows.T))
