"""What the recorder writes down about time, by a clock that is wound by hand."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from arvid.cli import report
from arvid.cli.report import Recorder
from arvid.models.family import Card
from arvid.pipeline import Request
from arvid.types import Block, Move, Span, Verdict

CARD = Card(
    "toy", 3, 21, (64, 32), 16, 4, "euler", "window:frames=9", "refine:levels=0.8,steps=3", {"target": {}}
)  # fmt: skip


class Hands:
    """A clock that stands still until it is moved."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(report.time, "perf_counter", lambda: self.now)

    def blocks(self, *took: float) -> Iterator[Block]:
        """Blocks that take so many seconds, a quarter of it for decoding and half of it in the target."""
        for index, seconds in enumerate(took):
            self.now += seconds
            stages = {"target": seconds / 2, "decode": seconds / 4}
            move = Move(index, Span(3 * index, 3 * index + 3), (1.0, 0.0))
            yield Block(move, torch.zeros(1, 3, 1), torch.zeros(1, 12, 3), "target", Verdict("accept"), stages)


def test_every_block_has_its_seconds_its_arrival_and_what_was_done_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    hands, recorder = Hands(monkeypatch), Recorder()
    for _ in recorder.watch(hands.blocks(4.0, 1.0, 1.0)):
        hands.now += 0.5
    assert [row["took_s"] for row in recorder.rows] == [4, 1, 1]
    assert [row["arrived_s"] for row in recorder.rows] == [4, 5.5, 7]
    assert [row["kept_s"] for row in recorder.rows] == [0.5, 0.5, 0.5]
    assert (recorder.seconds, recorder.first_frame_s) == (6, 4)
    speed = report.speed_of(Request("a prompt", seed=5), CARD, recorder.rows, recorder.device)
    assert speed is not None
    assert speed["seconds"] == {"denoise": 4.5, "decode": 1.5, "encode": 1.5, "received": 7.0}
    assert speed["fps"] == pytest.approx(
        {"denoise": 8, "with_decode": 6, "with_encode": 4.8, "received": 36 / 7}, abs=1e-5
    )  # fmt: skip
    # 12 frames are shown for 0.75 s: the second is due at 4.75 s and the third at 5.5 s.
    assert speed["playback"] == {"first_frame_s": 4, "jitter_s": 0, "late": 2, "deadlines": 2, "buffer_s": 1.5}
    told = speed["conditions"]
    assert (told["model"], told["steps"], told["window"], told["seed"]) == ("toy", 3, "window:frames=9", 5)
    assert (told["width"], told["height"], told["fps"]) == (64, 32, 16) and told["machine"]["device"] == "cpu"


def test_a_run_that_is_gone_on_with_counts_on(monkeypatch: pytest.MonkeyPatch) -> None:
    hands, recorder = Hands(monkeypatch), Recorder()
    list(recorder.watch(hands.blocks(4.0)))
    hands.now += 1000
    list(recorder.watch(hands.blocks(1.0)))
    assert [row["arrived_s"] for row in recorder.rows] == [4, 5]


def test_nothing_recorded_has_no_speed() -> None:
    assert report.speed_of(Request("a prompt"), CARD, Recorder().rows, "cpu") is None
