"""One record of speed: what was timed, counted how, apart from what.

Knows: seconds of blocks by stage and when each block arrived, and what follows from them (rates, first frame, jitter,
deadlines of a player). Does not know: clocks, models, who made the blocks.

Four rates, because published ones mix them up: denoise (model passes: text, drafts, scoring, commits; no pixels), with
decode (that, and pixels in memory), with encode (that, and a file or stream), received (what a client sees, from its
request to its last frame). Warm-up and compilation are never part of them; they stand beside them.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any

DECODE, ENCODE = "decode", "encode"


@dataclass(frozen=True)
class BlockTime:
    """One block: its frames, seconds of wall-clock in model passes, in decoding, in encoding, and the second at which
    it arrived at whoever asked, counted from the request (None: nobody looked)."""

    frames: int
    denoise: float
    decode: float = 0.0
    encode: float = 0.0
    arrived: float | None = None

    @property
    def work(self) -> float:
        """Seconds of all stages."""
        return self.denoise + self.decode + self.encode


@dataclass(frozen=True)
class Rates:
    """Frames per second of wall-clock; None where a stage was not timed or took no time."""

    denoise: float | None
    with_decode: float | None
    with_encode: float | None
    received: float | None


@dataclass(frozen=True)
class Playback:
    """How a player would have fared that starts with the first block and shows `fps` frames per second. `late` blocks
    came after the frame before theirs had been shown; `buffer_s` is the wait at the start that would have prevented
    all of them; `jitter_s` is the standard deviation of how much longer a block took to come than it takes to show."""

    first_frame_s: float
    jitter_s: float
    late: int
    deadlines: int
    buffer_s: float


@dataclass(frozen=True)
class Conditions:
    """What a speed is worth nothing without. `machine` is that of the report's head; empty and None: not known."""

    model: str = ""
    machine: Mapping[str, Any] | None = None
    steps: int | None = None
    window: str = ""
    router: str = ""
    width: int = 0
    height: int = 0
    fps: float = 0.0
    seed: int | None = None


def blocks_of(rows: Iterable[Mapping[str, Any]]) -> tuple[BlockTime, ...]:
    """The blocks of a report of `arvid generate` (docs/report.md): its stages by name, `took_s`, `kept_s` and
    `arrived_s` where they are told. What a block took without decoding is denoising, in a named stage or in none."""
    return tuple(_block_of(row, row["seconds"]) for row in rows)


def _block_of(row: Mapping[str, Any], stages: Mapping[str, float]) -> BlockTime:
    decode = stages.get(DECODE, 0.0)
    named = sum(seconds for stage, seconds in stages.items() if stage not in (DECODE, ENCODE))
    denoise = max(row["took_s"] - decode, 0.0) if "took_s" in row else named
    encode = stages.get(ENCODE, row.get("kept_s", 0.0))
    return BlockTime(int(row["frames"]), denoise, decode, encode, row.get("arrived_s"))


def rates(blocks: Sequence[BlockTime]) -> Rates:
    """The four rates over all blocks: frames by the sum of seconds, so long blocks count by their length.

    Raises ValueError when there are no blocks.
    """
    _some(blocks)
    frames = sum(block.frames for block in blocks)
    denoise = sum(block.denoise for block in blocks)
    decode = sum(block.decode for block in blocks)
    encode = sum(block.encode for block in blocks)
    return Rates(
        _per(frames, denoise),
        _per(frames, denoise + decode) if decode else None,
        _per(frames, denoise + decode + encode) if encode else None,
        None if blocks[-1].arrived is None else _per(frames, blocks[-1].arrived),
    )


def arrivals(blocks: Sequence[BlockTime]) -> tuple[float, ...]:
    """When each block was there: as it was told, or, when nobody looked, when its work and that before was done."""
    told = [block.arrived for block in blocks if block.arrived is not None]
    return tuple(told) if len(told) == len(blocks) else tuple(accumulate(block.work for block in blocks))


def playback(blocks: Sequence[BlockTime], fps: float) -> Playback:
    """First frame, jitter and missed deadlines. Raises ValueError when there are no blocks or no rate."""
    _some(blocks)
    if fps <= 0:
        raise ValueError(f"{fps} frames per second; a player needs a rate above 0")
    came = arrivals(blocks)
    shown = [0, *accumulate(block.frames for block in blocks)]
    behind = [at - came[0] - frames / fps for at, frames in zip(came[1:], shown[1:], strict=False)]
    gaps = [
        after - before - block.frames / fps
        for before, after, block in zip(came, came[1:], blocks[1:], strict=False)
    ]  # fmt: skip
    return Playback(
        came[0],
        statistics.pstdev(gaps) if gaps else 0.0,
        sum(gap > 0 for gap in behind),
        len(behind),
        max([0.0, *behind]),
    )


def record(
    blocks: Sequence[BlockTime], conditions: Conditions, warm_up_s: float | None = None, compile_s: float | None = None
) -> dict[str, Any]:
    """The record every report carries under `speed`: frames, seconds by stage, rates, playback, warm-up, conditions."""
    found = rates(blocks)
    played = playback(blocks, conditions.fps) if conditions.fps else None
    return {
        "frames": sum(block.frames for block in blocks),
        "seconds": {
            "denoise": _short(sum(block.denoise for block in blocks)),
            "decode": _short(sum(block.decode for block in blocks)),
            "encode": _short(sum(block.encode for block in blocks)),
            "received": _short(blocks[-1].arrived),
        },
        "fps": {name: _short(value) for name, value in asdict(found).items()},
        "playback": None if played is None else {name: _short(value) for name, value in asdict(played).items()},
        "apart": {"warm_up_s": _short(warm_up_s), "compile_s": _short(compile_s)},
        "conditions": {**asdict(conditions), "machine": dict(conditions.machine or {})},
    }


def pooled(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One record over several videos: frames by the sum of their seconds, seconds of a video until its pixels were in
    memory, means of first frame and jitter, sums of missed deadlines, the largest buffer, the conditions that all
    share. Raises ValueError when there are none."""
    if not records:
        raise ValueError("0 timing records; at least one is needed")
    frames = sum(one["frames"] for one in records)
    stages = ("denoise", "decode", "encode", "received")
    told = {stage: [one["seconds"][stage] for one in records] for stage in stages}
    total = {stage: None if None in values else sum(values) for stage, values in told.items()}
    made, pixels, coded = total["denoise"] or 0.0, total["decode"] or 0.0, total["encode"] or 0.0
    played = [one["playback"] for one in records if one["playback"]]
    return {
        "videos": len(records),
        "frames": frames,
        "seconds": {stage: _short(value) for stage, value in total.items()},
        "conditions": {
            name: value
            for name, value in records[0]["conditions"].items()
            if all(one["conditions"][name] == value for one in records)
        },
        "seconds_per_video": _short((made + pixels) / len(records)),
        "fps": {
            "denoise": _short(_per(frames, made)),
            "with_decode": _short(_per(frames, made + pixels)) if pixels else None,
            "with_encode": _short(_per(frames, made + pixels + coded)) if coded else None,
            "received": _short(_per(frames, total["received"])) if total["received"] else None,
        },
        "playback": {
            "first_frame_s": _short(statistics.fmean(one["first_frame_s"] for one in played)),
            "jitter_s": _short(statistics.fmean(one["jitter_s"] for one in played)),
            "late": sum(one["late"] for one in played),
            "deadlines": sum(one["deadlines"] for one in played),
            "buffer_s": max(one["buffer_s"] for one in played),
        } if played else None,
    }  # fmt: skip


def _some(blocks: Sequence[BlockTime]) -> None:
    if not blocks:
        raise ValueError("0 blocks were timed; at least one is needed")


def _per(frames: int, seconds: float) -> float | None:
    return frames / seconds if seconds > 0 else None


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
