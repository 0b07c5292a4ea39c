"""Training judges of blocks: what rivals are, what a loss is by hand, and that a few steps tell true from broken."""

from __future__ import annotations

import math
from collections import Counter
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from arvid.caches.full import Full
from arvid.rewards.block import BlockJudge, BlockJudgeConfig
from arvid.rewards.latent import LatentJudge, LatentJudgeConfig
from arvid.samplers.noise import SeededNoise
from arvid.samplers.steps import euler
from arvid.train import judges
from arvid.train.judges import RIVALS, TRUE, Decoded, Drafts, JudgeBatch, Ranking, Rivals, mark
from arvid.types import Condition, Estimate, Span, View

BLOCK, CHANNELS, SIDE, WORDS = 3, 4, 6, 8


def clips(step: int, count: int = 8, frames: int = 12) -> tuple[Tensor, Tensor]:
    """A square that moves one cell a frame, in a direction that the prompt's vector names."""
    generator = torch.Generator().manual_seed(step)
    z = 0.1 * torch.randn(count, frames, CHANNELS, SIDE, SIDE, generator=generator)
    text = torch.zeros(count, 5, WORDS)
    starts = torch.randint(SIDE, (count, 2), generator=generator)
    for n in range(count):
        way = (step + n) % 4
        text[n, :2, way] = 1.0
        for frame in range(frames):
            row, column = (starts[n] + frame * torch.tensor([[0, 1], [0, -1], [1, 0], [-1, 0]][way])) % SIDE
            z[n, frame, :, row, column] += torch.tensor([2.0, -2.0, 1.0, 1.0])
    return z, text


def worse(z_BTCHW: Tensor, text_BLD: Tensor, start: int, seed: int) -> Tensor:
    """A drafter that leaves half of the picture out."""
    return 0.5 * z_BTCHW[:, start : start + BLOCK]


def batches(*kinds: str, count: int = 8) -> Rivals:
    return Rivals(lambda step: clips(step, count), worse, BLOCK, kinds=kinds or RIVALS)


# ---------------------------------------------------------------- batches


def test_a_batch_is_a_pure_function_of_the_step() -> None:
    for step in range(3):
        one, other = batches()(step), batches()(step)
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True) if isinstance(a, Tensor))
        assert one.kinds == other.kinds
    assert batches()(0).kinds != batches()(1).kinds


class Row(NamedTuple):
    """A rival: the whole clip, the true block, the rival, the block before (nothing when it is not shown), the target,
    and whether the prompt is the clip's own."""

    clip: Tensor
    truth: Tensor
    rival: Tensor
    before: Tensor
    target: float
    own: bool


def parts(kind: str) -> list[Row]:
    """Rivals of a kind."""
    found = []
    for step in range(12):
        (z, text), batch = clips(step), batches(kind)(step)
        for row, name in enumerate(batch.kinds):
            if name == kind:
                n = int(batch.group_N[row])
                before = batch.before_NTCHW[row] if batch.before_NTCHW is not None else z[n, :0]
                own = bool(torch.equal(batch.text_NLD[row], text[n]))
                rival, target = batch.block_NTCHW[row], float(batch.target_N[row])
                found.append(Row(z[n], batch.block_NTCHW[n], rival, before, target, own))
    assert len(found) > 20
    return found


def test_truth_comes_first_and_is_the_block_that_followed() -> None:
    for step in range(12):
        (z, text), batch = clips(step), batches()(step)
        assert batch.kinds[:8] == (TRUE,) * 8
        assert batch.target_N[:8].tolist() == [1.0] * 8
        assert torch.equal(batch.text_NLD[:8], text)
        assert batch.group_N[:8].tolist() == list(range(8))
        starts = [s for s in range(BLOCK, 12, BLOCK) if torch.equal(batch.block_NTCHW[0], z[0, s : s + BLOCK])]
        assert len(starts) == 1
        if batch.before_NTCHW is not None:
            assert torch.equal(batch.before_NTCHW[:8], z[:, starts[0] - BLOCK : starts[0]])


def test_drafts_are_drafts_or_mixtures_with_the_truth() -> None:
    rows = parts("drafted")
    for row in rows:
        assert row.own
        torch.testing.assert_close(row.rival, row.truth * (1 - 0.5 * (1 - row.target)), rtol=1e-4, atol=1e-5)
    assert {row.target == 0 for row in rows} == {True, False}


def test_a_wrong_prompt_is_the_true_block_under_anothers_words() -> None:
    for row in parts("prompt"):
        assert (row.target, row.own) == (0.0, False)
        assert torch.equal(row.rival, row.truth)


def test_broken_motion_is_what_its_name_says() -> None:
    for row in parts("frozen"):
        assert torch.equal(row.rival, row.rival[:1].expand_as(row.rival))
        assert any(torch.equal(row.rival[0], frame) for frame in row.clip)
        assert not len(row.before) or torch.equal(row.rival[0], row.before[-1])
    for row in parts("shuffled"):
        assert not torch.equal(row.rival, row.truth)
        assert {tuple(f.flatten().tolist()) for f in row.rival} == {tuple(f.flatten().tolist()) for f in row.truth}
    for row in parts("reversed"):
        assert torch.equal(row.rival, row.truth.flip(0))
    for row in parts("jump"):
        assert len(row.before), "a jump cannot be seen without the block before"
        at = next(s for s in range(0, 12, BLOCK) if torch.equal(row.clip[s : s + BLOCK], row.truth))
        assert torch.equal(row.rival, row.clip[at + BLOCK : at + 2 * BLOCK])
    for row in (row for kind in judges.MOTION for row in parts(kind)):
        assert (row.target, row.own) == (0.0, True)


def test_a_faded_block_keeps_the_part_of_its_contrast_that_its_target_says() -> None:
    for row in parts("faded"):
        gone = row.truth - row.truth.mean((-2, -1), keepdim=True)
        kept = row.rival - row.rival.mean((-2, -1), keepdim=True)
        torch.testing.assert_close(kept, row.target * gone, rtol=1e-3, atol=1e-4)
        assert row.own and 0.2 <= row.target <= 0.8


def test_motion_that_is_not_there_is_not_broken() -> None:
    """In clips that stand still, frozen frames are the truth: a wrong prompt takes their place."""

    def still(step: int) -> tuple[Tensor, Tensor]:
        z, text = clips(step)
        return z[:, :1].expand(-1, 12, -1, -1, -1).contiguous(), text

    rivals = Rivals(still, worse, BLOCK, kinds=("frozen", "shuffled", "reversed", "jump"))
    kinds = Counter(kind for step in range(6) for kind in rivals(step).kinds)
    assert set(kinds) == {TRUE, "prompt"}


def test_one_prompt_for_all_leaves_no_wrong_prompt() -> None:
    def one(step: int) -> tuple[Tensor, Tensor]:
        z, text = clips(step)
        return z, text[:1].expand(8, -1, -1)

    assert "prompt" not in Rivals(one, worse, BLOCK, kinds=("prompt",))(0).kinds


def test_some_batches_come_without_the_blocks_before() -> None:
    alone = [batches()(step).before_NTCHW is None for step in range(60)]
    assert 1 <= sum(alone) <= 15


def test_what_cannot_be_made_is_an_error() -> None:
    with pytest.raises(ValueError, match="expected at least 1 of drafted, prompt"):
        Rivals(clips, worse, BLOCK, kinds=("wrong",))
    with pytest.raises(ValueError, match="clips of 8 latent frames; at least 9 are needed"):
        Rivals(lambda step: clips(step, frames=8), worse, BLOCK)(0)


def test_drafts_read_the_true_past_and_begin_at_their_noise() -> None:
    class Reading:
        """A denoiser whose clean estimate is the mean of all it has read, which it keeps as its only memory."""

        def __call__(self, z: Tensor, sigma: Tensor, condition: Condition, view: View, span: Span) -> Estimate:
            assert torch.equal(condition.text_BLD, text)
            self.frames = view.frames
            kept = z.flatten(2)[..., None]
            read = view.read(0, lambda keys, frames: keys)
            mean = torch.zeros_like(z) if read is None else read[1].mean(1).view(len(z), 1, *z.shape[2:]).expand_as(z)
            return Estimate((z - mean) / sigma.clamp_min(1e-9)[:, :, None, None, None], ((kept, kept),))

    z, text = clips(0)
    drafter = Reading()
    made = Drafts(drafter, Full(), BLOCK, (1.0, 0.5, 0.0), euler)(z, text, 6, 11)
    assert drafter.frames == tuple(range(6))
    torch.testing.assert_close(made, z[:, :6].mean(1, keepdim=True).expand_as(made), rtol=1e-4, atol=1e-5)
    noise = SeededNoise(11).draw(2, 0, tuple(made.shape))
    still = Drafts(lambda x, s, c, v, p: Estimate(torch.zeros_like(x), ((x.flatten(2)[..., None],) * 2,)),
                   Full(), BLOCK, (1.0, 0.0), euler)(z, text, 6, 11)  # fmt: skip
    assert torch.equal(still, noise)


# ---------------------------------------------------------------- the loss


class Fixed(nn.Module):
    """A judge whose logits are given."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, block_NTCHW: Tensor, before_NTCHW: Tensor | None, text_NLD: Tensor) -> Tensor:
        return self.logits


def test_the_loss_is_its_formula() -> None:
    logits, targets, groups = [1.0, -0.5, 0.3, 2.0, -1.0], [1.0, 1.0, 0.0, 0.25, 0.0], [0, 1, 0, 1, 1]
    batch = JudgeBatch(torch.zeros(5, 1, 1, 1, 1), None, torch.zeros(5, 1, 1), torch.tensor(targets),
                       torch.tensor(groups), (TRUE, TRUE, "drafted", "faded", "prompt"))  # fmt: skip
    found = Ranking(Fixed(logits), weight=0.5)(batch, torch.Generator())
    fit = sum(
        -t * math.log(1 / (1 + math.exp(-x))) - (1 - t) * math.log(1 / (1 + math.exp(x)))
        for x, t in zip(logits, targets, strict=True)
    ) / 5  # fmt: skip
    gaps, lacks = [1.0 - 0.3, -0.5 - 2.0, -0.5 + 1.0], [1.0, 0.75, 1.0]
    ranks = sum(math.log(1 + math.exp(-g)) * w for g, w in zip(gaps, lacks, strict=True)) / sum(lacks)
    assert float(found["fit"]) == pytest.approx(fit, rel=1e-5)
    assert float(found["ranks"]) == pytest.approx(ranks, rel=1e-5)
    assert float(found["loss"].detach()) == pytest.approx(fit + 0.5 * ranks, rel=1e-5)
    assert float(found["right"]) == pytest.approx(2 / 3)


def auc(model: nn.Module, source: Rivals | Decoded) -> float:
    found = mark(model, source, range(1000, 1006))
    good, bad = found.score_N[found.target_N == 1], found.score_N[found.target_N < 0.5]
    return float((good[:, None] > bad).float().mean())


@pytest.mark.parametrize(("kind", "least"), [("faded", 0.9), ("drafted", 0.9), ("frozen", 0.9)])
def test_a_few_steps_rank_an_easy_corruption(kind: str, least: float) -> None:
    torch.manual_seed(0)
    model = LatentJudge(LatentJudgeConfig(CHANNELS, BLOCK, WORDS, width=24, blocks=1, rounds=1, heads=2))
    source, objective = batches(kind, count=16), Ranking(model)
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for step in range(30):
        numbers = objective(source(step), torch.Generator())
        numbers["loss"].backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(numbers["loss"].detach()))
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert auc(model, source) >= least


# ---------------------------------------------------------------- pixels


class Pooled:
    """A codec whose frames are the first three channels, four times each but for the first."""

    def decode(self, z_BTCHW: Tensor) -> tuple[Tensor, object]:
        v = z_BTCHW[:, :, :3]
        return torch.cat([v[:, :1], v[:, 1:].repeat_interleave(4, 1)], 1).clamp(-1, 1), None


def test_pixels_are_those_of_the_same_blocks() -> None:
    seen, decoded = batches(), Decoded(batches(), Pooled())
    for step in range(30):
        latents, pixels = seen(step), decoded(step)
        assert pixels.kinds == latents.kinds
        expected = latents.block_NTCHW[:, :, :3].clamp(-1, 1)
        if latents.before_NTCHW is None:
            assert pixels.before_NTCHW is None
            assert pixels.block_NTCHW.shape[1] == 9
            assert torch.equal(pixels.block_NTCHW[:, ::4], expected)
            continue
        assert pixels.before_NTCHW is not None
        assert (pixels.before_NTCHW.shape[1], pixels.block_NTCHW.shape[1]) == (9, 12)
        assert torch.equal(pixels.block_NTCHW[:, 3::4], expected)
        assert torch.equal(pixels.before_NTCHW[:, ::4], latents.before_NTCHW[:, :, :3].clamp(-1, 1))


def test_the_block_judge_learns_from_them() -> None:
    torch.manual_seed(0)
    config = BlockJudgeConfig(16, 4, 2, WORDS, (8, 12, 24), blocks=1, rounds=1, heads=2)
    model, source = BlockJudge(config), Decoded(batches("faded", count=8), Pooled())
    objective, optimiser = Ranking(model), torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for step in range(25):
        numbers = objective(source(step), torch.Generator())
        numbers["loss"].backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(numbers["loss"].detach()))
    assert sum(losses[-5:]) < 0.85 * sum(losses[:5])
    assert auc(model, source) > 0.85


def test_the_oracle_stays_outside() -> None:
    assert "oracle" not in {name for name in vars(judges) if not name.startswith("_")}
