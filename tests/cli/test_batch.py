"""`arvid batch` in one process: what it leaves, what it skips, what it says of rows that fail."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from arvid.cli import batching
from arvid.cli.folder import Folder
from arvid.pipeline import Pipeline, Request, load
from arvid.rollout.timeline import Entry
from arvid.video import read_video

Type = Callable[..., Any]
PROMPT, OTHER = "a small red circle moves right", "a large blue square moves left"


def written(folder: Path, *rows: dict[str, Any] | str) -> Path:
    """A file of rows."""
    path = folder / "rows.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def manifest(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def shown(path: Path) -> np.ndarray:
    """Frames of a film, brought back to the family's own size."""
    frames = read_video(path)
    return frames[:, :: frames.shape[1] // 64, :: frames.shape[2] // 64].astype(int)


def expected(pipeline: Pipeline, request: Request) -> np.ndarray:
    frames = pipeline.generate(request).frames_BTCHW[0]
    return ((frames.float() + 1) * 127.5).movedim(1, -1).numpy()


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The prompts that are really made."""
    prompts: list[str] = []
    original = batching.make

    def noted(pipeline: Any, job: Any, *more: Any) -> Any:
        prompts.append(job.request.prompt)
        return original(pipeline, job, *more)

    monkeypatch.setattr(batching, "make", noted)
    return prompts


def test_rows_become_the_videos_of_the_pipeline(arvid: Type, toy: Path, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), (200, 30, 30)).save(tmp_path / "red.png")
    rows = written(
        tmp_path,
        {"prompt": PROMPT, "seed": 3, "router": "stride:k=2", "memory": "sink:frames=3,sink=1"},
        "",
        {"id": "two", "seconds": 1, "timeline": [{"at": 0, "prompt": PROMPT}, {"at": 0.5, "prompt": OTHER}]},
        {"prompt": OTHER, "image": "red.png", "seconds": 0.5, "scale": 1},
    )
    result = arvid("batch", rows, "-o", "out", "--model", toy, "--seconds", 1)
    assert result.exit_code == 0, result.output
    told = manifest(tmp_path / "out")
    assert [(row["line"], row["id"], row["status"]) for row in told] == [
        (1, "000001", "done"), (3, "two", "done"), (4, "000004", "done"),
    ]  # fmt: skip
    pipeline = Pipeline(load(toy))
    past = "sink:frames=3,sink=1"
    wanted = expected(pipeline, Request(PROMPT, 1, 3, "stride:k=2", past))
    turned = expected(pipeline, Request(PROMPT, 1, timeline=(Entry(0, PROMPT), Entry(0.5, OTHER))))
    assert np.abs(shown(tmp_path / "out" / "000001.mp4") - wanted).mean() < 10
    assert np.abs(shown(tmp_path / "out" / "two.mp4") - turned).mean() < 10
    assert [row["frames"] for row in told] == [len(wanted), len(turned), 9]
    report = json.loads((tmp_path / "out" / "reports" / "000001.json").read_text())
    assert report["row"] == told[0] and report["config"]["past"] == past


def test_rows_that_fail_are_told_by_their_line_and_stop_nothing(arvid: Type, toy: Path, tmp_path: Path) -> None:
    rows = written(
        tmp_path,
        "{not json", {"prompt": PROMPT, "sed": 3}, {"prompt": " "}, {"prompt": PROMPT, "seconds": "1"},
        {"prompt": PROMPT, "router": "coin"}, {"prompt": PROMPT, "seconds": -1}, {"id": "../up", "prompt": PROMPT},
        {"id": "good", "prompt": PROMPT}, {"id": "good", "prompt": OTHER}, {"prompt": PROMPT, "size": "128x128"},
        '{"prompt": "a \\ud800 circle"}', {"prompt": PROMPT, "seed": 2**63}, {"prompt": PROMPT, "image": "none.png"},
        {"prompt": PROMPT, "seed": True}, "[1]",
    )  # fmt: skip
    result = arvid("batch", rows, "-o", "out", "--model", toy, "--seconds", 0.5)
    assert result.exit_code == 2
    told = {row["line"]: row for row in manifest(tmp_path / "out")}
    assert sorted(told) == list(range(1, 16))
    assert [line for line, row in told.items() if row["status"] == "done"] == [8]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.mp4")) == ["good.mp4"]
    assert "unknown field 'sed'" in told[2]["error"] and "'good' is that of line 8" in told[9]["error"]
    assert "seconds is '1'; expected a number" in told[4]["error"]
    assert all(f"error: line {line}: " in result.output for line in told if line != 8)
    assert "14 of 15 rows failed" in result.output


def test_what_is_done_is_left_as_it_is(arvid: Type, toy: Path, tmp_path: Path, made: list[str]) -> None:
    first = [{"prompt": PROMPT}, {"prompt": OTHER, "id": "b"}, {"prompt": "a green star"}]
    common = ("-o", "out", "--model", toy, "--seconds", 0.5)
    assert arvid("batch", written(tmp_path, *first), *common).exit_code == 0
    before = manifest(tmp_path / "out")
    assert len(made) == 3
    (tmp_path / "out" / "manifest.jsonl").unlink()
    (tmp_path / "out" / ".000001.mp4.17.part").write_bytes(b"left by a kill")
    again = arvid("batch", written(tmp_path, *first), *common)
    assert again.exit_code == 0 and "3 of 3 rows are done already" in again.output
    assert len(made) == 3 and manifest(tmp_path / "out") == before
    assert list((tmp_path / "out").glob(".*.part")) == []
    # A row that asks for something else is made again, and so is one whose video is gone; one with an id may move.
    (tmp_path / "out" / "000003.mp4").unlink()
    moved = [{"prompt": PROMPT, "seed": 1}, {}, {"prompt": "a green star"}, {"prompt": OTHER, "id": "b"}]
    assert arvid("batch", written(tmp_path, *moved), *common).exit_code == 2
    assert made[3:] == [PROMPT, "a green star"]
    assert [(row["line"], row["status"]) for row in manifest(tmp_path / "out")] == [
        (1, "done"), (2, "failed"), (3, "done"), (4, "done"),
    ]  # fmt: skip
    # Other models make other videos.
    assert arvid("batch", written(tmp_path, *first[:1]), *common, "--drafter", toy).exit_code == 0
    assert len(made) == 6


def test_an_interrupt_loses_the_row_in_work_only(
    arvid: Type, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = written(tmp_path, {"prompt": PROMPT}, {"prompt": OTHER}, {"prompt": "a green star"})
    original = batching.make

    def interrupted(pipeline: Any, job: Any, *more: Any) -> Any:
        recorder = original(pipeline, job, *more)
        recorder.interrupted = job.request.prompt == OTHER
        return recorder

    monkeypatch.setattr(batching, "make", interrupted)
    common = ("batch", rows, "-o", "out", "--model", toy, "--seconds", 0.5)
    assert arvid(*common).exit_code == 130
    assert [row["line"] for row in manifest(tmp_path / "out")] == [1]
    assert sorted(path.name for path in (tmp_path / "out").rglob("*") if path.is_file()) == [
        "000001.json", "000001.mp4", "lock", "manifest.jsonl",
    ]  # fmt: skip
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    result = arvid(*common)
    assert result.exit_code == 0 and "1 of 3 rows are done already" in result.output


def test_a_fault_of_ours_is_no_fault_of_the_row(
    arvid: Type, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Pipeline.check

    def broken(self: Pipeline, request: Request, given: int = 0) -> Any:
        if request.prompt == OTHER:
            raise RuntimeError("the card is on fire")
        return original(self, request, given)

    monkeypatch.setattr(Pipeline, "check", broken)
    rows = written(tmp_path, {"prompt": OTHER}, {"prompt": PROMPT}, {"prompt": ""})
    result = arvid("batch", rows, "-o", "out", "--model", toy, "--seconds", 0.5)
    assert result.exit_code == 1
    told = manifest(tmp_path / "out")
    assert [(row["status"], row.get("kind")) for row in told] == [
        ("failed", "fault"), ("done", None), ("failed", "invalid_input"),
    ]  # fmt: skip
    assert told[0]["error"] == "RuntimeError: the card is on fire"


def test_two_runs_do_not_write_into_one_folder(arvid: Type, toy: Path, tmp_path: Path) -> None:
    with Folder(tmp_path / "out"):
        result = arvid("batch", written(tmp_path, {"prompt": PROMPT}), "-o", "out", "--model", toy)
    assert result.exit_code == 2 and "another batch writes into" in result.output
    with (tmp_path / "out" / "lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_rows_from_stdin(arvid: Type, toy: Path, tmp_path: Path) -> None:
    text = json.dumps({"prompt": PROMPT, "seconds": 0.1})
    result = arvid("batch", "-", "-o", "out", "--model", toy, "-q", input=text)
    assert result.exit_code == 0 and result.output == ""
    assert [row["frames"] for row in manifest(tmp_path / "out")] == [1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("none.jsonl",), "no file none.jsonl"),
        (("rows.jsonl", "--engine", "cloud"), "unknown engine 'cloud'; known: local, ray"),
        (("rows.jsonl", "--engine", "ray:workers=0"), "workers=0; give at least 1"),
        (("rows.jsonl", "--engine", "local:workers=2"), "engine 'local' has no option 'workers=2'"),
        (("rows.jsonl", "--router", "coin"), "unknown router 'coin'"),
        (("rows.jsonl", "--guard", "dog"), "unknown guard 'dog'"),
        (("rows.jsonl", "--positions", "bent"), "unknown positions 'bent'"),
        (("empty.jsonl",), "no rows"),
        (("rows.jsonl", "-o", "none/out"), "folder"),
        (("rows.jsonl", "-o", "empty.jsonl"), "empty.jsonl is a file; name a folder"),
    ],
)
def test_what_cannot_be_begun(arvid: Type, tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    written(tmp_path, {"prompt": PROMPT})
    (tmp_path / "empty.jsonl").write_text("\n\n")
    result = arvid("batch", *words, *(() if "-o" in words else ("-o", "out")))
    assert result.exit_code == 2, result.output
    assert said in result.output and len(result.output.splitlines()) == 1


@pytest.mark.parametrize("verb", ["batch rows.jsonl -o out", "serve --data data"])
def test_without_ray_there_is_one_line_that_says_so(
    arvid: Type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    written(tmp_path, {"prompt": PROMPT})
    original = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "ray" else original(name) or object()
    )
    result = arvid(*verb.split(), "--engine", "ray")
    assert result.exit_code == 2
    assert result.output == "error: --engine ray needs ray; install them with: pip install 'arvid[ray]'\n"


@pytest.mark.slow
def test_a_kill_loses_the_rows_in_work_only(arvid: Type, toy: Path, tmp_path: Path) -> None:
    rows = written(tmp_path, *({"prompt": PROMPT, "seed": seed, "seconds": 20 * (seed == 2)} for seed in (0, 1, 2)))
    rows.write_text(rows.read_text().replace('"seconds": 0}', '"seconds": 0.5}'))
    words = ["batch", str(rows), "-o", str(tmp_path / "out"), "--model", str(toy), "--threads", "1"]
    line = "import sys; from arvid.cli.main import app; app(sys.argv[1:])"
    process = subprocess.Popen([sys.executable, "-c", line, *words], env={**os.environ, "OMP_NUM_THREADS": "1"})
    while not list((tmp_path / "out").glob(".000003.mp4.*.part")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert [row["line"] for row in manifest(tmp_path / "out")] in ([], [1], [1, 2])
    before = {path.name: path.stat().st_ino for path in (tmp_path / "out").glob("*.mp4")}
    assert sorted(before) == ["000001.mp4", "000002.mp4"]
    result = arvid(*words)
    assert result.exit_code == 0 and "2 of 3 rows are done already" in result.output
    after = {path.name: path.stat().st_ino for path in (tmp_path / "out").glob("*.mp4")}
    assert before.items() < after.items() and sorted(after)[-1] == "000003.mp4"
    assert [row["status"] for row in manifest(tmp_path / "out")] == ["done"] * 3
