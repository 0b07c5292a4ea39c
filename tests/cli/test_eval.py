"""The verb `eval` on small videos and a family of random weights: what it writes, skips, keeps and refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import pytest

from arvid.evals import run
from arvid.evals.registry import BASIC
from oracles import films

Type = Callable[..., Any]
FAST = "sharpness,temporal_flicker,freeze,seams"


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of three small videos, made once."""
    folder = tmp_path_factory.mktemp("films") / "videos"
    for number in range(3):
        films.write(folder / f"{number}.mp4", films.moving(number, frames=20))
    return folder


@pytest.fixture
def videos(originals: Path, tmp_path: Path) -> Path:
    """A copy of them."""
    return Path(shutil.copytree(originals, tmp_path / "videos"))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the clips that are measured, as they are."""
    names: list[str] = []
    outcome = run._outcome
    monkeypatch.setattr(run, "_outcome", lambda clip, metrics: names.append(clip.name) or outcome(clip, metrics))
    return names


def held(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def test_a_folder_becomes_a_table_a_report_and_a_page(arvid: Type, videos: Path, tmp_path: Path) -> None:
    result = arvid("eval", videos, "--block", "5", "--json", "r.json", "--html", "r.html", "--name", "mine")
    assert result.exit_code == 0, result.output
    report = held(tmp_path / "r.json")
    assert [*report][:5] == ["schema", "kind", "arvid", "command", "date"] and report["kind"] == "eval"
    assert {"platform", "cpu", "cores", "python", "torch"} <= report["machine"].keys()
    assert {"av", "numpy", "opencv-python-headless"} <= report["protocol"]["versions"].keys()
    assert [*report["protocol"]["metrics"]] == [kind.about.name for kind in BASIC]
    assert [row["name"] for row in report["clips"]] == ["0", "1", "2"]
    assert all(row["frames"] == 20 and row["size"] == [96, 64] for row in report["clips"])
    assert report["totals"]["sharpness"]["clips"] == 3 and len(report["totals"]["sharpness"]["ci95"]) == 2
    assert report["totals"]["world"]["value"] is None and report["notes"]["world"][1] == 3
    assert report["interrupted"] is False and report["failures"] == []
    assert "mine: 3 videos" in result.stdout and "not measured: world of 3 videos: no prompt" in result.stdout
    page = (tmp_path / "r.html").read_text()
    assert page.count("<video") == 3 and "<svg" in page
    assert not list(tmp_path.glob(".*"))


def test_what_cannot_be_read_is_named_and_does_not_stop_the_rest(arvid: Type, videos: Path, tmp_path: Path) -> None:
    (videos / "empty.mp4").write_bytes(b"")
    (videos / "half.webm").write_bytes((videos / "0.mp4").read_bytes()[:400])
    (videos / "notes.txt").write_text("no video")
    result = arvid("eval", videos, "--metrics", FAST, "--json", "r.json", "-q")
    assert result.exit_code == 2
    report = held(tmp_path / "r.json")
    assert [Path(failure["path"]).name for failure in report["failures"]] == ["empty.mp4", "half.webm"]
    assert len(report["clips"]) == 3 and report["totals"]["sharpness"]["clips"] == 3
    assert len(result.stderr.strip().splitlines()) == 2 and "empty.mp4: cannot be read" in result.stderr


@pytest.mark.parametrize(
    ("ending", "codec"), [("webm", "libvpx"), ("mov", "mpeg4"), ("mkv", "libx264"), ("avi", "mjpeg")]
)
def test_videos_of_any_kind_are_measured(arvid: Type, tmp_path: Path, ending: str, codec: str) -> None:
    film = films.moving(3, frames=20)
    with av.open(str(tmp_path / f"film.{ending}"), "w") as file:
        stream = file.add_stream(codec, rate=16, options={"qscale": "2", "crf": "4", "b": "8M"})
        stream.width, stream.height = film.shape[2], film.shape[1]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for picture in film:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        file.mux(stream.encode(None))
    films.write(tmp_path / "same.mp4", film)
    assert arvid("eval", f"film.{ending}", "same.mp4", "--metrics", FAST, "--json", "r.json", "-q").exit_code == 0
    rows = {row["name"]: row for row in held(tmp_path / "r.json")["clips"]}
    assert rows["film"]["frames"] == 20 and rows["film"]["fps"] == 16 and rows["film"]["size"] == [96, 64]
    for name, value in rows["same"]["values"].items():
        assert rows["film"]["values"][name] == pytest.approx(value, rel=0.4 if name == "sharpness" else 0.01), name


def test_prompts_come_from_lines_from_json_and_from_reports_beside(arvid: Type, videos: Path, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("one\ntwo\nthree\n")
    (tmp_path / "names.json").write_text(json.dumps({"2.mp4": "three", "other/0.mp4": "one"}))
    beside = {"kind": "generate", "outputs": {"video": "elsewhere/1.mp4"},
              "config": {"prompt": "beside", "seed": 7, "fps": 16, "size": [96, 64], "past": "window:frames=9"},
              "blocks": [{"frames": 9, "seconds": {"target": 1.0, "decode": 0.5}},
                         {"frames": 11, "seconds": {"target": 2.0, "decode": 0.5}}]}  # fmt: skip
    (videos / "1.json").write_text(json.dumps(beside))
    (videos / "0.json").write_text("[]")
    for prompts, expected in ((None, [None, "beside", None]), ("lines.txt", ["one", "two", "three"]),
                              ("names.json", ["one", "beside", "three"])):  # fmt: skip
        more = ["--prompts", prompts] if prompts else []
        assert arvid("eval", videos, "--metrics", FAST, "--json", "r.json", "-q", *more).exit_code == 0
        rows = held(tmp_path / "r.json")["clips"]
        assert [row["prompt"] for row in rows] == expected
    assert rows[1]["seed"] == 7 and "seams" in rows[1]["values"] and "seams" in rows[0]["notes"]
    speed = rows[1]["speed"]
    assert speed["fps"]["denoise"] == pytest.approx(20 / 3, abs=1e-5) and speed["fps"]["with_decode"] == 5
    assert speed["conditions"]["window"] == "window:frames=9"
    assert held(tmp_path / "r.json")["speed"] is None


def test_a_reference_adds_psnr_and_ssim(arvid: Type, videos: Path, tmp_path: Path) -> None:
    result = arvid("eval", videos, "--metrics", "sharpness", "--reference", videos, "--json", "r.json")
    assert result.exit_code == 0
    totals = held(tmp_path / "r.json")["totals"]
    assert totals["psnr"]["value"] == 100 and totals["ssim"]["value"] == pytest.approx(1, abs=1e-6)


def test_a_run_is_taken_up_again(arvid: Type, videos: Path, tmp_path: Path, read: list[str]) -> None:
    words = ["eval", videos, "--metrics", FAST, "--block", "5", "--json", "r.json", "-q", "--resume"]
    assert arvid(*words).exit_code == 0
    first = held(tmp_path / "r.json")
    films.write(videos / "1.mp4", films.moving(9, frames=24))
    films.write(videos / "3.mp4", films.moving(8, frames=20))
    read.clear()
    assert arvid(*words).exit_code == 0
    second = held(tmp_path / "r.json")
    assert read == ["1", "3"] and [row["name"] for row in second["clips"]] == ["0", "1", "2", "3"]
    assert second["clips"][0] == first["clips"][0] and second["clips"][1]["frames"] == 24
    assert arvid(*[word for word in words if word != "--resume"]).exit_code == 0
    again = held(tmp_path / "r.json")
    assert again["totals"].keys() == second["totals"].keys()
    for name, total in again["totals"].items():
        assert total["value"] == pytest.approx(second["totals"][name]["value"], rel=1e-7)
    result = arvid("eval", videos, "--metrics", "sharpness", "--json", "r.json", "--resume")
    assert result.exit_code == 2 and "other metrics or options" in result.stderr


@pytest.mark.parametrize(
    ("before", "after", "again"),
    [
        (["--prompts", "one.txt"], ["--prompts", "two.txt"], ["1"]),
        (["--prompts", "one.txt"], [], ["0", "1", "2"]),
        (["--block", "5"], ["--block", "6"], ["0", "1", "2"]),
        (["--block", "5"], ["--block", "5+5"], []),
        ([], ["--block", "40"], ["0", "1", "2"]),
        (["--prompts", "one.txt"], ["--prompts", "one.txt", "--suite", "prompts:file=suite.txt"], ["0000-0"]),
    ],
)
def test_what_was_measured_for_other_prompts_seeds_or_blocks_is_measured_again(
    arvid: Type, videos: Path, tmp_path: Path, read: list[str], before: list[str], after: list[str], again: list[str]
) -> None:
    (tmp_path / "one.txt").write_text("a\nb\nc\n" + ("d\n" if "--suite" in after else ""))
    (tmp_path / "two.txt").write_text("a\nB\nc\n")
    (tmp_path / "suite.txt").write_text("d\n")
    if "--suite" in after:
        shutil.copy(videos / "0.mp4", videos / "0000-0.mp4")
    words = ["eval", videos, "--metrics", FAST, "-q", "--json"]
    arvid(*words, "r.json", *before)
    read.clear()
    arvid(*words, "r.json", "--resume", *after)
    assert read == again
    arvid(*words, "fresh.json", *after)
    assert held(tmp_path / "r.json")["clips"] == held(tmp_path / "fresh.json")["clips"]


def test_a_report_that_does_not_tell_blocks_is_measured_again(
    arvid: Type, videos: Path, tmp_path: Path, read: list[str]
) -> None:
    words = ["eval", videos, "--metrics", FAST, "-q", "--json", "r.json", "--resume"]
    assert arvid(*words).exit_code == 0
    report = held(tmp_path / "r.json")
    assert [row.pop("blocks") for row in report["clips"]] == [[], [], []]
    (tmp_path / "r.json").write_text(json.dumps(report), encoding="utf-8")
    read.clear()
    assert arvid(*words).exit_code == 0
    assert read == ["0", "1", "2"] and all("blocks" in row for row in held(tmp_path / "r.json")["clips"])


def test_an_interrupted_run_keeps_what_was_finished(
    arvid: Type, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = run._outcome

    def stop(clip: Any, metrics: Any) -> Any:
        if clip.name == "2":
            raise KeyboardInterrupt
        return outcome(clip, metrics)

    monkeypatch.setattr(run, "_outcome", stop)
    result = arvid("eval", videos, "--metrics", FAST, "--json", "r.json", "--jobs", "1")
    assert result.exit_code == 130
    report = held(tmp_path / "r.json")
    assert report["interrupted"] is True and [row["name"] for row in report["clips"]] == ["0", "1"]


def test_a_suite_is_made_measured_and_filled_up(arvid: Type, toy: Path, tmp_path: Path) -> None:
    words = ["eval", "made", "--suite", "world-short:prompts=2,seconds=1", "--make", "--model", toy,
             "--metrics", f"{FAST},world", "--json", "r.json", "-q"]  # fmt: skip
    result = arvid(*words)
    assert result.exit_code == 0, result.output
    report = held(tmp_path / "r.json")
    assert "2 held-out stories" in report["protocol"]["suite"]
    assert [(row["name"], row["seed"]) for row in report["clips"]] == [("0000-0", 0), ("0001-0", 1)]
    for row in report["clips"]:
        assert {"world", "seams", "sharpness"} <= row["values"].keys()
        assert row["speed"]["conditions"]["model"] == "embedded-toy"
    assert report["speed"]["videos"] == 2 and report["speed"]["fps"]["with_decode"] > 0
    stamp = (tmp_path / "made" / "0000-0.mp4").stat().st_mtime_ns
    (tmp_path / "made" / "0001-0.mp4").unlink()
    result = arvid(*[word for word in words if word != "--make"])
    assert result.exit_code == 2 and "0001-0.mp4: the suite asks for it" in result.stderr
    assert arvid(*words).exit_code == 0
    assert (tmp_path / "made" / "0000-0.mp4").stat().st_mtime_ns == stamp


def test_a_suite_of_changes_is_made_with_a_timeline(arvid: Type, toy: Path, tmp_path: Path) -> None:
    words = ["eval", "made", "--suite", "world-switch:prompts=1,seconds=2", "--make", "--model", toy, "-q"]
    assert arvid(*words, "--metrics", "world,freeze", "--json", "r.json").exit_code == 0
    row = held(tmp_path / "r.json")["clips"][0]
    made = held(tmp_path / "made" / "0000-0.json")
    assert row["prompt"].count(", then a new scene: ") == 1 and row["prompt"].startswith(made["config"]["prompt"])
    assert [entry["at"] for entry in made["config"]["timeline"]] == [1.0]
    assert "world" in row["values"]


def test_results_of_vbench_join_the_report(arvid: Type, videos: Path, tmp_path: Path) -> None:
    rows = [{"video_path": f"x/{number}.mp4", "video_results": number / 4} for number in range(3)]
    (tmp_path / "v_eval_results.json").write_text(json.dumps({"aesthetic_quality": [0.3, rows]}))
    words = ["eval", videos, "--metrics", "sharpness", "--vbench", "read:file=v_eval_results.json", "--json", "r.json"]
    assert arvid(*words, "-q").exit_code == 0
    report = held(tmp_path / "r.json")
    assert report["totals"]["vbench.aesthetic_quality"]["value"] == 0.3
    assert [row["values"]["vbench.aesthetic_quality"] for row in report["clips"]] == [0, 0.25, 0.5]
    assert report["protocol"]["metrics"]["vbench.aesthetic_quality"]["tier"] == "suite"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["none"], "none does not exist"),
        (["videos", "--metrics", "beauty"], "unknown metric 'beauty'; known:"),
        (["videos", "--metrics", "psnr"], "needs reference="),
        (["videos", "--metrics", "sharpness", "--metrics", "sharpness:x=1"], "has no option 'x=1'"),
        (["videos", "--block", "nine"], "expected frames like 12, or 9+12"),
        (["videos", "--block", "0"], "at least 1 frame"),
        (["videos", "--json", "no/such/r.json"], "does not exist"),
        (["videos", "--resume"], "--resume without --json"),
        (["videos", "--make"], "--make needs --suite"),
        (["videos", "--suite", "cats"], "unknown suite 'cats'"),
        (["videos", "--prompts", "none.txt"], "cannot read the prompts"),
        (["videos", "--prompts", "one.txt"], "1 prompts for 3 videos"),
        (["videos", "--metrics", "sharpness", "--vbench", "read:file=none.json"], "is no result of VBench"),
        (["videos", "--reference", "none"], "no folder none; --reference names one"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    arvid: Type, videos: Path, tmp_path: Path, words: list[str], said: str
) -> None:
    (tmp_path / "one.txt").write_text("a prompt\n")
    result = arvid("eval", *words, "-q")
    assert result.exit_code == 2, result.output
    assert said in result.stderr and len(result.stderr.strip().splitlines()) == 1


def test_another_suite_is_known_before_anything_is_measured_and_loses_nothing(
    arvid: Type, videos: Path, tmp_path: Path
) -> None:
    words = ["eval", videos, "--metrics", "sharpness", "-q", "--json", "r.json", "--vbench"]
    assert arvid(*words, "read:file=none.json").exit_code == 2
    held = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert held["interrupted"] and len(held["clips"]) == 3
    (tmp_path / "r.json").unlink()
    result = arvid(*words, "run")
    assert result.exit_code == 2 and "vbench 'run' needs python=" in result.stderr
    assert not (tmp_path / "r.json").exists()
