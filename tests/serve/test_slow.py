"""Slow things that nobody else may wait for: films of jobs, viewers that read slowly or not at all."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from arvid.cli.serve import SILENT_MS, listening
from arvid.serve import sockets
from arvid.serve.live import Live
from arvid.serve.making import Making
from arvid.serve.protocol import Seek
from arvid.serve.record import Record
from arvid.video import Reel
from oracles import films
from serve import running
from serve.running import OTHER, PROMPT, Running, Viewer, ask, frames_of, unread, until, wait_for

FRAMES = 40
ON_LINUX = pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="this system has no TCP_USER_TIMEOUT")


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A film from elsewhere."""
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    return films.write(path, films.moving(frames=FRAMES, size=(64, 64))).read_bytes()


def extended(server: Running, clip: bytes, seconds: float) -> str:
    """An extension of it that was asked for."""
    head = '--xyz\r\ncontent-disposition: form-data; name="{}"{}\r\n\r\n'
    fields = "".join(
        head.format(name, "") + value + "\r\n" for name, value in (("prompt", PROMPT), ("seconds", f"{seconds:g}"))
    )
    form = (fields + head.format("video", '; filename="c.mp4"')).encode() + clip + b"\r\n--xyz--\r\n"
    kind = {"content-type": "multipart/form-data; boundary=xyz"}
    status, _, answer = ask(server.address, "/v1/videos/extensions", form, headers=kind)
    assert status == 200, answer
    return str(json.loads(answer)["id"])


# ---------------------------------------------------------------- films


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Films of jobs that do not go on before they are let: (one has begun, they may)."""
    begun, may, append = threading.Event(), threading.Event(), Reel.append_bytes

    def held(reel: Reel, frames_THWC: np.ndarray) -> None:
        begun.set()
        may.wait(30)
        append(reel, frames_THWC)

    monkeypatch.setattr(Reel, "append_bytes", held)
    yield begun, may
    may.set()


@pytest.mark.parametrize("kind", ["a clip", "a video"])
def test_a_live_session_does_not_wait_for_the_film_of_a_job(
    server: Running, clip: bytes, stuck: tuple[threading.Event, threading.Event], kind: str
) -> None:
    begun, may = stuck
    viewer = Viewer(server.address, {"prompt": PROMPT, "seconds": 600, "lead": 1.0})
    viewer.until("video.block", block=0)
    if kind == "a clip":
        job = extended(server, clip, seconds=1.0)
    else:
        body = {"prompt": PROMPT, "seconds": 4, "size": "64x64"}
        job = json.loads(ask(server.address, "/v1/videos", body)[2])["id"]
    for block in range(1, 25):  # of so many blocks in turn three are the job's
        viewer.say(type="ack", second=0.75 * block)
        viewer.until("video.block", block=block)
    assert begun.is_set()
    viewer.say(type="prompt", id="p", prompt=OTHER)
    viewer.until("control.receipt", id="p")
    assert json.loads(ask(server.address, f"/v1/videos/{job}")[2])["status"] == "in_progress"
    may.set()
    viewer.say(type="stop")
    viewer.close()
    assert wait_for(server.address, job)["status"] == "completed"


def test_an_extension_of_a_clip_begins_with_all_of_it(server: Running, clip: bytes) -> None:
    video = extended(server, clip, seconds=1.0)
    found = wait_for(server.address, video)
    assert found["status"] == "completed" and found["arvid"]["made"]["frames"] == FRAMES + 16
    made = frames_of(ask(server.address, f"/v1/videos/{video}/content")[2])
    before, scale = frames_of(clip).astype(int), made.shape[1] // 64
    assert len(made) == FRAMES + 16
    assert np.abs(made[:FRAMES, ::scale, ::scale].astype(int) - before).mean() < 6


def test_a_job_that_is_deleted_while_its_clip_is_filmed_ends(
    server: Running, clip: bytes, stuck: tuple[threading.Event, threading.Event]
) -> None:
    begun, may = stuck
    video = extended(server, clip, seconds=1.0)
    assert begun.wait(20)
    assert ask(server.address, f"/v1/videos/{video}", method="DELETE")[0] == 200
    may.set()
    until(lambda: not server.house.place.video(video).exists())
    assert server.house.engine.failure is None


def test_one_job_at_a_time_has_a_past(
    server: Running, stuck: tuple[threading.Event, threading.Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may = stuck
    sampling: list[int] = []
    run = Making.run

    def noted(making: Making) -> Any:
        for step in run(making):
            sampling.append(sum(not task.finishing for task in server.house.engine._tasks))
            yield step

    monkeypatch.setattr(Making, "run", noted)
    body = {"prompt": PROMPT, "seconds": 3, "size": "64x64"}
    jobs = [json.loads(ask(server.address, "/v1/videos", body)[2])["id"] for _ in range(3)]
    assert begun.wait(20)
    time.sleep(0.6)
    assert len(server.house.engine._tasks) == 1
    may.set()
    assert [wait_for(server.address, job)["status"] for job in jobs] == ["completed"] * 3
    assert max(sampling) == 1


# ---------------------------------------------------------------- viewers


class Narrow:
    """A connection on which the fragment of a block waits until it may pass."""

    def __init__(self, block: int) -> None:
        self.sent: list[dict[str, Any]] = []
        self.may = asyncio.Event()
        self._block = block

    async def send_text(self, text: str) -> None:
        self.sent.append(json.loads(text))

    async def send_bytes(self, data: bytes) -> None:
        if self.blocks[-1] == self._block:
            await self.may.wait()

    @property
    def blocks(self) -> list[int]:
        """What was sent, in order."""
        return [message["block"] for message in self.sent if message["type"] == "video.block"]


@pytest.mark.parametrize(("second", "block"), [(0.0, 0), (2.3, 3)], ids=["another block", "the same block"])
def test_what_is_sought_while_the_connection_is_slow_is_sent(tmp_path: Path, second: float, block: int) -> None:
    record, told = Record(tmp_path / "live"), SimpleNamespace(receipt=SimpleNamespace(observe=lambda seconds: None))
    for number in range(6):
        record.add(number, number * 0.75, 0.75, b"x", {})
    direction: Any = SimpleNamespace(done=True, plan=[0] * 6, block=6, request=SimpleNamespace(seconds=4.5))
    fragments: Any = SimpleNamespace(fps=16)
    live = Live("l", "", direction, (fragments, record), None, 30.0)  # type: ignore[arg-type]
    live._ends = [12 * number for number in range(7)]
    house: Any = SimpleNamespace(engine=SimpleNamespace(nudge=lambda: None), metrics=told)

    async def watched() -> tuple[Narrow, int]:
        socket: Any = Narrow(3)
        viewer = sockets.Viewer(house, socket)
        viewer._mine = lambda: viewer._due.set()
        live.on_change = viewer._mine
        writing = asyncio.create_task(viewer._write(live))
        await asyncio.sleep(0.05)
        assert socket.blocks == [0, 1, 2, 3]
        await viewer._answer(live, Seek(type="seek", second=second))
        viewer._due.set()
        assert live.sent == second
        socket.may.set()
        await asyncio.sleep(0.05)
        writing.cancel()
        return socket, live.sent

    socket, sent = asyncio.run(watched())
    assert socket.blocks[4:] == list(range(block, 6)) and sent == 4.5
    record.close()


@pytest.fixture
def deaf(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Running, Live]]:
    """A server, and a session whose viewer reads nothing; everything on the way to it is full."""
    monkeypatch.setattr(sockets, "FAREWELL_SECONDS", 0.5)
    server, plug = running.begin(toy, tmp_path), socket.socket()
    _, live = unread(server, plug, {"prompt": PROMPT})
    yield server, live
    plug.close()
    server.stop()


def test_nobody_waits_for_a_viewer_who_reads_nothing(deaf: tuple[Running, Live]) -> None:
    server, live = deaf
    assert len(server.server.server_state.tasks) == 1
    ask(server.address, f"/v1/live/{live.name}", method="DELETE")
    until(lambda: not server.house.engine.lives)
    until(lambda: live.on_change is None and not server.server.server_state.tasks)


@ON_LINUX
def test_nothing_is_left_of_a_viewer_who_reads_nothing(deaf: tuple[Running, Live]) -> None:
    server, live = deaf
    [connection] = server.server.server_state.connections
    taken: Any = connection.transport.get_extra_info("socket")
    taken.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 500)  # as every one has from where it is listened
    ask(server.address, f"/v1/live/{live.name}", method="DELETE")
    until(lambda: not server.server.server_state.connections)


@ON_LINUX
def test_connections_know_how_long_the_other_end_may_be_silent() -> None:
    with listening("127.0.0.1", 0) as listens, socket.create_connection(listens.getsockname()) as client:
        with listens.accept()[0] as accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == SILENT_MS
        client.close()
