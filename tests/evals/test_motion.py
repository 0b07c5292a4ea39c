"""Motion metrics on films that move by a known step, against scipy and VBench's rule written out again."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from arvid.evals import motion
from arvid.evals.clips import Clip, Frame, flow, looks, stride
from arvid.evals.metric import Metric, Reading, measure_frames
from oracles import films


def read(metric: Metric, film: films.Film, fps: float = 16) -> Reading:
    clip = Clip(Path("film.mp4"), fps=fps, width=film.shape[2], height=film.shape[1])
    return measure_frames(clip, [metric], looks(film, fps))[metric.about.name]


def test_flow_is_the_step_of_the_film() -> None:
    first, second = (Frame(picture, 0).grey_HW for picture in films.moving(frames=2, step=(3, -2), size=(160, 96)))
    inner = flow(first, second)[16:-16, 16:-16]
    assert np.median(inner[..., 0]) == pytest.approx(3, abs=0.1)
    assert np.median(inner[..., 1]) == pytest.approx(-2, abs=0.1)


@pytest.mark.parametrize(("fps", "every"), [(16, 2), (24, 3), (8, 1), (5, 1), (30, 4)])
def test_samples_come_about_eight_times_a_second(fps: float, every: int) -> None:
    assert stride(fps) == every
    sampled = [frame.index for frame in looks(films.moving(frames=13), fps) if frame.sampled is not None]
    assert sampled == [*range(every, 13, every)]


def test_motion_is_the_speed_of_the_film() -> None:
    film = films.moving(frames=17, step=(2, 0), size=(160, 96))
    # 2 pixels per frame, 16 frames per second, shorter side 96; the fastest twentieth is a little faster.
    found = read(motion.Motion(), film)
    assert found.value == pytest.approx(2 * 16 / 96, rel=0.25)
    assert read(motion.Motion(), film, fps=32).value == pytest.approx(2 * 32 / 96, rel=0.25)
    still = np.repeat(film[:1], 9, axis=0)
    assert read(motion.Motion(), still).value == pytest.approx(0, abs=1e-3)


def test_motion_of_a_field_is_the_mean_of_its_longest_vectors() -> None:
    field = np.random.default_rng(0).normal(size=(40, 30, 2)).astype(np.float32)
    lengths = np.sort(np.sqrt((field.astype(float) ** 2).sum(-1)).ravel())[::-1]
    assert motion.motion_of(field) == pytest.approx(lengths[: int(0.05 * len(lengths))].mean(), rel=1e-5)


@pytest.mark.parametrize(("step", "fps"), [(1, 16), (4, 16), (4, 4), (2, 8)])
def test_dynamic_degree_follows_vbenchs_rule(step: int, fps: float) -> None:
    film = films.moving(frames=24, step=(step, 0), size=(160, 96))
    every = max(1, round(fps / 8))
    samples = [Frame(picture, 0).grey_HW for picture in film[::every]]
    threshold = max(1.0, 8.0 / fps) * 6.0 * (96 / 256.0)
    moving = sum(motion.motion_of(flow(a, b)) > threshold for a, b in itertools.pairwise(samples))
    found = read(motion.DynamicDegree(), film, fps)
    assert found.value == float(moving >= round(4 * len(samples) / 16))
    assert found.parts["moving"] == moving


def test_a_fast_film_is_dynamic_and_a_still_one_is_not() -> None:
    assert read(motion.DynamicDegree(), films.moving(frames=24, step=(4, 0), size=(160, 96))).value == 1
    assert read(motion.DynamicDegree(), np.repeat(films.moving(frames=1), 24, axis=0)).value == 0


def test_the_picture_between_is_what_scipy_makes_of_the_same_flow() -> None:
    film = films.moving(frames=3, step=(2, 1))
    field = flow(Frame(film[0], 0).grey_HW, Frame(film[2], 2).grey_HW)
    guess = motion.between(film[0], film[2], field)
    y, x = np.mgrid[: film.shape[1], : film.shape[2]].astype(float)
    halves = [
        ndimage.map_coordinates(
            picture[..., channel].astype(float), [y + side * field[..., 1] / 2, x + side * field[..., 0] / 2],
            order=1, mode="nearest",
        )
        for channel in range(3)
        for picture, side in ((film[0], -1), (film[2], 1))
    ]  # fmt: skip
    naive = np.stack([(halves[2 * channel] + halves[2 * channel + 1]) / 2 for channel in range(3)], axis=-1)
    # OpenCV interpolates in 32nds of a pixel and rounds twice.
    assert np.abs(guess - naive).mean() < 0.6
    assert np.abs(guess.astype(int) - film[1])[8:-8, 8:-8].mean() < 2


def test_smoothness_falls_when_every_other_frame_shakes() -> None:
    film = films.moving(frames=21, size=(160, 96))
    smooth = read(motion.MotionSmoothness(), film).value
    shaking = film.copy()
    shaking[1::2] = np.roll(film[1::2], 4, axis=2)
    shaken = read(motion.MotionSmoothness(), shaking).value
    assert smooth is not None and shaken is not None
    assert smooth > 0.985 and shaken < smooth - 0.02
    gap = np.mean([
        np.abs(motion.between(a, b, flow(Frame(a, 0).grey_HW, Frame(b, 0).grey_HW)).astype(int) - middle).mean()
        for a, middle, b in zip(shaking[0::2], shaking[1::2], shaking[2::2], strict=False)
    ])  # fmt: skip
    assert shaken == pytest.approx(1 - gap / 255, abs=1e-6)


def test_short_clips_say_that_they_are_short() -> None:
    film = films.moving(frames=2)
    for metric in (motion.MotionSmoothness(), motion.DynamicDegree(), motion.Motion()):
        found = read(metric, film[:1])
        assert found.value is None and "longer clip" in found.note
