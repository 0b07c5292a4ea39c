"""`arvid demo` on a family of random weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from arvid.video import read_video
from arvid.worlds.oracle import judge
from test_video import boxes

Type = Callable[..., Any]
PROMPT = "a small red circle moves right on a gray background"


def test_the_demo_leaves_a_video_a_sheet_and_a_report(arvid: Type, toy: Path, tmp_path: Path) -> None:
    result = arvid("demo", "--model", toy, "--seconds", 1, "--prompt", PROMPT, "--router", "reward:tau=2")
    assert result.exit_code == 0, result.output
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == ["demo.json", "demo.mp4", "demo.png"]
    frames = read_video(out / "demo.mp4")
    assert len(frames) == 17
    assert frames.shape[2] > 2 * 6 * 64
    names = boxes(out / "demo.mp4")
    assert names.index("moov") < names.index("mdat")
    with Image.open(out / "demo.png") as sheet:
        assert sheet.width > 1000
    report = json.loads((out / "demo.json").read_text())
    assert report["speculation"]["totals"]["blocks_by_outcome"] == {"target": 1, "redone": 1}
    assert report["target"]["config"]["router"] == "target"
    fast, slow = (report[name]["totals"]["seconds"] for name in ("speculation", "target"))
    assert report["speedup"] == pytest.approx(slow / fast, rel=0.01)
    assert 0 <= report["target"]["world_score"] <= 1
    for said in ("speculation", "target alone", "times as fast", "out/demo.mp4"):
        assert said in result.stdout
    # The same blocks by the same hands: redoing every draft from the same noise is the target alone.
    width = frames.shape[2] // 2
    left, right = frames[:, 46:430, 16:400].astype(int), frames[:, 46:430, 416:800].astype(int)
    assert width > 400
    assert abs(left - right).mean() < 4


def test_the_world_score_is_that_of_the_oracle(toy: Path) -> None:
    from arvid.cli.demo import _judged
    from arvid.video import Strip
    from arvid.worlds.shapes import render

    frames = render(PROMPT, 3, 33)
    assert _judged(Strip(frames), PROMPT) == judge(frames, PROMPT).score > 0.9
    assert _judged(Strip(frames), "no shape in here") is None


def test_wrong_input_leaves_nothing(arvid: Type, toy: Path, tmp_path: Path) -> None:
    for words, said in (
        (["--router", "x"], "unknown router"),
        (["--out", "a/b"], "a does not exist"),
        (["--prompt", ""], "empty"),
        (["--out", str(toy / "card.json")], "card.json is a file; name a folder"),
    ):
        result = arvid("demo", "--model", toy, *words)
        assert result.exit_code == 2
        assert said in result.stderr
        assert len([line for line in result.stderr.splitlines() if line.startswith("error:")]) == 1
    assert list(tmp_path.iterdir()) == []
