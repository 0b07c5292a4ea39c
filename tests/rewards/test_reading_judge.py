"""The reading judge: short blocks, the directory it is kept in, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from arvid.rewards.reading import MARKS, Meaning, ReadingJudge, ReadingJudgeConfig, distance
from arvid.types import Candidate, Condition

MEANING = Meaning([[3.0, 6.0], [4.0, 7.0]], ["still", "move", "orbit"], [[0.0, 0.0], [1.0, 0.0]], [0.5, 1.5], 3)


def judge() -> ReadingJudge:
    torch.manual_seed(0)
    config = ReadingJudgeConfig(channels=4, frames=3, width=16, blocks=1, text_width=8, things=2, meaning=MEANING)
    return ReadingJudge(config).eval()


def candidate(frames: int, before: int, seed: int = 0) -> Candidate:
    generator = torch.Generator().manual_seed(seed)
    film = torch.randn(2, before + frames, 4, 5, 6, generator=generator)
    text = torch.randn(2, 3, 8, generator=generator)

    def pixels() -> torch.Tensor:
        raise AssertionError("it needs no pixels")

    return Candidate(film[:, before:], film[:, :before] if before else None, pixels, None, Condition("words", text))


def test_the_score_is_one_for_what_was_asked_and_falls_with_the_distance() -> None:
    made, looked = judge(), candidate(3, 3)
    score = made.score_block(looked)
    asked = made.scenes.read(looked.condition.text_BLD, MEANING)
    with torch.no_grad():
        terms = made.asking(looked.block_BTCHW, asked)
    by_hand = 1 / (1 + sum(MARKS[name] * term for name, term in terms.items()))
    torch.testing.assert_close(score, by_hand)
    assert ((score > 0) & (score <= 1)).all()
    assert float(distance({"shape": torch.zeros(1)})) == 0


def test_a_short_block_is_read_with_what_came_before_it() -> None:
    made = judge()
    whole = candidate(3, 0)
    cut = Candidate(whole.block_BTCHW[:, 2:], whole.block_BTCHW[:, :2], whole.frames, None, whole.condition)
    torch.testing.assert_close(made.score_block(cut), made.score_block(whole))
    lone = Candidate(whole.block_BTCHW[:, :1], None, whole.frames, None, whole.condition)
    again = Candidate(whole.block_BTCHW[:, :1].expand(-1, 3, -1, -1, -1), None, whole.frames, None, whole.condition)
    torch.testing.assert_close(made.score_block(lone), made.score_block(again))


def test_a_judge_is_what_was_saved(tmp_path: Path) -> None:
    made = judge()
    made.save(tmp_path)
    read = ReadingJudge.load(tmp_path)
    assert read.config.meaning.fields == (2, 3, 2, 3, 2, 2)
    assert read.config.meaning.seen == (3, 3, 4)
    looked = candidate(3, 3, seed=4)
    torch.testing.assert_close(read.score_block(looked), made.score_block(looked))


def test_what_it_refuses(tmp_path: Path) -> None:
    wrong = candidate(3, 0)
    with pytest.raises(ValueError, match=r"latents of shape \[2, 3, 2, 5, 6\] to judge; expected \[B, T, 4, H, W\]"):
        judge().score_block(Candidate(wrong.block_BTCHW[:, :, :2], None, wrong.frames, None, wrong.condition))
    with pytest.raises(ValueError, match="no reading judge in"):
        ReadingJudge.load(tmp_path)
    judge().save(tmp_path)
    (tmp_path / "config.json").write_text('{"channels": 4}')
    with pytest.raises(ValueError, match=r"the reading judge in .* is damaged .*; fetch it again"):
        ReadingJudge.load(tmp_path)
