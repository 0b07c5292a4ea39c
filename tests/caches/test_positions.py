"""Where frames stand, and the grid of policies and positions against attention written out token by token."""

from __future__ import annotations

import cmath
import math
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from arvid.caches.policies import POLICIES, remember
from arvid.caches.positions import POSITIONS, Absolute, Cyclic, Decay, Flex, Relative, Rephased
from arvid.caches.store import Store
from arvid.layers.attention import attend
from arvid.layers.rope import angles, angles_at, axis_pairs, rotate, turning_rates
from arvid.models.wan.transformer import Ask, Reading
from arvid.spec import build
from arvid.types import Places, Positions, Span, Stretch
from oracles.asking import advance, asks, memory
from oracles.tiny_rollout import GRID, roll

BLOCK, HEADS, SIZE, ROWS, COLUMNS = 3, 2, 12, 2, 3
TOKENS = ROWS * COLUMNS

# ---------------------------------------------------------------- the grid of policies and positions


def frames_on_view(policy: str, start: int) -> list[int]:
    """The promise of each policy of whole frames, in words of the test."""
    return {
        "full": list(range(start)),
        "window:frames=4": [f for f in range(start) if start - f <= 4],
        "window:frames=3,sink=2": [f for f in range(start) if start - f <= 3 or f < 2],
        "sink:frames=6,sink=2": [f for f in range(start) if start - f <= 4 or f < 2],
    }[policy]


def standing(positions: str, past: list[int], start: int) -> tuple[list[float], list[float]]:
    """Where (past, own) frames stand, written out."""
    own = list(range(start, start + BLOCK))
    if positions == "rephase":
        return [start - len(past) + i for i in range(len(past))], own
    if positions == "relative:limit=7":
        first = min(start, 7 - BLOCK)
        return [max(0, first - len(past) + i) for i in range(len(past))], [first + i for i in range(BLOCK)]
    if positions == "cyclic:period=5":
        return [f % 5 for f in past], [f % 5 for f in own]
    return past, own


def turned(x: list[float], place: tuple[float, int, int], scale: float) -> list[complex]:
    """Channel pairs times e^(i position rate); slow pairs of time turn `scale` times slower, by the ramp."""
    pairs, found, start = [SIZE // 2 - 2 * (SIZE // 6), SIZE // 6, SIZE // 6], [], 0
    for axis, count in enumerate(pairs):
        for j in range(count):
            rate = 10000.0 ** (-j / count)
            if axis == 0 and scale > 1:
                kept = min(max((6 * rate / (2 * math.pi) - 0.2) / (2.0 - 0.2), 0), 1)
                rate = kept * rate + (1 - kept) * rate / scale
            value = complex(x[2 * (start + j)], x[2 * (start + j) + 1])
            found.append(value * cmath.exp(1j * place[axis] * rate))
        start += count
    return found


def by_hand(q: Tensor, k: Tensor, v: Tensor, at: list[float], where: list[float], scale: float, slope: float) -> Tensor:
    """Softmax attention of one head in float64; q, k, v are token lists, `at` and `where` the frames' positions."""
    grid = [(row, column) for row in range(ROWS) for column in range(COLUMNS)]
    q_at = [(t, *g) for t in at for g in grid]
    k_at = [(t, *g) for t in where for g in grid]
    qs = [turned(x, place, scale) for x, place in zip(q.tolist(), q_at, strict=True)]
    ks = [turned(x, place, scale) for x, place in zip(k.tolist(), k_at, strict=True)]
    out = []
    for a, place in zip(qs, q_at, strict=True):
        logits = [
            sum((x * y.conjugate()).real for x, y in zip(a, b, strict=True)) / math.sqrt(SIZE)
            - slope * abs(place[0] - other[0])
            for b, other in zip(ks, k_at, strict=True)
        ]
        out.append(torch.softmax(torch.tensor(logits, dtype=torch.float64), 0) @ v.double())
    return torch.stack(out)


@pytest.mark.parametrize(
    "positions",
    ["absolute", "rephase", "relative:limit=7", "flex:trained=6,low=0.2,high=2", "decay:slope=0.3", "cyclic:period=5"],
)  # fmt: skip
@pytest.mark.parametrize("policy", ["full", "window:frames=4", "window:frames=3,sink=2", "sink:frames=6,sink=2"])
def test_any_policy_goes_with_any_positions(policy: str, positions: str) -> None:
    store = Store(build(policy, POLICIES, "past"), BLOCK, build(positions, POSITIONS, "positions"))
    start, kept = 9, frames_on_view(policy, 9)
    k_all, v_all = torch.randn(2, 1, start * TOKENS, HEADS, SIZE)
    for first in range(0, start, BLOCK):
        part = slice(first * TOKENS, (first + BLOCK) * TOKENS)
        store.commit(Span(first, first + BLOCK), ((k_all[:, part], v_all[:, part]),))
    q, k, v = torch.randn(3, 1, BLOCK * TOKENS, HEADS, SIZE)
    view = store.view(Span(start, start + BLOCK))
    assert list(view.frames) == kept
    text = torch.zeros(1, 1, HEADS, SIZE)
    sigma = torch.ones(1, BLOCK)
    reading = Reading(view, tuple(range(start, start + BLOCK)), (ROWS, COLUMNS), SIZE, sigma, ((text, text),))
    seen = view.read(0, Ask(reading, 0, q, (k, v)))
    assert seen is not None
    keys = torch.cat([seen.keys, rotate(k, reading.angles_LE)], 1)
    ours = attend(rotate(q, reading.angles_LE), keys, torch.cat([seen.values, v], 1), reading.mask(seen, q.dtype))

    past, own = standing(positions, kept, start)
    scale = max(1.0, (start + BLOCK - kept[0]) / 6) if positions.startswith("flex") else 1.0
    slope = 0.3 if positions.startswith("decay") else 0.0
    tokens = [f * TOKENS + i for f in kept for i in range(TOKENS)]
    for head in range(HEADS):
        whole_k, whole_v = (
            torch.cat([past_x[0, tokens, head], x[0, :, head]]) for past_x, x in ((k_all, k), (v_all, v))
        )
        expected = by_hand(q[0, :, head], whole_k, whole_v, own, past + own, scale, slope)
        torch.testing.assert_close(ours[0, :, head].double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "positions", [Rephased(), Relative(100), Relative(15), Flex(trained=15), Decay(0.0), Cyclic(15)], ids=str
)
@pytest.mark.parametrize("policy", ["full", "window:frames=12", "sink:frames=12,sink=3"])
def test_all_agree_while_nothing_is_dropped_and_all_is_in_range(policy: str, positions: Positions) -> None:
    """Only distances matter: 15 frames in a past of 12 and a block of 3."""
    plain = roll(Store(build("full", POLICIES, "past"), BLOCK))
    torch.testing.assert_close(
        roll(Store(build(policy, POLICIES, "past"), BLOCK, positions)), plain, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("positions", [Relative(6), Flex(6, 0.5, 2), Decay(0.5), Cyclic(7)], ids=str)
def test_out_of_range_they_differ(positions: Positions) -> None:
    ours, plain = (roll(Store(build("full", POLICIES, "past"), BLOCK, p)) for p in (positions, Absolute()))
    assert (ours[:, -3:] - plain[:, -3:]).abs().max() > 1e-3


# ---------------------------------------------------------------- each answer by itself


def test_the_window_of_infinity_rope() -> None:
    """A window of 6 with the block: the past stands at 0 to 2 and the block at 3 to 5, however long the video is."""
    past = ((0.0, 1.0), (91.0, 1.0), (92.0, 1.0))
    assert Relative(6).place(past, (93, 94, 95)) == Places((0, 1, 2), (3, 4, 5))
    assert Relative(6).place((), (0, 1, 2)) == Places((), (0, 1, 2))
    crowded = tuple((float(f), 1.0) for f in range(88, 93))
    assert Relative(6).place(crowded, (93, 94, 95)).past == (0, 0, 0, 1, 2)


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 9)), min_size=1, max_size=8), st.integers(0, 5))
def test_closing_up_leaves_no_gaps_whatever_was_dropped(pieces: list[tuple[int, int]], distance: int) -> None:
    past, cursor = [], 0
    for length, gap in pieces:
        past.append((float(cursor), float(length)))
        cursor += length + gap
    own = (cursor + distance, cursor + distance + 1)
    places = Rephased().place(tuple(past), own)
    ends = [place + length for place, (_, length) in zip(places.past, past, strict=True)]
    assert [*places.past[1:], own[0]] == ends
    assert places.own == own


@given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 500))
def test_relative_positions_stay_in_the_trained_range(limit: int, pieces: int, start: int) -> None:
    own = tuple(range(start + pieces, start + pieces + 3))
    places = Relative(limit).place(tuple((float(start + i), 1.0) for i in range(pieces)), own)
    everything = places.past + places.own
    assert min(everything) >= 0
    assert max(everything) < max(limit, 3)
    assert list(everything) == sorted(everything)


def test_thirty_three_neighbours_never_share_a_cyclic_place() -> None:
    for start in range(100):
        places = Cyclic(33).place(
            tuple((float(f), 1.0) for f in range(start, start + 30)), (start + 30, start + 31, start + 32)
        )
        assert sorted(places.past + places.own) == list(range(33))


BOUNDED = {
    "window:frames=6": 6, "sink:frames=6,sink=0": 6, "headwise:frames=6,sink=0,recent=2": 6,
    "coarse:frames=6,fine=3": 15, "coarse:frames=4,fine=2,side=1": 4,
}  # fmt: skip
"""Policies that forget all old frames, and how far back the oldest one they read begins."""
ENDLESS = [
    "full", "window:frames=6,sink=2", "sink:frames=6,sink=2", "random:frames=6,recent=3",
    "headwise:frames=6,sink=1,recent=2", "route:frames=5,recent=3,archive=7", "bank:frames=6,sink=1,recent=3",
]  # fmt: skip


def crowded(policy: str, period: int, blocks: int = 40) -> int:
    """Frames that a layer found at the place of another one, or of the block, whatever the spec promises."""
    past, found = Store(build(policy, POLICIES, "past"), BLOCK, Cyclic(period)), 0
    for start in range(0, blocks * BLOCK, BLOCK):
        view, own = past.view(Span(start, start + BLOCK)), [(start + i) % period for i in range(BLOCK)]
        for layer, ask in enumerate(asks(start, memory(start))):
            if view.read(layer, ask) is None:
                continue
            stood = ask.stood[-1]
            # Tokens of one frame share its place, and here frames stand in the order of time in every piece.
            times = stood.tolist() if stood.ndim == 1 else stood[:, 0].unique_consecutive().tolist()
            found += len(times) + BLOCK - len({*times, *own})
        advance(past, start, 1)
    return found


@pytest.mark.parametrize("policy", BOUNDED)
def test_a_cycle_is_long_enough_for_what_may_be_read_and_no_longer(policy: str) -> None:
    reach = BOUNDED[policy]
    remember(build(policy, POLICIES, "past"), BLOCK, Cyclic(reach + BLOCK))
    assert crowded(policy, reach + BLOCK) == 0
    with pytest.raises(ValueError, match=rf"^{reach} frames of the past .* cycle of {reach + BLOCK - 1}; .*window"):
        remember(build(policy, POLICIES, "past"), BLOCK, Cyclic(reach + BLOCK - 1))
    assert crowded(policy, reach + BLOCK - 1) > 0


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_positions_have_room_for_a_pass_over_several_blocks_or_are_refused(blocks: int) -> None:
    """Nothing shares a place and nothing stands beyond the range where they are taken; where not, something would."""
    policy, longest = build("window:frames=6", POLICIES, "past"), blocks * BLOCK
    for positions in (*map(Cyclic, range(7, 17)), *map(Relative, range(1, 11))):
        last = positions.period if isinstance(positions, Cyclic) else positions.limit
        past, good = Store(policy, BLOCK, positions), True
        for start in range(0, 20 * BLOCK, BLOCK):
            own = tuple(range(start, start + longest))
            places = past.view(Span(start, start + longest)).places(own)
            stood = (*places.past, *places.own) if isinstance(positions, Cyclic) else places.own
            good &= len({*stood}) == len(stood) and max(stood) < last
            past.commit(Span(start, start + BLOCK), ((torch.zeros(1, 12, 1, 12),) * 2,))
        with nullcontext() if good else pytest.raises(ValueError, match=rf"\b{longest}\b"):
            remember(policy, BLOCK, positions, longest)


@pytest.mark.parametrize("policy", ENDLESS)
def test_frames_that_are_never_dropped_have_no_cycle(policy: str) -> None:
    for period in (3, 12, 33):
        assert crowded(policy, period) > 0
        with pytest.raises(ValueError, match=f"^any number of frames .* cycle of {period}; take a window"):
            remember(build(policy, POLICIES, "past"), BLOCK, Cyclic(period))


@pytest.mark.parametrize("policy", [name for name in POLICIES if name not in ("coarse", "window", "sink")])
def test_no_other_policy_has_a_cycle_unless_it_says_how_far_it_reads(policy: str) -> None:
    with pytest.raises(ValueError, match="share places in a cycle of 1000"):
        remember(build(policy, POLICIES, "past"), BLOCK, Cyclic(1000))


def test_the_ring_of_ca2_vdm_is_as_published() -> None:
    """25 frames of the past in a cycle of 33 (2411.16375), for 200 blocks."""
    remember(build("window:frames=25", POLICIES, "past"), BLOCK, Cyclic())
    assert crowded("window:frames=25", 33, 200) == 0


def test_a_stretch_of_one_changes_nothing_and_a_longer_one_slows_the_slow() -> None:
    base = turning_rates(22)
    assert torch.equal(turning_rates(22, Stretch(1.0, 21, 1, 4)), base)
    slowed = turning_rates(22, Stretch(6.0, 21, 1, 3))
    assert (slowed <= base + 1e-15).all()
    assert (slowed.diff() < 0).all()
    assert slowed[0] == base[0], "the fastest pair turns 3.3 times in 21 frames"
    turns = 21 * base / (2 * math.pi)
    torch.testing.assert_close(slowed[turns <= 1], base[turns <= 1] / 6)
    assert int((turns > 1).sum()) == 3


def test_flex_stretches_by_reach_over_training() -> None:
    flex = Flex(21, 1, 4)
    assert flex.place(((0.0, 1.0),), (18, 19, 20)).stretch is None
    assert flex.place(((100.0, 1.0),), (118, 119, 120)).stretch is None
    assert flex.place(((0.0, 1.0), (50.0, 1.0)), (123, 124, 125)).stretch == Stretch(6.0, 21, 1, 4)


def test_tokens_anywhere_turn_as_whole_frames_do() -> None:
    stretch = Stretch(2.0, 6, 0.2, 2)
    whole = angles((0.5, 7.0), 2, 3, 20, stretch=stretch)
    places = torch.tensor([[t, r, c] for t in (0.5, 7.0) for r in range(2) for c in range(3)])
    torch.testing.assert_close(angles_at(places, 20, stretch), whole)
    frame = axis_pairs(20)[0]
    assert torch.equal(whole[:, frame:], angles((0.5, 7.0), 2, 3, 20)[:, frame:]), "rows and columns never stretch"


def test_a_cut_moves_the_past_away_for_one_block() -> None:
    store, blank = Store(build("window:frames=3", POLICIES, "past"), BLOCK, Relative(6)), torch.zeros(1, 12, 1, 12)
    store.commit(Span(30, 33), ((blank, blank),))
    store.cut(frozenset({33}))
    assert store.view(Span(33, 36)).places((33, 34, 35)) == Places((0, 1, 2), (45, 46, 47))
    store.commit(Span(33, 36), ((blank, blank),))
    assert store.view(Span(36, 39)).places((36, 37, 38)) == Places((0, 1, 2), (3, 4, 5))


def test_a_rollout_goes_on_far_beyond_any_table() -> None:
    store, blank = Store(build("window:frames=3", POLICIES, "past"), BLOCK, Relative()), torch.zeros(1, 12, 1, 12)
    store.commit(Span(30000, 30003), ((blank, blank),))
    places = store.view(Span(30003, 30006)).places((30003, 30004, 30005))
    assert places == Places((15, 16, 17), (18, 19, 20))


def test_wrong_numbers_are_named() -> None:
    for bad, found in {
        "relative:limit=0": "below 0", "flex:low=4,high=1": "low=4, high=1", "decay:slope=-1": "-1 per frame",
        "cyclic:period=0": "cycle of 0",
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=found):
            build(bad, POSITIONS, "positions")
    with pytest.raises(ValueError, match="unknown positions 'sideways'; known: absolute, cyclic, decay"):
        build("sideways", POSITIONS, "positions")


def test_the_grid_of_the_tiny_model_is_what_the_tests_say() -> None:
    assert GRID == (4, 4)
