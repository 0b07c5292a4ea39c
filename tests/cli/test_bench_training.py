"""`arvid bench training`: toy checkpoints of every method through the harness; its numbers against plain arithmetic."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from arvid.evals import training
from arvid.evals.training import Lineage, Made, Measured, Passes
from arvid.recipes import distill
from oracles import toy_family

Type = Callable[..., Any]


@pytest.fixture(scope="module")
def runs(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A target, and what the recipe made of it in one step per method."""
    place = tmp_path_factory.mktemp("runs")
    generator = torch.Generator().manual_seed(0)
    (place / "latents").mkdir()
    width = toy_family.TARGET.text_dim
    shapes = {"latents": (3, 21, 16, 8, 8), "text": (3, 24, width), "first_text": (2, 24, width)}
    part = {name: torch.randn(shape, generator=generator).half() for name, shape in shapes.items()}
    save_file(part, place / "latents" / "0000.safetensors")
    (place / "target").mkdir()
    (place / "target" / "model.safetensors").write_bytes((toy / "target.safetensors").read_bytes())
    sizes = distill.Sizes(1, 1, 1, 1, levels=2, horizon=21, batch=1, critic=1)
    distill.STAGES["consistency"](place, sizes, lambda row: None)
    distill.STAGES["matching"](place, sizes, lambda row: None)
    return place


def test_checkpoints_of_the_recipe_become_a_table(arvid: Type, toy: Path, runs: Path, tmp_path: Path) -> None:
    names = ("target", "target-consistency", "target-consistency-matching")
    result = arvid(
        "bench", "training", *(runs / name for name in names), "--model", toy, "--prompts", 2, "--steps", "1,2",
        "--first", "0,2", "--seconds", 1.5, "--json", "t.json", "--html", "t.html", "--markdown", "t.md",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "t.json").read_text())
    rows = report["rows"]
    passes = [(1, 1), (1, 2), (2, 2)]
    assert [(row["checkpoint"], row["steps"], row["first_steps"]) for row in rows] == [
        (name, *pair) for name in names for pair in passes
    ]
    assert [row["method"] for row in rows[::3]] == ["none", "consistency", "consistency + matching"]
    assert [row["training_steps"] for row in rows[::3]] == [0, 1, 2]
    logs = [json.loads((runs / name / "log.jsonl").read_text().splitlines()[-1]) for name in names[1:]]
    spent = [log["seconds_per_step"] for log in logs]
    assert [row["training_s"] for row in rows[::3]] == pytest.approx([0, spent[0], sum(spent)], abs=0.1)
    for row in rows:
        assert 0 <= row["score"] <= 1 and len(row["score_ci95"]) == 2 and len(row["scores"]) == 2
        # 1.5 s are 25 frames: 7 latent frames, blocks of 3, 3 and 1.
        assert len(row["score_by_block"]) == 3
        assert len(row["error_by_block"]) == (2 if row["steps"] == row["first_steps"] else 0)
        assert (row["gain"] is None) == (row["method"] == "none")
    assert (tmp_path / "t.md").read_text().count("\n") == 2 + len(rows)
    page = (tmp_path / "t.html").read_text()
    assert page.count("<svg") == 2 and "consistency + matching" in page
    assert (tmp_path / "t.md").read_text() == result.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "no model.safetensors in nowhere; name folders that `arvid train` has finished"),
        (["nowhere", "--steps", "0"], "--steps '0'; expected numbers of at least 1"),
        (["nowhere", "--first", "a"], "--first 'a'; expected whole numbers like 1,2,4"),
        (["nowhere", "--levels", "7"], "--levels '7'"),
        (["nowhere", "--json", "a/b.json"], "does not exist"),
    ],
)
def test_wrong_input_measures_nothing(arvid: Type, toy: Path, words: list[str], said: str) -> None:
    result = arvid("bench", "training", *words, "--model", toy)
    assert result.exit_code == 2
    assert said in result.stderr


# ---------------------------------------------------------------- numbers


def written(place: Path, rows: list[tuple[int, float]]) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"step": step, "seconds_per_step": seconds}) for step, seconds in rows]
    (place / "log.jsonl").write_text("\n".join([*lines, json.dumps({"step": 9, "held": 1.0})]))
    return place / "log.jsonl"


def test_the_cost_of_a_run_is_its_steps_times_their_seconds(tmp_path: Path) -> None:
    assert training.cost(tmp_path / "log.jsonl") is None
    assert training.cost(written(tmp_path / "a", [(10, 2.0), (20, 3.0)])) == pytest.approx(60)
    # Resumed at step 20 by a faster machine: rows then tell the mean since step 20.
    assert training.cost(written(tmp_path / "b", [(20, 3.0), (40, 1.0)])) == pytest.approx(60 + 20)


def test_a_lineage_is_followed_to_where_training_began(tmp_path: Path) -> None:
    for name, start, method, steps in (("a-x", "a", "x", 10), ("a-x-y", "a-x", "y", 20)):
        written(tmp_path / name, [(steps, 0.5)])
        (tmp_path / name / "made.json").write_text(json.dumps({"method": method, "start": start, "steps": steps}))
    assert training.lineage(tmp_path / "a") == Lineage("a")
    assert training.lineage(tmp_path / "a-x-y") == Lineage("a", ("x", "y"), 30, 15.0)
    (tmp_path / "a-x" / "log.jsonl").unlink()
    assert training.lineage(tmp_path / "a-x-y").seconds is None
    (tmp_path / "a-x" / "made.json").write_text("{}")
    with pytest.raises(ValueError, match=r"a-x.made.json does not say how weights were made"):
        training.lineage(tmp_path / "a-x-y")


def measured(name: str, lineage: Lineage, scores: list[float], errors: list[tuple[float, ...]]) -> Measured:
    few, some = Passes(2, 2), [0.0] * len(scores)
    return Measured(name, lineage, few, scores, some, [[score, score] for score in scores], errors, some)


def test_rows_are_means_slopes_and_paired_gains() -> None:
    prompts = ["a", "b", "c"]
    base = measured("t", Lineage("t"), [0.1, 0.5, 0.3], [(1.0, 2.0, 3.0)] * 3)
    more = measured(
        "t-x", Lineage("t", ("x",), 5, 7.0), [0.3, 0.7, 0.5], [(1.0, 1.0, 1.0), (2.0, 1.0, 0.0), (0.0,) * 3]
    )
    first, second = training.rows([base, more], prompts)
    assert (first["score"], first["exposure"], first["gain"]) == (pytest.approx(0.3), pytest.approx(1.0), None)
    assert second["gain"] == pytest.approx(0.2)
    assert second["gain_ci95"] == pytest.approx([0.2, 0.2]), "the same gain on every prompt leaves no doubt"
    assert second["exposure"] == pytest.approx(-1 / 3, abs=1e-6)
    assert second["error_by_block"] == pytest.approx([1.0, 2 / 3, 1 / 3], abs=1e-5)
    assert second["score_ci95"][0] < second["score"] < second["score_ci95"][1]
    assert "+0.200 (0.200 to 0.200)" in training.markdown({"rows": [first, second]})


def test_motion_is_that_of_what_moves() -> None:
    """A bright square of 8 pixels that moves one pixel per frame of 64: 16 frames a second, a quarter of a side."""
    frames = np.zeros((33, 64, 64, 3), np.uint8)
    rng = np.random.default_rng(0)
    patch = rng.integers(100, 255, (20, 20, 3), np.uint8)
    for number in range(33):
        frames[number, 20:40, 4 + number : 24 + number] = patch
    assert training.motion(frames, 16.0) == pytest.approx(0.25, rel=0.25)
    assert training.motion(np.repeat(frames[:1], 33, 0), 16.0) == pytest.approx(0.0, abs=1e-3)


def test_a_truth_that_is_followed_has_no_error(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that are made equal to the truth cost nothing; equal to it but for a block, that block alone."""
    from arvid.cli.checkpoints import Checkpoint
    from arvid.pipeline import Pipeline, load

    family = load(toy)
    maker = Checkpoint.__new__(Checkpoint)
    maker.pipeline, maker.seconds, maker.card = Pipeline(family), 2.5, family.card
    truth = torch.randn(1, 11, 16, 8, 8)
    monkeypatch.setattr(maker, "_truth", lambda prompt, seed, frames: truth[:, :frames])
    made = truth.clone()
    made[:, 6:9] += 2.0

    def stream(request: Any, given: torch.Tensor) -> list[Any]:
        assert torch.equal(given, truth[:, :3])
        return [replace(BLOCK, latents_BTCHW=part) for part in made.split(3, 1)]

    monkeypatch.setattr(maker.pipeline, "stream", stream)
    assert maker.errors("a red circle", 0, Passes(1, 1)) == pytest.approx((0.0, 4.0, 0.0))


def test_scores_by_block_cover_the_whole_film(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def judge(frames: np.ndarray, prompt: str, first: int, total: int) -> Any:
        asked.append((len(frames), first, total))
        return training.oracle.WorldScore(0.5, 1.0, 0.5, {})

    monkeypatch.setattr(training.oracle, "judge", judge)
    video = Made(np.zeros((25, 64, 64, 3), np.uint8), (0, 9, 21), 1.0)
    assert training.by_block(video, "x") == [0.5] * 3
    assert asked == [(9, 0, 25), (12, 9, 25), (4, 21, 25)]


def _block() -> Any:
    from arvid.types import Block, Move, Span, Verdict

    nothing = torch.zeros(1, 0, 3, 64, 64)
    return Block(Move(0, Span(0, 3), (1.0, 0.0)), nothing, nothing, "target", Verdict("accept"))


BLOCK = _block()
