"""Speculation's exact limits, and who works when, on real tiny models with a fake reward."""

from __future__ import annotations

import pytest
import torch

from arvid.caches.full import Full
from arvid.caches.store import Store
from arvid.rollout.flow import FlowWalker
from arvid.rollout.routers import ROUTERS
from arvid.rollout.speculate import Speculator
from arvid.rollout.stage import Clock
from arvid.samplers.noise import SeededNoise
from arvid.samplers.steps import STEPS
from arvid.spec import build
from arvid.types import Move, Span
from rollout.rig import (
    BLOCK,
    BLOCKS,
    CONDITION,
    FRAMES,
    SHAPE,
    SIGMAS,
    STEPS_EACH,
    Run,
    autoencoder,
    run,
    same,
)

# ---------------------------------------------------------------- exact limits


def test_the_tiny_family_can_tell_its_routers_apart() -> None:
    made = [run(text) for text in ("target", "draft", "first", "reward:tau=0.2", "refine:levels=0.8")]
    assert set(made[3].sources[1:]) == {"draft", "target"}
    assert all(not same(one, other) for i, one in enumerate(made) for other in made[:i])


@pytest.mark.parametrize("step", ["renoise", "euler"])
@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("reward:tau=-inf", "first"),
        ("reward:tau=inf", "target"),
        ("reward:tau=-inf,aggregate=mean", "first"),
        ("cascade:tau=inf", "target"),
        ("cascade:tau=-inf", "first"),
        ("random:p=1", "first"),
        ("random:p=0", "target"),
        ("stride:k=1", "target"),
        ("stride:k=99", "first"),
        ("reward:tau=0.2,repair=0", "reward:tau=0.2"),
        ("reward:tau=inf,repair=0", "target"),
        (f"reward:tau=inf,repair={STEPS_EACH}", "first"),
        (f"stride:k=1,repair={STEPS_EACH}", "first"),
        ("random:p=0,repair=0", "target"),
        ("cascade:tau=0.2,delta=inf", "reward:tau=0.2"),
    ],
)
def test_limits_hold_bit_for_bit(text: str, limit: str, step: str) -> None:
    assert same(run(text, step), run(limit, step))


@pytest.mark.parametrize("common", ["commit=last", "level=0.3", "draft_steps=2"])
def test_limits_hold_whatever_is_committed(common: str) -> None:
    assert same(run(f"reward:tau=-inf,{common}"), run(f"first:{common}"))
    assert same(run(f"reward:tau=inf,{common}"), run(f"target:{common}"))
    assert not same(run(f"first:{common}"), run("first"))


def test_a_repair_between_its_ends_is_neither() -> None:
    repaired = run("reward:tau=inf,repair=1")
    assert not same(repaired, run("target"))
    assert not same(repaired, run("first"))
    assert repaired.sources == ["target"] + ["repaired"] * (BLOCKS - 1)


@pytest.mark.parametrize("text", ["reward:tau=-inf,repair=4", "stride:k=1,repair=4", "draft:repair=4"])
def test_a_repair_behind_the_end_of_a_draft_is_refused_before_it_is_made(text: str) -> None:
    spec, clock = build(text, ROUTERS, "router"), Clock()
    made = Run("draft", frames=BLOCK)
    walkers = [FlowWalker(name, made.drafter, Store(Full(), BLOCK), STEPS["euler"], clock) for name in ("a", "b")]
    passes = len(made.drafter.passes)
    proposer = Speculator(spec, walkers[0], walkers[1], SHAPE, clock)
    assert STEPS_EACH == 3
    with pytest.raises(ValueError, match="repair=4 of a draft of 3 steps; give at most 3") as caught:
        proposer.propose(Move(1, Span(BLOCK, 2 * BLOCK), SIGMAS), CONDITION, made.noise)
    assert "\n" not in str(caught.value) and len(made.drafter.passes) == passes


def test_without_a_drafter_the_target_makes_all() -> None:
    assert torch.equal(Run("target", drafter=False).latents, run("target").latents)
    assert torch.equal(Run("first", drafter=False).latents, run("target").latents)


def test_a_draft_that_was_repaired_at_its_end_is_not_remembered_by_the_drafters_keys() -> None:
    """With commit=last the target may keep keys only of passes of its own."""
    ended = run(f"reward:tau=inf,commit=last,repair={STEPS_EACH}")
    assert ended.sources[1:] == ["repaired"] * (BLOCKS - 1)
    widths = {pair[0].shape[2] * pair[0].shape[3] for memory in ended.pasts[0].snapshot().values() for pair in memory}
    assert widths == {24}


# ---------------------------------------------------------------- who works when


def test_the_drafter_never_runs_on_blocks_forced_to_the_target() -> None:
    for text in ("target", "stride:k=1", "random:p=0"):
        assert run(text).drafter.passes == []
    strided = run("stride:k=2")
    assert strided.passes("drafter") == [0, STEPS_EACH, 0, STEPS_EACH, 0]
    assert run("first").passes("drafter") == [0] + [STEPS_EACH] * (BLOCKS - 1)
    assert run("stride:k=2,repair=1").passes("drafter") == [0] + [STEPS_EACH] * (BLOCKS - 1)


def test_the_target_runs_and_refreshes_only_where_it_is_needed() -> None:
    assert run("first").passes("target") == [STEPS_EACH, 0, 0, 0, 0]
    assert run("first").passes("target_commit") == [0] * BLOCKS
    strided = run("stride:k=2")
    assert strided.passes("target") == [STEPS_EACH, 0, STEPS_EACH, 0, STEPS_EACH]
    assert strided.passes("target_commit") == [0, 0, 2, 0, 2], "two blocks caught up at once"
    assert [start for start, level, _ in strided.target.passes if level == 0] == [0, 2 * BLOCK]
    judged = run("reward:tau=0.2")
    redone = [source == "target" for source in judged.sources]
    assert judged.passes("target") == [STEPS_EACH * on for on in redone]
    assert [count > 0 for count in judged.passes("target_commit")] == [on and i > 0 for i, on in enumerate(redone)]
    assert run("target").passes("target_commit") == [0] + [1] * (BLOCKS - 1)
    assert run("draft").target.passes == []


def test_counts_are_what_the_models_really_did() -> None:
    for text in ("target", "first", "stride:k=3", "reward:tau=0.2,repair=1", "refine:levels=0.8+0.4"):
        made = run(text)
        assert sum(made.passes("target")) == sum(level > 0 for _, level, _ in made.target.passes)
        assert sum(made.passes("drafter")) == sum(level > 0 for _, level, _ in made.drafter.passes)
        written = [z.shape[1] for _, level, z in made.target.passes if level == 0]
        assert sum(made.passes("target_commit")) == sum(written) / BLOCK


def test_remedies_cost_the_passes_they_name() -> None:
    assert run("reward:tau=inf,repair=1").passes("target")[1:] == [STEPS_EACH - 1] * (BLOCKS - 1)
    assert run("refine:levels=0.8").passes("target")[1:] == [1] * (BLOCKS - 1)
    assert run("refine:levels=0.8+0.4").passes("target")[1:] == [2] * (BLOCKS - 1)
    assert run("first:draft_steps=2").passes("drafter")[1:] == [2] * (BLOCKS - 1)


def test_keeping_the_last_keys_costs_no_commits() -> None:
    kept = run("target:commit=last")
    assert sum(kept.passes("target_commit")) == 0
    assert sum(run("first:commit=last").passes("drafter_commit")) == 1, "only the target's block is written"


def test_sources_and_verdicts_name_what_happened() -> None:
    assert run("first").sources == ["target"] + ["draft"] * (BLOCKS - 1)
    assert run("refine:levels=0.8").sources == ["target"] + ["refined"] * (BLOCKS - 1)
    judged = run("reward:tau=0.2")
    for block in judged.blocks:
        assert block.verdict.decision == "accept"
        if block.source == "draft":
            assert block.verdict.score is not None
            assert block.verdict.score >= 0.2
            assert block.verdict.frames_scored == block.frames_BTCHW.shape[1]


# ---------------------------------------------------------------- noise


def test_drafter_and_target_start_a_block_from_the_same_noise() -> None:
    made = run("reward:tau=inf")
    starts = [
        {start: z for start, level, z in watched.passes if level == 1.0} for watched in (made.target, made.drafter)
    ]
    assert sorted(starts[1]) == [BLOCK * index for index in range(1, BLOCKS)]
    for start, draft in starts[1].items():
        assert torch.equal(draft, starts[0][start])
        assert torch.equal(draft, SeededNoise(3).draw(start // BLOCK, 0, tuple(draft.shape)))


def test_a_refinement_begins_at_the_re_noised_draft() -> None:
    made, drafts = run("refine:levels=0.8"), run("first")
    start, level, z = next(entry for entry in made.target.passes if entry[1] == pytest.approx(0.8))
    draft = drafts.blocks[1].latents_BTCHW
    assert start == BLOCK
    eps = (z - (1 - 0.8) * draft) / 0.8
    assert level == pytest.approx(0.8)
    torch.testing.assert_close(eps, SeededNoise(3).draw(1, 100, tuple(z.shape)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("target", [0, 1, 2]),
        ("first", [0, 1, 2]),
        ("reward:tau=inf", [0, 1, 2, 0, 1, 2]),
        ("reward:tau=inf,repair=1", [0, 1, 2, 2]),
        ("reward:tau=inf,repair=2", [0, 1, 2]),
        ("refine:levels=0.8+0.4", [0, 1, 2, 100, 101]),
        ("target:level=0.3", [0, 1, 2, 1000]),
    ],
)
def test_noise_is_asked_for_by_the_step_it_serves(text: str, steps: list[int]) -> None:
    """Re-noise n comes before pass n of the block's own levels, whoever makes that pass; refinements have their own."""
    assert [step for block, step in run(text).noise.asked if block == 1] == steps


def test_a_repair_resumes_the_drafts_walk_where_it_stood() -> None:
    made = run("reward:tau=inf,repair=1")
    draft = [(level, z) for start, level, z in made.drafter.passes if start == BLOCK and level > 0]
    mended = [(level, z) for start, level, z in made.target.passes if start == BLOCK and level > 0]
    assert [level for level, _ in mended] == pytest.approx(list(SIGMAS[1:-1]))
    assert torch.equal(mended[0][1], draft[1][1])


# ---------------------------------------------------------------- traces


def test_a_rejected_draft_leaves_no_trace() -> None:
    """Neither past, nor the decoder, can tell a rollout with rejected drafts from one without."""
    rejected, plain = Run("reward:tau=inf"), Run("target")
    assert all(torch.equal(a, b) for a, b in zip(rejected.stage.state or (), plain.stage.state or (), strict=True))
    held, expected = rejected.remembered(), plain.remembered()
    assert len(held) == len(expected) == 2 * FRAMES
    half = len(held) // 2
    for ours, theirs in zip(held[:half], expected[:half], strict=True):
        assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(ours, theirs, strict=True))
    # the drafter has written its past block by block here and in one pass there: equal up to rounding
    for ours, theirs in zip(held[half:], expected[half:], strict=True):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_an_accepted_draft_is_decoded_once_and_a_rejected_one_costs_one_more() -> None:
    assert run("reward:tau=-inf").decodes == [1, 2, 3, 4, 5]
    assert run("reward:tau=inf").decodes == [1, 3, 5, 7, 9]
    for text in ("target", "first", "refine:levels=0.8", "stride:k=2,repair=1"):
        assert run(text).decodes == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("text", ["reward:tau=0.2", "first", "refine:levels=0.8", "cascade:tau=0.1,frames=2"])
def test_streamed_is_whole_under_speculation(text: str) -> None:
    made = run(text)
    whole, _ = autoencoder().decode(made.latents)
    torch.testing.assert_close(made.frames, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("text", ["reward:tau=0.2", "stride:k=2", "refine:levels=0.8", "quantile:accept=0.5"])
def test_a_longer_rollout_keeps_its_own_past(text: str) -> None:
    assert torch.equal(Run(text, frames=4).latents, run(text).latents[:, :4])
    assert same(Run(text), run(text))


def test_a_block_the_plan_does_not_remember_reaches_no_past() -> None:
    made = Run("draft", frames=BLOCK)
    spec, clock = build("first", ROUTERS, "router"), Clock()
    past = Store(Full(), BLOCK)
    walker = FlowWalker("target", made.target, past, STEPS["euler"], clock)
    proposer = Speculator(spec, walker, None, SHAPE, clock)
    move = Move(0, Span(0, BLOCK), SIGMAS, commit=None)
    with torch.no_grad():
        proposer.commit(move, proposer.propose(move, CONDITION, made.noise), CONDITION)
        walker.catch_up(made.noise)
    assert past.bytes == 0
