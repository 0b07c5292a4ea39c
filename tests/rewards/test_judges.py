"""Judges of whole blocks as networks: what enters a score and what does not, their files, their errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from arvid.rewards.block import BlockJudge, BlockJudgeConfig
from arvid.rewards.latent import LatentJudge, LatentJudgeConfig
from arvid.rewards.parts import words
from arvid.types import BlockReward, Candidate, Condition

LATENT = LatentJudgeConfig(channels=4, text_width=8, width=12, blocks=1, heads=2)
PIXEL = BlockJudgeConfig(size=16, frames=4, text_width=8, widths=(4, 6, 12), blocks=1, heads=2)
Score = Callable[..., Tensor]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def said(length: int, seed: int = 3) -> Tensor:
    """A prompt [1, 6, 8] of `length` words."""
    text = torch.zeros(1, 6, 8)
    text[:, :length] = drawn(1, length, 8, seed=seed)
    return text


def latent_judge() -> LatentJudge:
    torch.manual_seed(0)
    return LatentJudge(LATENT).eval()


def block_judge() -> BlockJudge:
    torch.manual_seed(0)
    return BlockJudge(PIXEL).eval()


def scored(judge: BlockReward, block: Tensor, before: Tensor | None, text: Tensor) -> Tensor:
    """By the door a router uses. Latents are given as they are, frames with latents that must not matter."""
    if judge.lookback:
        latents = torch.full((1, 1, 1, 1, 1), torch.nan)
        return judge.score_block(Candidate(latents, latents, lambda: block, before, Condition("words", text)))

    def unseen() -> Tensor:
        raise AssertionError("a judge of latents has nothing decoded")

    return judge.score_block(Candidate(block, before, unseen, None, Condition("words", text)))


CASES = [
    (latent_judge, lambda seed: drawn(2, 3, 4, 4, 4, seed=seed), lambda seed: drawn(2, 3, 4, 4, 4, seed=seed)),
    (
        block_judge,
        lambda seed: drawn(2, 12, 3, 16, 16, seed=seed).clamp(-1, 1),
        lambda seed: drawn(2, 2, 3, 16, 16, seed=seed).clamp(-1, 1),
    ),
]
every = pytest.mark.parametrize(("make", "block", "before"), CASES, ids=["latent", "block"])
Make = Callable[[], LatentJudge | BlockJudge]
Draw = Callable[[int], Tensor]


@every
def test_scores_are_one_probability_per_block(make: Make, block: Draw, before: Draw) -> None:
    found = scored(make(), block(1), before(2), said(4).expand(2, -1, -1))
    assert found.shape == (2,)
    assert found.dtype == torch.float32
    assert not found.requires_grad
    assert bool(((found > 0) & (found < 1)).all())


@every
def test_block_past_and_prompt_all_enter(make: Make, block: Draw, before: Draw) -> None:
    judge, text = make(), said(4).expand(2, -1, -1)
    base = scored(judge, block(1), before(2), text)
    for other in (
        scored(judge, block(5), before(2), text),
        scored(judge, block(1), before(5), text),
        scored(judge, block(1), None, text),
        scored(judge, block(1), before(2), said(4, seed=8).expand(2, -1, -1)),
        scored(judge, block(1).flip(1), before(2), text),
    ):
        assert (other - base).abs().max() > 1e-4


@every
def test_a_batch_scores_like_its_blocks_one_by_one(make: Make, block: Draw, before: Draw) -> None:
    judge, texts = make(), torch.cat([said(2), said(5)])
    together = scored(judge, block(1), before(2), texts)
    alone = [scored(judge, block(1)[n : n + 1], before(2)[n : n + 1], texts[n : n + 1]) for n in range(2)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-6)


@every
def test_it_works_in_half_precision_and_comes_back_from_its_file(
    make: Make, block: Draw, before: Draw, tmp_path: Path
) -> None:
    judge, text = make(), said(4).expand(2, -1, -1)
    whole = scored(judge, block(1), before(2), text)
    judge.save(tmp_path / "whole")
    again = type(judge).load(tmp_path / "whole")
    assert not again.training
    assert again.config == judge.config
    assert torch.equal(scored(again, block(1), before(2), text), whole)
    judge.to(torch.bfloat16).save(tmp_path / "half")
    half = type(judge).load(tmp_path / "half")
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(scored(half, block(1), before(2), text), whole, atol=0.05, rtol=0)


@every
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_or_damaged_file_is_named(make: Make, block: Draw, before: Draw, name: str, tmp_path: Path) -> None:
    judge = make()
    judge.save(tmp_path)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:20])
    with pytest.raises(ValueError, match=r"judge in .* is damaged"):
        type(judge).load(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=f"{name} is missing"):
        type(judge).load(tmp_path)


@every
def test_training_reaches_every_weight(make: Make, block: Draw, before: Draw) -> None:
    judge = make().train()
    judge(block(1), before(2), torch.cat([said(2), said(5)])).sum().backward()
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in judge.parameters())


def test_a_short_block_is_seen_with_more_of_what_came_before() -> None:
    judge, film = latent_judge(), drawn(1, 9, 4, 4, 4)
    whole = scored(judge, film[:, 6:], film[:, :6], said(3))
    assert torch.equal(scored(judge, film[:, 7:], film[:, :7], said(3)), whole)
    assert torch.equal(scored(judge, film[:, 6:], film[:, 3:6], said(3)), whole), "no more than two blocks are seen"


def test_the_last_frames_before_a_block_are_the_ones_that_matter() -> None:
    judge, film = block_judge(), drawn(1, 20, 3, 16, 16).clamp(-1, 1)
    assert torch.equal(
        scored(judge, film[:, 8:], film[:, :8], said(3)), scored(judge, film[:, 8:], film[:, 6:8], said(3))
    )


def test_larger_frames_are_shrunk_first() -> None:
    judge, flat = block_judge(), torch.full((1, 8, 3, 16, 16), 0.3)
    large = flat.repeat_interleave(2, -1).repeat_interleave(2, -2)
    torch.testing.assert_close(
        scored(judge, large, large[:, :2], said(3)), scored(judge, flat, flat[:, :2], said(3)), atol=1e-5, rtol=0
    )


def test_any_size_of_latents_can_be_judged() -> None:
    assert scored(latent_judge(), drawn(1, 3, 4, 6, 10), None, said(3)).shape == (1,)


def test_words_end_with_the_last_token_of_any_row() -> None:
    text, told = words(torch.cat([said(2), said(5), said(0)]))
    assert text.shape == (3, 5, 8)
    assert told.sum(1).tolist() == [2, 5, 1]


@pytest.mark.parametrize(
    ("judge", "shape", "said_so"),
    [
        (latent_judge(), (1, 3, 5, 4, 4), r"expected \[B, T, 4, H, W\]"),
        (latent_judge(), (3, 4, 4, 4), r"expected \[B, T, 4, H, W\]"),
        (block_judge(), (1, 8, 4, 16, 16), r"expected \[B, T, 3, H, W\]"),
    ],
)
def test_inputs_of_another_form_are_refused(judge: BlockReward, shape: tuple[int, ...], said_so: str) -> None:
    with pytest.raises(ValueError, match=said_so):
        scored(judge, drawn(*shape), None, said(3))


def test_the_shipped_sizes_are_small() -> None:
    for judge in (LatentJudge(), BlockJudge()):
        assert sum(p.numel() for p in judge.parameters()) < 2_000_000
