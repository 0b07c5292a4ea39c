"""The renderer of the shapes world against closed forms: areas, speeds, walls, circles, the clock."""

from __future__ import annotations

import math

import numpy as np
import pytest

from arvid.worlds import shapes
from arvid.worlds.grammar import DIRECTIONS, SHAPES, SIZES, SPEEDS

STEP = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


def whiteness(prompt: str, seed: int, frames: int, size: int = 64) -> np.ndarray:
    """Coverage [T, n, n] of the only, yellow, thing on black, read from its red channel."""
    red = shapes.render(prompt, seed, frames, size)[..., 0].astype(float)
    return (red - 16) / (250 - 16)


def centroids(mask: np.ndarray) -> np.ndarray:
    """Circular means [T, 2] in frame widths."""
    wave = np.exp(2j * np.pi * (np.arange(mask.shape[1]) + 0.5) / mask.shape[1])
    return np.stack([np.angle(mask.sum(1) @ wave), np.angle(mask.sum(2) @ wave)], 1) / (2 * np.pi)


def steps(prompt: str, seed: int, frames: int) -> np.ndarray:
    difference = np.diff(centroids(whiteness(prompt, seed, frames, 128)), axis=0)
    return np.mod(difference + 0.5, 1) - 0.5


def test_form_and_determinism() -> None:
    prompt = "a yellow star moves up"
    first = shapes.render(prompt, 3)
    assert first.shape == (81, 64, 64, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, shapes.render(prompt, 3))
    assert np.array_equal(first, shapes.render("  A yellow star   moves up ", 3))
    assert not np.array_equal(first, shapes.render(prompt, 4))


def test_a_shorter_film_is_the_beginning_of_a_longer_one() -> None:
    prompt = "a yellow circle bounces diagonally and a small red star orbits clockwise"
    assert np.array_equal(shapes.render(prompt, 1, 20), shapes.render(prompt, 1, 81)[:20])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", SIZES)
def test_every_shape_of_a_size_covers_the_same_area(shape: str, size: str) -> None:
    area = whiteness(f"a {size} yellow {shape}", 0, 1, 64).sum()
    assert area == pytest.approx(math.pi * (shapes.RADII[size] * 64) ** 2, rel=0.03)


@pytest.mark.parametrize("way", DIRECTIONS)
@pytest.mark.parametrize("speed", SPEEDS)
def test_moving_things_advance_by_their_speed(way: str, speed: str) -> None:
    adverb = {"slow": "slowly", "medium": "", "fast": "fast"}[speed]
    expected = np.array(STEP[way]) * shapes.SPEEDS[speed]
    found = steps(f"a small yellow circle moves {way} {adverb}", 2, 81)
    np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), atol=5e-4)


def test_bouncing_things_keep_their_speed_between_the_walls() -> None:
    mask = whiteness("a small yellow circle bounces left and right", 0, 161, 128)
    path = centroids(mask) % 1
    radius = shapes.RADII["small"]
    assert path[:, 0].min() == pytest.approx(radius, abs=0.02)
    assert path[:, 0].max() == pytest.approx(1 - radius, abs=0.02)
    assert np.ptp(path[:, 1]) < 1e-3
    pace = np.abs(np.diff(path[:, 0]))
    assert np.median(pace) == pytest.approx(shapes.SPEEDS["medium"], rel=0.02)
    assert (pace < 0.9 * shapes.SPEEDS["medium"]).sum() <= 4


def test_orbits_are_circles_in_the_right_sense() -> None:
    for turn, sign in (("clockwise", 1), ("anticlockwise", -1)):
        step = steps(f"a small yellow circle orbits {turn} fast", 1, 58)
        path = np.cumsum(step, 0)
        assert np.ptp(path, axis=0) == pytest.approx(2 * shapes.ORBIT_RADIUS, rel=0.02)
        heading = np.unwrap(np.arctan2(step[:, 1], step[:, 0]))
        rate = shapes.SPEEDS["fast"] / shapes.ORBIT_RADIUS
        assert (heading[-1] - heading[0]) / 56 == pytest.approx(sign * rate, rel=0.02)


def test_still_things_and_no_camera_change_nothing() -> None:
    video = shapes.render("a red circle rests on checkered gray", 0, 9)
    assert (video == video[:1]).all()


def test_a_pan_moves_the_world_against_the_camera() -> None:
    found = steps("a small yellow circle stays still, the camera pans right", 0, 41).mean(0)
    np.testing.assert_allclose(found, (-shapes.PAN_SPEED, 0), atol=5e-4)
    video = shapes.render("a red circle on striped white, the camera pans left", 0, 41).astype(int)
    moved = np.roll(video[0], round(40 * shapes.PAN_SPEED * 64), 1)
    assert (np.abs(video[40] - moved).max(-1) <= 1).mean() > 0.8


def test_gradients_go_from_top_to_bottom() -> None:
    frame = shapes.render("a small red circle on a gradient from black to white", 0, 1)[0].astype(int)
    column = np.median(frame[..., 1], axis=1)
    assert (np.diff(column) >= 0).all()
    assert column[0] < 24
    assert column[-1] > 225


def test_events() -> None:
    mask = whiteness("a small yellow circle moves left, then it vanishes", 0, 40)
    assert (mask[:20].sum((1, 2)) > 100).all()
    assert mask[20:].max() == 0
    there = steps("a small yellow circle moves left, then it turns back", 0, 40)
    np.testing.assert_allclose(there[:19, 0], -1 / 64, atol=5e-4)
    np.testing.assert_allclose(there[19:, 0], 1 / 64, atol=5e-4)
    halted = steps("a small yellow circle moves left, then it stops", 0, 40)
    np.testing.assert_allclose(halted[20:], 0, atol=1e-6)
    turned = shapes.render("a small yellow circle, then it turns blue", 0, 40)
    for frame, colour in ((0, "yellow"), (39, "blue")):
        assert (turned[frame] == shapes.PALETTE[colour]).all(-1).sum() > 80


def test_later_things_are_drawn_over_earlier_ones() -> None:
    take = shapes.takes("a huge red square and a huge blue square and a huge yellow square", 0, 1)[0]
    video = shapes.render("a huge red square and a huge blue square and a huge yellow square", 0, 1)
    x, y = np.mod(take.tracks[2].path_T2[0], 1) * 64
    assert tuple(video[0, int(y), int(x)]) == shapes.PALETTE["yellow"]


@pytest.mark.parametrize(("frames", "size"), [(0, 64), (-3, 64), (5, 8)])
def test_errors(frames: int, size: int) -> None:
    with pytest.raises(ValueError, match=f"cannot render {frames} frames of {size} pixels"):
        shapes.render("a circle", 0, frames, size)


def test_prompts_without_a_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="no shape"):
        shapes.render("a dog")


def test_acts_begin_where_they_are_told_to() -> None:
    prompt = "a yellow circle moves right, then the yellow circle stops"
    red = shapes.render(prompt, 0, 60, 128, (0, 30))[..., 0].astype(float)
    step = np.abs(np.diff(centroids((red - 16) / (250 - 16)), axis=0))[:, 0]
    step = np.minimum(step, 1 - step)
    assert (step[:29] > 0.01).all()
    assert (step[30:] < 0.001).all()


def test_a_film_with_equal_acts_is_the_film_without_beginnings() -> None:
    prompt = "a yellow circle moves right, then the yellow circle stops"
    assert np.array_equal(shapes.render(prompt, 2, 80), shapes.render(prompt, 2, 80, begins=(0, 40)))


@pytest.mark.parametrize("begins", [(0,), (1, 40), (0, 81), (0, 0), (0, 20, 40)])
def test_acts_that_cannot_begin_there_are_refused(begins: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"2 acts cannot begin at frames .* of 81; give one frame for each"):
        shapes.render("a star, then the star stops", 0, 81, begins=begins)
