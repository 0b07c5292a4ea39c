"""What every policy has to keep: the laws, constant memory, one choice per block, a value for a snapshot."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from arvid.caches.control import Chance
from arvid.caches.full import Full
from arvid.caches.pieces import Held
from arvid.caches.policies import POLICIES, remember
from arvid.caches.policy import Policy
from arvid.caches.positions import POSITIONS
from arvid.caches.sink import Sink
from arvid.caches.store import Store
from arvid.rollout.state import Packer, Unpacker
from arvid.spec import build
from arvid.types import Span
from oracles.asking import BLOCK, advance, asks, memory
from oracles.tiny_rollout import model, roll

UNLIMITED = [
    "window:frames=99", "sink:frames=99,sink=3", "random:frames=99", "deep:frames=99", "headwise:frames=99,recent=98",
    "pack:frames=99,recent=90", "pack:frames=60,sink=1,recent=2,side=1,time=1,capacity=99",
    "route:frames=99,recent=3,archive=99", "coarse:frames=99,fine=98", "coarse:frames=60,fine=2,side=1",
    "conv:frames=99", "bank:frames=99,recent=90,bank=9,top=99",
]  # fmt: skip
"""Nothing is dropped: by a budget beyond the video, or by merging one token at a time and reading everything."""
LIMITED = [
    "window:frames=6", "window:frames=4,sink=2", "sink:frames=6,sink=2", "random:frames=6,recent=3",
    "deep:frames=6,sink=2,recent=2", "headwise:frames=6", "pack:frames=6,sink=1,recent=3",
    "pack:frames=6,sink=0,recent=4,side=4,capacity=32", "route:frames=5,recent=3,archive=7", "coarse:frames=6,fine=3",
    "conv:frames=5,sink=1", "conv:frames=6,sink=2,mix=place,ratio=2", "bank:frames=6,sink=1,recent=3,bank=4,top=2",
]  # fmt: skip


def policy(spec: str) -> Policy:
    return build(spec, POLICIES, "past")


@cache
def rolled(spec: str, blocks: int = 5, disturbed: int = -1, positions: str = "absolute") -> Tensor:
    return roll(Store(policy(spec), BLOCK, build(positions, POSITIONS, "positions")), blocks, disturbed)


def test_no_policy_is_left_out() -> None:
    assert {spec.partition(":")[0] for spec in LIMITED} | {"full", "neighbour"} == set(POLICIES)


@pytest.mark.parametrize("spec", UNLIMITED)
def test_with_an_unlimited_budget_every_policy_is_the_full_past(spec: str) -> None:
    torch.testing.assert_close(rolled(spec), rolled("full"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spec", LIMITED)
def test_a_budget_is_felt_once_it_is_full_and_not_before(spec: str) -> None:
    ours, full = rolled(spec), rolled("full")
    torch.testing.assert_close(ours[:, :BLOCK], full[:, :BLOCK], rtol=1e-5, atol=1e-5)
    assert ours.isfinite().all()
    assert (ours[:, -BLOCK:] - full[:, -BLOCK:]).abs().max() > 1e-3


@pytest.mark.parametrize("spec", LIMITED)
def test_the_future_does_not_leak(spec: str) -> None:
    before, after = rolled(spec), rolled(spec, disturbed=2)
    assert torch.equal(before[:, : 2 * BLOCK], after[:, : 2 * BLOCK])
    assert not torch.equal(before[:, 2 * BLOCK :], after[:, 2 * BLOCK :])
    assert torch.equal(before[:, : 3 * BLOCK], rolled(spec, 3))


@pytest.mark.parametrize("positions", ["rephase", "relative:limit=9", "flex:trained=6,low=0.1,high=2", "decay"])
@pytest.mark.parametrize("spec", LIMITED)
def test_every_policy_rolls_with_all_positions_but_cyclic(spec: str, positions: str) -> None:
    ours, other = rolled(spec, 4, positions=positions), rolled("full", 4, positions=positions)
    assert ours.isfinite().all()
    assert torch.equal(ours[:, :BLOCK], other[:, :BLOCK]), "the first block has no past"


@pytest.mark.parametrize("spec", [*LIMITED, "neighbour:frames=5,sink=1"])
def test_bytes_stay_as_they_are_for_two_hundred_blocks(spec: str) -> None:
    past, held = remember(policy(spec), BLOCK), set()
    advance(past, 0, 40)
    for start in range(120, 600, BLOCK):
        advance(past, start, 1)
        held.add(past.bytes)
    assert len(held) == 1
    if isinstance(past, Store):
        assert past.bytes <= past.reserved <= 2 * past.bytes
        assert len(past.snapshot()) < 40


@pytest.mark.parametrize("spec", LIMITED)
def test_a_view_chooses_at_its_first_pass_and_changes_nothing(spec: str) -> None:
    store = Store(policy(spec), BLOCK)
    advance(store, 0, 6)
    before = store.snapshot()
    view = store.view(Span(18, 21))
    first, second = ([view.read(layer, ask) for layer, ask in enumerate(asks(seed, memory(18)))] for seed in (1, 2))
    for one, other in zip(first, second, strict=True):
        assert one is not None and other is not None
        assert one.keys is other.keys
    after = store.snapshot()
    assert list(after) == list(before)
    assert all(isinstance(held, Held) and held.piece is before[first].piece for first, held in after.items())


@pytest.mark.parametrize("spec", [*LIMITED, "neighbour:frames=5,sink=1"])
def test_going_on_from_a_saved_state_is_never_having_stopped(spec: str) -> None:
    def through_the_packer(value: Any) -> Any:
        packer = Packer()
        packed = packer.pack(value)
        return Unpacker(packer.tensors, packer.orders, packer.nouns).unpack(packed)

    whole, again, branch = (remember(policy(spec), BLOCK) for _ in range(3))
    advance(whole, 0, 6)
    kept = whole.snapshot()
    again.restore(through_the_packer(kept))
    advance(whole, 18, 4)
    branch.restore(kept)
    for other in (again, branch):
        advance(other, 18, 4)
        assert other.bytes == whole.bytes
        view, expected = other.view(Span(30, 33)), whole.view(Span(30, 33))
        for layer, ask in enumerate(asks(5, memory(30))):
            ours, theirs = view.read(layer, ask), expected.read(layer, ask)
            assert ours is not None and theirs is not None
            assert torch.equal(ours[0], theirs[0])
            assert torch.equal(ours[1], theirs[1])


@pytest.mark.parametrize("spec", LIMITED)
def test_several_blocks_in_one_pass_stay_causal(spec: str) -> None:
    """Lazy writing: each block of a span may see the past and the blocks before it, whatever the policy."""
    store = Store(policy(spec), BLOCK)
    advance(store, 0, 4)
    view = store.view(Span(12, 18))
    mask = view.mask(tuple(range(12, 18)))
    assert mask is not None
    own = mask[:, -6:]
    assert not own[:BLOCK, BLOCK:].any()
    assert own[:BLOCK, :BLOCK].all()
    assert own[BLOCK:, BLOCK:].all()
    pairs = tuple(
        (torch.cat([k, more_k], 1), torch.cat([v, more_v], 1))
        for (k, v), (more_k, more_v) in zip(memory(12), memory(15), strict=True)
    )
    for layer, ask in enumerate(asks(12, pairs)):
        assert view.read(layer, ask) is not None
    store.commit(Span(12, 18), pairs)
    singly = Store(policy(spec), BLOCK)
    advance(singly, 0, 6)
    assert store.bytes == singly.bytes
    assert list(store.snapshot()) == list(singly.snapshot())


@pytest.mark.parametrize("spec", LIMITED)
def test_policies_run_with_the_heads_of_the_real_model(spec: str) -> None:
    """Head size 128, as Wan has it, with its split of axes."""
    network = model(2, 3, 128)
    made = roll(Store(policy(spec), BLOCK, build("rephase", POSITIONS, "positions")), 3, network=network)
    assert made.isfinite().all()


# ---------------------------------------------------------------- whole frames: the promise, by brute force


@given(st.integers(1, 4), st.integers(2, 9), st.integers(0, 4), st.integers(0, 40))
def test_window_and_sink_share_one_budget(block: int, frames: int, sink: int, blocks: int) -> None:
    sink = min(sink, frames - 1)
    end = block * blocks
    expected = sorted({*range(min(sink, end)), *range(max(0, end - (frames - sink)), end)})
    assert list(Sink(frames, sink).visible(tuple(range(end)), end)) == expected
    assert len(expected) <= frames


def test_the_published_window_with_its_sink() -> None:
    """12 frames with the block of 3: three of sink and six before the block, at frame 57."""
    assert Sink(9, 3).visible(tuple(range(57)), 57) == (0, 1, 2, 51, 52, 53, 54, 55, 56)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 50), st.integers(0, 50), st.integers(0, 5))
def test_what_chance_drops_never_comes_back(recent: int, more: int, start: int, later: int, seed: int) -> None:
    chance = Chance(recent + more, recent, seed)
    early, late = sorted((start, later))
    seen = chance.visible(tuple(range(early)), early)
    assert len(seen) == min(early, recent + more)
    assert set(range(max(0, early - recent), early)) <= set(seen)
    assert not (set(range(early)) - set(seen)) & set(chance.visible(tuple(range(late)), late))


def test_chance_favours_no_age() -> None:
    drawn = [f for seed in range(300) for f in Chance(6, 3, seed).visible(tuple(range(103)), 103) if f < 100]
    assert len(drawn) == 900
    assert 45 < sum(drawn) / 900 < 54


def test_impossible_budgets_are_one_line() -> None:
    for bad in (
        "sink:frames=3,sink=3", "random:frames=2,recent=3", "deep:frames=5,sink=3,recent=2", "headwise:frames=1",
        "pack:frames=6,sink=3,recent=3", "pack:capacity=1", "route:frames=3,recent=3", "route:archive=1",
        "coarse:frames=3,fine=3", "conv:frames=4,sink=2,ratio=9", "bank:frames=4,sink=2,recent=2", "bank:bank=1",
    ):  # fmt: skip
        with pytest.raises(ValueError, match="needs") as caught:
            policy(bad)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="unknown mix 'round'; known: flat, place"):
        policy("conv:mix=round")


@pytest.mark.parametrize(
    "spec", ["pack:frames=4,sink=0,recent=1,time=1", "coarse:frames=2,fine=1", "deep:frames=3,sink=1,recent=1"]
)
def test_without_a_pass_the_grid_is_not_guessed(spec: str) -> None:
    store = Store(policy(spec), BLOCK)
    with pytest.raises(ValueError, match="no pass has told the grid"):
        advance(store, 0, 3, seen=False)


def test_the_full_past_holds_everything() -> None:
    store = Store(Full(), BLOCK)
    advance(store, 0, 7)
    assert store.view(Span(21, 24)).frames == tuple(range(21))
