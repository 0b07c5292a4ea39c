"""`arvid models`: what it says about checkpoints, what it writes, and how it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from oracles.dense_wan import CFG, weights

Type = Callable[..., Any]
HEADS = ("--heads", str(CFG["num_heads"]))


@pytest.fixture
def trainer(tmp_path: Path) -> Path:
    """A trainer's file with the averaged weights."""
    held = {f"model.{name}": value for name, value in weights().items()}
    torch.save({"generator_ema": held}, tmp_path / "model.pt")
    return tmp_path / "model.pt"


@pytest.fixture
def low(tmp_path: Path) -> Path:
    """An adapter of one matrix."""
    module = "base_model.model.blocks.0.self_attn.q"
    state = {f"{module}.lora_A.weight": torch.ones(4, 48), f"{module}.lora_B.weight": torch.ones(48, 4)}
    save_file(state, tmp_path / "low.safetensors")
    return tmp_path / "low.safetensors"


def test_inspect_says_what_a_checkpoint_is(arvid: Type, trainer: Path) -> None:
    result = arvid("models", "inspect", trainer, *HEADS)
    assert result.exit_code == 0, result.stderr
    said = dict(line.split("  ", 1) for line in result.output.splitlines())
    said = {name.strip(): value.strip() for name, value in said.items()}
    assert said["family"].startswith("self-forcing or causal-forcing or causal-forcing-framewise or ")
    assert said["layout"] == "original names, from generator_ema"
    assert said["dtype"] == f"float32 ({len(weights())} tensors)"
    four = "1000, 937.5, 833.333, 625 (shift 5), blocks of"
    assert said["steps of self-forcing"].startswith(f"{four} 3 latent frames")
    assert said["steps of causal-forcing-framewise"].startswith(f"{four} 1 latent frames")
    assert said["licence"].startswith("not said")
    assert said["pairs with"] == "no published model of another size"


def test_inspect_as_json(arvid: Type, trainer: Path, low: Path) -> None:
    result = arvid("models", "inspect", trainer, *HEADS, "--lora", low, "--family", "causvid", "--json")
    facts = json.loads(result.output)
    assert next(iter(facts)) == "schema"
    assert facts["families"][0]["timesteps"] == [1000, 757, 522]
    assert facts["families"][0]["shift"] == 8
    assert facts["config"]["num_layers"] == CFG["num_layers"]
    assert facts["loras"][0]["ranks"] == [4]


def test_inspect_an_adapter(arvid: Type, low: Path) -> None:
    result = arvid("models", "inspect", low)
    assert result.exit_code == 0
    assert "rank 4, 1 tensors" in result.output
    assert json.loads(arvid("models", "inspect", low, "--json").output)["kind"] == "lora"


def test_convert_writes_what_inspect_reads(arvid: Type, trainer: Path, tmp_path: Path) -> None:
    result = arvid("models", "convert", trainer, "-o", tmp_path / "new", *HEADS)
    assert result.exit_code == 0, result.stderr
    assert [Path(line).name for line in result.output.splitlines()] == ["config.json", "model.safetensors"]
    found = load_file(tmp_path / "new" / "model.safetensors")
    assert found.keys() == weights().keys()
    assert all(torch.equal(found[name], value) for name, value in weights().items())
    again = arvid("models", "inspect", tmp_path / "new", "--json")
    assert json.loads(again.output)["families"][0]["name"] == "self-forcing"


def test_wrong_files_end_in_one_line_and_2(arvid: Type, trainer: Path, low: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.pt"
    cut.write_bytes(trainer.read_bytes()[:20_000])
    save_file({"lm_head.weight": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    torch.save({"generator": weights(), "by": Path}, tmp_path / "code.pt")
    for path, said in [
        (cut, "damaged"),
        (tmp_path / "other.safetensors", "is no Wan transformer"),
        (tmp_path / "code.pt", "holds code"),
        (tmp_path / "nothing.pt", "no file or directory"),
        (trainer, "name it (--heads)"),
    ]:
        for words in (("inspect", path), ("convert", path, "-o", tmp_path / "new")):
            result = arvid("models", *words)
            assert result.exit_code == 2, path
            assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
            assert said in result.stderr
    assert arvid("models", "convert", low, "-o", tmp_path / "new").exit_code == 2
    assert not (tmp_path / "new").exists()
    assert [entry.name for entry in tmp_path.iterdir() if ".part" in entry.name] == []


@pytest.mark.parametrize("verb", ["inspect", "convert"])
def test_the_verbs_explain_themselves(arvid: Type, verb: str) -> None:
    result = arvid("models", verb, "--help")
    assert result.exit_code == 0
    assert "--lora" in result.output
