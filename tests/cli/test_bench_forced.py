"""Forced acceptance with random weights: which blocks are kept, what a row adds up to, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from arvid.cli import bench_forced
from arvid.cli.bench_forced import PAIRS, forced
from arvid.cli.main import app


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_forced.engine, "SPECULATED_QUICK", 9)


def test_every_share_is_kept_exactly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = forced("toy", "cpu", 1, True, json_file=tmp_path / "forced.json")
    rows = report["rows"]
    # Of nine blocks the first is the target's: at most 8 of 9 are drafts, which is 88.9 %.
    assert [row["forced"] for row in rows] == [0.0, 0.5, 0.75, 0.889, 0.5, 0.75, 0.889]
    assert [row["drafts"] for row in rows] == [0, 4, 7, 8, 4, 7, 8]
    assert [row["router"].split(":")[0].split(",")[0] for row in rows] == ["random"] * 4 + ["reward"] * 3
    assert rows[0]["speedup"] == 1
    for row in rows:
        assert row["speedup"] == pytest.approx(rows[0]["seconds"] / row["seconds"], rel=0.02)
        assert ("score" in row["stage_seconds"]) == row["router"].startswith("reward")
    config = json.loads((tmp_path / "forced.json").read_text())["config"]
    assert (config["weights"], config["target"], config["size"]) == ("random", "toy", [64, 64])
    assert "8 of 9 (88.9%)" in capsys.readouterr().out


def test_published_sizes_are_planned_at_their_size() -> None:
    """Nothing is built here: 14B parameters do not fit everywhere."""
    target, drafter = PAIRS["wan"]
    plan = bench_forced.engine.planned(bench_forced.engine.Wanted((target,)), bench_forced.torch.device("cuda"))
    assert (plan.pair, plan.setting.pixels, plan.cases[0].window) == ((target, drafter), (832, 480), 21)


def test_what_cannot_be_kept_is_said_before_anything_is_timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*words: object, **more: object) -> None:
        raise AssertionError("it was begun")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bench_forced, "forced", fail)
    for words, said in ((["--json", "none/a.json"], "none does not exist"), (["--html", "a.html"], "leave out")):
        result = CliRunner().invoke(app, ["bench", "speculation", "--random-weights", *words])
        assert result.exit_code == 2 and said in result.stderr


def test_an_unknown_pair_is_refused() -> None:
    with pytest.raises(ValueError, match="--model 'mine' has no random weights; known: wan, embedded, toy"):
        forced("mine", "cpu")
