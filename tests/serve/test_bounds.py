"""What a client may ask of one block: passes as they are counted while it is made, no files, no endless past."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from arvid.caches.policies import POLICIES
from arvid.caches.positions import POSITIONS
from arvid.cli.families import OF_FILES
from arvid.pipeline import Pipeline, Request
from arvid.rollout.guard import GUARDS
from arvid.rollout.routers import ROUTERS
from arvid.rollout.state import bytes_of
from arvid.rollout.timeline import CUT, Entry
from arvid.samplers.noise import NOISES
from arvid.serve.bounds import FILES, NOT_COUNTED, UNBOUNDED, check, passes
from arvid.serve.limits import Work
from arvid.spec import build
from serve.running import OTHER, PROMPT, Running, Viewer, ask

WORDS = {"by", "aggregate", "commit", "keep", "measure", "mix"}
"""Options of specs that are words of a list, which is checked before anything is made."""
NUMBERS = ("int", "float", "tuple")


def options(registry: Mapping[str, Callable[..., Any]]) -> dict[str, str]:
    """All options of a registry by name, and their kinds."""
    found = {}
    for maker in registry.values():
        assert isinstance(maker, type)
        found.update({field.name: str(field.type) for field in fields(maker)})
    return found


@pytest.mark.parametrize("registry", [ROUTERS, POLICIES, POSITIONS, GUARDS, NOISES])
def test_every_option_that_is_text_is_known_as_a_word_or_a_file(registry: Mapping[str, Callable[..., Any]]) -> None:
    texts = {name for name, kind in options(registry).items() if not kind.startswith((*NUMBERS, "ClassVar"))}
    assert texts <= WORDS | FILES, "say which of the two a new option is"
    assert set(OF_FILES) <= FILES and not WORDS & FILES


def test_every_past_that_keeps_to_a_number_says_it() -> None:
    assert {name for name, maker in POLICIES.items() if "frames" not in options({name: maker})} == UNBOUNDED
    assert set(options(POLICIES)) >= NOT_COUNTED


ALWAYS = "act:colour=0.000001"
"""A guard that nothing satisfies."""
MADE = [
    ("target", "", 2), ("draft", "", 2), ("target:steps=5", "", 5), ("target:first_steps=7", "", 7),
    ("reward:tau=9", "", 4), ("reward:tau=9,refine=0.8+0.4,draft_steps=3", "", 5), ("verify:tau=9", "", 3),
    ("target:ahead=3", "", 6), ("verify:tau=9,measure=rival,refine=0.8+0.4", "", 5),
    ("draft:first_steps=9,draft_steps=3", "", 3), ("draft:first_steps=9,ahead=2", CUT, 18),
    ("refine:levels=0.7,draft_steps=1,first_steps=1,steps=9", ALWAYS, 9),
    ("refine:levels=0.7,draft_steps=1,first_steps=1,steps=9,ahead=2", ALWAYS, 18),
    ("refine:levels=0.7,draft_steps=1,first_steps=8,ahead=4", CUT, 32),
]  # fmt: skip
"""Routers that leave nothing out beside a guard or a cut, and what they take of a family of two steps."""


@pytest.mark.parametrize(("router", "beside", "count"), MADE)
def test_passes_are_those_that_are_made(pipeline: Pipeline, router: str, beside: str, count: int) -> None:
    cuts = (Entry(0.5, OTHER, CUT),) if beside == CUT else ()
    request = Request(PROMPT, 4.0, router=router, timeline=cuts, guard=beside if beside == ALWAYS else "")
    made = [
        sum(number for name, number in block.passes.items() if "commit" not in name)
        for block in pipeline.stream(request)
    ]
    assert max(made) == count == passes(build(router, ROUTERS, "router"), 2)


@pytest.mark.parametrize(
    ("router", "count"),
    [
        ("target:first_best=64", 2 * 64), ("target:first_best=64,first_look=1", 64 + 1), ("target:steps=1000", 1000),
        ("draft:draft_steps=900", 900), ("refine:levels=0.7,draft_steps=1,first_best=2,first_look=2", 4),
        ("stride:k=2,ahead=16", 16 * 4),
    ],
)  # fmt: skip
def test_passes_of_many_candidates_and_of_blocks_together(router: str, count: int) -> None:
    assert passes(build(router, ROUTERS, "router"), 2) == count


def told(pipeline: Pipeline, request: Request, work: Work) -> str:
    """What somebody is told; empty when it may be asked for."""
    try:
        check(pipeline, request, work)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("past", "held"),
    [
        ("window:frames=84", ""), ("window:frames=85", "85"), ("window:frames=42,sink=43", "85"), ("full", ""),
        ("pack:frames=9,side=100000", "100025"), ("route:frames=14,recent=9,archive=100", "123"),
        ("random:frames=9,seed=99999999", ""), ("conv:mix=place", ""), ("coarse:frames=9,mass=inf", "inf"),
        ("neighbour:frames=36,sink=3,ratio=4", "86"), ("window:frames=9" + 400 * "0", "inf"),
    ],
)  # fmt: skip
def test_a_past_holds_so_much(pipeline: Pipeline, past: str, held: str) -> None:
    """The family was trained on 21 frames, of which four times as many may be held."""
    found = told(pipeline, Request(PROMPT, 5.0, past=past), Work())
    assert found == (f"memory {past!r} may hold {held} latent frames; at most 84 on this server" if held else "")


HELD = [
    ("route:frames=9", "target", 10.0), ("pack:frames=9", "target", 20.0), ("bank:frames=9", "target", 10.0),
    ("deep:frames=9", "target", 5.0), ("neighbour:frames=9", "target:steps=8,commit=last", 4.0),
]  # fmt: skip
"""Pasts that hold more than the frames that they show, and for how long a video they do."""


@pytest.mark.parametrize(("past", "router", "seconds"), HELD)
def test_a_past_holds_no_more_than_is_counted(pipeline: Pipeline, past: str, router: str, seconds: float) -> None:
    def held(request: Request) -> int:
        session = pipeline.session(request, keep=1)
        return max(bytes_of(session.snapshot().parts) for _ in session)

    frame = held(Request(PROMPT, 4.0, router="target", past="window:frames=9")) / 9
    request = Request(PROMPT, seconds, router=router, past=past)
    frames = held(request) / frame
    assert frames > 9
    assert "latent frames; at most" in told(pipeline, request, Work(past=(frames - 0.5) / 21))


def test_a_past_that_grows_is_as_long_as_the_video(pipeline: Pipeline) -> None:
    assert told(pipeline, Request(PROMPT, 20.0, past="full"), Work()) == ""
    assert "may hold 85 latent frames" in told(pipeline, Request(PROMPT, 21.0, past="full"), Work())
    assert "may hold 85 latent frames" not in told(pipeline, Request(PROMPT, 21.0, past="full"), Work(past=5.0))


def test_what_the_family_does_by_itself_may_be_asked_for(pipeline: Pipeline) -> None:
    card, nothing = pipeline.family.card, Work(passes=0.01, past=0.01)
    assert told(pipeline, Request(PROMPT, 5.0), nothing) == ""
    assert told(pipeline, Request(PROMPT, 5.0, router=card.router, past=card.past), nothing) == ""
    assert told(pipeline, Request(PROMPT, 5.0, router="target"), nothing)


def trap(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What of a folder is looked at from now on."""
    touched: list[str] = []
    opened, status = Path.read_text, os.stat

    def read_text(path: Path, *more: Any, **others: Any) -> str:
        touched.extend([str(path)] if folder in path.parents else [])
        return opened(path, *more, **others)

    def stat(path: Any, *more: Any, **others: Any) -> os.stat_result:
        touched.extend([str(path)] if str(path).startswith(str(folder)) else [])
        return status(path, *more, **others)

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(os, "stat", stat)
    return touched


NAMING = ["headwise:profile={}", "pack:weights={}", "conv:frames=9,weights={}", "bank:reader={}"]


@pytest.mark.parametrize("spec", NAMING)
def test_nobody_learns_which_files_the_server_has(
    server: Running, spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, missing = tmp_path / "a", tmp_path / "b"
    there.write_text("secret")
    touched, answers = trap(tmp_path, monkeypatch), []
    for path in (there, missing):
        body = {"prompt": PROMPT, "seconds": 1, "arvid": {"memory": spec.format(path)}}
        status, _, answer = ask(server.address, "/v1/videos", body)
        assert status == 400
        answers.append(json.loads(answer)["error"]["message"].replace(str(path), "PATH"))
        viewer = Viewer(server.address, {"prompt": PROMPT, "arvid": body["arvid"]})
        answers.append(viewer.until("error")["error"]["message"].replace(str(path), "PATH"))
        viewer.close()
    assert len(set(answers)) == 1 and "names a file, which no client may do here; leave it out" in answers[0]
    assert touched == []


@pytest.mark.parametrize("extras", [{"router": "target:steps=1000"}, {"memory": "window:frames=100000"}])
def test_more_than_a_block_may_take_is_refused_wherever_it_is_asked_for(server: Running, extras: Any) -> None:
    status, _, answer = ask(server.address, "/v1/videos", {"prompt": PROMPT, "seconds": 1, "arvid": extras})
    assert status == 400 and "on this server" in json.loads(answer)["error"]["message"]
    viewer = Viewer(server.address, {"prompt": PROMPT, "arvid": extras})
    assert "on this server" in viewer.until("error")["error"]["message"]
    viewer.close()


def test_a_knob_asks_for_no_more_than_a_request(server: Running) -> None:
    viewer = Viewer(server.address, {"prompt": PROMPT, "seconds": 30, "lead": 1})
    viewer.until("video.block", block=0)
    viewer.say(type="knob", id="slow", router="target:steps=1000")
    found = viewer.until("error", id="slow")["error"]["message"]
    assert found == "router 'target:steps=1000' may take 1000 passes until a block comes out; at most 8 on this server"
    viewer.say(type="knob", id="slower", router="target:steps=8")
    assert viewer.until("control.receipt", id="slower")
    viewer.say(type="stop")
    viewer.close()


def test_noise_is_asked_for_like_positions(server: Running) -> None:
    asked = {"prompt": PROMPT, "seconds": 1, "size": "64x64"}
    status, _, answer = ask(server.address, "/v1/videos", {**asked, "arvid": {"noise": "antiphase:rho=-0.3"}})
    assert (status, json.loads(answer)["arvid"]["noise"]) == (200, "antiphase:rho=-0.3")
    status, _, answer = ask(server.address, "/v1/videos", {**asked, "arvid": {"noise": "pink"}})
    assert status == 400 and b"unknown noise 'pink'" in answer
