"""Batch and server on a real cluster of two workers, where no interface but the loopback exists.

Ray binds to the address of the machine; in a network namespace of their own the tests neither reach anybody nor are
reached. What is tried is in tests/serve/cluster.py.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from arvid.pipeline import Pipeline, Request
from arvid.video import read_video

PROMPT = "a small red circle moves right"
TRIED = Path(__file__).parent / "cluster.py"


def reason() -> str:
    """Why these tests cannot be run here; empty when they can."""
    if importlib.util.find_spec("ray") is None:
        return "Ray is not installed (pip install 'arvid[ray]')"
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return "unshare or ip is missing (util-linux and iproute2 have them)"
    tried = subprocess.run(["unshare", "-n", "ip", "link", "set", "lo", "up"], capture_output=True, text=True)
    return f"no network namespace may be made here ({tried.stderr.strip()})" if tried.returncode else ""


WHY_NOT = reason()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)]


@pytest.fixture
def own() -> Iterator[Path]:
    """A folder for Ray, with a name that is short enough for its sockets."""
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as name:
        yield Path(name)


def tried(what: str, toy: Path, folder: Path, own: Path) -> dict[str, Any]:
    """What the program in the namespace found."""
    more = {
        "HOME": str(own), "RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1",
        "ARVID_TEST_MARK": folder.as_posix(), "RAY_TMPDIR": str(own),
    }  # fmt: skip
    command = 'ip link set lo up && exec "$@"'
    words = ["unshare", "-n", "sh", "-c", command, "sh", sys.executable, str(TRIED), what, str(toy), str(folder)]
    run = subprocess.run(words, capture_output=True, text=True, env={**os.environ, **more})
    log = folder / "server.log"
    assert run.returncode == 0, run.stderr + (log.read_text() if log.is_file() else "")
    return dict(json.loads(run.stdout.splitlines()[-1]))


def test_a_batch_on_two_workers(toy: Path, tmp_path: Path, own: Path, pipeline: Pipeline) -> None:
    first, second = tried("batch", toy, tmp_path, own)["runs"]
    assert first["code"] == second["code"] == 2
    assert [(row["line"], row["status"]) for row in first["manifest"]] == [
        (1, "done"), (2, "done"), (3, "done"), (4, "failed"),
    ]  # fmt: skip
    assert "error: line 4: unknown router 'coin'" in first["said"]
    # The other engine finds the same folder: nothing is left to be done.
    assert "3 of 4 rows are done already" in second["said"] and second["manifest"] == first["manifest"]
    for seed, row in enumerate(first["manifest"][:3]):
        wanted = pipeline.generate(Request(PROMPT, 0.5, seed)).frames_BTCHW[0]
        frames = read_video(tmp_path / "out" / row["video"])[:, ::8, ::8]
        expected = ((wanted.float() + 1) * 127.5).movedim(1, -1).numpy()
        assert frames.shape == expected.shape and abs(frames - expected).mean() < 10


def test_a_server_with_two_replicas(toy: Path, tmp_path: Path, own: Path, pipeline: Pipeline) -> None:
    found = tried("serve", toy, tmp_path, own)
    requests = [Request(PROMPT, seconds, seed) for seconds, seed in ((1, 0), (1, 1), (60, 9), (60, 10))]
    for numbers, request in zip(found["latents"], requests, strict=True):
        latents = pipeline.generate(request).latents_BTCHW.double()
        wanted = [float(latents.sum()), float(latents.square().sum()), float(latents.shape[1])]
        assert numbers == pytest.approx(wanted, rel=1e-9)
    assert (found["receipt"]["block"], found["frames"]) == (0, 9)
    before, after = found["workers"]
    assert len(before) == len(after) == 2 and before[0] not in after and before[1] in after
    # Nobody says anything on the other one: on a slow machine it may end of that.
    assert [why for why in found["ended"] if why != "idle"] == ["the replica that made it was lost; begin again"]
    assert '"event": "job waits again"' in found["log"] and "Application shutdown complete" in found["log"]
    assert abs(found["code"]) == signal.SIGTERM
