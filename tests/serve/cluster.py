"""What is tried on a real cluster of two workers, as a program: it is run where only the loopback interface exists.

    python tests/serve/cluster.py batch FAMILY FOLDER
    python tests/serve/cluster.py serve FAMILY FOLDER

It prints one line of JSON, which tests/serve/test_ray.py looks at. Nothing here judges.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]
PROMPT, OTHER = "a small red circle moves right", "a large blue square moves left"
ARVID = [sys.executable, "-c", "import sys; from arvid.cli.main import app; app(sys.argv[1:])"]
PATIENCE = 900.0


def batch(family: Path, folder: Path) -> dict[str, Any]:
    """A batch on two workers, twice; what it left each time."""
    rows = folder / "rows.jsonl"
    wanted = [{"prompt": PROMPT, "seed": seed} for seed in range(3)] + [{"prompt": PROMPT, "router": "coin"}]
    rows.write_text("".join(json.dumps(row) + "\n" for row in wanted))
    words = ["batch", rows, "-o", folder / "out", "--model", family, "--seconds", "0.5", "--threads", "1"]
    runs = []
    for engine in ("ray:workers=2,cpus=0.25", "local"):
        run = subprocess.run(
            [*ARVID, *map(str, words), "--engine", engine], capture_output=True, text=True, timeout=PATIENCE
        )
        found = [json.loads(line) for line in (folder / "out" / "manifest.jsonl").read_text().splitlines()]
        runs.append({"code": run.returncode, "said": run.stderr, "manifest": found})
    return {"runs": runs}


def serve(family: Path, folder: Path) -> dict[str, Any]:
    """A server with two replicas: jobs, live sessions on both, one replica killed while it makes a job."""
    words = ["serve", "--port", "8123", "--data", folder / "data", "--model", family, "--threads", "1"]
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(
            [*ARVID, *map(str, words), "--engine", "ray:replicas=2,cpus=0.25"], stderr=log, stdout=log
        )
        try:
            told = _used(server, "http://127.0.0.1:8123")
            server.send_signal(signal.SIGTERM)
            told["code"] = server.wait(120)
        finally:
            server.kill()
    told["log"] = (folder / "server.log").read_text()
    return told


def _used(server: subprocess.Popen[bytes], address: str) -> dict[str, Any]:
    from serve import running

    _wait(server, lambda: b"arvid_replicas 2.0" in running.ask(address, "/metrics")[2])
    _wait(server, lambda: running.ask(address, "/readyz")[0] == 200)  # both lanes are ready a moment before the engine
    ids = [_asked(running.ask, address, seconds=1, arvid={"seed": seed}) for seed in range(2)]
    latents = [_finished(server, running.ask, address, video) for video in ids]
    viewers = [running.Viewer(address, {"prompt": PROMPT, "seconds": 600, "lead": 2}) for _ in range(2)]
    for viewer in viewers:
        _until(viewer, "video.block")
    viewers[0].say(type="branch", id="b", block=0, prompt=OTHER)
    receipt = _until(viewers[0], "control.receipt")
    _until(viewers[0], "video.flush")
    _until(viewers[0], "video.block")
    film = viewers[0].init + viewers[0].fragments[1, 0]
    before = _workers()
    long = [_asked(running.ask, address, seconds=60, arvid={"seed": seed}) for seed in (9, 10)]
    for video in long:
        _wait(server, lambda video=video: json.loads(running.ask(address, f"/v1/videos/{video}")[2])["progress"] > 5)
    os.kill(before[0], signal.SIGKILL)
    ended = []
    for viewer in viewers:
        with contextlib.suppress(Exception):
            while (message := viewer.next(60))["type"] != "session.closing":
                pass
            ended.append(message["why"])
    latents += [_finished(server, running.ask, address, video) for video in long]
    _wait(server, lambda: b"arvid_replicas 2.0" in running.ask(address, "/metrics")[2])
    return {
        "latents": latents, "receipt": receipt, "frames": len(running.frames_of(film)), "ended": ended,
        "workers": [before, _workers()],
    }  # fmt: skip


def _asked(ask: Any, address: str, **body: Any) -> str:
    status, _, answer = ask(address, "/v1/videos", {"prompt": PROMPT, "size": "64x64", **body})
    assert status == 200, answer
    return str(json.loads(answer)["id"])


def _finished(server: Any, ask: Any, address: str, video: str) -> list[float]:
    """A few numbers of the latents of a finished video."""
    from safetensors.torch import load

    _wait(server, lambda: json.loads(ask(address, f"/v1/videos/{video}")[2])["status"] in ("completed", "failed"))
    data = load(ask(address, f"/v1/videos/{video}/content?variant=latents")[2])["latents"]
    return [float(data.double().sum()), float(data.double().square().sum()), float(data.shape[1])]


def _until(viewer: Any, kind: str) -> Any:
    while (message := viewer.next(120))["type"] != kind:
        pass
    return message


def _workers() -> list[int]:
    """The processes of the replicas."""
    found = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    lines = (line.split(None, 1) for line in found.splitlines()[1:])
    ours = os.environ["ARVID_TEST_MARK"]
    return sorted(int(pid) for pid, name in lines if "ServeReplica:arvid-" in name and _marked(int(pid), ours))


def _marked(pid: int, mark: str) -> bool:
    """Whether a process belongs to this test."""
    with contextlib.suppress(OSError):
        return f"ARVID_TEST_MARK={mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes()
    return False


def _wait(server: Any, holds: Any) -> None:
    end = time.monotonic() + PATIENCE
    while True:
        with contextlib.suppress(OSError):
            if holds():
                return
        assert server.poll() is None, "the server ended"
        assert time.monotonic() < end
        time.sleep(0.2)


if __name__ == "__main__":
    out = sys.stdout
    with contextlib.redirect_stdout(io.StringIO()):
        what = {"batch": batch, "serve": serve}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
    print(json.dumps(what), file=out)
