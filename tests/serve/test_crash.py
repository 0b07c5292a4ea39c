"""`kill -9` at random moments: no accepted job is lost, every file that is served is whole, videos are as ever."""

from __future__ import annotations

import contextlib
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
from arvid.rollout import state
from serve.running import PROMPT, ask, frames_of

SECONDS, FRAMES = 2.0, 33
QUIET = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}


class Nursery:
    """Starts servers, one at a time, that can be killed."""

    def __init__(self, toy: Path) -> None:
        here = Path(__file__).parent
        paths = os.pathsep.join(filter(None, [str(here.parent.parent / "src"), os.environ.get("PYTHONPATH", "")]))
        self._program = subprocess.Popen(
            [sys.executable, str(here / "crashing.py"), str(toy)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={**os.environ, **QUIET, "PYTHONPATH": paths},
        )  # fmt: skip

    def start(self, data: Path, save_seconds: float) -> tuple[str, int]:
        """Address and process of a new server."""
        assert self._program.stdin is not None and self._program.stdout is not None
        self._program.stdin.write(json.dumps([str(data), save_seconds]) + "\n")
        self._program.stdin.flush()
        pid, port = self._program.stdout.readline().split()
        return f"http://127.0.0.1:{port}", int(pid)

    def close(self) -> None:
        assert self._program.stdin is not None and self._program.stdout is not None
        self._program.kill()
        self._program.wait(20)
        self._program.stdin.close()
        self._program.stdout.close()


class Mortal:
    """A server that can be killed and started again with the same data."""

    def __init__(self, nursery: Nursery, data: Path) -> None:
        self._nursery, self.data, self.save_seconds = nursery, data, 0.0
        self.address, self._pid = "", 0

    def start(self) -> None:
        self.address, self._pid = self._nursery.start(self.data, self.save_seconds)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)

    def end(self) -> None:
        """End it as an init system does, and wait until it has."""
        os.kill(self._pid, signal.SIGTERM)
        while Path(f"/proc/{self._pid}").exists():
            time.sleep(0.05)


@pytest.fixture(scope="module")
def nursery(toy: Path) -> Iterator[Nursery]:
    """Where servers come from."""
    made = Nursery(toy)
    yield made
    made.close()


@pytest.fixture
def mortal(nursery: Nursery, tmp_path: Path) -> Iterator[Mortal]:
    """A server that has not started yet."""
    made = Mortal(nursery, tmp_path / "data")
    yield made
    made.kill()


def submit(mortal: Mortal, seed: int, seconds: float = SECONDS) -> str:
    body = {"prompt": PROMPT, "seconds": seconds, "size": "64x64", "arvid": {"seed": seed}}
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
    mortal.start()
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


def test_a_server_that_is_told_to_end_leaves_its_job_to_the_next(mortal: Mortal, pipeline: Pipeline) -> None:
    """No state is saved but the one that is saved at the end. The video is long enough not to be done by then."""
    mortal.save_seconds, seconds = 3600.0, 100.0
    mortal.start()
    video = submit(mortal, 7, seconds)
    while (progress := json.loads(ask(mortal.address, f"/v1/videos/{video}")[2])["progress"]) < 5:
        time.sleep(0.05)
    mortal.end()
    _, notes = state.load(mortal.data / "videos" / video / "state.safetensors")
    made, blocks = len(notes["rows"]), notes["blocks"]
    assert progress / 100 * blocks - 1 < made < blocks
    mortal.start()
    while (found := json.loads(ask(mortal.address, f"/v1/videos/{video}")[2]))["status"] != "completed":
        assert found["status"] != "failed", found
        time.sleep(0.2)
    rows = json.loads(ask(mortal.address, f"/v1/videos/{video}/content?variant=report")[2])["blocks"]
    assert rows[:made] == notes["rows"], "what was made before was made again"
    latents = load_tensors(ask(mortal.address, f"/v1/videos/{video}/content?variant=latents")[2])["latents"]
    assert equal(latents, pipeline.generate(Request(PROMPT, seconds, 7)).latents_BTCHW)


@pytest.mark.slow
def test_fifty_kills_lose_nothing(mortal: Mortal, pipeline: Pipeline) -> None:
    survive(mortal, pipeline, kills=50, jobs=10)
