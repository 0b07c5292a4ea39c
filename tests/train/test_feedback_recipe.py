"""The recipe of reward feedback at a tiny size: what each stage leaves, who finds it, and what it refuses."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from arvid.models.tae import TinyAutoencoder
from arvid.models.text import TextEncoder
from arvid.models.wan.transformer import CausalWan, WanConfig
from arvid.recipes import embedded, feedback, judges, reading_judge, transformers
from arvid.recipes.feedback import STAGES, Shown, Sizes
from arvid.recipes.reading_judge import Blocks
from arvid.recipes.transformers import keep
from arvid.rewards.reading import ReadingJudge, ReadingJudgeConfig
from arvid.train.asking import classes, meaning
from arvid.train.text import vocabulary
from arvid.worlds.grammar import THING_COLOURS, parse

TINY = WanConfig(16, 32, 2, 1, 8, 5, 16, 16, 16)
SIZES = Sizes(2, 2, firsts=2, batch=1)
CELLS = (8, 8)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runs directory with latents, an autoencoder and two trained transformers."""
    monkeypatch.setattr(feedback, "HELD_FIRSTS", 2)
    monkeypatch.setattr(transformers, "TOGETHER", 2)
    torch.manual_seed(0)
    for name in ("target", "drafter"):
        model = CausalWan(TINY)
        nn.init.normal_(model.head.head.weight, std=0.1)
        (tmp_path / name).mkdir()
        keep(model.state_dict(), TINY, tmp_path / name)
    (tmp_path / "decoder").mkdir()
    save_file(TinyAutoencoder().state_dict(), tmp_path / "decoder" / "vae.safetensors")
    (tmp_path / "latents").mkdir()
    scenes = [parse(f"a {colour} star moves left on black").scene for colour in THING_COLOURS[:6]]
    part = {"changed_from": torch.tensor([3, 6]), "first_things": classes(scenes)}
    for kind, count, frames in (("latents", 6, 21), ("first", 6, 3), ("changed", 2, 21)):
        part[kind] = torch.randn(count, frames, 16, *CELLS).half()
        part[f"{kind}_classes"] = torch.randint(0, 4, (count, frames, *CELLS, 3), dtype=torch.uint8)
        for way in ("velocity", "offset"):
            part[f"{kind}_{way}"] = torch.randn(count, frames, *CELLS, 2).half()
    for kind in ("text", "first_text", "changed_text"):
        part[kind] = torch.randn(2 if kind == "changed_text" else 6, 5, 8).half()
    save_file(part, tmp_path / "latents" / "0000.safetensors")
    return tmp_path


@pytest.fixture
def judged(runs: Path) -> Path:
    """The same with a judge that has learned nothing."""
    ReadingJudge(ReadingJudgeConfig(width=16, blocks=1, text_width=8, meaning=meaning())).save(
        runs / "reading_judge" / "model"
    )
    return runs


def test_both_transformers_learn(judged: Path) -> None:
    rows: list[dict[str, float]] = []
    for stage in STAGES.values():
        stage(judged, SIZES, rows.append)
    for name in ("target", "drafter"):
        before = load_file(judged / name / "model.safetensors")
        after = load_file(judged / f"{name}-feedback" / "model.safetensors")
        assert before.keys() == after.keys()
        ended = torch.load(judged / f"{name}-feedback" / "checkpoint.pt", weights_only=True)["average"]
        for key, value in after.items():
            torch.testing.assert_close(value.float(), (before[key] + ended[key]) / 2, rtol=0.01, atol=0.01)
        assert any(not torch.equal(value, after[key]) for key, value in before.items())
        assert all(value.isfinite().all() and value.dtype == torch.bfloat16 for value in after.values())
    held = [row for row in rows if "held_distance" in row]
    assert len(held) == 2
    assert all(row["held_cells"] > 0 for row in held)


def test_without_a_judge_nothing_is_learned(runs: Path) -> None:
    with pytest.raises(ValueError, match=r"no reading judge in .*reading_judge/model"):
        STAGES["target"](runs, SIZES, print)


def test_the_judge_learns_to_read(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading_judge, "APART", 2)
    encoder = TextEncoder.build(vocabulary())
    encoder.save(runs / "text" / "encoder")
    rows: list[dict[str, float]] = []
    judges.STAGES["reading_judge"](runs, judges.Sizes(reading_judge_steps=2), rows.append)
    assert [set(row) >= {"held_right"} for row in rows if "held_loss" in row] == [True, True]
    judge = ReadingJudge.load(runs / "reading_judge" / "model")
    assert judge.config.meaning.paces == [0.5, 1.0, 1.75]
    assert judge.config.text_width == encoder.width


def test_a_run_made_again_has_the_same_weights(judged: Path) -> None:
    made = []
    for _ in range(2):
        shutil.rmtree(judged / "target-feedback", ignore_errors=True)
        STAGES["target"](judged, SIZES, lambda row: None)
        made.append(load_file(judged / "target-feedback" / "model.safetensors"))
    assert all(torch.equal(value, made[1][key]) for key, value in made[0].items())


def test_prompts_apart_are_never_shown(runs: Path) -> None:
    shown = Shown(runs, SIZES)
    texts = [shown(step).text_NSD for step in range(40)]
    apart = shown.text[-2:].float()
    assert not any(torch.equal(row, held) for text in texts for row in text for held in apart)
    step = shown(3)
    for text, colour in zip(step.text_NSD, step.asked.classes_NKJ[:, 0, 2], strict=True):
        assert torch.equal(text, shown.text[int(colour) - 1].float()), "each is asked for what its own text tells"
    assert torch.equal(shown(7).text_NSD, texts[7])


def test_blocks_are_cut_with_their_labels(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading_judge, "APART", 2)
    blocks = Blocks(runs, batch=5)
    for step in range(4):
        made, rows = blocks(step), blocks.rows[step % 2]
        for z, seen in zip(made.z_NTCHW, made.told.classes_BTYXK, strict=True):
            places = [
                (clip, start)
                for clip in range(len(rows[0])) for start in range(rows[0].shape[1] - 2)
                if torch.equal(rows[0][clip, start : start + 3].float(), z)
            ]  # fmt: skip
            ((clip, start),) = places
            assert torch.equal(rows[1][clip, start : start + 3], seen)
        assert made.moving_NT[:, 0].all() == bool(step % 2), "a film's first frame has no velocity"


def test_pack_takes_transformers_that_were_taught(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Text:
        load = staticmethod(lambda directory: Text())
        save = staticmethod(lambda directory: None)

    monkeypatch.setattr(embedded, "TextEncoder", Text)
    (runs / "target-feedback").mkdir()
    keep(CausalWan(TINY).state_dict(), TINY, runs / "target-feedback")
    embedded.pack(runs, embedded.Sizes(), lambda row: None)
    for name, start in (("target", "target-feedback"), ("drafter", "drafter")):
        packed, made = (runs / "family" / f"{name}.safetensors"), runs / start / "model.safetensors"
        assert packed.read_bytes() == made.read_bytes()
