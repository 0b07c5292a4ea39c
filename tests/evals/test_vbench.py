"""The adapter of VBench: a program that behaves like it from outside, and result files in its form."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path

import pytest

from arvid import spec
from arvid.evals import vbench
from oracles import films

PROGRAM = """#!{python}
import json, pathlib, sys
words = sys.argv[1:]
output = pathlib.Path(words[words.index("--output_path") + 1])
folder = pathlib.Path(words[words.index("--videos_path") + 1])
names = words[words.index("--dimension") + 1:]
(output / "words.json").write_text(json.dumps(words))
if "scene" in names:
    sys.exit("AssertionError: no such dimension")
rows = [dict(video_path=str(path), video_results=0.25 + i / 4) for i, path in enumerate(sorted(folder.glob("*.mp4")))]
held = {{name: [0.5, rows] for name in names}}
(output / "results_2025_eval_results.json").write_text(json.dumps(held))
"""


@pytest.fixture
def python(tmp_path: Path) -> str:
    """An interpreter of another environment."""
    path = tmp_path / "python"
    path.write_text(PROGRAM.format(python=sys.executable), encoding="utf-8")
    os.chmod(path, os.stat(path).st_mode | stat.S_IXUSR)
    return str(path)


@pytest.fixture
def videos(tmp_path: Path) -> list[Path]:
    return [films.write(tmp_path / "videos" / f"{name}.mp4", films.moving(frames=2)) for name in "ab"]


def test_a_run_calls_vbench_and_reads_what_it_wrote(python: str, videos: list[Path], tmp_path: Path) -> None:
    text = f"run:python={python},dimensions=motion_smoothness+dynamic_degree"
    found = spec.build(text, vbench.SUITES, "vbench").judge(videos, tmp_path / "work")
    assert [(one.name, one.total) for one in found] == [("motion_smoothness", 0.5), ("dynamic_degree", 0.5)]
    assert found[0].videos == {"a": 0.25, "b": 0.5}
    words = json.loads((tmp_path / "work" / "words.json").read_text())
    assert words[:7] == [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "1",
        "-m",
        "vbench.launch.evaluate",
    ]
    assert words[words.index("--mode") + 1] == "custom_input"


def test_long_videos_go_to_vbench_long(python: str, videos: list[Path], tmp_path: Path) -> None:
    run = vbench.Run(python, "motion_smoothness", long=str(tmp_path / "VBench"))
    run.judge(videos, tmp_path / "work")
    words = json.loads((tmp_path / "work" / "words.json").read_text())
    assert words[0] == str(tmp_path / "VBench" / "vbench2_beta_long" / "eval_long.py")
    assert words[words.index("--mode") + 1] == "long_custom_input"


def test_the_pieces_of_vbench_long_are_averaged_by_video(tmp_path: Path) -> None:
    rows = [{"video_path": f"videos/split_clip/{name}/{name}_{piece}.mp4", "video_results": value}
            for name, piece, value in (("a-0", 0, 0.25), ("a-0", 1, 0.75), ("b-0-Scene-1", 0, 1.0))]  # fmt: skip
    path = tmp_path / "results_1_eval_results.json"
    path.write_text(json.dumps({"subject_consistency": [0.9, rows], "dynamic_degree": [0.5, None]}), encoding="utf-8")
    found = {one.name: one for one in vbench.Read(str(tmp_path)).judge([], tmp_path)}
    assert found["subject_consistency"].total == 0.9
    assert found["subject_consistency"].videos == {"a-0": 0.5, "b-0": 1.0}
    assert found["dynamic_degree"].videos == {}


def test_a_failure_is_told_in_the_programs_last_words(python: str, videos: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="code 1: AssertionError: no such dimension"):
        vbench.Run(python, "scene").judge(videos, tmp_path / "work")
    with pytest.raises(ValueError, match="cannot run"):
        vbench.Run(str(tmp_path / "none")).judge(videos, tmp_path / "work")
    elsewhere = films.write(tmp_path / "other" / "c.mp4", films.moving(frames=2))
    with pytest.raises(ValueError, match="videos of 2 folders"):
        vbench.Run(python).judge([*videos, elsewhere], tmp_path / "work")


def test_files_that_are_no_results_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no \*_eval_results.json"):
        vbench.read_results(tmp_path)
    path = tmp_path / "x_eval_results.json"
    path.write_text('{"scene": 3}', encoding="utf-8")
    with pytest.raises(ValueError, match="is no result of VBench"):
        vbench.read_results(path)
