"""The verb `bench` on a family of random weights: what it writes, what it refuses, how it stops."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from arvid.cli import bench, bench_family
from arvid.cli import bench_speculation as running
from arvid.cli.main import Careful
from arvid.evals import speculation
from arvid.evals.speculation import Run
from arvid.models.tae import TAEConfig, TinyAutoencoder
from arvid.models.text import TextEncoder
from arvid.models.wan.transformer import CausalWan, WanConfig
from arvid.pipeline import Pipeline, Request, load
from arvid.rewards.frame import FrameReward, FrameRewardConfig
from arvid.video import to_bytes

EXACTLY = {
    "policy", "tau", "prompts", "seeds", "speedup", "quality", "retention", "retention_ci95", "accept_rate",
    "accept_rate_scored", "first_frame_s", "p50_block_s", "p95_block_s", "target_calls", "drafter_calls",
}  # fmt: skip
RANDOM = {"small": WanConfig(32, 64, 1, 1, 32, 64), "large": WanConfig(64, 128, 2, 3, 32, 64)}
PIXELS = TAEConfig(16, (4, 4, 8), (4, 4, 8), (1, 1, 1), (1, 1, 1))


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete family directory of random weights, 64x64."""
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("family")
    text = TextEncoder.build("a red blue ball moves left right on background".split(), 64, 32, 1, 2)
    text.save(place / "text")
    FrameReward(text.encode, FrameRewardConfig(64, 32, (4, 4, 8), (0, 0, 0), 1, 1)).save(place / "reward")
    parts: dict[str, dict[str, Any]] = {"reward": {}, "vae": asdict(PIXELS)}
    save_file(TinyAutoencoder(PIXELS).state_dict(), place / "vae.safetensors")
    for name, size in (("drafter", "small"), ("target", "large")):
        model = CausalWan(RANDOM[size])
        # The last layer starts at zero: without this every policy would make the same video.
        torch.nn.init.normal_(model.head.head.weight, std=0.1)
        save_file(model.state_dict(), place / f"{name}.safetensors")
        parts[name] = asdict(RANDOM[size])
    card = {
        "name": "toy", "block": 3, "trained_frames": 21, "size": [64, 64], "fps": 16, "steps": 4, "step": "euler",
        "past": "window:frames=9", "router": "first", "parts": parts,
    }  # fmt: skip
    (place / "card.json").write_text(json.dumps(card))
    return place


def invoke(family: Path, *options: str) -> Any:
    app = typer.Typer(cls=Careful)
    app.add_typer(bench.app, name="bench")
    return CliRunner().invoke(app, ["bench", "speculation", "--model", str(family), *options])


def test_a_run_leaves_a_table_a_report_and_a_page(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "CALIBRATION_PROMPTS", 2)
    some = ["first", "draft", "reward:tau=q50", "reward:tau=inf", "reward:tau=-inf", "target:steps=2"]
    some += ["refine:levels=0.8", "verify:tau=q50,draft_steps=1"]
    listing = tmp_path / "policies.txt"
    listing.write_text("# some\n" + "\n".join(some[2:]) + "\n\n")
    options = ["--prompts", "2", "--seeds", "2", "--seconds", "2", "--levels", "1", "--policies", str(listing)]
    options += [word for policy in some[:2] for word in ("--policy", policy)]
    result = invoke(family, *options, "--json", str(tmp_path / "r.json"), "--html", str(tmp_path / "r.html"))
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "r.json").read_text())
    assert next(iter(report)) == "schema"
    assert {"platform", "cpu", "cores", "threads", "torch", "date", "command"} <= report["machine"].keys()
    rows = {row["policy"]: row for row in report["rows"]}
    assert all(row.keys() >= EXACTLY for row in report["rows"])
    assert [row["policy"] for row in report["rows"]] == report["config"]["policies"]
    assert len(report["videos"]) == 9 * 2 * 2
    calibrations = report["config"]["calibrations"]
    assert calibrations.keys() == {"reward:tau=-inf", "verify:tau=-inf,draft_steps=1"}
    assert report["config"]["calibration_scores"] == calibrations["reward:tau=-inf"]
    verify = next(row for row in report["rows"] if row["policy"].startswith("verify"))
    assert verify["tau"] == pytest.approx(np.median(calibrations["verify:tau=-inf,draft_steps=1"]), rel=1e-4)
    assert 0 < verify["accept_rate_scored"] <= 1
    for row in report["rows"]:
        speed = row["speed"]
        assert (speed["videos"], speed["frames"], speed["conditions"]["router"]) == (4, 4 * 33, row["policy"])
        assert speed["seconds_per_video"] == pytest.approx(row["seconds_per_video"], rel=0.1)
        assert speed["fps"]["received"] == pytest.approx(33 / row["seconds_per_video"], rel=1e-3)
        assert speed["playback"]["first_frame_s"] == pytest.approx(row["first_frame_s"], rel=1e-3)
    assert rows["target:steps=2"]["speed"]["conditions"]["steps"] == 2
    assert rows["target"]["speed"]["conditions"]["steps"] == 4 and report["config"]["warm_up_s"] > 0
    assert not set(report["config"]["calibration_prompts"]) & {video["prompt"] for video in report["videos"]}

    assert rows["target"]["speedup"] == 1 and rows["target"]["accept_rate_scored"] is None
    assert rows["target"]["drafter_calls"] == 0 and rows["draft"]["target_calls"] == 0
    assert rows["draft"]["accept_rate"] == 1 and rows["first"]["accept_rate"] == pytest.approx(2 / 3, abs=1e-6)
    assert rows["reward:tau=inf"]["accept_rate_scored"] == 0 and rows["reward:tau=inf"]["accept_rate"] == 0
    assert rows["reward:tau=-inf"]["accept_rate_scored"] == 1
    assert rows["refine:levels=0.8"]["sources"] == {"refined": 8, "target": 4}
    # Three blocks of four passes; the first two are committed before the next is made.
    assert (rows["target"]["target_calls"], rows["target"]["target_commits"]) == (14, 2)
    text = (tmp_path / "r.html").read_text()
    assert "<svg" in text and text.count("data:image/png;base64") >= 8
    assert "http://" not in text.replace("http://www.w3.org/", "")
    assert not list(tmp_path.glob(".*"))


def test_the_card_of_a_family_is_measured(family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_family, "LONG", 2)
    place = tmp_path / "family"
    shutil.copytree(family, place)
    card = json.loads((place / "card.json").read_text())
    (place / "card.json").write_text(json.dumps({**card, "trained_frames": 6}))
    app = typer.Typer(cls=Careful)
    app.add_typer(bench.app, name="bench")
    words = ["bench", "family", "--model", str(place), "--prompts", "2", "--levels", "1"]
    places = ["--json", str(tmp_path / "r.json"), "--pictures", str(tmp_path / "p.png")]
    result = CliRunner().invoke(app, [*words, *places])
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["kind"] == "bench family" and report["config"]["warm_up_s"] > 0
    for name, router, frames in (("target", "target", 21), ("drafter", "draft", 21), ("target_2x", "target", 41)):
        row = report[name]
        assert len(row["scores"]) == 2 and row["score"] == pytest.approx(np.mean(row["scores"]))
        speed = row["speed"]
        assert (speed["videos"], speed["frames"], speed["conditions"]["router"]) == (2, 2 * frames, router)
        assert speed["seconds_per_video"] == pytest.approx(row["seconds_per_video"], rel=0.1)
        assert speed["fps"]["with_encode"] is None and speed["fps"]["with_decode"] > 0
        share = speed["seconds"]["decode"] / speed["seconds"]["denoise"]
        assert row["decode_share"] == pytest.approx(share, rel=0.1)
    for found in report["online"].values():
        assert found["seconds_per_block"] > 0 and found["share"] > 0
    for found in report["levels"].values():
        by_level = [score for level in "1234" for score in found[level]["scores"]]
        assert len(by_level) == 8 and found["all"]["score"] == pytest.approx(np.mean(by_level))
    assert "quality while it is made, by target:" in result.output and "target by level: 1 0." in result.output
    sheet = np.asarray(Image.open(tmp_path / "p.png").convert("RGB"))
    tops = [top_of(video(place, prompt, seed, 1.25)[-1], sheet) for seed, prompt in enumerate(card_prompts(2))]
    assert (tops[0] < tops[1]) == (report["target"]["scores"][0] >= report["target"]["scores"][1])
    assert {entry.name for entry in tmp_path.iterdir()} == {"family", "r.json", "p.png"}


def test_a_family_of_one_transformer_is_measured_as_its_card_says(
    family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_family, "LONG", 2)
    place = tmp_path / "family"
    shutil.copytree(family, place)
    (place / "drafter.safetensors").unlink()
    card = json.loads((place / "card.json").read_text())
    del card["parts"]["drafter"]
    alone = {**card, "trained_frames": 6, "router": "target:first_steps=2"}
    (place / "card.json").write_text(json.dumps(alone))
    app = typer.Typer(cls=Careful)
    app.add_typer(bench.app, name="bench")
    words = ["bench", "family", "--model", str(place), "--prompts", "2", "--levels", "1"]
    result = CliRunner().invoke(app, [*words, "--json", str(tmp_path / "r.json")])
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "r.json").read_text())
    assert not {"drafter", "drafter_2x", "flops_ratio", "score_ratio"} & report.keys()
    assert [*report["parameters"]] == ["target"] and [*report["levels"]] == ["truth", "target"]
    for name in ("target", "target_2x"):
        assert report[name]["speed"]["conditions"]["router"] == "target:first_steps=2"
    assert "drafter" not in result.output


def card_prompts(count: int) -> tuple[str, ...]:
    return speculation.draw_prompts(count, (1,), "family")


def video(place: Path, prompt: str, seed: int, seconds: float) -> np.ndarray:
    """What the target makes of a prompt."""
    return to_bytes(Pipeline(load(place)).generate(Request(prompt, seconds, seed, "target")).frames_BTCHW[0])


def top_of(frame_HWC: np.ndarray, sheet: np.ndarray) -> int:
    """Where in the last column of a sheet a frame stands, twice as large."""
    large, left = np.kron(frame_HWC, np.ones((2, 2, 1), np.uint8)), 28 + 7 * 136
    found = [top for top in range(len(sheet) - 128) if np.array_equal(sheet[top : top + 128, left : left + 128], large)]
    assert len(found) == 1
    return found[0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--pictures", "no/such/folder/p.png"], "does not exist; make it first"),
        (["--pictures", "p.jpg"], "--pictures p.jpg ends in .jpg; it is written as .png"),
    ],
)
def test_pictures_that_cannot_be_left_are_refused_before_work(
    monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    monkeypatch.setattr(bench_family, "measure", lambda *given: pytest.fail("it began"))
    app = typer.Typer(cls=Careful)
    app.add_typer(bench.app, name="bench")
    result = CliRunner().invoke(app, ["bench", "family", *words])
    assert result.exit_code == 2, result.output
    assert said in result.stderr


def test_a_quick_run_fits_its_policies(family: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "QUICK_SECONDS", 4.0)
    result = invoke(family, "--quick", "--seconds", "2", "--json", str(tmp_path / "r.json"))
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "r.json").read_text())
    assert len(report["rows"]) >= speculation.FEWEST_POLICIES
    assert 1 <= report["config"]["prompts"] <= 64


def test_only_policies_that_a_family_has_the_steps_for_are_measured_unasked(
    family: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "family"
    shutil.copytree(family, place)
    card = json.loads((place / "card.json").read_text())
    (place / "card.json").write_text(json.dumps({**card, "steps": 2}))
    kept, all_of_them = (
        running.Bench(Pipeline(load(folder)), running.Wanted(1, 1, 2.0, (), (1,), False), 0.0).policies
        for folder in (place, family)
    )
    assert set(all_of_them) - set(kept) == {"reward:tau=q50,repair=3"} and all_of_them == speculation.DEFAULT_POLICIES
    assert "toy walks 2 steps: 1 policies are left out" in capsys.readouterr().err
    with pytest.raises(ValueError, match="repair=3 of a draft of 2 steps"):
        running.Bench(Pipeline(load(place)), running.Wanted(1, 1, 2.0, ("stride:k=2,repair=3",), (1,), False), 0.0)


def test_the_maker_times_and_shows_what_the_pipeline_makes(family: Path) -> None:
    make = running.PipelineMaker(Pipeline(load(family)), 2.0)
    made = {
        policy: make(policy, "a red ball moves left", 5)
        for policy in ("target", "first", "reward:tau=inf", "reward:tau=-inf", "draft")
    }
    for run in made.values():
        assert run.cpu_seconds > 0
        assert run.frames.shape == (33, 64, 64, 3) and run.frames.dtype == np.uint8
        assert sum(block.seconds for block in run.blocks) == pytest.approx(run.seconds)
        assert all(sum(block.stages.values()) <= block.seconds for block in run.blocks)
    assert (made["reward:tau=inf"].frames == made["target"].frames).all()
    assert (made["reward:tau=-inf"].frames == made["first"].frames).all()
    assert not (made["first"].frames == made["target"].frames).all()
    assert not (made["first"].frames == made["draft"].frames).all()
    for policy, source in (("reward:tau=inf", "target"), ("reward:tau=-inf", "draft")):
        first, *rest = made[policy].blocks
        assert first.score is None and first.source == "target"
        assert all(block.source == source and block.score is not None for block in rest)
    assert len(make("target", "a red ball moves left", 5, 2).blocks) == 2


class Impatient(running.PipelineMaker):
    """A maker that is interrupted when it has made so many whole videos."""

    left = 0

    def __call__(self, policy: str, prompt: str, seed: int, blocks: int = 0) -> Run:
        Impatient.left -= blocks == 0
        if Impatient.left < 0:
            raise KeyboardInterrupt
        return super().__call__(policy, prompt, seed, blocks)


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    monkeypatch.setattr(running, "PipelineMaker", Impatient)
    return lambda videos: monkeypatch.setattr(Impatient, "left", videos)


def test_an_interrupted_run_reports_its_complete_rounds(
    family: Path, tmp_path: Path, stop_after: Callable[[int], None]
) -> None:
    stop_after(5)
    result = invoke(family, "--prompts", "9", "--seconds", "1", "--policy", "first", "--json", str(tmp_path / "r.json"))
    assert result.exit_code == 130
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["config"]["interrupted"] is True
    assert len(report["videos"]) == 4 and report["rows"][0]["prompts"] == 2


def test_a_run_interrupted_at_once_writes_nothing(
    family: Path, tmp_path: Path, stop_after: Callable[[int], None]
) -> None:
    stop_after(1)
    result = invoke(family, "--seconds", "1", "--policy", "first", "--json", str(tmp_path / "r.json"))
    assert result.exit_code == 130
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--policy", "coin"], "unknown router 'coin'"),
        (["--policy", "reward"], "needs tau="),
        (["--policy", "reward:tau=q50,color=1"], "has no option"),
        (["--levels", "one"], "like 1-2 or 1,3"),
        (["--levels", "5"], "like 1-2 or 1,3"),
        (["--json", "no/such/folder/r.json"], "does not exist"),
        (["--policies", "no-such-file"], "cannot read"),
        (["--seconds", "0"], "0.0 seconds asked for"),
        (["--model", "no-such-family"], "card.json is missing"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(family: Path, options: list[str], said: str) -> None:
    result = invoke(family, "--prompts", "1", *options)
    assert result.exit_code == 2, result.output
    assert said in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
