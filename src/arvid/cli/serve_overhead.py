"""What a server costs over the bare engine: the same video made alone and watched live, in turns, in one process.

Knows: how both are timed, by the clock and by the processor time of the whole process, which other programs on the
machine do not disturb. Does not know: what a server does with the time.

Both go through the engine's own thread with the same pipeline. The bare run takes blocks from the pipeline and drops
them; the served one ends when its last fragment has come over the socket.
"""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from websockets.sync.client import connect

from arvid.pipeline import Pipeline, Request
from arvid.serve.app import Server, Settings, build
from arvid.serve.house import House
from arvid.serve.limits import Limits
from arvid.serve.place import Place

PROMPT = "a large red circle moves right"
LARGEST_MESSAGE = 2**28
Took = tuple[float, float]
"""Seconds of the clock, and of processor time."""
LEAD = 30.0
"""The longest lead there is: a video no longer than this is made without a wait."""


def measure(pipeline: Pipeline, seconds: float, rounds: int, router: str = "") -> dict[str, Any]:
    """Frames a second of a video of `seconds` (at most LEAD) bare and served, and the overhead: how much longer the
    served one takes, by the median over rounds of the ratio of neighbours. `processor` is the same in processor time;
    there the viewer's part counts as the server's, for it is in this process too."""
    wanted = Request(PROMPT, seconds, router=router)
    frames = 0
    bare: list[Took] = []
    served: list[Took] = []
    with tempfile.TemporaryDirectory() as folder, _running(pipeline, Path(folder)) as (house, address):
        _alone(house, pipeline, wanted)
        for _ in range(rounds):
            took, frames = _alone(house, pipeline, wanted)
            bare.append(took)
            served.append(_watched(address, wanted))
    clock, processor = (
        median(slow[kind] / fast[kind] for slow, fast in zip(served, bare, strict=True)) - 1 for kind in (0, 1)
    )
    return {
        "seconds": seconds, "rounds": rounds, "frames": frames, "bare_s": [round(took[0], 4) for took in bare],
        "served_s": [round(took[0], 4) for took in served],
        "bare_fps": round(frames / median(took[0] for took in bare), 2),
        "served_fps": round(frames / median(took[0] for took in served), 2),
        "overhead": round(clock, 4), "processor": round(processor, 4),
    }  # fmt: skip


@contextmanager
def _running(pipeline: Pipeline, folder: Path) -> Iterator[tuple[House, str]]:
    """A server around a pipeline in this process, and its address."""
    house = build(Settings(lambda: pipeline, Place(folder), limits=Limits(live_seconds=LEAD)))
    server = Server(house, "127.0.0.1", 0, patience=5)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not (server.started and house.engine.warm):
            if not thread.is_alive():
                raise RuntimeError("the server did not start") from house.engine.failure
            time.sleep(0.01)
        yield house, f"ws://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1/live"
    finally:
        server.should_exit = True
        thread.join()


def _since(begin: Took) -> Took:
    return time.perf_counter() - begin[0], time.process_time() - begin[1]


def _alone(house: House, pipeline: Pipeline, request: Request) -> tuple[Took, int]:
    """What a video takes that nobody watches, and its frames."""

    def make() -> tuple[Took, int]:
        begin = _since((0, 0))
        frames = sum(block.frames_BTCHW.shape[1] for block in pipeline.stream(request))
        return _since(begin), frames

    return house.engine.call(make).result()


def _watched(address: str, request: Request) -> Took:
    """What it takes from asking for a session to the end of its video."""
    with connect(address, max_size=LARGEST_MESSAGE) as socket:
        begin = _since((0, 0))
        start = {"type": "session.start", "prompt": request.prompt, "seconds": request.seconds, "lead": LEAD}
        extras = {"seed": request.seed, **({"router": request.router} if request.router else {})}
        socket.send(json.dumps({**start, "arvid": extras}))
        kind = ""
        while kind != "video.done":
            message = socket.recv(timeout=600)
            if isinstance(message, str):
                kind = json.loads(message)["type"]
                if kind in ("error", "session.closing"):
                    raise RuntimeError(f"the server ended the session: {message}")
        took = _since(begin)
        socket.send(json.dumps({"type": "stop"}))
    return took
