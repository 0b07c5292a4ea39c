"""The verb `bench comparison` on a family of random weights: what it makes, keeps, writes and refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from arvid.cli import bench_comparison, making
from arvid.evals import suites

Type = Callable[..., Any]
ROUTERS = ("target", "refine:levels=0.8")
WORDS = ("bench", "comparison", "--short", 2, "--long", 2, "--folder", "videos", "--results", ".",
         *(word for router in ROUTERS for word in ("--router", router)))  # fmt: skip


@dataclass(frozen=True)
class Short(suites.World):
    seconds: float = 1.0


@dataclass(frozen=True)
class Long(suites.World):
    seconds: float = 2.0


@pytest.fixture
def compare(arvid: Type, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Type:
    """Runs the verb with stories of a second or two on a copy of the family."""
    monkeypatch.setattr(suites, "SUITES", {**suites.SUITES, "world-short": Short, "world-long": Long})
    shutil.copytree(toy, tmp_path / "family")
    return lambda *more: arvid(*WORDS, "--model", "family", *more)


def test_one_command_leaves_a_report_and_two_pages_and_goes_on_where_it_was(
    compare: Type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = compare()
    assert result.exit_code == 0, result.output
    assert "2 pairs; differences to target" in result.stdout and "1.00 times as fast as target" in result.stdout
    report = json.loads((tmp_path / "comparison.json").read_text())
    assert [*report][:5] == ["schema", "kind", "arvid", "command", "date"] and report["kind"] == "bench comparison"
    assert report["config"]["routers"] == [*ROUTERS] and report["config"]["warm_up_s"].keys() == {*ROUTERS}
    for name, stories, seconds in (("short", 2, 1), ("long", 2, 2)):
        part = report["suites"][name]
        assert part["comparison"]["pairs"] == stories and f"{seconds} s" in part["protocol"]["suite"]
        assert part["routers"].keys() == {*ROUTERS}
        for router, row in part["routers"].items():
            assert [clip["seed"] for clip in row["clips"]] == [*range(stories)]
            assert row["speed"]["videos"] == stories and row["speed"]["conditions"]["router"] == router
            assert row["speed"]["fps"]["with_encode"] < row["speed"]["fps"]["with_decode"]
            assert row["failures"] == [] and row["totals"]["world"]["clips"] == stories
        assert part["routers"]["target"]["speedup"]["value"] == 1
        own = [
            sum(row["speed"]["seconds"][stage] for stage in ("denoise", "decode")) for row in part["routers"].values()
        ]
        assert part["routers"][ROUTERS[1]]["speedup"]["value"] == pytest.approx(own[0] / own[1], rel=1e-3)
        page = (tmp_path / f"comparison-{name}.html").read_text()
        assert page.count("<video") == stories * len(ROUTERS)
        assert "http://" not in page.replace("http://www.w3.org/", "") and len(page) < 3_000_000
    # All routers make a story before the next one is begun, each one first in its turn.
    made = sorted((tmp_path / "videos" / "short").rglob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    order = [(path.stem, path.parent.name.partition("-")[0]) for path in made]
    assert [story for story, _ in order] == [story for story in ("0000-0", "0001-0") for _ in ROUTERS]
    assert [router for _, router in order] == ["target", "refine", "refine", "target"]

    (tmp_path / "videos" / "short" / "target" / "0001-0.mp4").unlink()
    (tmp_path / "videos" / "long" / "target" / "0000-0.json").unlink()
    again: list[str] = []
    make = making.make
    monkeypatch.setattr(
        making, "make", lambda pipeline, job, *more: again.append(str(job.places.video)) or make(pipeline, job, *more)
    )
    monkeypatch.setattr(bench_comparison, "page", lambda part: "")
    assert compare("-q").exit_code == 0
    assert again == ["videos/short/target/0001-0.mp4", "videos/long/target/0000-0.mp4"]
    second = json.loads((tmp_path / "comparison.json").read_text())
    assert second["suites"]["short"]["comparison"]["pairs"] == 2
    assert second["config"]["warm_up_s"].keys() == {"target"}

    card = json.loads((tmp_path / "family" / "card.json").read_text())
    (tmp_path / "family" / "card.json").write_text(json.dumps({**card, "steps": 3}))
    result = compare("-q")
    assert result.exit_code == 2 and "holds videos by other weights" in result.stderr


def test_an_interrupted_run_leaves_whole_videos_and_no_report(
    compare: Type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = making.make

    def stop(pipeline: Any, job: Any, display: Any) -> Any:
        if job.places.video.name == "0001-0.mp4":
            raise KeyboardInterrupt
        return make(pipeline, job, display)

    monkeypatch.setattr(making, "make", stop)
    assert compare("-q").exit_code == 130
    assert sorted(path.name for path in (tmp_path / "videos").rglob("*.mp4")) == ["0000-0.mp4"] * 2
    assert not list(tmp_path.glob("comparison*"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--router", "coin"], "unknown router 'coin'"),
        (["--results", "none"], "folder none does not exist"),
        (["--model", "none"], "card.json is missing"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(compare: Type, tmp_path: Path, words: list[str], said: str) -> None:
    result = compare(*words)
    assert result.exit_code == 2, result.output
    assert said in result.stderr and len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "videos").exists()


def test_one_router_is_no_comparison(arvid: Type, toy: Path) -> None:
    result = arvid("bench", "comparison", "--router", "draft", "--model", toy, "--results", ".", "--folder", "videos")
    assert result.exit_code == 2 and "1 router to compare" in result.stderr
