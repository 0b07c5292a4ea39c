"""Live sessions over a real socket: what is seen against the pipeline, receipts, the playhead, ways back, strangers."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from arvid.pipeline import Pipeline, Request
from arvid.serve.direction import Direction
from arvid.serve.fragments import Fragmenter
from arvid.serve.keys import make_key
from arvid.serve.limits import Allowance, Limits
from arvid.serve.live import Live
from arvid.serve.record import Record
from serve import running
from serve.running import OTHER, PROMPT, Running, Viewer, ask, frames_of, unread

START = {"prompt": PROMPT, "seconds": 30, "lead": 1.2, "arvid": {"router": "stride:k=3", "seed": 2}}
BLOCK = 0.75
"""Seconds of a block but the first, which is shorter."""


@pytest.fixture
def viewer(server: Running) -> Iterator[Viewer]:
    """A session that has just begun; it is ended afterwards."""
    made = Viewer(server.address, START)
    made.until("session.created")
    yield made
    name = made.messages[0]["session"]
    ask(server.address, f"/v1/live/{name}", method="DELETE")
    made.close()


def watched(viewer: Viewer, block: int, **wanted: Any) -> dict[str, Any]:
    """Watch until a block has come; the playhead goes with what is received."""
    seen = [message["second"] for message in viewer.messages if message["type"] == "video.block"]
    viewer.say(type="ack", second=max(seen, default=0))
    while True:
        found = viewer.until("video.block", **wanted)
        viewer.say(type="ack", second=found["second"])
        if found["block"] == block:
            return found


def test_what_is_seen_is_what_the_pipeline_makes(viewer: Viewer, pipeline: Pipeline) -> None:
    watched(viewer, 4)
    created = viewer.messages[0]
    assert created["mime"].startswith('video/mp4; codecs="avc1.') and created["fps"] == 16
    assert (created["width"], created["height"], created["blocks"]) == (128, 128, [])
    blocks = list(pipeline.generate(Request(PROMPT, 4.0, 2, "stride:k=3")).blocks)[:5]
    told = [message for message in viewer.messages if message["type"] == "video.block"][:5]
    assert [message["block"] for message in told] == list(range(5))
    assert [message["source"] for message in told] == [block.source for block in blocks]
    assert [message["decision"] for message in told] == ["target", "accepted", "accepted", "target", "accepted"]
    assert all(message["prompt"] == PROMPT and message["took"]["decode"] > 0 for message in told)
    fragmenter, first = Fragmenter(16, (64, 64), 2), 0
    for number, block in enumerate(blocks):
        assert viewer.fragments[0, number] == fragmenter.fragment(block.frames_BTCHW[0], first, number + 1)
        first += block.frames_BTCHW.shape[1]
    seconds = [message["second"] for message in told]
    assert seconds == pytest.approx([0.0, *(0.5625 + BLOCK * number for number in range(4))])


def test_the_playhead_sets_the_pace(viewer: Viewer, server: Running) -> None:
    """A lead of 1.2 s: blocks that begin at 0, 0.56 and no more, until the playhead moves."""
    viewer.until("video.block", block=1)
    live = server.house.engine.lives[viewer.messages[0]["session"]]
    assert viewer.idle(1.0)
    assert len(live.record) == 2
    viewer.say(type="ack", second=1e6)
    viewer.until("video.block", block=2)
    assert live.playhead <= 0.5625 + BLOCK, "nobody has seen what was not sent"
    viewer.say(type="pause", id="p")
    assert viewer.until("control.receipt")["id"] == "p"
    viewer.say(type="ack", second=2.0)
    while not viewer.idle(0.5):
        pass
    made = len(live.record)
    viewer.say(type="ping", id="x")
    assert viewer.until("pong")["id"] == "x" and len(live.record) == made
    viewer.say(type="play", id="q")
    viewer.until("video.block", block=made)


def test_a_prompt_is_answered_by_the_block_that_shows_it(viewer: Viewer) -> None:
    viewer.until("video.block", block=1)
    viewer.say(type="prompt", id="one", prompt=OTHER, how="recache")
    receipt = viewer.until("control.receipt")
    assert (receipt["id"], receipt["control"], receipt["block"]) == ("one", "prompt", 2)
    assert receipt["second"] == pytest.approx(0.5625 + BLOCK)
    watched(viewer, 3)
    told = {message["block"]: message["prompt"] for message in viewer.messages if message["type"] == "video.block"}
    assert told == {0: PROMPT, 1: PROMPT, 2: OTHER, 3: OTHER}


def test_a_prompt_now_takes_back_what_was_not_seen(server: Running) -> None:
    viewer = Viewer(server.address, {**START, "lead": 6.0})
    viewer.until("video.block", block=5)
    viewer.say(type="ack", second=0.6)
    viewer.say(type="prompt", id="now", prompt=OTHER, now=True)
    receipt = viewer.until("control.receipt")
    assert receipt["block"] == 2, "block 1 is being seen"
    flush = [message for message in viewer.messages if message["type"] == "video.flush"]
    flush = flush or [viewer.until("video.flush")]
    assert (flush[0]["block"], flush[0]["version"]) == (2, 1) and flush[0]["second"] == pytest.approx(1.3125)
    again = viewer.until("video.block", version=1)
    assert (again["block"], again["prompt"]) == (2, OTHER)
    viewer.say(type="stop")
    assert viewer.until("session.closing")["why"] == "stopped"
    viewer.close()


def test_back_and_another_way(viewer: Viewer) -> None:
    watched(viewer, 4)
    viewer.say(type="rewind", id="r", block=2)
    assert viewer.until("control.receipt")["block"] == 2
    again = watched(viewer, 3, version=1)
    assert again["second"] == pytest.approx(0.5625 + 2 * BLOCK)
    for block in (2, 3):
        assert viewer.fragments[1, block][40:] == viewer.fragments[0, block][40:], "the same video once more"
    viewer.say(type="branch", id="b", block=1, seed=9, prompt=OTHER)
    assert viewer.until("control.receipt")["block"] == 1
    other = watched(viewer, 2, version=2)
    assert other["prompt"] == OTHER
    assert viewer.fragments[2, 1] != viewer.fragments[0, 1]
    kinds = [(message["type"], message["block"]) for message in viewer.messages if message["type"] == "video.flush"]
    assert kinds == [("video.flush", 2), ("video.flush", 1)]


def test_knobs(viewer: Viewer) -> None:
    viewer.until("video.block", block=1)
    for knob, router in (
        ({"tau": 0.25}, "reward:tau=0.25"), ({"fps": 12}, "hold:fps=12"), ({"router": "target"}, "target"),
    ):  # fmt: skip
        viewer.say(type="knob", id="k", **knob)
        receipt = viewer.until("control.receipt")
        found = watched(viewer, receipt["block"])
        assert found["router"] == router
        assert (found["score"] is not None) == ("tau" in knob)
    assert found["source"] == "target"


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ({"type": "dance"}, "dance"),
        ({"type": "rewind", "block": 99}, "block 99 cannot be gone back to"),
        ({"type": "rewind", "block": -1}, "block"),
        ({"type": "prompt", "prompt": ""}, "prompt"),
        ({"type": "prompt", "prompt": "x", "how": "wipe"}, "unknown transition 'wipe'"),
        ({"type": "knob"}, "give one of tau, fps and router"),
        ({"type": "knob", "router": "nobody"}, "unknown router"),
        ({"type": "session.start", "prompt": "x"}, "the session has begun"),
        ({"type": "ack", "second": "x"}, "second"),
    ],
)
def test_what_cannot_be_done_is_told_and_the_session_goes_on(viewer: Viewer, message: Any, told: str) -> None:
    viewer.say(id="w", **message)
    error = viewer.until("error")
    assert told in error["error"]["message"] and error["id"] == "w"
    for wrong in ("{", "[" * 30000, "3", b"x"):
        viewer.socket.send(wrong)
        assert viewer.until("error")["error"]["type"] == "invalid_request_error"
    watched(viewer, 2)


def test_a_reload_goes_on_where_it_was(viewer: Viewer, server: Running) -> None:
    watched(viewer, 3)
    session = viewer.messages[0]["session"]
    other = Viewer(server.address, {"session": session, "at": 1.4, "lead": 1.2})
    created = other.until("session.created")
    assert created["session"] == session and len(created["blocks"]) >= 4
    assert [piece["block"] for piece in created["blocks"][:4]] == [0, 1, 2, 3]
    assert other.until("video.block")["block"] == 2, "the block at 1.4 s comes first"
    assert other.fragments[0, 2] == viewer.fragments[0, 2]
    assert viewer.until("session.taken")
    other.say(type="seek", id="s", second=0.1)
    assert other.until("control.receipt")["block"] == 0
    assert other.until("video.block")["block"] == 0
    status, headers, film = ask(server.address, f"/v1/live/{session}/content")
    assert (status, headers["content-type"]) == (200, "video/mp4") and len(frames_of(film)) >= 9 + 3 * 12
    listed = json.loads(ask(server.address, "/v1/live")[2])["data"]
    assert session in [live["id"] for live in listed]
    other.close()


def test_a_whole_session_ends_and_can_be_gone_back_in(server: Running) -> None:
    viewer = Viewer(server.address, {**START, "seconds": 1.5, "lead": 9})
    viewer.until("video.done")
    assert len(viewer.fragments) == 3
    viewer.say(type="prompt", id="late", prompt=OTHER)
    assert "blocks are made" in viewer.until("error")["error"]["message"]
    viewer.say(type="rewind", id="r", block=1)
    viewer.until("video.done")
    assert (1, 2) in viewer.fragments
    viewer.say(type="stop")
    viewer.until("session.closing")
    viewer.close()


def test_jobs_go_on_beside_live_sessions(viewer: Viewer, server: Running) -> None:
    body = {"prompt": PROMPT, "seconds": 1, "size": "64x64"}
    job = json.loads(ask(server.address, "/v1/videos", body)[2])["id"]
    for _ in range(300):
        found = viewer.until("video.block")
        viewer.say(type="ack", second=found["second"] + BLOCK)
        if json.loads(ask(server.address, f"/v1/videos/{job}")[2])["status"] == "completed":
            break
    else:
        pytest.fail("the job starved")


@pytest.mark.parametrize(
    ("headers", "more"),
    [({}, {"origin": "https://evil.example"}), ({"host": "evil.example"}, {"origin": "http://evil.example"})],
)
def test_pages_of_others_are_not_let_in(toy: Path, tmp_path: Path, headers: Any, more: Any) -> None:
    server = running.begin(toy, tmp_path, hosts=("127.0.0.1",), origins=("https://friend.example",))
    try:
        origin = more["origin"]
        for method in ("POST", "DELETE"):
            status, _, answer = ask(
                server.address, "/v1/videos", {"prompt": PROMPT}, method, {**headers, "origin": origin}
            )
            assert status == 403, answer
        with pytest.raises(InvalidStatus) as refused:
            Viewer(server.address, START, additional_headers=headers if not headers else None, **more)
        assert refused.value.response.status_code == 403
        friend = Viewer(server.address, START, origin="https://friend.example")
        friend.until("session.created")
        friend.close()
        own = Viewer(server.address, START, origin=server.address)
        own.until("session.created")
        own.close()
        status, answered, _ = ask(server.address, "/v1/videos", headers={"origin": origin})
        assert "access-control-allow-origin" not in answered
    finally:
        server.stop()


def test_keys_and_limits_of_sessions(toy: Path, tmp_path: Path) -> None:
    limits = Limits(live_seconds=60, idle_seconds=1.5)
    server = running.begin(toy, tmp_path, locked=True, limits=limits)
    try:
        ann, bob = (make_key(server.house.store, name, Allowance(sessions=1)) for name in ("ann", "bob"))
        nobody = Viewer(server.address, START)
        assert nobody.until("error")["error"]["code"] == "invalid_api_key"
        with pytest.raises(ConnectionClosed):
            nobody.next()
        first = Viewer(server.address, {**START, "key": ann})
        session = first.until("session.created")["session"]
        for start, code in (
            ({**START, "key": ann}, "too_many_sessions"),
            ({"session": session, "key": bob}, "not_found"),
            ({**START, "seconds": 61, "key": bob}, None),
            ({**START, "prompt": "", "key": bob}, "invalid_value"),
        ):
            refused = Viewer(server.address, start)
            assert refused.until("error")["error"]["code"] == code
            refused.close()
        with_header = Viewer(server.address, START, additional_headers={"authorization": f"Bearer {bob}"})
        with_header.until("session.created")
        for path in (f"/v1/live/{session}", f"/v1/live/{session}/content"):
            assert ask(server.address, path, headers={"authorization": f"Bearer {bob}"})[0] == 404
        assert first.until("session.closing")["why"] == "idle"
        with_header.close()
        for _ in range(100):
            if not server.house.engine.lives:
                break
            time.sleep(0.05)
        assert server.house.engine.lives == {} and list((tmp_path / "live").iterdir()) == []
    finally:
        server.stop()


def test_the_end_of_the_server_is_told(toy: Path, tmp_path: Path) -> None:
    server = running.begin(toy, tmp_path)
    viewer = Viewer(server.address, START)
    viewer.until("video.block")
    server.house.engine.drain()
    assert viewer.until("session.closing")["why"] == "the server ends"
    viewer.close()
    assert ask(server.address, "/healthz")[0] == 200 and ask(server.address, "/readyz")[0] == 503
    status, headers, _ = ask(server.address, "/v1/videos", {"prompt": PROMPT})
    assert (status, headers["retry-after"]) == (503, "5")
    server.stop()


def test_whoever_waits_is_woken(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that looks around by itself every ten minutes only: what happens here happens because it was told."""
    monkeypatch.setattr("arvid.serve.engine.IDLE_SECONDS", 600.0)
    server = running.begin(toy, tmp_path)
    try:
        viewer = Viewer(server.address, START)
        viewer.until("video.block", block=1)
        watched(viewer, 4)
        viewer.say(type="pause", id="p")
        viewer.until("control.receipt", id="p")
        viewer.say(type="rewind", id="r", block=2)
        viewer.until("control.receipt", id="r")
        viewer.say(type="play", id="q")
        viewer.until("video.block", version=1, block=2)
        job = json.loads(ask(server.address, "/v1/videos", {"prompt": PROMPT, "seconds": 1, "size": "64x64"})[2])
        assert running.wait_for(server.address, job["id"])["status"] == "completed"
        viewer.say(type="stop")
        viewer.until("session.closing")
        viewer.close()
    finally:
        server.stop()


def test_who_reads_nothing_gets_nothing_made(toy: Path, tmp_path: Path) -> None:
    """Whatever it says about its playhead: buffers on the way are full, so nothing is sent, so nothing is made."""
    server = running.begin(toy, tmp_path)
    plug = socket.socket()
    try:
        viewer, live = unread(server, plug, START)
        assert 0 < live.sent <= live.record.end < 100 and not live.done
        assert live.playhead <= live.sent
        assert viewer.until("video.block", block=3), "and it can go on as soon as it reads"
        viewer.close()
    finally:
        plug.close()
        server.stop()


def test_an_ack_of_what_was_not_sent_moves_nothing(pipeline: Pipeline, tmp_path: Path) -> None:
    """A viewer that takes nothing gets nothing made beyond the lead, whatever it says."""
    record, films = Record(tmp_path / "live"), ThreadPoolExecutor(1)
    direction = Direction(pipeline, Request(PROMPT, 30.0, router="draft"))
    live = Live("l", "", direction, (Fragmenter(16, (64, 64)), record), films, 2.0)
    live.on_change = lambda: None
    for _ in range(20):
        live.ack(1000.0)
        if live.wants:
            live.step()
    assert live.ahead < 2.0 + BLOCK and live.playhead == 0
    live.has_sent(1.3, version=0)
    live.ack(1000.0)
    assert live.playhead == 1.3
    live.close("end")
    films.shutdown()
