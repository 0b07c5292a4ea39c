"""The oracle of the shapes world: full marks for what it renders, the right marks off for what is wrong."""

from __future__ import annotations

import random
from functools import lru_cache
from itertools import pairwise

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, zoom

from arvid.worlds import captions, shapes
from arvid.worlds.oracle import ALIGNMENT, QUALITY, WorldScore, judge

BASE = "a medium red square moves right slowly on a gray background"


@lru_cache(maxsize=1)
def clips() -> tuple[tuple[int, str, np.ndarray], ...]:
    """40 captions, ten of each level, half of them held out."""
    result = []
    for level in (1, 2, 3, 4):
        for seed in range(10):
            rng = random.Random(100 * level + seed)
            prompt = captions.sample(rng, (level,), held_out=seed % 2 == 1).prompt
            result.append((level, prompt, shapes.render(prompt, seed)))
    return tuple(result)


def blurred(video: np.ndarray, sigma: float, noise: float = 0.0) -> np.ndarray:
    soft = gaussian_filter(video.astype(np.float32), (0, sigma, sigma, 0), mode="wrap")
    soft += np.random.default_rng(0).normal(0, 1, video.shape) * noise
    return soft.clip(0, 255).astype(np.uint8)


def falls(values: list[float], by: float) -> bool:
    return all(b <= a + 0.002 for a, b in pairwise(values)) and values[0] - values[-1] >= by


def test_renders_get_full_marks_at_every_level() -> None:
    scores: dict[int, list[float]] = {}
    for level, prompt, video in clips():
        scores.setdefault(level, []).append(judge(video, prompt).score)
    for level, values in scores.items():
        assert np.mean(values) >= 0.97, (level, values)
        assert min(values) >= 0.9, (level, values)


def test_other_peoples_prompts_get_low_marks() -> None:
    everything = clips()
    scores = [
        judge(video, everything[(i + 7) % len(everything)][1]).score for i, (_, _, video) in enumerate(everything)
    ]
    assert np.mean(scores) <= 0.15
    assert np.mean(np.array(scores) <= 0.5) >= 0.97


def test_a_good_decoder_costs_little() -> None:
    some = clips()[::4]
    clean = np.mean([judge(video, prompt).score for _, prompt, video in some])
    decoded = np.mean([judge(blurred(video, 0.5, 8.06), prompt).score for _, prompt, video in some])
    assert clean - decoded <= 0.03


def test_floats_and_bytes_get_the_same_marks() -> None:
    _, prompt, video = clips()[12]
    floats = (video.astype(np.float32) / 127.5 - 1).transpose(0, 3, 1, 2)
    assert judge(floats, prompt).score == pytest.approx(judge(video, prompt).score, abs=1e-3)


@pytest.mark.parametrize("size", [72, 96, 128])
def test_any_resolution(size: int) -> None:
    for prompt in (BASE, "a tiny cyan star orbits clockwise on a striped brown background, the camera pans left"):
        assert judge(shapes.render(prompt, 3, 41, size), prompt).score >= 0.95


@pytest.mark.parametrize("frames", [1, 2, 5, 12])
def test_short_clips(frames: int) -> None:
    for _, prompt, _ in clips()[:20:4]:
        assert judge(shapes.render(prompt, 1, frames), prompt).score >= 0.9


def test_later_windows_of_a_long_film() -> None:
    prompt = "a large purple diamond bounces diagonally on a checkered beige background, the camera pans up"
    video = shapes.render(prompt, 2, 324)
    for start in (81, 243):
        assert judge(video[start : start + 81], prompt, start, 324).score >= 0.95
    story = "a red circle moves left on white, then the red circle turns green"
    video = shapes.render(story, 2, 162)
    assert judge(video[81:], story, 81, 162).score >= 0.95
    assert judge(video[:81], story, 81, 162).score <= 0.6


# ---------------------------------------------------------------- more damage, lower marks


@pytest.mark.parametrize("prompt", [BASE, "a small blue star orbits anticlockwise on beige"])
def test_noise_and_blur(prompt: str) -> None:
    video = shapes.render(prompt, 4)
    assert falls([judge(blurred(video, 0, noise), prompt).score for noise in (0, 8, 16, 24, 36, 60)], 0.7)
    assert falls([judge(blurred(video, sigma), prompt).score for sigma in (0, 0.5, 1, 1.5, 2, 3)], 0.7)


@pytest.mark.parametrize("prompt", [BASE, "a big green star bounces up and down on a navy background"])
def test_frozen_and_missing_frames(prompt: str) -> None:
    video = shapes.render(prompt, 4)
    frozen, dropped = [], []
    empty = np.broadcast_to(np.array(shapes.PALETTE[prompt.split()[-2]], np.uint8), video.shape[1:])
    order = np.random.default_rng(1).permutation(81)
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        stopped = video.copy()
        stopped[81 - int(80 * share) :] = video[80 - int(80 * share)]
        frozen.append(judge(stopped, prompt).score)
        holes = video.copy()
        holes[order[: int(81 * share)]] = empty
        dropped.append(judge(holes, prompt).score)
    assert falls(frozen, 0.6), frozen
    assert falls(dropped, 0.99), dropped


# ---------------------------------------------------------------- every error lowers its own mark most


@pytest.mark.parametrize(
    ("attribute", "prompt"),
    [
        ("colour", "a medium blue square moves right slowly on a gray background"),
        ("colour", "a medium orange square moves right slowly on a gray background"),
        ("shape", "a medium red circle moves right slowly on a gray background"),
        ("shape", "a medium red diamond moves right slowly on a gray background"),
        ("shape", "a medium red star moves right slowly on a gray background"),
        ("size", "a large red square moves right slowly on a gray background"),
        ("size", "a small red square moves right slowly on a gray background"),
        ("direction", "a medium red square moves left slowly on a gray background"),
        ("direction", "a medium red square moves up slowly on a gray background"),
        ("direction", "a medium red square orbits clockwise slowly on a gray background"),
        ("speed", "a medium red square moves right on a gray background"),
        ("speed", "a medium red square moves right quickly on a gray background"),
        ("background", "a medium red square moves right slowly on a black background"),
        ("background", "a medium red square moves right slowly on a checkered gray background"),
        ("background", "a medium red square moves right slowly on a gradient from gray to black"),
    ],
)
def test_what_is_wrong_is_named(attribute: str, prompt: str) -> None:
    right, wrong = judge(shapes.render(BASE, 5), BASE), judge(shapes.render(prompt, 5), BASE)
    loss = {name: right.attributes[name] - wrong.attributes[name] for name in right.attributes}
    assert max(loss, key=lambda name: loss[name]) == attribute, loss
    assert loss[attribute] >= 0.5
    assert right.score - wrong.score >= 0.15


@pytest.mark.parametrize(
    ("wanted", "shown", "attribute"),
    [
        ("a red circle bounces up and down", "a red circle bounces left and right", "direction"),
        ("a red circle bounces up and down", "a red circle bounces diagonally", "direction"),
        ("a red circle bounces up and down", "a red circle rises", "direction"),
        ("a red circle orbits clockwise", "a red circle orbits anticlockwise", "direction"),
        ("a red circle orbits clockwise", "a red circle moves up", "direction"),
        ("a red circle stays still", "a red circle moves up slowly", "speed"),
        ("a red circle moves up", "a red circle stays still", "direction"),
        ("a red circle moves up", "a red circle moves up and a blue square stays still", "count"),
        ("a red circle on striped navy, the camera pans right", "a red circle on striped navy", "camera"),
        ("a red circle moves up, then it vanishes", "a red circle moves up", "presence"),
        ("a red circle moves up, then it turns blue", "a red circle moves up", "colour"),
        ("a red circle moves up, then it turns back", "a red circle moves up", "direction"),
        ("a red circle moves up, then it stops", "a red circle moves up", "speed"),
    ],
)  # fmt: skip
def test_stories_and_motions_told_apart(wanted: str, shown: str, attribute: str) -> None:
    video = shapes.render(shown, 6)
    right, wrong = judge(video, shown), judge(video, wanted)
    assert right.score >= 0.95
    assert wrong.score <= 0.85
    loss = {name: right.attributes[name] - wrong.attributes[name] for name in right.attributes}
    assert loss[attribute] >= 0.95 * max(loss.values()), loss


def test_quality_is_named() -> None:
    video = shapes.render(BASE, 7)
    rng = np.random.default_rng(2)
    shaken = np.stack([np.roll(frame, tuple(rng.integers(-2, 3, 2)), (0, 1)) for frame in video])
    bright = (video + rng.choice((-40.0, 0.0, 40.0), (81, 1, 1, 1))).clip(0, 255).astype(np.uint8)
    gone = video.copy()
    gone[30:60] = shapes.PALETTE["gray"]
    cases = {"smoothness": shaken, "flicker": bright, "permanence": gone, "sharpness": blurred(video, 2.0)}
    for name, damaged in cases.items():
        marks = judge(damaged, BASE)
        assert min(QUALITY, key=lambda quality: marks.attributes[quality]) == name, marks
        assert marks.score <= 0.75


def test_the_score_is_alignment_times_quality() -> None:
    for _, prompt, video in clips()[:4]:
        marks = judge(video[::2], prompt)
        assert isinstance(marks, WorldScore)
        assert marks.score == pytest.approx(marks.alignment * marks.quality)
        assert set(marks.attributes) == {*ALIGNMENT, *QUALITY}
        assert all(0 <= value <= 1 for value in (marks.score, *marks.attributes.values()))


def test_one_thing_of_two() -> None:
    prompt = "a red circle moves left and a blue square moves up on black"
    full = judge(shapes.render(prompt, 1), prompt).score
    other = judge(shapes.render("a red circle moves left and a blue star moves up on black", 1), prompt).score
    missing = judge(shapes.render("a red circle moves left on black", 1), prompt).score
    assert 0.5 <= other <= full - 0.2
    assert missing <= 0.5


@pytest.mark.parametrize("video", ["noise", "black", "white"])
def test_nonsense_gets_nothing(video: str) -> None:
    frames = np.full((20, 64, 64, 3), 255 if video == "white" else 0, np.uint8)
    if video == "noise":
        frames = np.random.default_rng(0).integers(0, 256, frames.shape, dtype=np.uint8)
    assert judge(frames, BASE).score <= 0.02


@pytest.mark.parametrize(
    ("frames", "first", "total", "message"),
    [
        (np.zeros((3, 64, 64), np.uint8), 0, None, r"shape \(3, 64, 64\)"),
        (np.zeros((3, 32, 32, 3), np.uint8), 0, None, "32 x 32"),
        (np.zeros((3, 64, 80, 3), np.uint8), 0, None, "64 x 80"),
        (np.zeros((3, 64, 64, 3), np.uint8), 2, 4, "film of 4 frames"),
        (np.zeros((3, 64, 64, 3), np.uint8), -1, None, "first_frame"),
    ],
)
def test_errors(frames: np.ndarray, first: int, total: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        judge(frames, BASE, first, total)


def test_soft_upscaling_is_not_sharp() -> None:
    video = shapes.render(BASE, 1, 21)
    enlarged = zoom(video.astype(np.float32), (1, 3, 3, 1), order=1).clip(0, 255).astype(np.uint8)
    assert judge(enlarged, BASE).score >= 0.9
