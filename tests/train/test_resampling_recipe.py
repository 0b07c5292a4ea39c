"""The recipe of resampled pasts at a tiny size: what it leaves and reads, and which stages workers may share."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from arvid.cli.train import RECIPES
from arvid.models.wan.transformer import CausalWan, WanConfig
from arvid.recipes import resampling
from arvid.recipes.resampling import STAGES, Sizes
from arvid.recipes.transformers import keep
from arvid.train.trainer import TrainConfig

TINY = WanConfig(16, 32, 2, 1, 8, 5, 16, 16, 16)
CELLS = (8, 8)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runs directory with latents and a trained target."""
    monkeypatch.setattr(resampling, "READER", TrainConfig(2, 1e-2, warmup=1))
    torch.manual_seed(0)
    model = CausalWan(TINY)
    nn.init.normal_(model.head.head.weight, std=0.1)
    (tmp_path / "target").mkdir()
    keep(model.state_dict(), TINY, tmp_path / "target")
    (tmp_path / "latents").mkdir()
    part = {"changed_from": torch.tensor([3, 6])}
    for kind, count, frames in (("latents", 8, 21), ("first", 8, 3), ("changed", 2, 21)):
        part[kind] = torch.randn(count, frames, 16, *CELLS).half()
        part[f"{kind}_classes"] = torch.randint(0, 4, (count, frames, *CELLS, 3), dtype=torch.uint8)
        for way in ("velocity", "offset"):
            part[f"{kind}_{way}"] = torch.randn(count, frames, *CELLS, 2).half()
        part["changed_text" if kind == "changed" else {"latents": "text"}.get(kind, "first_text")] = torch.randn(
            count, 5, 8
        ).half()
    save_file(part, tmp_path / "latents" / "0000.safetensors")
    return tmp_path


def test_a_target_learns_behind_itself_and_the_start_stays(runs: Path) -> None:
    before = load_file(runs / "target" / "model.safetensors")
    rows: list[dict[str, float]] = []
    STAGES["target"](runs, Sizes(3, batch=1, firsts=2, rate=1e-2), rows.append)
    after = load_file(runs / "target-resampled" / "model.safetensors")
    assert before.keys() == after.keys(), "the reader is thrown away"
    assert all(value.isfinite().all() and value.dtype == torch.bfloat16 for value in after.values())
    assert any(not torch.equal(value, after[name]) for name, value in before.items())
    assert all(
        torch.equal(value, load_file(runs / "target" / "model.safetensors")[name]) for name, value in before.items()
    )
    lines = (runs / "target-resampled" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    last = json.loads(lines[-1])
    assert last["step"] == 3
    assert {"held_all", "held_own", "held_first"} <= last.keys()


def test_the_reader_learns_while_the_model_stands_still(runs: Path) -> None:
    STAGES["target"](runs, Sizes(1, batch=1, firsts=2, rate=0.0), lambda row: None)
    held = torch.load(runs / "target-resampled" / "reader" / "checkpoint.pt", weights_only=True)["model"]
    start = load_file(runs / "target" / "model.safetensors")
    assert all(torch.equal(held[f"model.{name}"], value.float()) for name, value in start.items())
    kept = load_file(runs / "target-resampled" / "model.safetensors")
    assert all(torch.equal(kept[name], value) for name, value in start.items()), "and with no rate it stays so"


def test_a_start_that_is_missing_is_named(runs: Path) -> None:
    with pytest.raises(ValueError, match=r"weights missing: .*target-matching.*name another folder by --set start="):
        STAGES["target"](runs, Sizes(1, start="target-matching"), lambda row: None)


def test_what_workers_share_are_stages() -> None:
    shared = 0
    for name in RECIPES.values():
        module = importlib.import_module(name)
        assert set(getattr(module, "SHARED", ())) <= set(module.STAGES)
        shared += len(getattr(module, "SHARED", ()))
    assert shared == 7
