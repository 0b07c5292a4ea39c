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

from arvid.cli.checkpoints import Checkpoint
from arvid.evals.training import Passes
from arvid.models.family import stated, transformer_config
from arvid.models.wan.transformer import CausalWan, WanConfig
from arvid.pipeline import Pipeline, Request, load
from arvid.recipes.distill import STAGES, Sizes, finish
from arvid.recipes.packing import Sizes as Packing
from arvid.recipes.packing import pack
from arvid.recipes.transformers import keep, read
from arvid.video import to_bytes
from oracles import toy_family

TARGET = WanConfig(16, 32, 2, 2, 8, 5, 2, 2, 16)
SIZES = Sizes(1, 1, 1, 1, levels=2, horizon=24, batch=2, critic=1)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A runs directory with latents and two trained transformers."""
    for name, config in {"target": TARGET, "drafter": replace(TARGET, num_layers=1)}.items():
        model = CausalWan(config)
        nn.init.normal_(model.head.head.weight, std=0.1)
        (tmp_path / name).mkdir()
        keep(model.state_dict(), config, tmp_path / name)
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


PROMPT = "a red circle moves right"


@pytest.mark.parametrize("start", ["target-consistency", "drafter-consistency-matching", "target-diffusion"])
def test_a_model_that_was_made_for_few_passes_becomes_a_family(runs: Path, tmp_path: Path, start: str) -> None:
    """It makes the videos that `arvid bench training` measures, walks as it was taught, and lends all else."""
    lender, chain = toy_family.write(tmp_path / "lender"), start.split("-")
    for place in range(1, len(chain) + 1):
        (runs / "-".join(chain[:place])).mkdir(exist_ok=True)
    path = lender / f"{chain[0]}.safetensors"
    given, config = load_file(path), stated(path)
    assert config is not None
    for place in range(1, len(chain)):
        before, own = ("-".join(chain[: place + more]) for more in (0, 1))
        finish(given, config, runs / own, chain[place], before, replace(SIZES, levels=4))
    rows: list[dict[str, float]] = []
    pack(runs, Packing(start, passes=2, first=4, family=str(lender)), rows.append)
    family, own = load(runs / start / "family"), load(lender)
    assert family.drafter is None and rows[0]["bytes"] > 0
    assert (family.card.steps, family.card.router) == (2, "target:first_steps=4")
    assert family.card.step == ("euler" if start == "target-diffusion" else "renoise")
    assert family.card.name == f"embedded-toy-{start}"
    if chain[0] == "target":
        made = Pipeline(family).generate(Request(PROMPT, 1.0, 3)).frames_BTCHW[0]
        measured = Checkpoint(own, runs / start, 1.0).video(PROMPT, 3, Passes(2, 4)).frames
        assert (to_bytes(made) == measured).all()
    else:
        assert family.card.parts["target"] == own.card.parts["drafter"]


def test_weights_of_other_sizes_than_the_lenders_keep_their_own(runs: Path, tmp_path: Path) -> None:
    """A pair trained by a recipe of today packs with a family of yesterday, whose transformers are smaller."""
    lender, wide = toy_family.write(tmp_path / "lender"), replace(toy_family.TARGET, cell_width=8, cell_blocks=1)
    place = runs / "target-consistency"
    place.mkdir()
    finish(CausalWan(wide).state_dict(), wide, place, "consistency", "target", replace(SIZES, levels=4))
    pack(runs, Packing(family=str(lender)), lambda row: None)
    family = load(place / "family")
    assert transformer_config(family.card, "target") == wide
    assert Pipeline(family).generate(Request(PROMPT, 0.5)).frames_BTCHW.isfinite().all()
    assert Checkpoint(load(lender), place, 1.0).pipeline.family.card.temperature == 1, "measured with all of the noise"


def test_passes_that_were_not_learned_are_refused(runs: Path, tmp_path: Path) -> None:
    lender, place = toy_family.write(tmp_path / "lender"), runs / "target-consistency"
    place.mkdir()
    path = lender / "target.safetensors"
    finish(load_file(path), toy_family.TARGET, place, "consistency", "target", replace(SIZES, levels=4))
    sizes = Packing(family=str(lender))
    for wrong in ({"passes": 3}, {"first": 3}, {"passes": 0}):
        [(name, count)] = wrong.items()
        with pytest.raises(ValueError, match=f"{name}={count} of target-consistency; give one of 1, 2, 4"):
            pack(runs, replace(sizes, **wrong), print)
    with pytest.raises(ValueError, match=r"weights missing: .*drafter-matching.*"):
        pack(runs, replace(sizes, start="drafter-matching"), print)
    (place / "made.json").write_text('{"method": "consistency", "start": "target", "steps": 1}')
    with pytest.raises(ValueError, match=r"made.json does not say at how many levels \('sizes'\); distil again"):
        pack(runs, sizes, print)
    assert not (place / "family").exists()


def test_files_among_the_latents_that_are_none_are_left_alone(runs: Path) -> None:
    before = read(runs, "latents")
    save_file({"labels": torch.zeros(3)}, runs / "latents" / "0000-labels.safetensors")
    save_file({"latents": torch.ones(1, 21, 2, 2, 2).half()}, runs / "latents" / "0001.safetensors")
    assert len(read(runs, "latents")) == len(before) + 1
    assert torch.equal(read(runs, "latents", 1), before)


def test_what_is_missing_is_named(runs: Path) -> None:
    with pytest.raises(ValueError, match=r"weights missing: .*target-consistency.*; train them first"):
        STAGES["matching"](runs, SIZES, print)
    (runs / "latents" / "0000.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no latents in .*; make them by `arvid train embedded --stage latents`"):
        STAGES["consistency"](runs, SIZES, print)
