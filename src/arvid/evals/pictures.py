"""The best, middle and worst videos of a family on one picture.

Knows: videos with world scores, which of them are shown, what is written above each. Does not know: models, how a video
was made or judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from arvid.video import Strip, contact_sheet

FRAMES = 8
"""Frames of a video that are shown."""
EACH = 3
"""Videos of each kind."""


@dataclass(frozen=True, eq=False)
class Film:
    """What is kept of a video: prompt, seed, world score, its marks by name, and FRAMES of its frames."""

    prompt: str
    seed: int
    score: float
    marks: dict[str, float]
    strip: Strip

    @classmethod
    def of(
        cls, prompt: str, seed: int, score: float, marks: dict[str, float], frames_THWC: np.ndarray, fps: float
    ) -> Film:
        """A film that remembers FRAMES evenly spaced ones of its frames, the first and the last among them."""
        at = np.unique(np.linspace(0, len(frames_THWC) - 1, FRAMES).round().astype(int))
        return cls(prompt, seed, score, marks, Strip(frames_THWC[at], seconds=tuple((at / fps).tolist())))


def extremes(scores: Sequence[float], each: int = EACH) -> dict[int, str]:
    """Numbers of the best, the middle and the worst, the best first, with the word for each: `each` of every kind, or
    fewer where there are not three times as many. No number comes twice; of equals the earlier one is the better."""
    order = sorted(range(len(scores)), key=lambda number: -scores[number])
    count = min(each, max(1, len(order) // 3))
    begin = (len(order) - count) // 2
    parts = {"best": order[:count], "middle": order[begin : begin + count], "worst": order[-count:]}
    found: dict[int, str] = {}
    for word, numbers in parts.items():
        for number in numbers:
            found.setdefault(number, word)
    return found


def draw(films: Sequence[Film], name: str, path: Path) -> None:
    """The sheet as a PNG, a row per video, from the best to the worst. Raises ValueError when there are no films."""
    shown = [
        Strip(film.strip.frames_THWC, _label(film, word), film.strip.seconds)
        for film, word in ((films[number], word) for number, word in extremes([film.score for film in films]).items())
    ]
    title = f"{name}, the target alone: the best, the middle and the worst of {len(films)} held-out prompts"
    contact_sheet(shown, path, title, FRAMES)


def _label(film: Film, word: str) -> str:
    weakest = min(film.marks, key=lambda name: film.marks[name])
    marks = f"world score {film.score:.2f} (weakest: {weakest} {film.marks[weakest]:.2f})"
    return f"{word.upper()}, {marks}, seed {film.seed}: {film.prompt}"
