"""Levels, plans, steps and noise against published lists, closed forms and their own definitions."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from arvid.samplers.grids import few_step, shifted
from arvid.samplers.noise import SeededNoise
from arvid.samplers.plans import sequential, validate
from arvid.samplers.steps import STEPS, add_noise, clean, euler, renoise
from arvid.types import Move, Span

# ---------------------------------------------------------------- levels


def test_the_published_four_steps() -> None:
    assert few_step(4) == pytest.approx((1, 0.9375, 0.8333, 0.625, 0), abs=5e-5)
    assert few_step(4)[0] == 1
    assert few_step(4)[-1] == 0
    assert few_step(1) == (1, 0)


@given(st.integers(1, 100), st.floats(0.05, 20))
def test_levels_fall_from_exactly_one_to_exactly_zero(steps: int, shift: float) -> None:
    levels = few_step(steps, shift)
    assert len(levels) == steps + 1
    assert levels[0] == 1
    assert levels[-1] == 0
    assert all(a > b for a, b in pairwise(levels))


@given(st.floats(0.001, 1), st.floats(0.1, 20))
def test_the_shift_multiplies_the_odds(tau: float, shift: float) -> None:
    """sigma / (1 - sigma) = s tau / (1 - tau): what a shift is."""
    sigma = shifted(tau, shift)
    assert math.isclose(sigma * (1 - tau), (1 - sigma) * shift * tau, rel_tol=1e-9, abs_tol=1e-12)


def test_no_steps_is_an_error() -> None:
    with pytest.raises(ValueError, match="0 steps asked for; at least 1"):
        few_step(0)


# ---------------------------------------------------------------- plans


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 6))
def test_a_sequential_plan_covers_every_frame_once(frames: int, block: int, steps: int) -> None:
    plan = sequential(frames, block, few_step(steps))
    assert [f for move in plan for f in range(move.span.start, move.span.stop)] == list(range(frames))
    assert [move.index for move in plan] == list(range(len(plan)))
    assert all(len(move.span) == block for move in plan[:-1])
    assert {move.steps for move in plan} == {steps}


def test_the_first_block_may_have_steps_of_its_own() -> None:
    plan = sequential(7, 3, few_step(2), few_step(5))
    assert [move.steps for move in plan] == [5, 2, 2]


@given(st.integers(2, 5), st.data())
def test_a_broken_plan_is_refused_by_the_name_of_its_block(blocks: int, data: st.DataObject) -> None:
    plan = list(sequential(3 * blocks, 3, (1.0, 0.5, 0.0)))
    place = data.draw(st.integers(0, blocks - 1))
    move = plan[place]
    broken = data.draw(
        st.sampled_from([
            replace(move, sigmas=(1.0, 0.5)),
            replace(move, sigmas=(0.5, 1.0, 0.0)),
            replace(move, sigmas=(0.5, 0.5, 0.0)),
            replace(move, sigmas=(1.5, 0.5, 0.0)),
            replace(move, sigmas=(math.nan, 0.0)),
            replace(move, sigmas=(0.0,)),
            replace(move, sigmas=()),
            replace(move, span=Span(move.span.start + 1, move.span.stop)),
            replace(move, span=Span(move.span.start - 1, move.span.stop)),
            replace(move, span=Span(move.span.start, move.span.start)),
        ])
    )  # fmt: skip
    plan[place] = broken
    with pytest.raises(ValueError, match=rf"^block {place}: "):
        validate(tuple(plan))


@pytest.mark.parametrize(("frames", "block"), [(0, 3), (3, 0), (-1, 1)])
def test_nothing_to_plan(frames: int, block: int) -> None:
    with pytest.raises(ValueError, match=rf"cannot plan {frames} frames in blocks of {block}"):
        sequential(frames, block, few_step(4))


def test_moves_default_to_clean_commits_that_are_shown() -> None:
    assert sequential(3, 3, (1.0, 0.0)) == (Move(0, Span(0, 3), (1.0, 0.0), 0.0, True),)


# ---------------------------------------------------------------- steps

MEAN, DEVIATION = 0.7, 0.4


def gaussian_flow(x: Tensor, sigma: float) -> Tensor:
    """E[eps - x0 | x] when x0 is N(MEAN, DEVIATION^2) and x = (1 - sigma) x0 + sigma eps."""
    keep = 1 - sigma
    variance = (keep * DEVIATION) ** 2 + sigma**2
    surprise = (x - keep * MEAN) / variance
    return sigma * surprise - (MEAN + keep * DEVIATION**2 * surprise)


def no_noise() -> Tensor:
    raise AssertionError("an Euler step asks for no noise")


def walked(steps: int) -> Tensor:
    x = start = torch.linspace(-2, 2, 9, dtype=torch.float64)
    for sigma, following in pairwise(few_step(steps)):
        x = euler(x, gaussian_flow(x, sigma), sigma, following, no_noise)
    return (x - (MEAN + DEVIATION * start)).abs().max()


def test_euler_lands_where_the_flow_of_a_gaussian_leads() -> None:
    """The flow maps quantiles to quantiles, so x1 ends at mean + deviation x1; the error falls as one over steps."""
    assert walked(4000) < 2e-3
    assert walked(1000) / walked(2000) == pytest.approx(2, rel=0.05)
    assert walked(4) > 0.02


@pytest.mark.parametrize("name", sorted(STEPS))
@given(steps=st.integers(1, 8), shift=st.floats(0.5, 9))
def test_a_single_point_is_reached_by_any_walk(name: str, steps: int, shift: float) -> None:
    point = torch.tensor([0.3, -1.2, 2.0], dtype=torch.float64)
    noise = torch.tensor([1.1, 0.2, -0.7], dtype=torch.float64)
    x = noise
    for sigma, following in pairwise(few_step(steps, shift)):
        x = STEPS[name](x, (x - point) / sigma, sigma, following, lambda: noise)
        torch.testing.assert_close(x, (1 - following) * point + following * noise, rtol=1e-9, atol=1e-9)


def test_renoise_takes_fresh_noise_and_none_at_the_end() -> None:
    x, flow, fresh = torch.randn(3, 5).unbind(0)
    expected = 0.6 * (x - 0.8 * flow) + 0.4 * fresh
    torch.testing.assert_close(renoise(x, flow, 0.8, 0.4, lambda: fresh), expected)
    torch.testing.assert_close(renoise(x, flow, 0.8, 0.0, no_noise), x - 0.8 * flow)


@given(st.floats(0.01, 1))
def test_clean_undoes_add_noise(sigma: float) -> None:
    x0, eps = torch.randn(2, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(clean(add_noise(x0, eps, sigma), eps - x0, sigma), x0)


# ---------------------------------------------------------------- noise

SHAPE = (1, 3, 4, 8, 8)


def test_noise_is_a_function_of_its_name() -> None:
    first = SeededNoise(5)
    expected = first.draw(2, 1, SHAPE)
    first.draw(0, 0, SHAPE)
    assert torch.equal(first.draw(2, 1, SHAPE), expected)
    assert torch.equal(SeededNoise(5).draw(2, 1, SHAPE), expected)
    assert expected.dtype == torch.float32


def test_noise_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    SeededNoise(3).draw(0, 0, SHAPE)
    assert torch.equal(torch.rand(4), expected)


def test_noise_is_standard_normal_and_independent_between_names() -> None:
    names = [(seed, block, step) for seed in (0, 1, 12) for block in (0, 1, 11, 21) for step in (0, 1, 100, 1000)]
    draws = torch.stack([SeededNoise(seed).draw(block, step, (4096,)) for seed, block, step in names])
    assert draws.mean(1).abs().max() < 5 / 64
    assert (draws.var(1) - 1).abs().max() < 5 * math.sqrt(2) / 64
    correlation = torch.corrcoef(draws) - torch.eye(len(names))
    assert correlation.abs().max() < 5.5 / 64
