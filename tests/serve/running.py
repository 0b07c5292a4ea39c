"""A server in a thread, on a free port of 127.0.0.1, with a family of random weights.

Knows: how the parts of a server are put together. Does not know: what they should do.
"""

from __future__ import annotations

import io
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from websockets.sync.client import connect

from arvid.pipeline import Pipeline, load
from arvid.serve.app import Server, Settings, build
from arvid.serve.house import House
from arvid.serve.limits import Allowance, Limits
from arvid.serve.place import Place

PROMPT, OTHER = "a small red circle moves right", "a large blue square moves left"


@dataclass
class Running:
    """A server that runs."""

    house: House
    server: Server
    thread: threading.Thread
    address: str

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive()


def begin(family: Path, data: Path, **more: Any) -> Running:
    """Start a server; more settings of `Settings` by name."""
    more.setdefault("limits", Limits(save_seconds=0.0))
    more.setdefault("anybody", Allowance())
    settings = Settings(lambda: Pipeline(load(family)), Place(data), models=("embedded-toy",), **more)
    house = build(settings)
    server = Server(house, "127.0.0.1", 0, patience=5)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    running = Running(house, server, thread, f"http://127.0.0.1:{port}")
    while not house.engine.warm:
        assert house.engine.failure is None
        time.sleep(0.01)
    return running


def ask(
    address: str, path: str, body: Any = None, method: str = "", headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of a request, by Python's own client."""
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    request = urllib.request.Request(address + path, data, method=method or ("GET" if data is None else "POST"))
    for name, value in {"content-type": "application/json", **(headers or {})}.items():
        request.add_header(name, value)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


def wait_for(address: str, video: str, headers: dict[str, str] | None = None) -> dict[str, Any]:
    """A video that is completed or failed."""
    for _ in range(1000):
        found = json.loads(ask(address, f"/v1/videos/{video}", headers=headers)[2])
        if found["status"] in ("completed", "failed"):
            return dict(found)
        time.sleep(0.1)
    raise AssertionError(f"{video} did not end")


def until(holds: Callable[[], Any], seconds: float = 60.0) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"still not so after {seconds:g} seconds"
        time.sleep(0.01)


def frames_of(data: bytes) -> np.ndarray:
    """Frames [T, H, W, 3] of a film in memory."""
    with av.open(io.BytesIO(data)) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])


class Viewer:
    """A client of a live session that keeps all it gets: messages in order, and the fragments by version and block."""

    def __init__(self, address: str, start: dict[str, Any] | None = None, **more: Any) -> None:
        self._open = ExitStack()
        self.socket = self._open.enter_context(connect(address.replace("http", "ws", 1) + "/v1/live", **more))
        self.messages: list[dict[str, Any]] = []
        self.fragments: dict[tuple[int, int], bytes] = {}
        self.init = b""
        if start is not None:
            self.say(type="session.start", **start)

    def say(self, **message: Any) -> None:
        """Send a message."""
        self.socket.send(json.dumps(message))

    def next(self, timeout: float = 20) -> dict[str, Any]:
        """The next message, with its fragment put away."""
        found = self.socket.recv(timeout=timeout)
        assert isinstance(found, str)
        message = dict(json.loads(found))
        if "size" in message:
            data = self.socket.recv(timeout=timeout)
            assert isinstance(data, bytes) and len(data) == message["size"]
            if message["type"] == "video.init":
                self.init = data
            else:
                self.fragments[message["version"], message["block"]] = data
        self.messages.append(message)
        return message

    def until(self, kind: str, **wanted: Any) -> dict[str, Any]:
        """The next message of a kind with these values; all before it are kept."""
        while True:
            message = self.next()
            if message["type"] == kind and all(message.get(name) == value for name, value in wanted.items()):
                return message

    def idle(self, seconds: float) -> bool:
        """Whether nothing comes for a while."""
        try:
            self.next(seconds)
        except TimeoutError:
            return True
        return False

    def close(self) -> None:
        """Leave."""
        self._open.close()


def unread(server: Running, plug: socket.socket, start: dict[str, Any]) -> tuple[Viewer, Any]:
    """A viewer through `plug` who reads nothing that small buffers do not hold, and its session, which has stopped."""
    server.server.servers[0].sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    plug.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    plug.connect(("127.0.0.1", int(server.address.rpartition(":")[2])))
    viewer = Viewer(server.address, {**start, "seconds": 600, "lead": 3.0}, sock=plug, max_queue=2)
    until(lambda: server.house.engine.lives)
    [live] = server.house.engine.lives.values()
    ends: list[float] = []
    while ends[-20:] != [live.record.end] * 20:
        ends.append(live.record.end)
        viewer.say(type="ack", second=1e9)
        time.sleep(0.05)
    return viewer, live
