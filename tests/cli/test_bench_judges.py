"""`arvid bench judges` on a family of random weights: its drafts are those of the routers, and so are its scores."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from arvid.cli import drafting
from arvid.evals import judges
from arvid.evals.judges import Drafted
from arvid.pipeline import Pipeline, Request, load
from arvid.rewards.block import BlockJudge, BlockJudgeConfig
from arvid.rewards.latent import LatentJudge, LatentJudgeConfig
from arvid.rollout.verify import MEASURES
from arvid.types import Block
from arvid.video import to_bytes
from arvid.worlds import oracle

Type = Callable[..., Any]
PROMPT, SECONDS, SEED = "a red circle moves right on a blue background", 1.5, 3
ASKED = drafting.Asked(2, (1,), SECONDS, 0, (0.4,), 0.5)


def blocks(pipeline: Pipeline, router: str) -> tuple[Block, ...]:
    return pipeline.generate(Request(PROMPT, SECONDS, SEED, router)).blocks


@pytest.fixture(scope="module")
def pipeline(toy: Path) -> Pipeline:
    return Pipeline(load(toy))


@pytest.fixture(scope="module")
def found(pipeline: Pipeline) -> list[Drafted]:
    return list(drafting.drafted(pipeline, ASKED, PROMPT, SEED))


def test_labels_are_the_oracles_of_the_very_blocks(pipeline: Pipeline, found: list[Drafted]) -> None:
    own, first = blocks(pipeline, "target"), blocks(pipeline, "first")
    assert [each.block for each in found] == [1, 2]
    start, total = own[0].frames_BTCHW.shape[1], sum(block.frames_BTCHW.shape[1] for block in own)
    for each, block in zip(found, own[1:], strict=True):
        assert each.own == oracle.judge(to_bytes(block.frames_BTCHW[0]), PROMPT, start, total).score
        start += block.frames_BTCHW.shape[1]
    start = own[0].frames_BTCHW.shape[1]
    # Behind the target's first block the router `first` keeps the very draft that is judged here.
    assert found[0].label == oracle.judge(to_bytes(first[1].frames_BTCHW[0]), PROMPT, start, total).score


@pytest.mark.parametrize("measure", sorted(MEASURES))
def test_the_targets_opinion_is_that_of_the_router(pipeline: Pipeline, found: list[Drafted], measure: str) -> None:
    verified = blocks(pipeline, f"verify:level=0.4,tau=0,measure={measure},keep=draft")
    assert verified[1].verdict.score == pytest.approx(found[0].scores[f"{measure}@0.4"], rel=1e-4)


def test_the_rewards_opinion_is_that_of_the_router(pipeline: Pipeline, found: list[Drafted]) -> None:
    kept = blocks(pipeline, "reward:tau=-inf")
    assert kept[1].verdict.score == pytest.approx(found[0].scores["frame"], rel=1e-3)
    assert found[0].scores["frame-mean"] >= found[0].scores["frame"]


def test_every_judge_there_is_gets_a_row(arvid: Type, toy: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    LatentJudge(LatentJudgeConfig(text_width=16, width=12, blocks=1, heads=2)).save(tmp_path / "latent")
    config = BlockJudgeConfig(frames=4, text_width=16, widths=(4, 6, 12), blocks=1, heads=2)
    BlockJudge(config).save(tmp_path / "block")
    result = arvid(
        "bench", "judges", "--model", toy, "--prompts", 2, "--seconds", 1.5, "--verify", "0.4", "--levels", "1",
        "--latent", "latent", "--block", "block", "--json", "j.json", "--markdown", "j.md", "--curves", "j.svg",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "j.json").read_text())
    target = {"difference@0.4", *(f"{measure}@0.4" for measure in MEASURES)}
    assert {row["judge"] for row in report["rows"]} == {
        "random", "frame", "frame-mean", "latent", "block", "frame+latent", *target
    }  # fmt: skip
    assert {row["judge"] for row in report["rows"] if row["pixels"]} == {"frame", "frame-mean", "block", "frame+latent"}
    for block in report["blocks"]:
        both = block["scores"]["frame"] * block["scores"]["latent"]
        assert block["scores"]["frame+latent"] == pytest.approx(both, abs=2e-6)
    assert report["drafts"]["blocks"] == len(report["blocks"]) == 4
    assert (tmp_path / "j.md").read_text() == result.stdout
    assert (tmp_path / "j.svg").read_text().startswith("<svg")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--verify", "1.5"], "--verify '1.5'; expected noise levels from 0 to below 1"),
        (["--verify", "0,0.5"], "--verify '0,0.5'; at 0 the target is shown the draft itself, expected above 0"),
        (["--verify", "a"], "--verify 'a'; expected noise levels like 0.2,0.8"),
        (["--latent", "nowhere"], "no latent judge in nowhere"),
        (["--seconds", "0.3"], "0 drafted blocks to judge"),
        (["--json", "a/b.json"], "does not exist"),
    ],
)
def test_wrong_input_is_named(arvid: Type, toy: Path, words: list[str], said: str) -> None:
    result = arvid("bench", "judges", "--model", toy, "--prompts", 2, *words)
    assert result.exit_code == 2
    assert said in result.stderr


# ---------------------------------------------------------------- numbers


def test_a_row_is_its_statistics() -> None:
    labels = [0.9, 0.7, 0.4, 0.1, 0.6, 0.2]
    own = [0.95, 0.9, 0.4, 0.15, 0.9, 0.9]
    drafts = [
        Drafted(f"prompt {n // 2}", 1 + n % 2, label, mine, {"right": label, "wrong": 1 - label, "flat": 0.5},
                {"right": 0.002, "wrong": 0.004, "flat": 0.0}, 0.01)
        for n, (label, mine) in enumerate(zip(labels, own, strict=True))
    ]  # fmt: skip
    rows = judges.rows(drafts, 0.5, frozenset({"wrong"}))
    assert [(row["judge"], row["auc"]) for row in rows] == [("right", 1.0), ("flat", 0.5), ("wrong", 0.0)]
    right, _, wrong = rows
    # Hardly worse than the target's own: .9, .4 and .1; of the nine pairs with the others right ranks .9 above three.
    better = np.mean([[a > b for b in (0.7, 0.6, 0.2)] for a in (0.9, 0.4, 0.1)])
    assert right["auc_beside"] == pytest.approx(float(better), abs=1e-6)
    assert (right["auc_median"], right["calibration_error"]) == (1.0, pytest.approx(0.0, abs=1e-9))
    assert right["gain"] == pytest.approx((0.9 + 0.7 + 0.6) / 3 - np.mean(labels), abs=1e-6)
    assert (right["ms_per_block"], right["pixels"], wrong["pixels"]) == (2.0, False, True)
    about = judges.summary(drafts, 0.5)
    assert (about["blocks"], about["prompts"], about["good"], about["hardly_worse"]) == (6, 3, 0.5, 0.5)
    told = judges.markdown({"rows": rows, "drafts": about})
    assert "4.0 + 10.0 decoding" in told and told.count("\n") == 5
    with pytest.raises(ValueError, match="0 drafted blocks to judge"):
        judges.rows([], 0.5, frozenset())
