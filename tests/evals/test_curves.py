"""Training curves: logs against naive twins, and the picture read back as XML."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from arvid.cli.main import app
from arvid.evals.curves import Curve, curves, render, running_mean
from arvid.evals.drawing import COLOURS

Invoke = Callable[..., Any]
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two runs: one was resumed at step 20, and measured what it held out; the other ended early."""
    place = tmp_path / "runs"
    first = [
        {"step": 10, "loss": 4.0, "right": 0.2}, {"step": 20, "loss": 3.0, "right": 0.4}, {"step": 20, "held_auc": 0.5},
        {"step": 30, "loss": 9.0, "right": 0.9}, {"step": 30, "loss": 2.0, "right": 0.5}, {"step": 40, "loss": 2.5},
        {"step": 40, "held_auc": 0.75},
    ]  # fmt: skip
    second = [{"step": 10, "loss": 5.0}, {"step": 20, "loss": 4.5}, {"step": 30, "loss": 4.25}]
    for name, rows in (("one", first), ("two", second)):
        (place / name).mkdir(parents=True)
        (place / name / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


def test_a_running_mean_is_that_of_the_last_steps() -> None:
    drawn = np.random.default_rng(0)
    steps = sorted(drawn.choice(np.arange(1, 400), 60, replace=False).tolist())
    values = drawn.normal(size=60).tolist()
    for over in (1, 7, 100, 1000):
        twin = []
        for now in steps:
            seen = [value for step, value in zip(steps, values, strict=True) if now - over < step <= now]
            twin.append(sum(seen) / len(seen))
        assert running_mean(steps, values, over) == pytest.approx(twin)
    assert running_mean(steps, values, 1) == pytest.approx(values)


def test_the_last_word_on_a_step_counts_and_rows_of_different_numbers_do_not_mix(runs: Path) -> None:
    found = curves([runs / "one", runs / "two"], ["loss", "held_auc", "right"], 20)
    assert found == [
        Curve("one", "loss", (10, 20, 30, 40), (4.0, 3.0, 2.0, 2.5), (4.0, 3.5, 2.5, 2.25)),
        Curve("two", "loss", (10, 20, 30), (5.0, 4.5, 4.25), (5.0, 4.75, 4.375)),
        Curve("one", "held_auc", (20, 40), (0.5, 0.75), (0.5, 0.75)),
        Curve("one", "right", (10, 20, 30), (0.2, 0.4, 0.5), (0.2, pytest.approx(0.3), pytest.approx(0.45))),
    ]  # fmt: skip


def test_runs_of_one_name_are_told_apart(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (runs / "two").rename(tmp_path / "more" / "one")
    found = curves([runs / "one", tmp_path / "more" / "one"], ["loss"], 1)
    assert [one.run for one in found] == [(runs / "one").as_posix(), (tmp_path / "more" / "one").as_posix()]


def lines(svg: ElementTree.Element, colour: str) -> list[list[tuple[float, float]]]:
    """The curves of a colour (what is cut off at the edges of a panel, unlike the legend), as points."""
    found = []
    for path in svg.iter(f"{SVG}path"):
        style = path.get("style", "")
        if path.get("clip-path") and "fill: none" in style and f"stroke: {colour}" in style:
            points = re.findall(r"[ML] (\S+) (\S+)", path.get("d", ""))
            found.append([(float(x), float(y)) for x, y in points])
    return found


def test_the_picture_draws_the_means_of_every_run_and_says_what_they_are(runs: Path) -> None:
    found = curves([runs / "one", runs / "two"], ["loss", "right"], 20)
    text = render(found, 20)
    assert text == render(found, 20)
    svg = ElementTree.fromstring(text)
    said = {"".join(word.itertext()).strip() for word in svg.iter(f"{SVG}text")}
    assert {"one", "two", "loss", "right", "step (lines: mean of the last 20 steps)"} <= said
    drawn = lines(svg, COLOURS[0]) + lines(svg, COLOURS[1])
    for one, points in zip(sorted(found, key=lambda one: one.run), drawn, strict=True):
        across, down = np.array(points).T
        assert np.corrcoef(across, one.steps)[0, 1] == pytest.approx(1)
        assert np.corrcoef(down, one.means)[0, 1] == pytest.approx(-1)
    # Both runs have one scale: the run with the higher loss lies above.
    assert lines(svg, COLOURS[1])[0][0][1] < lines(svg, COLOURS[0])[0][0][1]


def test_the_paper_is_white_whatever_the_page_is(runs: Path) -> None:
    svg = ElementTree.fromstring(render(curves([runs / "one"], ["loss"], 20), 20))
    _, _, wide, high = (float(side) for side in svg.get("viewBox", "").split())
    paper = next(svg.iter(f"{SVG}path"))
    corners = {(float(x), float(y)) for x, y in re.findall(r"[ML] (\S+) (\S+)", paper.get("d", ""))}
    assert paper.get("style") == "fill: #ffffff"
    assert corners == {(0, 0), (wide, 0), (0, high), (wide, high)}


def arvid(*words: object) -> Any:
    return CliRunner().invoke(app, ["bench", "curves", *map(str, words)])


def test_the_command_leaves_one_file_and_says_where_curves_end(runs: Path, tmp_path: Path) -> None:
    place = tmp_path / "c.svg"
    result = arvid(runs / "one", runs / "two", "--number", "held_auc", "--number", "loss", "--over", 20, "--svg", place)
    assert result.exit_code == 0, result.output
    assert result.output.splitlines() == [
        "held_auc, one: 0.75 at step 40", "loss, one: 2.25 at step 40", "loss, two: 4.375 at step 30",
    ]  # fmt: skip
    assert place.read_text() == render(curves([runs / "one", runs / "two"], ["held_auc", "loss"], 20), 20)
    assert {entry.name for entry in tmp_path.iterdir()} == {"runs", "c.svg"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere", "--svg", "c.svg"], "no log.jsonl in nowhere; name folders"),
        (["runs/one", "--svg", "c.png"], "--svg c.png ends in .png; it is written as .svg"),
        (["nowhere", "--svg", "no/c.svg"], "does not exist; make it first"),
        (["runs/two", "--svg", "c.svg", "--number", "right"], "no run has a number 'right' in its log; these do: loss"),
        (["runs/one", "--svg", "c.svg", "--number", "step"], "no run has a number 'step'"),
        (["runs/torn", "--svg", "c.svg"], "line 2 of runs/torn/log.jsonl is no row of numbers"),
        (["runs/odd", "--svg", "c.svg"], "line 1 of runs/odd/log.jsonl is no row of numbers"),
    ],
)
def test_what_cannot_be_drawn_leaves_nothing(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    for name, text in (("torn", '{"step": 10, "loss": 1.0}\n{"step": 20, "lo'), ("odd", '{"loss": 1.0}\n')):
        (runs / name).mkdir()
        (runs / name / "log.jsonl").write_text(text)
    monkeypatch.chdir(tmp_path)
    result = arvid(*words)
    assert result.exit_code == 2, result.output
    assert said in result.stderr and len(result.stderr.strip().splitlines()) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["runs"]
