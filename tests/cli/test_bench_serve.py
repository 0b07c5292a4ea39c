"""`arvid bench serve`: a load on a server, what a viewer sees by hand-made clocks, sums of numbers."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("sqlalchemy")
pytest.importorskip("websockets")

from arvid.cli.serve_load import Kept, Ran, Receipt, Screen, Seen, Wanted
from arvid.cli.serve_numbers import growth, spread, summed
from arvid.cli.serve_overhead import measure
from arvid.pipeline import Pipeline, load
from serve import running

Type = Callable[..., Any]
BLOCK = 0.75


def test_a_load_on_a_server(arvid: Type, toy: Path, tmp_path: Path) -> None:
    server = running.begin(toy, tmp_path / "data")
    try:
        result = arvid(
            "bench", "serve", "--url", server.address, "--sessions", "2", "--jobs", "2", "--seconds", "4", "--every",
            "0.5", "--job-seconds", "0.5", "--json", "report.json", "--html", "report.html",
        )  # fmt: skip
        assert json.loads(running.ask(server.address, "/v1/videos")[2])["data"] == []
        for _ in range(100):
            if not server.house.engine.lives:
                break
            time.sleep(0.05)
        assert server.house.engine.lives == {}
    finally:
        server.stop()
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    totals = report["totals"]
    assert (report["schema"], report["kind"], report["model"]) == (1, "serve", "embedded-toy")
    assert totals["frames_per_second"] > 1 and totals["errors"] == 0 and report["errors"] == []
    jobs = totals["jobs"]
    assert jobs["accepted"] == jobs["completed"] >= 2 and jobs["lost"] == jobs["failed"] == 0
    assert jobs["frames"] == 9 * jobs["completed"]
    controls = {receipt["control"] for viewer in report["viewers"] for receipt in viewer["receipts"]}
    assert totals["receipts"] >= 4 and {"prompt", "branch"} <= controls
    assert all(totals[name]["max"] <= 6 for name in ("receipt_blocks", "applied_blocks")), "no more fit into the lead"
    assert all(viewer["first"] > 0 for viewer in report["viewers"])
    assert report["memory_bytes"][0][1] > 1e7
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 2 and "first frame" in page and server.address in page
    nobody = arvid("bench", "serve", "--url", server.address, "--seconds", "1")
    assert nobody.exit_code == 2 and "no server at" in nobody.stderr


def test_what_goes_wrong_is_counted(arvid: Type, toy: Path, tmp_path: Path) -> None:
    server = running.begin(toy, tmp_path / "data")
    try:
        words = ("bench", "serve", "--url", server.address, "--seconds", "1", "--router", "nobody")
        result = arvid(*words, "--sessions", "1", "--jobs", "1", "--json", "report.json")
    finally:
        server.stop()
    assert result.exit_code == 1
    errors = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["errors"]
    assert any("answers 400" in error for error in errors)
    assert any(error.startswith("viewer 0: unknown router 'nobody'") for error in errors)


@pytest.mark.slow
def test_a_server_of_its_own(arvid: Type, toy: Path, tmp_path: Path) -> None:
    words = ("bench", "serve", "--model", toy, "--threads", "1", "--jobs", "1", "--job-seconds", "0.5")
    result = arvid(*words, "--sessions", "1", "--seconds", "3", "--no-overhead", "--json", "report.json")
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report["totals"]["jobs"]["completed"] >= 1 and "overhead" not in report
    refused = arvid("bench", "serve", "--model", tmp_path / "nowhere", "--no-overhead")
    assert refused.exit_code == 2 and "the server did not start: error: no file or directory" in refused.stderr


def test_the_same_video_bare_and_served(toy: Path) -> None:
    pipeline = Pipeline(load(toy))
    found = measure(pipeline, 1.0, 2, "target")
    assert found["frames"] == 1 + 4 * 4, "a second of 16 frames is 5 latent ones"
    assert len(found["bare_s"]) == len(found["served_s"]) == 2
    ratios = sorted(slow / fast for slow, fast in zip(found["served_s"], found["bare_s"], strict=True))
    assert found["overhead"] == pytest.approx(sum(ratios) / 2 - 1, rel=0.01, abs=0.01)


def test_a_viewer_that_gets_everything_in_time() -> None:
    screen = Screen()
    assert screen.second(99.0) == 0
    for block in range(4):
        screen.block(block * BLOCK, BLOCK, 100.0 + 0.1 * block)
    assert (screen.missed, screen.waited) == (0, 0)
    assert [screen.second(100.0 + at) for at in (0, 1, 2.9, 9)] == pytest.approx([0, 1, 2.9, 3.0])
    screen.block(4 * BLOCK, BLOCK, 103.0)
    assert screen.missed == 0, "in the last moment"


def test_a_block_that_is_late_stops_the_picture() -> None:
    screen = Screen()
    screen.block(0, BLOCK, 10.0)
    screen.block(BLOCK, BLOCK, 11.0)
    assert (screen.missed, screen.waited) == (1, pytest.approx(0.25))
    assert screen.second(10.9) == pytest.approx(BLOCK - 0.1)
    assert screen.second(11.5) == pytest.approx(BLOCK + 0.5)
    screen.block(2 * BLOCK, BLOCK, 11.7)
    assert screen.missed == 1, "what was lost is not lost again"


def test_a_step_back_is_no_missed_deadline() -> None:
    screen = Screen()
    for block in range(4):
        screen.block(block * BLOCK, BLOCK, 0.0)
    screen.flush(BLOCK, 2.0)
    assert screen.second(2.0) == screen.second(5.0) == BLOCK, "it waits there"
    screen.block(BLOCK, BLOCK, 6.0)
    assert (screen.missed, screen.second(6.5)) == (0, pytest.approx(BLOCK + 0.5))
    screen.flush(2 * BLOCK, 6.6)
    assert screen.second(6.7) == pytest.approx(BLOCK + 0.7), "what is ahead becomes another, and the picture goes on"
    screen.block(2 * BLOCK, BLOCK, 6.85)
    assert (screen.missed, screen.waited) == (1, pytest.approx(0.1))


def test_spreads_and_growth() -> None:
    assert spread([]) is None
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "p95": 3.0, "max": 3.0}
    assert growth([(0.0, 1.0)] * 9) is None
    flat = [(float(second), 200.0 if second < 4 else 100.0) for second in range(16)]
    grown = growth([*flat, *((float(second), 110.0) for second in range(16, 20))])
    assert grown == {"early_bytes": 100.0, "late_bytes": 110.0, "max_bytes": 200.0, "growth": 0.1}


def test_sums_over_viewers() -> None:
    receipts = [Receipt("prompt", 0.1, 0, 0), Receipt("branch", 0.3, 1, None)]
    seen = [Seen(0.5, 80, 1, 0.25, receipts), Seen(None, 0, errors=["gone"])]
    kept = Kept(3, Counter(completed=2, lost=1), [1.0, 2.0], 18, ["x is lost"])
    found = summed(Ran(10.0, seen, kept, []), Wanted(2, 3, 10.0), 16)
    totals = found["totals"]
    assert (totals["frames_per_second"], totals["real_time_share"], totals["missed_deadlines"]) == (8.0, 0.25, 1)
    assert totals["first_frame_s"] == {"median": 0.5, "p95": 0.5, "max": 0.5} and totals["receipts"] == 2
    assert totals["receipt_blocks"]["max"] == 1 and totals["applied_blocks"]["max"] == 0
    assert totals["jobs"]["accepted"] == 3 and totals["jobs"]["lost"] == 1 and totals["jobs"]["failed"] == 0
    assert (totals["errors"], found["errors"], totals["memory"]) == (2, ["gone", "x is lost"], None)


def test_an_address_without_its_scheme_is_refused(arvid: Type) -> None:
    result = arvid("bench", "serve", "--url", "localhost:8000")
    assert result.exit_code == 2
    assert result.stderr == "error: --url 'localhost:8000'; give the address of a server, like http://127.0.0.1:8000\n"
