"""The target as judge: exact limits, what it costs, what is remembered, and what its agreement says."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from arvid.caches.policies import POLICIES
from arvid.models.wan.transformer import CausalWan
from arvid.rollout.verify import FLOOR, Checked, agreement
from arvid.samplers.noise import SeededNoise
from arvid.spec import build
from arvid.types import Proposal, Rotate, Span
from rollout.rig import (
    BLOCK,
    BLOCKS,
    CONDITION,
    FRAMES,
    LISTENING,
    SHAPE,
    SIGMAS,
    STEPS_EACH,
    Run,
    assert_alike,
    autoencoder,
    fresh,
    model,
    run,
    same,
    written,
)

BOTH = ["verify", "verify-commit"]


# ---------------------------------------------------------------- exact limits


@pytest.mark.parametrize("step", ["renoise", "euler"])
@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("verify:level=0.6,tau=-inf,keep=draft", "first"),
        ("verify:level=0.6,tau=-inf,keep=draft,commit=last", "first:commit=last"),
        ("verify-commit:level=0.6,tau=-inf,keep=draft", "first"),
        ("verify-commit:level=0.6,tau=-inf,keep=draft,commit=last", "first:commit=last"),
        ("verify:level=0.6,tau=inf", "refine:levels=0.6"),
        ("verify:level=0.6,tau=inf,keep=draft", "refine:levels=0.6"),
        ("verify:level=0.6,tau=inf,refine=0.6+0.3", "refine:levels=0.6+0.3"),
        ("verify:level=0.6,tau=inf,refine=0.6+0.3+0.1,measure=both", "refine:levels=0.6+0.3+0.1"),
        ("verify:level=0.6,tau=-inf,keep=estimate,refine=0.6+0.3", "refine:levels=0.6"),
        ("verify:level=0.6,tau=inf,commit=last", "refine:levels=0.6,commit=last"),
        ("verify-commit:level=0.6,tau=inf,commit=last", "refine:levels=0.6,commit=last"),
        ("verify-commit:level=0.6,tau=inf,refine=0.6+0.3,commit=last", "refine:levels=0.6+0.3,commit=last"),
        ("verify:level=0.6,tau=inf,draft_steps=1,steps=2", "refine:levels=0.6,draft_steps=1,steps=2"),
        ("reward:tau=inf,once=-inf,refine=0.6+0.3", "refine:levels=0.6"),
        ("reward:tau=inf,once=inf,refine=0.6+0.3", "refine:levels=0.6+0.3"),
    ],
)
def test_limits_hold_bit_for_bit(text: str, limit: str, step: str) -> None:
    assert same(run(text, step), run(limit, step))


def test_a_verifying_pass_with_one_level_leaves_nothing_to_decide_but_names() -> None:
    """With the estimate kept and no further level, tau only says which blocks are called verified."""
    free, strict = run("verify:level=0.6,tau=-inf"), run("verify:level=0.6,tau=inf")
    assert same(free, strict)
    assert free.sources == ["target"] + ["verified"] * (BLOCKS - 1)
    assert strict.sources == ["target"] + ["refined"] * (BLOCKS - 1)
    assert [block.verdict.score for block in free.blocks] == [block.verdict.score for block in strict.blocks]


def middle(text: str) -> tuple[Run, list[bool]]:
    """A run whose tau lies between its scores, and which blocks were accepted."""
    scores = [block.verdict.score or 0.0 for block in run(text + ",tau=-inf").blocks[1:]]
    tau = sum(sorted(scores)[:2]) / 2
    made = run(f"{text},tau={tau!r}")
    return made, [block.verdict.score is not None and block.verdict.score >= tau for block in made.blocks[1:]]


@pytest.mark.parametrize("measure", ["place", "rival", "both"])
def test_between_the_limits_each_block_goes_its_own_way(measure: str) -> None:
    made, accepted = middle(f"verify:level=0.6,keep=draft,refine=0.6+0.3,measure={measure}")
    assert set(accepted) == {True, False}
    assert made.sources[1:] == ["draft" if kept else "refined" for kept in accepted]
    assert made.passes("target") == [STEPS_EACH, *(1 if kept else 2 for kept in accepted)]
    scores = [block.verdict.score for block in made.blocks[1:]]
    assert all(score is not None and 0 < score < 1 for score in scores)
    assert all(block.verdict.frames_scored == 0 for block in made.blocks)


# ---------------------------------------------------------------- what it costs


def test_verify_commit_spends_one_pass_a_block_and_one_commit_in_all() -> None:
    """The target: its steps on block 0, one pass on every other block, and block 0's clean pass; no other."""
    made = run("verify-commit:level=0.6,tau=-inf,keep=draft")
    assert made.passes("target") == [STEPS_EACH] + [1] * (BLOCKS - 1)
    assert made.passes("target_commit") == [0, 1] + [0] * (BLOCKS - 2)
    assert len(made.target.passes) == STEPS_EACH + BLOCKS
    adopted = run("verify-commit:level=0.6,tau=-inf,commit=last")
    assert sum(adopted.passes("target_commit")) == 0
    assert len(adopted.target.passes) == STEPS_EACH + BLOCKS - 1


def test_verify_pays_the_refresh_beside_the_pass() -> None:
    made = run("verify:level=0.6,tau=-inf,keep=draft")
    assert made.passes("target") == [STEPS_EACH] + [1] * (BLOCKS - 1)
    assert made.passes("target_commit") == [0] + [1] * (BLOCKS - 1)


@pytest.mark.parametrize("name", BOTH)
def test_a_rejected_draft_costs_the_further_levels_only(name: str) -> None:
    made = run(f"{name}:level=0.6,tau=inf,refine=0.6+0.3")
    assert made.passes("target") == [STEPS_EACH] + [2] * (BLOCKS - 1)
    asked = [level for start, level, _ in made.target.passes if start == BLOCK and 0 < level < 1]
    assert asked == pytest.approx([0.6, 0.3])


def test_a_rival_costs_one_pass_of_the_drafter() -> None:
    assert run("verify:level=0.6,tau=0.5").passes("drafter")[1:] == [STEPS_EACH] * (BLOCKS - 1)
    assert run("verify:level=0.6,tau=0.5,measure=rival").passes("drafter")[1:] == [STEPS_EACH + 1] * (BLOCKS - 1)
    assert run("verify:level=0.6,tau=0.5,measure=rival,draft_steps=1").passes("drafter")[1:] == [2] * (BLOCKS - 1)


def test_nothing_is_decoded_to_be_verified() -> None:
    for text in ("verify:level=0.6,tau=inf,refine=0.6+0.3", "verify:level=0.6,tau=-inf,keep=draft"):
        assert run(text).decodes == list(range(1, BLOCKS + 1))


def test_without_a_drafter_the_target_makes_all() -> None:
    assert torch.equal(Run("verify:tau=0.5", drafter=False).latents, run("target").latents)


# ---------------------------------------------------------------- what is remembered


def clean_keys(made: Run) -> list[bool]:
    """Whether the target holds of each block but the last what a clean pass over its latents, given what the target
    holds of the blocks before, would have written."""
    past, found = made.pasts[0].snapshot(), []
    for block in made.blocks[:-1]:
        span = block.move.span
        past_before = {frame: memory for frame, memory in past.items() if frame < span.start}
        view = made.pasts[0].view(span)
        assert view.frames == tuple(past_before)
        with torch.no_grad():
            memory = model(2, 2, 0)(block.latents_BTCHW, torch.zeros(1, len(span)), CONDITION, view, span).memory
        held = [torch.cat([past[frame][layer][0] for frame in range(span.start, span.stop)], 1) for layer in range(2)]
        found.append(all(torch.allclose(held[layer], memory[layer][0], atol=1e-4) for layer in range(2)))
    return found


def test_verify_remembers_clean_blocks_and_verify_commit_the_keys_of_its_passes() -> None:
    assert clean_keys(run("verify:level=0.6,tau=-inf")) == [True] * (BLOCKS - 1)
    assert clean_keys(run("verify-commit:level=0.6,tau=-inf")) == [True] + [False] * (BLOCKS - 2)


def test_the_drafters_past_is_made_of_its_own_keys_only() -> None:
    for text in ("verify-commit:level=0.6,tau=-inf", "verify-commit:level=0.6,tau=-inf,keep=draft,commit=last"):
        widths = [{k.shape[2] * k.shape[3] for memory in past.snapshot().values() for k, _ in memory}
                  for past in run(text).pasts]  # fmt: skip
        assert widths == [{24}, {12}]


@pytest.mark.parametrize("past", LISTENING)
def test_a_past_that_listens_does_not_take_the_rivals_pass_for_the_draft(past: str) -> None:
    text = "verify:level=0.6,tau=-inf,keep=draft,measure=rival,commit=last"
    ours = Run(text, "euler", past=build(past, POLICIES, "past"))
    ours.remembered()
    blocks = [block.latents_BTCHW for block in ours.blocks]
    assert_alike(ours.pasts[1].snapshot(), written(ours.drafter.inner, blocks, fresh(past)).snapshot())


# ---------------------------------------------------------------- the laws


class Dense:
    """No past: everything is in the pass, under a mask."""

    frames: tuple[int, ...] = ()

    def read(self, layer: int, rotate: Rotate) -> None:
        return None

    def mask(self, frames: tuple[int, ...]) -> Tensor:
        return torch.tensor([[key // BLOCK <= frame // BLOCK for key in frames] for frame in frames])


def dense(network: CausalWan, written: list[tuple[Tensor, float]], x: Tensor, level: float) -> Tensor:
    """Flow of `x` in one masked pass over everything written before it, at the levels it was written at."""
    start = sum(z.shape[1] for z, _ in written)
    levels = [sigma for z, sigma in written for _ in range(z.shape[1])] + [level] * x.shape[1]
    film = torch.cat([*(z for z, _ in written), x], 1)
    return network(film, torch.tensor([levels]), CONDITION, Dense(), Span(0, film.shape[1])).flow_BTCHW[:, start:]


def dense_walk(network: CausalWan, written: list[tuple[Tensor, float]], x: Tensor, sigmas: tuple[float, ...]) -> Tensor:
    for sigma, following in pairwise(sigmas):
        x = x + (following - sigma) * dense(network, written, x, sigma)
    return x


def dense_verify(name: str, level: float) -> Tensor:
    """All blocks of a verified rollout that keeps every estimate, without a cache and without a walker."""
    target, drafter, noise = model(2, 2, 0), model(1, 1, 5), SeededNoise(3)
    clean: list[tuple[Tensor, float]] = []
    written: list[tuple[Tensor, float]] = []
    for index, start in enumerate(range(0, FRAMES, BLOCK)):
        shape = (1, min(BLOCK, FRAMES - start), *SHAPE[1:])
        x = noise.draw(index, 0, shape)
        if index == 0:
            block = dense_walk(target, [], x, SIGMAS)
            written.append((block, 0.0))
        else:
            draft = dense_walk(drafter, clean, x, SIGMAS)
            noisy = (1 - level) * draft + level * noise.draw(index, 100, shape)
            block = noisy - level * dense(target, written, noisy, level)
            written.append((block, 0.0) if name == "verify" else (noisy, level))
        clean.append((block, 0.0))
    return torch.cat([block for block, _ in clean], 1)


@pytest.mark.parametrize("name", BOTH)
def test_cached_is_dense(name: str) -> None:
    with torch.no_grad():
        expected = dense_verify(name, 0.6)
    torch.testing.assert_close(run(f"{name}:level=0.6,tau=-inf", "euler").latents, expected, rtol=1e-5, atol=1e-5)


MIXED = ["verify:level=0.6,tau=0.2,keep=draft,refine=0.6+0.3", "verify-commit:level=0.3,tau=0.3,measure=rival"]


@pytest.mark.parametrize("text", MIXED)
def test_a_longer_rollout_keeps_its_own_past(text: str) -> None:
    assert torch.equal(Run(text, frames=4).latents, run(text).latents[:, :4])
    assert same(Run(text), run(text))


@pytest.mark.parametrize("text", MIXED)
def test_streamed_is_whole(text: str) -> None:
    made = run(text)
    whole, _ = autoencoder().decode(made.latents)
    torch.testing.assert_close(made.frames, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("verify:level=0.6,tau=-inf", [0, 1, 2, 100]),
        ("verify:level=0.6,tau=-inf,refine=0.6+0.3", [0, 1, 2, 100, 101]),
        ("verify:level=0.6,tau=inf,refine=0.6+0.3+0.1", [0, 1, 2, 100, 101, 102]),
        ("verify:level=0.6,tau=inf,measure=rival", [0, 1, 2, 100]),
    ],
)
def test_noise_is_asked_for_by_the_step_it_serves(text: str, steps: list[int]) -> None:
    assert [step for block, step in run(text).noise.asked if block == 1] == steps


# ---------------------------------------------------------------- what the agreement says


def picture(seed: int = 0) -> Tensor:
    """A block [1, 2, 4, 8, 8] with a bright square on a quiet ground."""
    z = 0.05 * torch.randn(1, 2, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
    z[..., 2:5, 3:6] += torch.tensor([2.0, -1.0, 1.5, 0.5]).view(4, 1, 1)
    return z


def checked(draft: Tensor, estimate: Tensor, rival: Tensor | None = None) -> Checked:
    return Checked(draft, draft=Proposal(draft), check=Proposal(estimate), rival_BTCHW=rival)


def score(draft: Tensor, estimate: Tensor, measure: str = "place", rival: Tensor | None = None) -> float:
    return float(agreement(checked(draft, estimate, rival), measure))


def test_agreement_is_one_where_nothing_changes_and_falls_with_the_change() -> None:
    z = picture()
    change = torch.randn(z.shape, generator=torch.Generator().manual_seed(1))
    found = [score(z, z + amount * change) for amount in (0.0, 0.1, 0.3, 1.0, 10.0)]
    assert found[0] == 1.0
    assert found == sorted(found, reverse=True)
    assert found[-1] < 0.05


def test_agreement_does_not_depend_on_the_scale_so_a_faded_draft_gains_nothing() -> None:
    """The plain squared difference calls the faded draft the better one; this does not."""
    z, change = picture(), 0.2 * torch.randn(1, 2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    faded = 0.3 * z
    assert score(z, z + change) == pytest.approx(score(faded, faded + 0.3 * change), abs=1e-4)
    assert (0.3 * change).square().mean() < change.square().mean()
    assert score(faded, faded + change) < score(z, z + change)


def test_one_wrong_place_outweighs_many_small_differences() -> None:
    z = picture()
    gone, rough = z.clone(), z + 0.1 * torch.randn(z.shape, generator=torch.Generator().manual_seed(2))
    gone[..., 6, 0] += 2.0
    assert score(z, gone) < score(z, rough)


def test_the_worst_place_is_the_formula() -> None:
    """One channel, one frame: by hand over every 3 x 3 neighbourhood inside the picture."""
    draft = torch.arange(16.0).view(1, 1, 1, 4, 4) / 10
    estimate = draft.flip(-1)

    def around(values: Tensor, row: int, column: int) -> float:
        return float(values[max(0, row - 1) : row + 2, max(0, column - 1) : column + 2].mean())

    z, e = draft[0, 0, 0], estimate[0, 0, 0]
    smooth = torch.tensor([[around(z, row, column) for column in range(4)] for row in range(4)])
    ratios = [
        around((z - e).square(), row, column)
        / (around((z - smooth).square(), row, column) + FLOOR * float(z.var(correction=0)) + 1e-6)
        for row in range(4)
        for column in range(4)
    ]
    assert score(draft, estimate) == pytest.approx(1 / (1 + max(ratios)), rel=1e-5)


def test_a_rival_halves_the_score_where_both_models_are_equally_wrong() -> None:
    z, change = picture(), torch.randn(1, 2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    assert score(z, z + change, "rival", z - change) == pytest.approx(0.5)
    assert score(z, z + change, "rival", z + 3 * change) == pytest.approx(0.9, abs=1e-4)
    assert score(z, z + 3 * change, "rival", z + change) == pytest.approx(0.1, abs=1e-4)
    place, rival = (1 / score(z, z + change, name, z - 2 * change) - 1 for name in ("place", "rival"))
    assert score(z, z + change, "both", z - 2 * change) == pytest.approx(1 / (1 + place * rival), rel=1e-4)


def test_a_draft_without_any_structure_is_no_division_by_zero() -> None:
    flat = torch.zeros(1, 2, 4, 8, 8)
    assert score(flat, flat) == 1.0
    assert 0 < score(flat, flat + 1) < 1e-4


def test_a_rival_that_was_not_asked_is_an_error() -> None:
    with pytest.raises(ValueError, match="the drafter has made no estimate"):
        score(picture(), picture(1), "rival")
