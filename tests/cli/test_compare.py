"""The verb `compare` on reports that `eval` wrote: its table, its findings, its files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from oracles import films

Type = Callable[..., Any]


@pytest.fixture
def reports(arvid: Type, tmp_path: Path) -> list[str]:
    """Two reports: clean films, and the same ones with a freeze; without an interval a difference is none."""
    (tmp_path / "prompts.txt").write_text("one\ntwo\nthree\n")
    for name in ("clean", "frozen"):
        for seed in range(3):
            film = films.moving(seed, frames=30)
            spoilt = film if name == "clean" else films.frozen(film, 15, 3 + seed)
            films.write(tmp_path / name / f"{seed}.mp4", spoilt)
        words = ["eval", name, "--prompts", "prompts.txt", "--metrics", "freeze,sharpness,motion,drift", "-q"]
        assert arvid(*words, "--json", f"{name}.json").exit_code == 0
    return ["clean.json", "frozen.json"]


def test_a_comparison_names_what_is_worse(arvid: Type, reports: list[str], tmp_path: Path) -> None:
    result = arvid("compare", *reports, "--json", "c.json", "--html", "c.html")
    assert result.exit_code == 0, result.output
    assert "3 pairs; differences to clean" in result.stdout
    assert "frozen is worse than clean in freeze: +0.13" in result.stdout
    compared = json.loads((tmp_path / "c.json").read_text())
    assert [*compared][:2] == ["schema", "kind"] and compared["kind"] == "compare"
    row = next(row for row in compared["rows"] if row["metric"] == "freeze" and row["report"] == "frozen")
    assert row["difference"] == pytest.approx((3 + 4 + 5) / 3 / 29) and row["win_rate"] == 0
    page = (tmp_path / "c.html").read_text()
    assert page.count("<video") == 6 and "frozen is worse than clean in freeze" in page
    assert not list(tmp_path.glob(".*"))


def test_videos_are_found_from_the_reports_folder(
    arvid: Type, reports: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert arvid("compare", f"../{reports[0]}", f"../{reports[1]}", "--html", "c.html").exit_code == 0
    assert Path("c.html").read_text().count("<video") == 6


def test_names_and_axes_can_be_chosen(arvid: Type, reports: list[str], tmp_path: Path) -> None:
    result = arvid("compare", *reports, "--names", "left,right", "--x", "motion", "--y", "freeze", "--html", "c.html")
    assert result.exit_code == 0 and "right is worse than left in freeze" in result.stdout
    assert "Freeze against motion" in (tmp_path / "c.html").read_text()
    same = arvid("compare", reports[0], reports[0])
    assert same.exit_code == 0 and "clean 1" in same.stdout and "worse" not in same.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["none.json"], "is no report of arvid eval"),
        (["clean.json", "frozen.json", "--names", "a"], "1 names for 2 reports"),
        (["clean.json", "frozen.json", "--x", "beauty"], "no number 'beauty'"),
        (["clean.json", "c.json"], "is no report of arvid eval"),
        (["clean.json", "bare.json"], "bare.json is no report of arvid eval ('totals')"),
        (["clean.json", "poor.json"], "poor.json is no report of arvid eval ('prompt')"),
        (["clean.json", "--html", "no/such/c.html"], "does not exist"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(arvid: Type, tmp_path: Path, words: list[str], said: str) -> None:
    report = {"kind": "eval", "name": "x", "clips": [], "protocol": {"metrics": {}}, "totals": {}, "speed": None}
    clip = {"name": "a", "path": "a.mp4", "prompt": "a", "seed": 0, "values": {}, "curves": {}, "fps": 16, "frames": 1}
    for name in ("clean", "frozen"):
        (tmp_path / f"{name}.json").write_text(json.dumps({**report, "clips": [clip]}))
    (tmp_path / "c.json").write_text(json.dumps({"kind": "compare"}))
    (tmp_path / "bare.json").write_text(json.dumps({"kind": "eval", "name": "x", "clips": [], "protocol": {}}))
    (tmp_path / "poor.json").write_text(json.dumps({**report, "clips": [{"name": "a", "path": "a.mp4"}]}))
    result = arvid("compare", *words)
    assert result.exit_code == 2, result.output
    assert said in result.stderr and len(result.stderr.strip().splitlines()) == 1
