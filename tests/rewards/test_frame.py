"""The frame reward as a network: its form, its file, and that nothing but the frame and the prompt enters a score."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from arvid.rewards import frame
from arvid.rewards.frame import FrameReward, FrameRewardConfig

MOST_PARAMETERS = 1_500_000


class Words:
    """Embeddings that depend on every letter of a prompt, padded to 64 tokens; counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, prompts: list[str]) -> Tensor:
        self.calls += 1
        text_BLD = torch.zeros(len(prompts), 64, 128)
        for row, prompt in enumerate(prompts):
            for place, word in enumerate(prompt.split()):
                generator = torch.Generator().manual_seed(sum(map(ord, word)))
                text_BLD[row, place] = torch.randn(128, generator=generator)
        return text_BLD


@pytest.fixture
def model() -> FrameReward:
    torch.manual_seed(0)
    return FrameReward(Words()).eval()


def frames(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_scores_are_probabilities_of_every_frame(model: FrameReward) -> None:
    score = model.score(frames(2, 5, 3, 64, 64), "a red star")
    assert score.shape == (2, 5)
    assert score.dtype == torch.float32
    assert not score.requires_grad
    assert bool(((score > 0) & (score < 1)).all())


def test_a_batch_scores_like_its_frames_one_by_one(model: FrameReward) -> None:
    v = frames(2, 3, 3, 64, 64)
    single = [[model.score(v[b : b + 1, t : t + 1], "a red star").item() for t in range(3)] for b in range(2)]
    torch.testing.assert_close(model.score(v, "a red star"), torch.tensor(single), atol=1e-5, rtol=0)


def test_padding_of_the_text_changes_nothing(model: FrameReward) -> None:
    v = frames(3, 3, 64, 64)
    short, long = "a red star", "a large blue square on a gray background"
    mixed = model(v[:2], model.read([short, long]))
    alone = [model(v[n : n + 1], model.read([said])[:, : len(said.split())]) for n, said in enumerate((short, long))]
    torch.testing.assert_close(mixed, torch.cat(alone), atol=1e-5, rtol=0)


def test_the_prompt_and_the_picture_both_matter(model: FrameReward) -> None:
    v = frames(1, 2, 3, 64, 64)
    here, there = model.score(v, "a red star"), model.score(v, "a blue circle")
    assert not torch.equal(here, there)
    assert here[0, 0] != here[0, 1]


def test_a_prompt_is_read_once_while_it_is_in_use(model: FrameReward) -> None:
    words = model.read
    assert isinstance(words, Words)
    v = frames(1, 1, 3, 64, 64)
    first = model.score(v, "a red star")
    assert torch.equal(model.score(v, "a red star"), first)
    assert words.calls == 1
    for number in range(40):
        model.score(v, f"star number {number}")
    assert words.calls == 41
    assert len(model._texts) < 20


def test_larger_frames_are_shrunk_first(model: FrameReward) -> None:
    v = frames(1, 2, 3, 64, 64)
    flat = torch.full((1, 1, 3, 64, 64), 0.3)
    large = flat.repeat_interleave(2, -1).repeat_interleave(2, -2)
    torch.testing.assert_close(model.score(large, "a red star"), model.score(flat, "a red star"), atol=1e-5, rtol=0)
    assert model.score(v.repeat_interleave(3, -1), "a red star").shape == (1, 2)


def test_it_is_small_and_works_in_half_precision(model: FrameReward) -> None:
    assert sum(p.numel() for p in model.parameters()) <= MOST_PARAMETERS
    v = frames(1, 4, 3, 64, 64)
    whole = model.score(v, "a red star")
    half = model.to(torch.bfloat16).score(v, "a red star")
    torch.testing.assert_close(half, whole, atol=0.05, rtol=0)


@pytest.mark.parametrize("shape", [(2, 3, 64, 64), (1, 2, 4, 64, 64)])
def test_frames_of_another_form_are_refused(model: FrameReward, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \[B, T, 3, H, W\]"):
        model.score(frames(*shape), "a red star")


def test_saved_and_loaded_it_gives_the_same_scores(model: FrameReward, tmp_path: Path) -> None:
    v = frames(1, 3, 3, 64, 64)
    model.save(tmp_path / "reward")
    again = FrameReward.load(tmp_path / "reward", Words())
    assert not again.training
    assert again.config == model.config
    assert torch.equal(again.score(v, "a red star"), model.score(v, "a red star"))
    model.to(torch.bfloat16).save(tmp_path / "half")
    assert FrameReward.load(tmp_path / "half", Words()).places_LD.dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_or_damaged_file_is_named(model: FrameReward, tmp_path: Path, name: str) -> None:
    model.save(tmp_path)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:40])
    with pytest.raises(ValueError, match="damaged"):
        FrameReward.load(tmp_path, Words())
    (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=f"{name} is missing"):
        FrameReward.load(tmp_path, Words())


def test_weights_of_another_configuration_are_refused(model: FrameReward, tmp_path: Path) -> None:
    model.save(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    for key, value in (("rounds", 3), ("unknown", 1)):
        (tmp_path / "config.json").write_text(json.dumps({**raw, key: value}))
        with pytest.raises(ValueError, match="damaged"):
            FrameReward.load(tmp_path, Words())


def test_a_gap_is_what_only_one_side_has() -> None:
    seen, said = torch.tensor([[1.0, 0.0, 1.0, 0.25]]), torch.tensor([[1.0, 1.0, 0.0, 0.5]])
    more, less = [0, 0, 1, 0.25 * 0.5], [0, 1, 0, 0.75 * 0.5]
    torch.testing.assert_close(frame._gaps(seen, said), torch.tensor([[*more, *less, 1.0, 1.0]]))
    same = torch.tensor([[1.0, 0.0, 0.0, 1.0]])
    assert not frame._gaps(same, same).any()


def test_cells_see_their_own_place() -> None:
    torch.manual_seed(0)
    model = FrameReward(Words(), FrameRewardConfig(blocks=(0, 0, 0))).eval()
    v = frames(1, 3, 64, 64)
    spoilt = v.clone()
    spoilt[..., 8 * 3 + 2 : 8 * 3 + 6, 8 * 5 + 2 : 8 * 5 + 6] = 1.0
    with torch.inference_mode():
        moved = (model.cells(spoilt) - model.cells(v)).abs().amax(-1).view(8, 8)
    assert moved[3, 5] > 0
    assert not moved[5:].any() and not moved[:2].any() and not moved[:, :4].any() and not moved[:, 7:].any()


def test_training_reaches_every_weight() -> None:
    torch.manual_seed(0)
    model = FrameReward(Words(), FrameRewardConfig(widths=(32, 32, 32), heads=1))
    logits = model(frames(4, 3, 64, 64), model.read(["a red star", "two", "three four", "five"]))
    logits.sum().backward()
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in model.parameters())
