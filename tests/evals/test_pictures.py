"""Which videos a card shows, and that the sheet shows them: against sorting by hand and pixels read back."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from arvid.evals import pictures
from arvid.evals.pictures import EACH, FRAMES, Film, draw, extremes
from arvid.video import Strip


@pytest.mark.parametrize("count", range(2, 25))
def test_the_best_the_middle_and_the_worst_are_shown_once_each(count: int) -> None:
    scores = [number / count for number in range(count)]
    random.Random(count).shuffle(scores)
    found = extremes(scores)
    shown = {word: [scores[n] for n, kind in found.items() if kind == word] for word in ("best", "middle", "worst")}
    rank = sorted(scores)
    each = min(EACH, max(1, count // 3))
    assert sorted(shown["best"]) == rank[-each:] and sorted(shown["worst"]) == rank[:each]
    assert [scores[number] for number in found] == sorted((scores[number] for number in found), reverse=True)
    if count > 2:
        below = sum(score < min(shown["middle"]) for score in scores)
        above = sum(score > max(shown["middle"]) for score in scores)
        assert len(shown["middle"]) == each and abs(below - above) <= 1


def test_one_video_is_the_best_and_equals_come_in_order() -> None:
    assert extremes([0.5]) == {0: "best"}
    assert extremes([0.5, 0.5, 0.5]) == {0: "best", 1: "middle", 2: "worst"}
    assert extremes([]) == {}


def film(number: int, score: float) -> Film:
    """81 frames that tell the film and the time."""
    frames = np.zeros((81, 64, 64, 3), np.uint8)
    frames[..., 0], frames[..., 1] = 100 + 20 * number, np.arange(81)[:, None, None]
    return Film.of(f"prompt {number}", number, score, {"shape": 0.9, "speed": score}, frames, 16)


def test_a_film_keeps_frames_at_equal_distances_and_their_seconds() -> None:
    strip = film(1, 0.5).strip
    numbers = strip.frames_THWC[:, 0, 0, 1].tolist()
    assert len(numbers) == FRAMES and (numbers[0], numbers[-1]) == (0, 80)
    assert set(np.diff(numbers).tolist()) == {11, 12}
    assert strip.seconds == tuple(number / 16 for number in numbers)
    short = Film.of("", 0, 1.0, {"shape": 1.0}, np.zeros((3, 8, 8, 3), np.uint8), 16)
    assert short.strip.seconds == (0, 1 / 16, 2 / 16)


def test_the_sheet_has_a_row_for_each_from_the_best_to_the_worst(tmp_path: Path) -> None:
    scores = [0.4, 0.9, 0.1, 0.6]
    draw([film(number, score) for number, score in enumerate(scores)], "toy", tmp_path / "p.png")
    sheet = np.asarray(Image.open(tmp_path / "p.png").convert("RGB"))
    rows: list[list[tuple[int, int, int]]] = []
    for line in sheet[:, 28 + 64 :: 136][:, :FRAMES]:  # through the middle of every frame
        found = [tuple(pixel) for pixel in line.tolist()]
        if found[-1][0] >= 100 and found[-1][1:] == (80, 0) and (not rows or rows[-1] != found):
            rows.append(found)
    times = film(0, 0.0).strip.frames_THWC[:, 0, 0, 1].tolist()
    # Best, middle (of the two in the middle the better one) and worst of four.
    assert rows == [[(100 + 20 * number, time, 0) for time in times] for number in (1, 3, 2)]
    assert [entry.name for entry in tmp_path.iterdir()] == ["p.png"]


def test_a_row_says_what_it_is_how_good_and_what_was_worst(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def listen(strips: list[Strip], path: Path, title: str, columns: int) -> None:
        said.extend([title, *(strip.label for strip in strips)])

    monkeypatch.setattr(pictures, "contact_sheet", listen)
    draw([film(0, 0.95), film(7, 0.254)], "toy", tmp_path / "p.png")
    assert said == [
        "toy, the target alone: the best, the middle and the worst of 2 held-out prompts",
        "BEST, world score 0.95 (weakest: shape 0.90), seed 0: prompt 0",
        "WORST, world score 0.25 (weakest: speed 0.25), seed 7: prompt 7",
    ]
