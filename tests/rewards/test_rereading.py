"""The rereading judge: which frames are encoded, and that its score is the mean of what is read and what is seen."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from arvid.models.tae import TAEConfig, TinyAutoencoder
from arvid.rewards.judges import reread
from arvid.rewards.reading import Meaning, ReadingJudge, ReadingJudgeConfig
from arvid.rewards.rereading import RereadingJudge
from arvid.types import Candidate, Condition

MEANING = Meaning([[3.0, 6.0], [4.0, 7.0]], ["still", "move", "orbit"], [[0.0, 0.0], [1.0, 0.0]], [0.5, 1.5], 3)


def reading(channels: int = 4) -> ReadingJudge:
    torch.manual_seed(0)
    config = ReadingJudgeConfig(channels=channels, width=16, blocks=1, text_width=8, things=2, meaning=MEANING)
    return ReadingJudge(config).eval()


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def candidate(before: Tensor | None = None) -> Candidate:
    frames = 2 * normal(2, 12, 3, 8, 8, seed=3)
    text = Condition("words", normal(2, 3, 8, seed=2))
    return Candidate(normal(2, 3, 4, 4, 4, seed=1), None, lambda: frames, before, text)


class Codec:
    """Remembers what it was asked to encode; what it makes of that is written."""

    def __init__(self, z_BTCHW: Tensor) -> None:
        self.z_BTCHW = z_BTCHW
        self.asked: list[Tensor] = []

    def __call__(self, v_BTCHW: Tensor) -> Tensor:
        self.asked.append(v_BTCHW)
        return self.z_BTCHW


def test_the_score_is_the_mean_of_what_is_read_and_what_is_seen() -> None:
    judge, given, seen = reading(), candidate(), normal(2, 3, 4, 4, 4, seed=9)
    read = judge.score_block(given)
    shown = judge.score_block(replace(given, block_BTCHW=seen))
    assert not torch.allclose(read, shown)
    torch.testing.assert_close(RereadingJudge(judge, Codec(seen)).score_block(given), (read * shown).sqrt())
    torch.testing.assert_close(RereadingJudge(judge, Codec(given.block_BTCHW)).score_block(given), read)


def test_frames_are_encoded_behind_the_one_before_them() -> None:
    before, seen = 2 * normal(2, 5, 3, 8, 8, seed=4), normal(2, 4, 4, 4, 4, seed=9)
    codec, given = Codec(seen), candidate(before)
    terms = RereadingJudge(reading(), codec).terms(given)
    torch.testing.assert_close(codec.asked[0], torch.cat([before[:, -1:], given.frames()], 1).clamp(-1, 1))
    wanted = reading().terms(replace(given, block_BTCHW=seen[:, 1:]))
    assert terms.keys() == wanted.keys()
    for name, term in terms.items():
        torch.testing.assert_close(term, wanted[name])
    alone = Codec(seen[:, 1:])
    RereadingJudge(reading(), alone).score_block(candidate())
    torch.testing.assert_close(alone.asked[0], candidate().frames().clamp(-1, 1))


@pytest.mark.parametrize(("frames", "lookback"), [(9, 0), (12, 1)])
def test_a_real_autoencoder_gives_as_many_latents_as_the_block_has(frames: int, lookback: int) -> None:
    torch.manual_seed(0)
    codec = TinyAutoencoder(TAEConfig(4, (8, 8, 8), (8, 8, 8))).eval()
    judge = RereadingJudge(reading(), codec.encode)
    before = normal(1, lookback, 3, 32, 32, seed=5) if lookback else None
    given = Candidate(
        normal(1, 3, 4, 4, 4, seed=1), None, lambda: normal(1, frames, 3, 32, 32, seed=6), before,
        Condition("words", normal(1, 3, 8, seed=2)),
    )  # fmt: skip
    assert judge.lookback == 1
    assert 0 < float(judge.score_block(given)) <= 1


def test_it_is_there_where_a_reading_judge_and_an_encoder_are() -> None:
    judges = {"reading": reading()}
    assert list(reread(judges, Codec(torch.zeros(0)))) == ["rereading"]
    assert reread(judges, None) == {}
    assert reread({}, Codec(torch.zeros(0))) == {}
