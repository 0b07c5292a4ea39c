"""Signal metrics against scipy, scikit-image and closed forms, on films whose numbers are known."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from skimage import color

from arvid.evals import signals
from arvid.evals.clips import SMALL, Clip, Frame, looks
from arvid.evals.metric import BINS, Lags, Metric, Reading, Track, measure_frames
from oracles import films


def read(metric: Metric, film: films.Film, starts: tuple[int, ...] = ()) -> Reading:
    clip = Clip(Path("film.mp4"), starts=starts, width=film.shape[2], height=film.shape[1])
    return measure_frames(clip, [metric], looks(film, 16))[metric.about.name]


def value(metric: Metric, film: films.Film, starts: tuple[int, ...] = ()) -> float:
    found = read(metric, film, starts).value
    assert found is not None
    return found


def segment_rise(numbers: Sequence[float]) -> float:
    """By numpy's own line fit, over numpy's own splitting."""
    means = [part.mean() for part in np.array_split(np.array(numbers), 5)]
    return float(np.polyfit(range(5), means, 1)[0] * 4)


def test_sharpness_is_the_variance_of_scipys_laplacian() -> None:
    film = films.grey(films.moving(frames=4))
    expected = [ndimage.laplace(picture[..., 0].astype(float), mode="mirror").var() for picture in film]
    assert value(signals.Sharpness(), film) == pytest.approx(np.mean(expected), rel=1e-9)


def test_a_frames_brightness_and_saturation_are_those_of_scikit_image() -> None:
    picture = films.moving(frames=1)[0]
    frame = Frame(picture, 0)
    luma = picture @ np.array([0.299, 0.587, 0.114]) / 255
    assert frame.exposure == pytest.approx(luma.mean(), abs=2e-3)
    assert frame.contrast == pytest.approx(luma.std(), abs=2e-3)
    assert frame.saturation == pytest.approx(color.rgb2hsv(picture)[..., 1].mean(), abs=3e-3)


def test_large_pictures_are_scaled_down_by_area() -> None:
    picture = films.moving(frames=1, size=(2 * SMALL, 64))[0]
    small = Frame(picture, 0).small_HWC
    assert small.shape == (32, SMALL, 3)
    blocks = picture.reshape(32, 2, SMALL, 2, 3).mean(axis=(1, 3))
    assert np.abs(small - blocks).max() <= 0.75


def test_a_ramp_of_brightness_drifts_by_its_slope() -> None:
    levels = 50 + 2 * np.arange(50)
    film = np.broadcast_to(levels[:, None, None, None], (50, 16, 16, 3)).astype(np.uint8)
    # Segments of ten frames: their means are 20 levels apart.
    assert value(signals.ExposureDrift(), film) == pytest.approx(80 / 255)
    assert value(signals.ExposureDrift(), film[::-1]) == pytest.approx(80 / 255)
    assert value(signals.ExposureDrift(), films.moving(frames=50)) < 0.02


@pytest.mark.parametrize("frames", [23, 40, 81])
def test_drifts_are_numpys_line_through_five_means(frames: int) -> None:
    film = films.fading(films.blurred(films.moving(frames=frames), frames // 2))
    looked = [Frame(picture, index) for index, picture in enumerate(film)]
    told = {
        name: [getattr(frame, name) for frame in looked] for name in ("exposure", "contrast", "saturation", "sharpness")
    }
    rises = {name: abs(segment_rise(numbers)) for name, numbers in told.items()}
    # numpy gives its longer parts to the front, we spread them: alike up to a frame.
    near = pytest.approx if frames % 5 == 0 else lambda number: pytest.approx(number, rel=0.08, abs=2e-3)
    assert value(signals.SaturationDrift(), film) == near(rises["saturation"])
    assert value(signals.SharpnessDrift(), film) == near(rises["sharpness"] / np.mean(told["sharpness"]))
    expected = np.mean([rises[name] / np.mean(told[name]) for name in told])
    found = read(signals.Drift(), film)
    assert found.value == near(expected)
    assert set(found.parts) == set(told) and found.curve[-1] > 5 * max(found.curve[0], 0.02)


def test_flicker_is_one_minus_the_mean_change() -> None:
    film = np.zeros((9, 20, 30, 3), np.uint8)
    film[1::2] = 51
    assert value(signals.Flicker(), film) == pytest.approx(0.8)
    moving = films.moving(frames=12)
    change = np.abs(np.diff(moving.astype(int), axis=0)).mean()
    assert value(signals.Flicker(), moving) == pytest.approx(1 - change / 255)


def test_freeze_counts_the_transitions_that_show_nothing_new() -> None:
    film = films.moving(frames=41)
    assert value(signals.Freeze(), film) == 0
    assert value(signals.Freeze(), films.frozen(film, 20)) == pytest.approx(3 / 40)
    assert value(signals.Freeze(), np.repeat(film[:1], 8, axis=0)) == 1
    noisy = np.repeat(film[:1], 8, axis=0).astype(int) + np.random.default_rng(0).integers(-1, 2, (8, 64, 96, 3))
    assert value(signals.Freeze(), noisy.astype(np.uint8)) == 1
    ball = np.full((8, 64, 64, 3), 90, np.uint8)
    for index in range(8):
        ball[index, 30:38, 20 + index : 28 + index] = 140
    assert value(signals.Freeze(), ball) == 0


def test_repetition_finds_a_loop_and_its_period() -> None:
    film = films.moving(frames=48, step=(2, 1))
    loop = np.concatenate([film[:12]] * 4)
    found = read(signals.Repetition(), loop)
    assert found.value is not None and found.value > 0.85 and found.parts["period_frames"] == 12
    there_and_back = np.concatenate([film[:13], film[11:0:-1], film[:13], film[11:0:-1]])
    assert value(signals.Repetition(), there_and_back) > 0.85
    assert value(signals.Repetition(), film) < 0.25
    assert value(signals.Repetition(), np.repeat(film[:1], 30, axis=0)) == 0


def test_repetition_is_the_largest_drop_of_the_naive_distances() -> None:
    film = np.repeat(np.random.default_rng(0).integers(0, 255, (20, 18, 32, 1)), 3, axis=-1).astype(np.uint8)
    small = film[..., 0].astype(float)
    gaps = np.array([np.abs(small[lag:] - small[:-lag]).mean() for lag in range(1, 11)])
    drops = [(gaps[: lag + 1].max() - gap) / (gaps[: lag + 1].max() + 1) for lag, gap in enumerate(gaps)]
    found = read(signals.Repetition(), film)
    assert found.value == pytest.approx(max(drops), abs=1e-6)
    assert found.curve == pytest.approx(gaps, abs=1e-3)


def test_seams_are_the_excess_of_change_at_borders() -> None:
    film = np.repeat((np.arange(36) // 12 * 30)[:, None, None, None], 3, axis=-1)
    film = np.broadcast_to(film, (36, 16, 16, 3)).astype(np.uint8)
    found = read(signals.Seams(), film, (12, 24))
    assert found.value == pytest.approx(30)
    assert found.parts == {"at": 30, "inside": 0, "worst_frame": 24}
    assert abs(value(signals.Seams(), films.moving(frames=36), (12, 24))) < 0.03
    assert value(signals.Seams(), films.seamed(films.moving(frames=36)), (12, 24)) > 0.3


@pytest.mark.parametrize(
    ("metric", "frames", "said"),
    [
        (signals.Seams(), 10, "give --block"),
        (signals.Drift(), 4, "at least 5"),
        (signals.Flicker(), 1, "too few frames"),
        (signals.Freeze(), 1, "too few frames"),
        (signals.Repetition(), 2, "at least 4"),
    ],
    ids=lambda part: getattr(getattr(part, "about", None), "name", None),
)
def test_what_cannot_be_measured_says_why(metric: Metric, frames: int, said: str) -> None:
    found = read(metric, films.moving(frames=frames))
    assert found.value is None and said in found.note


# ---------------------------------------------------------------- what they are made of


@pytest.mark.parametrize("count", [1, 5, 639, 640, 641, 1280, 5000])
def test_a_track_keeps_means_in_constant_memory(count: int) -> None:
    numbers = np.random.default_rng(count).normal(size=count) + np.linspace(0, 3, count)
    track = Track()
    for number in numbers:
        track.add(float(number))
    assert len(track._sums) <= BINS
    assert track.mean == pytest.approx(numbers.mean(), abs=1e-9)
    edges = [round(count * part / 5) for part in range(6)]
    if count >= 5:
        exact = [numbers[start:stop].mean() for start, stop in itertools.pairwise(edges)]
        near = 1e-9 if count <= BINS else 0.05
        assert track.parts(5) == pytest.approx(exact, abs=near)
        assert track.slope() == pytest.approx(np.polyfit(range(5), exact, 1)[0] * 4, abs=2 * near)


def test_lags_are_the_naive_means_of_all_pairs() -> None:
    vectors = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    lags = Lags(9)
    for vector in vectors:
        lags.add(vector, lambda earlier, now: np.abs(earlier - now).sum(axis=1))
    naive = [np.abs(vectors[lag:] - vectors[:-lag]).sum(axis=1).mean() for lag in range(1, 10)]
    assert lags.means() == pytest.approx(naive)
    assert len(lags.means(fewest=25)) == 5
    assert len(Lags(3).means()) == 0
