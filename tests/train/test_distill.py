"""The recipe of few-step models at a tiny size: each stage finds what the one before it left."""

from __future__ import annotations

from dataclasses import replace
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
SIZES = Sizes(1, 1, 1, 1, levels=2, steps=2, horizon=24, batch=2)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runs directory with latents and two trained transformers."""
    monkeypatch.setattr(distill, "CONFIGS", {"target": TARGET, "drafter": replace(TARGET, num_layers=1)})
    monkeypatch.setattr(distill, "CRITIC_STEPS", 1)
    for name, config in distill.CONFIGS.items():
        model = CausalWan(config)
        nn.init.normal_(model.head.head.weight, std=0.1)
        (tmp_path / name).mkdir()
        distill.keep(model.state_dict(), tmp_path / name)
    (tmp_path / "latents").mkdir()
    part = {"latents": torch.randn(3, 21, 2, 2, 2), "text": torch.randn(3, 5, 8), "first_text": torch.randn(2, 5, 8)}
    save_file({key: value.half() for key, value in part.items()}, tmp_path / "latents" / "0000.safetensors")
    return tmp_path


def test_few_step_models_come_out_of_trained_ones(runs: Path) -> None:
    rows: list[dict[str, float]] = []
    for stage in STAGES.values():
        stage(runs, SIZES, rows.append)
    assert [sorted(row.keys() & {"loss", "first", "critic"}) for row in rows] == 2 * [
        ["first", "loss"], ["critic", "loss"],
    ]  # fmt: skip
    for name in ("target", "drafter"):
        weights = [
            load_file(runs / path / "model.safetensors") for path in (name, f"{name}-consistency", f"{name}-few")
        ]
        assert weights[0].keys() == weights[1].keys() == weights[2].keys()
        for earlier, later in pairwise(weights):
            assert any(not torch.equal(value, later[key]) for key, value in earlier.items())
            assert all(value.isfinite().all() and value.dtype == torch.bfloat16 for value in later.values())


def test_what_is_missing_is_named(runs: Path) -> None:
    with pytest.raises(ValueError, match=r"weights missing: .*target-consistency"):
        STAGES["matching"](runs, SIZES, print)
    (runs / "latents" / "0000.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no latents in .*; make them by `arvid train embedded --stage latents`"):
        STAGES["consistency"](runs, SIZES, print)
