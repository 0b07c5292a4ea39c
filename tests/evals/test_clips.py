"""What a clip is said to be, against files whose bytes were changed by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from arvid.evals.clips import frames_of, opened, pictures_of
from oracles import films


@pytest.mark.parametrize(("turn", "quarters"), [("clockwise", -1), ("upside down", 2), ("counterclockwise", 1)])
def test_a_video_of_a_phone_is_measured_upright_in_the_size_it_is_shown(
    tmp_path: Path, turn: str, quarters: int
) -> None:
    path = films.write(tmp_path / "a.mp4", films.moving(frames=3))
    stored = [*pictures_of(path)]
    clip = opened(films.turned(path, films.TURNS[turn]))
    frames = [frame.rgb_HWC for frame in frames_of(clip)]
    assert [frame.shape for frame in frames] == [(clip.height, clip.width, 3)] * 3
    for before, after in zip(stored, frames, strict=True):
        assert np.array_equal(np.rot90(before, quarters), after)


def test_a_file_without_frames_is_named(tmp_path: Path) -> None:
    path = films.write(tmp_path / "a.mp4", films.moving(frames=3))
    path.write_bytes(path.read_bytes().split(b"mdat")[0])
    for read in (opened, lambda place: next(pictures_of(place))):
        with pytest.raises(ValueError, match=r"a\.mp4 .*; make or fetch it again"):
            read(path)
