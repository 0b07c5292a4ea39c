"""Quality while a video is made: blocks one by one say what the film says, and a real rollout can be listened to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from arvid.evals.clips import Frame
from arvid.evals.online import OnlineQuality, Quality
from arvid.pipeline import Pipeline, Request, load
from arvid.types import Block, Move, Span, Verdict
from oracles import films, toy_family


def tensor(film: films.Film) -> torch.Tensor:
    return torch.from_numpy(film.copy()).movedim(-1, 1)[None].float() / 127.5 - 1


def listen(film: films.Film, block: int) -> list[Quality]:
    quality = OnlineQuality()
    for start in range(0, len(film), block):
        quality.on("begun", {"block": start // block})
        quality.on("done", {"block": start // block, "frames_BTCHW": tensor(film[start : start + block])})
    assert quality.latest == quality.rows[-1]
    return quality.rows


def test_a_block_is_the_mean_of_its_frames() -> None:
    film = films.fading(films.moving(frames=24))
    rows = listen(film, 8)
    assert [row.block for row in rows] == [0, 1, 2]
    for number, row in enumerate(rows):
        frames = [Frame(picture, 0) for picture in film[8 * number : 8 * number + 8]]
        for name in ("exposure", "contrast", "saturation", "sharpness"):
            assert getattr(row, name) == pytest.approx(np.mean([getattr(frame, name) for frame in frames]))
        gaps = np.abs(np.diff(film[8 * number : 8 * number + 8].astype(int), axis=0)).mean()
        assert row.change == pytest.approx(gaps)


def test_drift_is_the_distance_from_the_first_block() -> None:
    rows = listen(films.fading(films.moving(frames=40)), 8)
    assert rows[0].drift == 0 and rows[0].seam is None
    assert [row.drift for row in rows] == sorted(row.drift for row in rows) and rows[-1].drift > 0.1
    first, last = rows[0], rows[-1]
    pairs = [(last.exposure, first.exposure), (last.contrast, first.contrast), (last.saturation, first.saturation),
             (last.sharpness, first.sharpness)]  # fmt: skip
    assert last.drift == pytest.approx(np.mean([abs(now - then) / then for now, then in pairs]))
    assert max(row.drift for row in listen(films.moving(frames=40), 8)) < 0.05


def test_a_seam_shows_at_once() -> None:
    calm = listen(films.moving(frames=36), 12)
    hard = listen(films.seamed(films.moving(frames=36), 12, 16), 12)
    assert all(abs(row.seam) < 0.1 for row in calm if row.seam is not None)
    assert all(row.seam > 0.5 for row in hard if row.seam is not None) and len(hard) == 3


def test_a_frozen_block_is_noticed() -> None:
    film = films.moving(frames=24)
    film[12:] = film[11]
    assert [row.freeze for row in listen(film, 12)] == [0, 1]


def test_a_stream_can_be_watched_instead() -> None:
    film = films.moving(frames=16)
    blocks = [
        Block(Move(index, Span(index, index + 1), (1.0, 0.0)), torch.zeros(1), tensor(film[8 * index : 8 * index + 8]),
              "target", Verdict("accept"))
        for index in range(2)
    ]  # fmt: skip
    quality = OnlineQuality()
    assert [*quality.watch(iter(blocks))] == blocks
    assert quality.rows == listen(film, 8)


def test_a_running_generation_can_be_listened_to(tmp_path: Path) -> None:
    pipeline = Pipeline(load(toy_family.write(tmp_path / "toy")))
    heard, watched = OnlineQuality(), OnlineQuality()
    request = Request("a red circle moves right", 2, 3, "reward:tau=2,repair=1")
    blocks = [*watched.watch(pipeline.stream(request, (heard,)))]
    assert len(heard.rows) == len(blocks) == 3 and heard.rows == watched.rows
    assert len({row.sharpness for row in heard.rows}) == 3
    # What is made again takes the place of what was taken back, and of all behind it.
    session = pipeline.session(request, (again := OnlineQuality(),))
    made = [next(session), next(session), next(session)]
    session.rewind(1)
    assert torch.equal(next(session).frames_BTCHW, made[1].frames_BTCHW)
    assert [row.block for row in again.rows] == [0, 1] and again.rows[0] == heard.rows[0]
    assert again.rows[1] == replace(heard.rows[1], seam=None)


def test_an_event_without_frames_is_refused() -> None:
    with pytest.raises(ValueError, match="needs 'frames_BTCHW'"):
        OnlineQuality().on("done", {"block": 0})
    with pytest.raises(ValueError, match="at least one"):
        OnlineQuality().see_pictures([])
