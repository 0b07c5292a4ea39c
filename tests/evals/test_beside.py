"""Where blocks begin, written down as lengths and read back."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import pytest

from arvid.evals.beside import blocks_of, with_blocks
from arvid.evals.clips import Clip

CLIP = Clip(Path("a.mp4"))


@pytest.mark.parametrize(
    ("starts", "frames", "told"),
    [
        ((), 20, []),
        ((40,), 20, [20]),
        ((9, 21, 33), 45, [9, 12]),
        ((9, 21, 33), 40, [9, 12]),
        ((9, 21, 33), 46, [9, 12, 12, 13]),
        ((12, 21), 30, [12, 9]),
        (tuple(range(12, 100_000, 12)), 81, [12]),
    ],
)
def test_blocks_are_told_in_as_few_lengths_as_can_be(starts: tuple[int, ...], frames: int, told: list[int]) -> None:
    assert blocks_of(replace(CLIP, starts=starts), frames) == told


def test_lengths_say_where_every_block_begins() -> None:
    chance = random.Random(0)
    for _ in range(500):
        starts = tuple(accumulate(chance.choice((1, 2, 2, 3)) for _ in range(chance.randint(1, 6))))
        frames = chance.randint(1, starts[-1] + 4)
        told = blocks_of(replace(CLIP, starts=starts), frames)
        again = with_blocks(CLIP, told).starts
        assert [start for start in again if start < frames] == [start for start in starts if start < frames]
