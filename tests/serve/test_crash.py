"""`kill -9` at random moments: no accepted job is lost, every file that is served is whole, videos are as ever."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load as load_tensors
from torch import equal

from arvid.pipeline import Pipeline, Request
from serve.running import PROMPT, ask, frames_of

SECONDS, FRAMES = 2.0, 33
QUIET = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}


class Mortal:
    """A server that can be killed and started again."""

    def __init__(self, toy: Path, data: Path) -> None:
        here = Path(__file__).parent
        paths = os.pathsep.join(filter(None, [str(here.parent.parent / "src"), os.environ.get("PYTHONPATH", "")]))
        self._parent = subprocess.Popen(
            [sys.executable, str(here / "crashing.py"), str(toy), str(data)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={**os.environ, **QUIET, "PYTHONPATH": paths},
        )  # fmt: skip
        self.address, self._pid = "", 0
        self.start()

    def start(self) -> None:
        assert self._parent.stdin is not None and self._parent.stdout is not None
        self._parent.stdin.write("start\n")
        self._parent.stdin.flush()
        pid, port = self._parent.stdout.readline().split()
        self.address, self._pid = f"http://127.0.0.1:{port}", int(pid)

    def kill(self) -> None:
        os.kill(self._pid, signal.SIGKILL)

    def close(self) -> None:
        self.kill()
        assert self._parent.stdin is not None and self._parent.stdout is not None
        self._parent.stdin.close()
        self._parent.wait(20)
        self._parent.stdout.close()


@pytest.fixture
def mortal(toy: Path, tmp_path: Path) -> Iterator[Mortal]:
    """A server."""
    made = Mortal(toy, tmp_path / "data")
    yield made
    made.close()


def submit(mortal: Mortal, seed: int) -> str:
    body = {"prompt": PROMPT, "seconds": SECONDS, "size": "64x64", "arvid": {"seed": seed}}
    while True:
        status, _, answer = ask(mortal.address, "/v1/videos", body)
        if status == 200:
            return str(json.loads(answer)["id"])
        assert status == 503, answer
        time.sleep(0.05)


def looked_at(mortal: Mortal, video: str) -> dict[str, Any]:
    """A video that must be there; its file is whole, or refused."""
    status, _, answer = ask(mortal.address, f"/v1/videos/{video}")
    assert status == 200, f"{video} was lost: {answer!r}"
    found = dict(json.loads(answer))
    assert found["status"] != "failed", found
    status, _, film = ask(mortal.address, f"/v1/videos/{video}/content")
    if status == 200:
        assert len(frames_of(film)) == FRAMES
    else:
        assert status == 400
    return found


def survive(mortal: Mortal, pipeline: Pipeline, kills: int, jobs: int) -> None:
    """Kill the server at random moments while it makes jobs; then look at all of them."""
    random.seed(kills)
    videos = {submit(mortal, seed): seed for seed in range(jobs)}
    for kill in range(kills):
        time.sleep(random.uniform(0.0, 1.0))
        mortal.kill()
        mortal.start()
        for video in videos:
            looked_at(mortal, video)
        if kill % 3 == 0:
            seed = len(videos)
            videos[submit(mortal, seed)] = seed
    for video, seed in videos.items():
        while looked_at(mortal, video)["status"] != "completed":
            time.sleep(0.2)
        latents = load_tensors(ask(mortal.address, f"/v1/videos/{video}/content?variant=latents")[2])["latents"]
        wanted = pipeline.generate(Request(PROMPT, SECONDS, seed))
        assert equal(latents, wanted.latents_BTCHW), "not the video of an undisturbed run"


def test_a_few_kills_lose_nothing(mortal: Mortal, pipeline: Pipeline) -> None:
    survive(mortal, pipeline, kills=3, jobs=2)


@pytest.mark.slow
def test_fifty_kills_lose_nothing(mortal: Mortal, pipeline: Pipeline) -> None:
    survive(mortal, pipeline, kills=50, jobs=10)
