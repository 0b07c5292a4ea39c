"""The recipe of the judges at a tiny size: what it learns from, what it keeps apart, what it leaves."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from arvid.models.tae import TinyAutoencoder
from arvid.models.wan.transformer import CausalWan, WanConfig
from arvid.pipeline import load
from arvid.recipes import embedded, marking
from arvid.recipes import judges as recipe
from arvid.recipes.judges import STAGES, Pool, Sizes, Varied, ranks
from arvid.recipes.transformers import keep, read
from arvid.rewards.block import BlockJudge
from arvid.rewards.latent import LatentJudge
from arvid.rewards.reading import ReadingJudge, ReadingJudgeConfig
from arvid.train.asking import meaning
from arvid.train.judges import DRAFTED, RIVALS, Marked
from arvid.types import Candidate, Condition
from oracles import toy_family

DRAFTER = WanConfig(16, 32, 2, 1, 8, 5, freq_dim=16)
SIZES = Sizes(2, 1, batch=2, rivals=1)
READING = ReadingJudgeConfig(width=16, blocks=1, text_width=16, meaning=meaning())


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Latents, a drafter and an autoencoder of random weights."""
    monkeypatch.setattr(embedded, "CARD", replace(embedded.CARD, parts={"vae": asdict(toy_family.VAE)}))
    monkeypatch.setattr(recipe, "HELD_BATCHES", 1)
    model = CausalWan(DRAFTER)
    nn.init.normal_(model.head.head.weight, std=0.1)
    for name in ("drafter", "decoder"):
        (tmp_path / name).mkdir()
    keep(model.state_dict(), DRAFTER, tmp_path / "drafter")
    vae = TinyAutoencoder(toy_family.VAE).state_dict()
    save_file({key: value.contiguous() for key, value in vae.items()}, tmp_path / "decoder" / "vae.safetensors")
    (tmp_path / "latents").mkdir()
    part = {"latents": torch.randn(8, 12, 16, 4, 4), "text": torch.randn(8, 5, 8)}
    save_file({key: value.half() for key, value in part.items()}, tmp_path / "latents" / "0000.safetensors")
    return tmp_path


def test_each_judge_is_left_where_a_family_finds_it(runs: Path) -> None:
    rows: list[dict[str, float]] = []
    ranked = ("latent_judge", "block_judge")  # the one that reads is in test_feedback_recipe
    for name in ranked:
        STAGES[name](runs, SIZES, rows.append)
    for name in ranked:
        log = [json.loads(line) for line in (runs / name / "log.jsonl").read_text().splitlines()]
        assert 0 <= log[-1]["held_auc"] <= 1
    said = Condition("words", torch.randn(1, 5, 8))
    latents = torch.randn(1, 3, 16, 4, 4)
    candidate = Candidate(latents, latents, lambda: torch.rand(1, 12, 3, 32, 32), None, said)
    for loaded in (
        LatentJudge.load(runs / "latent_judge" / "model"),
        BlockJudge.load(runs / "block_judge" / "model"),
    ):
        assert next(loaded.parameters()).dtype == torch.bfloat16
        assert 0 < float(loaded.score_block(candidate)) < 1


def test_judges_that_mark_learn_from_the_blocks_of_a_whole_family(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(marking, "PART", 3)
    family = toy_family.write(tmp_path / "family")
    with pytest.raises(ValueError, match="no marked blocks in"):
        ReadingJudge(READING).save(tmp_path / "reading_judge" / "model")
        STAGES["marking"](tmp_path, SIZES, print)
    (tmp_path / "marked").mkdir()
    made = marking.part((str(tmp_path), 0))
    blocks = 13  # seven of the target, a draft beside each but the first
    assert made["own"].shape == made["seen"].shape == (3 * blocks, 3, 16, 8, 8)
    assert made["number"].tolist() == [n for n in range(marking.FROM, marking.FROM + 3) for _ in range(blocks)]
    assert bool(((made["marks"] >= 0) & (made["marks"] <= 1)).all())
    save_file(made, tmp_path / "marked" / "0000.safetensors")
    STAGES["marked"](tmp_path, replace(SIZES, marked_prompts=3), print)  # the part is there
    rows: list[dict[str, float]] = []
    STAGES["marking"](tmp_path, replace(SIZES, marking_steps=3), rows.append)
    assert 0 <= rows[-1]["held_calibration"] <= 1
    ReadingJudge(READING).save(family / "reading_judge")
    for name in ("marking_judge", "remarking_judge"):
        (tmp_path / name / "model").rename(family / name)
    assert {"marking", "remarking"} <= set(load(family).judges)


def test_marked_blocks_need_a_drafter(tmp_path: Path) -> None:
    family = toy_family.write(tmp_path / "family")
    card = json.loads((family / "card.json").read_text())
    del card["parts"]["drafter"]
    (family / "card.json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match="lacks a drafter or an encoder"):
        STAGES["marked"](tmp_path, SIZES, print)


def test_clips_that_are_kept_apart_are_never_learned_from(runs: Path) -> None:
    learn, held = recipe.batches(runs, SIZES)
    assert isinstance(learn.clips, Pool) and isinstance(held.clips, Pool)
    assert (len(learn.clips.z), len(held.clips.z)) == (7, 1)
    assert torch.equal(torch.cat([learn.clips.z, held.clips.z]), read(runs, "latents"))
    first, again, other = learn.clips(0), learn.clips(0), learn.clips(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_half_of_the_rivals_are_drafts(runs: Path) -> None:
    learn, _ = recipe.batches(runs, SIZES)
    assert set(learn.kinds) == set(RIVALS)
    assert 2 * learn.kinds.count(DRAFTED) == len(learn.kinds)


def test_drafts_are_made_in_turn_by_all_ways() -> None:
    ways = [lambda z, text, start, seed, n=n: torch.tensor(n) for n in range(3)]
    made = [int(Varied(ways)(torch.zeros(0), torch.zeros(0), 0, seed)) for seed in range(6)]
    assert made == [0, 1, 2, 0, 1, 2]


def test_held_ranks_count_pairs() -> None:
    kinds = ("true", "true", "faded", "drafted", "drafted")
    found = ranks(Marked(torch.tensor([0.9, 0.5, 0.6, 0.5, 0.1]), torch.zeros(5), kinds))
    assert found == pytest.approx({"held_auc": (3 + 1.5) / 6, "held_faded": 0.5, "held_drafted": 3.5 / 4})
