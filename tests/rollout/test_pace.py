"""Holding a frame rate: the share that a rate allows by hand, and a rollout under a clock that the test winds."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from arvid.rollout.devices import settled
from arvid.rollout.judging import Routing
from arvid.rollout.loop import rollout
from arvid.rollout.pace import affordable
from arvid.rollout.routers import ROUTERS
from arvid.rollout.stage import RECENT, Clock, Lap, Pace, Stage
from arvid.samplers.noise import SeededNoise
from arvid.samplers.plans import sequential
from arvid.spec import build
from arvid.types import Block, Condition, DecoderState, Move, Noise, Proposal, Span

FIRST = Lap(9, 8.0, 4.0)


@pytest.mark.parametrize(
    ("pace", "fps", "expected"),
    [
        (Pace(), 12.0, 0.0),
        # 9 frames at 12 a second are due in 0.75 s, of which drafting has taken 0.25; the target takes 4
        (Pace(FIRST, spent=0.25), 12.0, 0.5 / 4),
        (Pace(FIRST, spent=0.25), 900.0, 0.0),
        (Pace(FIRST, spent=0.25), 1.0, 1.0),
        # recent blocks: drafting took 0.5, mending 1; the playing time is 1 s, and nothing is carried over
        (Pace(FIRST, (Lap(12, 0.5, 0.0), Lap(12, 1.5, 1.0)), 24, 2.0), 12.0, 0.5),
        # 2 s ahead over a horizon of 4 blocks: half a second more
        (Pace(FIRST, (Lap(12, 0.5, 0.0), Lap(12, 1.5, 1.0)), 48, 2.0), 12.0, 1.0),
        # 1 s behind: a quarter of a second less
        (Pace(FIRST, (Lap(12, 0.5, 0.0), Lap(12, 1.5, 1.0)), 24, 3.0), 12.0, 0.25),
        # far behind: no more than the playing time of four blocks counts
        (Pace(FIRST, (Lap(12, 0.5, 0.0), Lap(12, 1.5, 1.0)), 24, 99.0), 12.0, 0.0),
        # a target that takes no time
        (Pace(replace(FIRST, target=0.0), spent=0.25), 12.0, 1.0),
    ],
)
def test_the_share_that_can_be_mended(pace: Pace, fps: float, expected: float) -> None:
    assert affordable(pace, fps, 4.0) == pytest.approx(expected)


def test_a_bad_start_is_forgotten() -> None:
    laps = (Lap(12, 0.25, 0.0),) * 5
    short, long = (affordable(Pace(FIRST, laps, 60, seconds), 6.0, 4.0) for seconds in (11.0, 1000.0))
    assert long == pytest.approx(0.0)
    assert short > 0


class Wound:
    """A clock that goes when it is told."""

    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


@dataclass
class Costs:
    """A proposer, decoder, reward and conditioner that do nothing but take their time."""

    clock: Clock
    wound: Wound
    draft: float = 0.2
    target: float = 1.0
    decode: float = 0.1

    def propose(self, move: Move, condition: Condition, noise: Noise, rejected: Proposal | None = None) -> Proposal:
        own = rejected is not None or move.index == 0
        with self.clock.measure("target" if own else "draft"):
            self.wound.time += self.target if own else self.draft
        value = random.Random(move.index).random()
        return Proposal(torch.full((1, 3, 1, 1, 1), value), source="target" if own else "draft")

    def commit(self, move: Move, proposal: Proposal, condition: Condition) -> None:
        return None

    def decode_frames(self, z_BTCHW: Tensor) -> Tensor:
        self.wound.time += self.decode
        return z_BTCHW.repeat_interleave(4, 1).expand(-1, -1, 3, -1, -1)

    def at(self, span: Span) -> Condition:
        return Condition("words", torch.zeros(1, 1, 1))


@dataclass
class Decoding:
    costs: Costs

    def decode(self, z_BTCHW: Tensor, state: DecoderState | None = None) -> tuple[Tensor, DecoderState]:
        return self.costs.decode_frames(z_BTCHW), ()


class Brightness:
    def score(self, v_BTCHW: Tensor, prompt: str) -> Tensor:
        return v_BTCHW.mean((2, 3, 4))


def held(text: str, blocks: int = 150, **costs: float) -> tuple[list[Block], float]:
    """Blocks of a rollout, and its frames per second behind the first block."""
    wound = Wound()
    clock = Clock(wound)
    parts = Costs(clock, wound, **costs)
    stage = Stage(Decoding(parts), clock)
    judge = Routing(build(text, ROUTERS, "router"), Brightness(), clock)
    plan = sequential(3 * blocks, 3, (1.0, 0.0))
    made, begin = [], 0.0
    for block in rollout(plan, parts, judge, parts, SeededNoise(0), stage):
        made.append(block)
        begin = begin or wound.time
    return made, 12 * (blocks - 1) / (wound.time - begin)


@pytest.mark.parametrize("fps", [10.0, 16.0, 25.0, 35.0])
def test_a_rate_is_held_by_mending_as_many_as_time_allows(fps: float) -> None:
    """Drafting and decoding take 0.3 s for 12 frames (40 a second), a mended block 1.4 s (8.6 a second)."""
    made, rate = held(f"hold:fps={fps}")
    assert rate == pytest.approx(fps, rel=0.04)
    mended = [block.source == "target" for block in made[1:]]
    assert sum(mended) / len(mended) == pytest.approx((12 / fps - 0.3) / 1.1, abs=0.04)


def test_a_rate_out_of_reach_leaves_all_drafts_and_an_easy_one_none() -> None:
    fast, _ = held("hold:fps=100")
    assert [block.source for block in fast] == ["target"] + ["draft"] * 149
    assert all(block.verdict.score is None for block in fast)
    slow, _ = held("hold:fps=2")
    assert [block.source for block in slow] == ["target"] * 150


def test_it_is_the_bad_drafts_that_are_mended() -> None:
    made, _ = held("hold:fps=16")
    drawn = {source: [random.Random(block.move.index).random() for block in made[20:] if block.source == source]
             for source in ("draft", "target")}  # fmt: skip
    assert sum(drawn["draft"]) / len(drawn["draft"]) > sum(drawn["target"]) / len(drawn["target"]) + 0.4


def test_what_is_held_follows_the_speed_and_not_the_machine() -> None:
    one, other = held("hold:fps=16"), held("hold:fps=16")
    assert [block.source for block in one[0]] == [block.source for block in other[0]]
    quicker, rate = held("hold:fps=16", target=0.4)
    assert rate == pytest.approx(16, rel=0.15) or rate > 16
    assert sum(block.source == "target" for block in quicker) > sum(block.source == "target" for block in one[0])


def test_on_a_cpu_a_clock_only_looks_at_the_time() -> None:
    assert settled((torch.nn.Linear(1, 1), None)) is time.perf_counter


def test_work_that_is_only_begun_counts_where_it_was_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two devices that are told at once and work later: a stage has what they worked, waiting for anything or not."""
    wound, waiting = Wound(), {"cuda:0": 0.0, "cuda:1": 0.0}

    class Stream:
        def __init__(self, device: torch.device) -> None:
            self.device = str(device)

        def synchronize(self) -> None:
            wound.time += waiting[self.device]
            waiting[self.device] = 0.0

    monkeypatch.setattr("arvid.rollout.devices.device_of", torch.device)
    monkeypatch.setattr("arvid.rollout.devices.time.perf_counter", wound)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    clock = Clock(settled(("cuda:0", "cuda:1", "cuda:0", "cpu")))
    for begun, device in (("draft", "cuda:1"), ("target", "cuda:0")):
        with clock.measure(begun):
            waiting[device] += 2.0 if begun == "target" else 0.5
    waiting["cuda:0"] += 1.0
    assert clock.seconds == {"draft": 0.5, "target": 2.0}
    assert clock.pace.spent == 3.5
    clock.lap(9)
    assert clock.pace.first == Lap(9, 3.5, 2.0)


def test_laps_are_counted_behind_the_first() -> None:
    wound = Wound()
    clock = Clock(wound)
    for number in range(RECENT + 5):
        clock.reset()
        with clock.measure("target"):
            wound.time += 2.0
        wound.time += 1.0
        clock.lap(12 if number else 9)
    wound.time += 5.0
    clock.reset()
    wound.time += 0.5
    pace = clock.pace
    assert (pace.first, pace.spent, pace.frames, pace.seconds) == (
        Lap(9, 3.0, 2.0),
        0.5,
        12 * (RECENT + 4),
        3.0 * (RECENT + 4),
    )
    assert pace.recent == (Lap(12, 3.0, 2.0),) * RECENT
