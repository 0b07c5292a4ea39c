"""The recipe of few-step models at a tiny size: each stage finds what the one before it left."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from arvid.models.wan.transformer import CausalWan, WanConfig
from arvid.recipes import distill
from arvid.recipes.distill import STAGES, Sizes

TARGET = WanConfig(16, 32, 2, 2, 8, 5, 2, 2, 16)
SIZES = Sizes(1, 1, 1, 1, levels=2, horizon=24, batch=2, critic=1)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runs directory with latents and two trained transformers."""
    monkeypatch.setattr(distill, "CONFIGS", {"target": TARGET, "drafter": replace(TARGET, num_layers=1)})
    for name, config in distill.CONFIGS.items():
        model = CausalWan(config)
        nn.init.normal_(model.head.head.weight, std=0.1)
        (tmp_path / name).mkdir()
        distill.keep(model.state_dict(), tmp_path / name)
    (tmp_path / "latents").mkdir()
    part = {"latents": torch.randn(3, 21, 2, 2, 2), "text": torch.randn(3, 5, 8), "first_text": torch.randn(2, 5, 8)}
    save_file({key: value.half() for key, value in part.items()}, tmp_path / "latents" / "0000.safetensors")
    return tmp_path


def weights(runs: Path, directory: str) -> dict[str, torch.Tensor]:
    return load_file(runs / directory / "model.safetensors")


def test_each_method_starts_from_what_the_one_before_left(runs: Path) -> None:
    rows: list[dict[str, float]] = []
    for stage in STAGES.values():
        stage(runs, SIZES, rows.append)
    assert [sorted(row.keys() & {"loss", "first", "critic"}) for row in rows] == [
        ["first", "loss"], ["critic", "loss"], ["critic", "loss"], ["first", "loss"],
    ]  # fmt: skip
    chains = [
        ("target", "target-consistency", "target-consistency-matching"),
        ("target", "target-consistency", "target-consistency-identity"),
        ("target", "target-diffusion"),
    ]
    for chain in chains:
        for earlier, later in pairwise(chain):
            before, after = weights(runs, earlier), weights(runs, later)
            assert before.keys() == after.keys()
            assert any(not torch.equal(value, after[key]) for key, value in before.items())
            assert all(value.isfinite().all() and value.dtype == torch.bfloat16 for value in after.values())
            made = json.loads((runs / later / "made.json").read_text())
            assert made == {
                "method": later.rpartition("-")[2], "start": earlier, "steps": 1, "sizes": asdict(SIZES),
            }  # fmt: skip


def test_a_stage_starts_where_it_is_told_to(runs: Path) -> None:
    STAGES["consistency"](runs, replace(SIZES, start="drafter"), lambda row: None)
    STAGES["matching"](runs, replace(SIZES, start="drafter-consistency"), lambda row: None)
    STAGES["matching"](runs, replace(SIZES, start="target"), lambda row: None)
    assert weights(runs, "drafter-consistency-matching").keys() == weights(runs, "drafter").keys()
    assert weights(runs, "target-matching").keys() == weights(runs, "target").keys()
    with pytest.raises(ValueError, match=r"start='sketch' begins with neither of target, drafter"):
        STAGES["matching"](runs, replace(SIZES, start="sketch"), print)


def test_a_drafter_may_follow_the_targets_flow(runs: Path) -> None:
    made = []
    for teacher in ("", "drafter", "target"):
        shutil.rmtree(runs / "drafter-consistency", ignore_errors=True)
        STAGES["consistency"](runs, replace(SIZES, start="drafter", teacher=teacher), lambda row: None)
        made.append(weights(runs, "drafter-consistency"))
    own, same, targets = made
    assert all(torch.equal(value, same[key]) for key, value in own.items())
    assert any(not torch.equal(value, targets[key]) for key, value in own.items())


def test_files_among_the_latents_that_are_none_are_left_alone(runs: Path) -> None:
    before = distill.read(runs, "latents")
    save_file({"labels": torch.zeros(3)}, runs / "latents" / "0000-labels.safetensors")
    save_file({"latents": torch.ones(1, 21, 2, 2, 2).half()}, runs / "latents" / "0001.safetensors")
    assert len(distill.read(runs, "latents")) == len(before) + 1
    assert torch.equal(distill.read(runs, "latents", 1), before)


def test_what_is_missing_is_named(runs: Path) -> None:
    with pytest.raises(ValueError, match=r"weights missing: .*target-consistency.*; train them first"):
        STAGES["matching"](runs, SIZES, print)
    (runs / "latents" / "0000.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no latents in .*; make them by `arvid train embedded --stage latents`"):
        STAGES["consistency"](runs, SIZES, print)
