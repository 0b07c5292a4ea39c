"""Directed rollouts against the session they are made of, and against themselves on another way."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import equal

from arvid.pipeline import Pipeline, Request
from arvid.rollout.routers import ROUTERS
from arvid.rollout.session import Session
from arvid.serve.direction import RECENT, SPARSE, Direction, bytes_of
from arvid.serve.knobs import shared, with_fps, with_tau
from arvid.spec import build
from arvid.types import Block
from serve.running import OTHER, PROMPT

REQUEST = Request(PROMPT, seconds=6.0, router="stride:k=3")


def made(direction: Direction, blocks: int) -> list[Block]:
    """So many new blocks; those that are made again on the way do not count."""
    found: list[Block] = []
    while len(found) < blocks:
        if (block := direction.step()) is not None:
            found.append(block)
    return found


def same(ours: list[Block], theirs: list[Block]) -> bool:
    pairs = list(zip(ours, theirs, strict=True))
    alike = all(a.move.index == b.move.index and a.source == b.source for a, b in pairs)
    return alike and all(equal(a.frames_BTCHW, b.frames_BTCHW) for a, b in pairs)


def test_prompts_and_branches_are_those_of_a_session(pipeline: Pipeline) -> None:
    direction, session = Direction(pipeline, REQUEST), pipeline.session(REQUEST)
    assert same(made(direction, 2), [next(session) for _ in range(2)])
    assert direction.prompt(OTHER, "soft") == session.prompt(OTHER, "soft").block == 2
    assert same(made(direction, 2), [next(session) for _ in range(2)])
    assert direction.back(1, OTHER, seed=5) == session.branch(1, OTHER, seed=5).block == 1
    ours, theirs = made(direction, 3), [next(session) for _ in range(3)]
    assert same(ours, theirs) and ours[0].move.index == 1
    assert direction.prompt_at(0) == PROMPT and direction.prompt_at(1) == OTHER
    direction.back(3)
    session.rewind(3)
    assert same(made(direction, 1), [next(session)])


def test_the_way_back_leads_through_the_same_video(pipeline: Pipeline) -> None:
    direction = Direction(pipeline, REQUEST)
    first = made(direction, 2)
    direction.route("target")
    first += made(direction, 1)
    direction.prompt(OTHER)
    direction.route("draft")
    first += made(direction, 3)
    assert [block.source for block in first[2:]] == ["target", "draft", "draft", "draft"]
    direction._states = {0: direction._states[0]}  # as after a long while: everything has to be made again
    direction.back(5)
    assert same(made(direction, 1), first[5:])
    direction.back(2)
    assert direction.router == "draft", "turning a knob is not taken back"
    assert (direction.prompt_at(2), made(direction, 1)[0].source) == (PROMPT, "draft")


def test_a_control_on_the_way_back_holds_from_where_it_leads(pipeline: Pipeline) -> None:
    direction = Direction(pipeline, REQUEST)
    made(direction, 4)
    direction._states = {0: direction._states[0]}
    direction.back(3)
    assert direction.step() is None
    assert direction.prompt(OTHER) == 3
    session = pipeline.session(REQUEST)
    for _ in range(3):
        next(session)
    session.prompt(OTHER)
    assert same(made(direction, 1), [next(session)])


def test_a_frame_rate_is_held_in_a_share_of_the_time(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    session = pipeline.session

    def open_session(request: Request, **more: int) -> Session:
        opened.append(request.router)
        return session(request, **more)

    monkeypatch.setattr(pipeline, "session", open_session)
    direction = Direction(pipeline, REQUEST)
    direction.route("hold:fps=12,repair=2")
    made(direction, 1)
    direction.sharing = 4
    made(direction, 2)
    assert opened == ["stride:k=3", "hold:fps=12,repair=2", "hold:fps=48,repair=2"]
    assert direction.router == "hold:fps=12,repair=2", "what is told is what was asked for"
    direction.route("stride:k=2")
    made(direction, 1)
    assert opened[3:] == ["stride:k=2"], "no other rule looks at the clock"


def test_a_router_that_makes_other_moves_is_refused(pipeline: Pipeline) -> None:
    direction = Direction(pipeline, REQUEST)
    made(direction, 2)
    with pytest.raises(ValueError, match=r"moves, it was begun in .*; keep ahead= as it is, or begin another session"):
        direction.route("stride:k=3,ahead=2")
    assert direction.router == "stride:k=3"
    ahead = Direction(pipeline, Request(PROMPT, seconds=6.0, router="stride:k=3,ahead=2"))
    first = made(ahead, 2)
    ahead.route(with_tau(ahead.router, float("inf")))
    assert first[1].move.span.stop == made(ahead, 1)[0].move.span.start, "a knob keeps the moves"


def test_knobs_keep_what_all_rules_know() -> None:
    assert with_tau("refine:levels=0.8,ahead=2,first_look=1", 0.25) == "reward:tau=0.25,ahead=2,first_look=1,refine=0.8"
    assert with_tau("refine:levels=0.8+0.4,draft_steps=1", 0.25) == "reward:tau=0.25,draft_steps=1,refine=0.8+0.4"
    assert with_tau("hold:fps=12,repair=2", 0.5) == "reward:tau=0.5,repair=2"
    assert with_fps("reward:tau=0.6,aggregate=min,repair=2", 16) == "hold:fps=16,repair=2"
    assert with_fps("target", 7.5) == "hold:fps=7.5"
    assert [shared("hold:fps=7.5,horizon=2", sessions) for sessions in (1, 2)] == [
        "hold:fps=7.5,horizon=2", "hold:fps=15,horizon=2",
    ]  # fmt: skip
    assert shared("reward:tau=0.5", 3) == "reward:tau=0.5"
    assert build(shared("hold:fps=1e308", 9), ROUTERS, "router").check is None, "a large rate stays a number"


def test_states_stay_few(pipeline: Pipeline) -> None:
    direction = Direction(pipeline, Request(PROMPT, seconds=40.0, router="draft"))
    for _ in range(50):
        direction.step()
    assert len(direction._states) <= 2 + RECENT + SPARSE
    gaps = sorted(direction._states)
    assert max(b - a for a, b in itertools.pairwise(gaps)) <= 16


def test_states_take_no_more_room_than_they_may(pipeline: Pipeline) -> None:
    free, tight = Direction(pipeline, REQUEST), Direction(pipeline, REQUEST, room=0)
    assert same(made(free, 6), made(tight, 6))
    assert sorted(free._states) == list(range(7)) and sorted(tight._states) == [0, 6]
    for direction in (free, tight):
        direction.back(4, OTHER)
    assert tight.step() is None, "made again from the beginning"
    assert same(made(free, 2), made(tight, 2))


def test_bytes_that_are_shared_count_once() -> None:
    one, other = torch.zeros(3, dtype=torch.float64), torch.zeros(5, dtype=torch.float32)
    held = bytes_of(({"a": [one, (other, "x")]}, one, None, 3))
    assert sorted(held.values()) == [20, 24]


def test_what_cannot_be_done_changes_nothing(pipeline: Pipeline) -> None:
    direction, untouched = Direction(pipeline, REQUEST), Direction(pipeline, REQUEST)
    made(direction, 2)
    made(untouched, 2)
    with pytest.raises(ValueError, match="block 7 cannot be gone back to; blocks 0 to 1 are made"):
        direction.back(7)
    with pytest.raises(ValueError, match="unknown router"):
        direction.route("nobody")
    with pytest.raises(ValueError, match="unknown transition"):
        direction.prompt(OTHER, "wipe")
    with pytest.raises(ValueError, match="unknown transition"):
        direction.back(0, OTHER, how="wipe")
    assert same(made(direction, 1), made(untouched, 1))
    whole = Direction(pipeline, Request(PROMPT, seconds=1.0))
    made(whole, len(whole.plan))
    assert whole.done
    with pytest.raises(ValueError, match="blocks are made; go back first"):
        whole.prompt(OTHER)
