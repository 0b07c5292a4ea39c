"""The timing record against numbers worked out by hand."""

from __future__ import annotations

import pytest

from arvid.evals import timing
from arvid.evals.timing import BlockTime, Conditions

BLOCKS = (
    BlockTime(9, 1.0, 0.2, 0.1),
    BlockTime(12, 0.5, 0.2, 0.1),
    BlockTime(12, 0.9, 0.2, 0.1),
)


def test_the_four_rates() -> None:
    found = timing.rates(BLOCKS)
    assert found.denoise == pytest.approx(33 / 2.4)
    assert found.with_decode == pytest.approx(33 / 3.0)
    assert found.with_encode == pytest.approx(33 / 3.3)
    assert found.received is None
    told = tuple(
        BlockTime(b.frames, b.denoise, b.decode, b.encode, at) for b, at in zip(BLOCKS, (1.5, 2.5, 4.0), strict=True)
    )
    assert timing.rates(told).received == pytest.approx(33 / 4)


def test_a_stage_that_was_not_timed_has_no_rate() -> None:
    found = timing.rates([BlockTime(4, 2.0)])
    assert (found.denoise, found.with_decode, found.with_encode) == (2.0, None, None)
    assert timing.rates([BlockTime(4, 0.0)]).denoise is None


def test_blocks_arrive_when_their_work_is_done_unless_somebody_looked() -> None:
    assert timing.arrivals(BLOCKS) == pytest.approx((1.3, 2.1, 3.3))
    told = (BlockTime(9, 1, arrived=1.6), BlockTime(12, 1, arrived=2.0))
    assert timing.arrivals(told) == (1.6, 2.0)


def test_deadlines_of_a_player() -> None:
    # 12 frames at 12 per second: a block is shown for a second. It comes 0.5, 1.5 and 1.2 s after the one before.
    blocks = [BlockTime(12, 1, arrived=at) for at in (2.0, 2.5, 4.0, 5.2)]
    found = timing.playback(blocks, 12)
    assert found.first_frame_s == 2.0
    # Due at 3, 4 and 5: the second is early, the third just in time, the fourth 0.2 s late.
    assert (found.late, found.deadlines) == (1, 3)
    assert found.buffer_s == pytest.approx(0.2)
    gaps = (-0.5, 0.5, 0.2)
    mean = sum(gaps) / 3
    assert found.jitter_s == pytest.approx((sum((gap - mean) ** 2 for gap in gaps) / 3) ** 0.5)


def test_a_first_block_of_other_length_moves_the_deadlines() -> None:
    blocks = [BlockTime(9, 1, arrived=1.0), BlockTime(12, 1, arrived=1.6), BlockTime(12, 1, arrived=2.7)]
    found = timing.playback(blocks, 12)
    assert (found.late, found.buffer_s) == (0, 0.0)
    assert timing.playback(blocks, 24).late == 2
    assert timing.playback(blocks, 24).buffer_s == pytest.approx(1.7 - 21 / 24)


def test_a_single_block_has_no_deadline() -> None:
    found = timing.playback([BlockTime(9, 0.5)], 16)
    assert (found.first_frame_s, found.jitter_s, found.late, found.deadlines) == (0.5, 0.0, 0, 0)


def test_the_record_holds_what_a_speed_is_worth_nothing_without() -> None:
    conditions = Conditions("toy", {"cpu": "x"}, 4, "window:frames=9", "first", 64, 64, 16, 3)
    found = timing.record(BLOCKS, conditions, warm_up_s=2.5)
    assert found["frames"] == 33 and found["apart"] == {"warm_up_s": 2.5, "compile_s": None}
    assert found["seconds"] == {"denoise": 2.4, "decode": 0.6, "encode": 0.3, "received": None}
    assert found["fps"]["with_decode"] == 11.0
    assert found["conditions"]["steps"] == 4 and found["conditions"]["machine"] == {"cpu": "x"}
    assert found["playback"]["first_frame_s"] == 1.3
    assert timing.record(BLOCKS, Conditions())["playback"] is None


def test_videos_are_pooled_by_their_seconds() -> None:
    slow = timing.record([BlockTime(10, 4.0, 1.0)], Conditions("toy", fps=16, seed=1))
    fast = timing.record([BlockTime(30, 1.0, 1.0)], Conditions("toy", fps=16, seed=2))
    found = timing.pooled([slow, fast])
    assert (found["videos"], found["frames"], found["seconds_per_video"]) == (2, 40, 3.5)
    assert found["fps"]["denoise"] == 8.0 and found["fps"]["with_decode"] == pytest.approx(40 / 7, abs=1e-6)
    assert found["fps"]["with_encode"] is None and found["fps"]["received"] is None
    assert found["playback"]["first_frame_s"] == 3.5
    assert found["conditions"]["model"] == "toy" and "seed" not in found["conditions"]


def test_a_file_costs_no_video_a_second_of_its_own() -> None:
    """Seconds of a video end when its pixels are in memory: what is done with them is a rate of its own."""
    found = timing.pooled([timing.record([BlockTime(10, 4.0, 1.0, encode)], Conditions()) for encode in (0.0, 3.0)])
    assert found["seconds_per_video"] == 5 and found["fps"]["with_encode"] == pytest.approx(20 / 13, abs=1e-6)
    assert found["playback"] is None


def test_the_blocks_of_a_report_of_generate() -> None:
    rows = [
        {"frames": 9, "seconds": {"draft": 0.1, "score": 0.2, "target": 0.3, "decode": 0.4}},
        {"frames": 12, "seconds": {"target": 1.0, "encode": 0.5}, "arrived_s": 2.0},
        {"frames": 12, "seconds": {"target": 1.0, "decode": 0.5}, "took_s": 1.75, "arrived_s": 3.0, "kept_s": 0.25},
    ]
    assert timing.blocks_of(rows) == (
        BlockTime(9, pytest.approx(0.6), 0.4, 0.0, None),
        BlockTime(12, 1.0, 0.0, 0.5, 2.0),
        BlockTime(12, 1.25, 0.5, 0.25, 3.0),
    )


def test_nothing_timed_is_an_error() -> None:
    for call in (lambda: timing.rates([]), lambda: timing.playback([], 16), lambda: timing.pooled([])):
        with pytest.raises(ValueError, match="at least one"):
            call()
    with pytest.raises(ValueError, match="rate above 0"):
        timing.playback(BLOCKS, 0)
