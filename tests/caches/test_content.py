"""Policies that look at content, each against its rule written out without the engine's tensors."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from arvid.caches.bank import Bank, cover
from arvid.caches.coarse import Coarse
from arvid.caches.convolved import Convolved, Neighbour
from arvid.caches.deep import Deep
from arvid.caches.full import Full
from arvid.caches.merging import Merge, cells
from arvid.caches.packed import Pack
from arvid.caches.per_level import LevelStore
from arvid.caches.pieces import Piece
from arvid.caches.positions import Rephased
from arvid.caches.route import Route, distinct
from arvid.caches.store import Store
from arvid.types import Memory, Span
from oracles.asking import BLOCK, GRID, HEADS, LAYERS, SIZE, TOKENS, Plain, advance, asks, memory, read


def keys_of(frame: int, layer: int = 0) -> Tensor:
    """The keys [L, H, D] that `advance` commits for a frame."""
    first = frame // BLOCK * BLOCK
    part = slice((frame - first) * TOKENS, (frame - first + 1) * TOKENS)
    return memory(first)[layer][0][0, part]


def commit(store: Store, start: int, pairs: Memory, queries: Tensor | None = None) -> None:
    """A block, after a pass of both layers has read its view."""
    frames = pairs[0][0].shape[1] // TOKENS
    view = store.view(Span(start, start + frames))
    for layer, ask in enumerate(asks(start, pairs)):
        view.read(layer, ask if queries is None else Plain(queries, ask.pair))
    store.commit(Span(start, start + frames), pairs)


def constant(values: list[float]) -> Memory:
    """One block whose frames have the same number everywhere."""
    names = torch.tensor(values).repeat_interleave(TOKENS).view(1, -1, 1, 1).expand(1, -1, HEADS, SIZE)
    return ((names, 10 * names),) * LAYERS


# ---------------------------------------------------------------- deep sink


def test_the_middle_is_what_recent_and_present_queries_ask_for() -> None:
    """6 frames: 1 of sink, 2 recent, and 3 frames' worth of the tokens between with the highest sum of products."""
    store = Store(Deep(6, 1, 2), BLOCK)
    advance(store, 0, 3)
    for layer in range(LAYERS):
        seen, ask = read(store, 9, layer, seed=3)
        assert seen is not None
        recent = [asks(6, memory(6))[layer].queries_BLHD[0, i * TOKENS : (i + 1) * TOKENS] for i in (1, 2)]
        scores = []
        for frame, token in itertools.product(range(1, 7), range(TOKENS)):
            queries = torch.cat([*recent, ask.queries_BLHD[0]])
            scores.append(float((queries * keys_of(frame, layer)[token]).sum()))
        chosen = sorted(sorted(range(len(scores)), key=lambda i: -scores[i])[: 3 * TOKENS])
        middle = torch.stack([keys_of(1 + i // TOKENS, layer)[i % TOKENS] for i in chosen])
        expected = torch.cat([keys_of(0, layer), middle, keys_of(7, layer), keys_of(8, layer)])
        assert torch.equal(seen.keys[0], expected)
        places = [[0.0, *divmod(i, 4)] for i in range(TOKENS)]
        places += [[4.0 + n // TOKENS, *divmod(i % TOKENS, 4)] for n, i in enumerate(chosen)]
        places += [[t, *divmod(i, 4)] for t in (7.0, 8.0) for i in range(TOKENS)]
        assert ask.stood[-1].tolist() == places


def test_the_choice_is_for_good_and_the_sink_is_never_touched() -> None:
    store = Store(Deep(6, 2, 2), BLOCK)
    advance(store, 0, 30)
    pieces = list(store.snapshot())
    assert pieces[:3] == [0, 1, 2] and pieces[3:] == [85, 86, 87, 88, 89]
    seen, _ = read(store, 90, 1)
    assert seen is not None and seen.keys.shape[1] == 6 * TOKENS
    assert torch.equal(seen.keys[0, : 2 * TOKENS], torch.cat([keys_of(0, 1), keys_of(1, 1)]))


def test_a_moved_sink_ends_where_what_follows_begins() -> None:
    store = Store(Deep(6, 2, 2), BLOCK, Rephased())
    advance(store, 0, 9)
    _, ask = read(store, 27)
    assert sorted({time for time, _, _ in ask.stood[-1].tolist()}) == [21, 22, 23, 24, 25, 26]


# ---------------------------------------------------------------- packed history


def test_a_pack_is_the_mean_of_its_cells_at_the_middle_of_them() -> None:
    store = Store(Pack(frames=5, sink=1, recent=3, side=2, time=3), BLOCK)
    advance(store, 0, 3)
    seen, ask = read(store, 9, 1)
    assert seen is not None and seen.bias is not None
    frames = torch.stack([keys_of(f, 1).view(*GRID, HEADS, SIZE) for f in (1, 2, 3)])
    for n, (row, column) in enumerate(itertools.product((0, 2), (0, 2))):
        expected = frames[:, row : row + 2, column : column + 2].mean((0, 1, 2))
        torch.testing.assert_close(seen.keys[0, TOKENS + n], expected)
        assert ask.stood[-1][TOKENS + n].tolist() == [2.0, row + 0.5, column + 0.5]
    assert seen.keys.shape[1] == (1 + 5) * TOKENS + 4, "frames 4 and 5 wait for the sixth"
    assert seen.bias[0, 0].tolist() == pytest.approx([0.0] * 16 + [math.log(12)] * 4 + [0.0] * 80)


def test_equal_tokens_may_be_packed_without_a_difference() -> None:
    """Attention to a pack with the logarithm of its mass is attention to the tokens it stands for."""
    packs, full = Store(Pack(frames=5, sink=1, recent=2, side=4), BLOCK), Store(Full(), BLOCK)
    for start in (0, 3, 6):
        for store in (packs, full):
            commit(store, start, constant([[0.1, 0.1, 0.1], [0.1, 0.2, 0.2], [0.2, -0.5, 0.3]][start // 3]))
    out = []
    for store in (packs, full):
        seen, ask = read(store, 9)
        assert seen is not None
        logits = ask.queries_BLHD[0].transpose(0, 1) @ seen.keys[0].permute(1, 2, 0)
        weights = (logits + (0 if seen.bias is None else seen.bias)).softmax(-1)
        out.append(weights @ seen.values[0].transpose(0, 1))
    torch.testing.assert_close(out[0], out[1])


def test_the_packs_on_view_are_those_that_answer_best() -> None:
    store = Store(Pack(frames=5, sink=1, recent=3, side=1, time=1, capacity=6), BLOCK)
    advance(store, 0, 5)
    seen, ask = read(store, 15, 1, seed=9)
    assert seen is not None
    kept = range(12 - 6, 12)
    score = {f: float((ask.queries_BLHD[0].mean(0) * keys_of(f, 1).mean(0)).sum()) for f in kept}
    best = max(kept, key=lambda f: score[f])
    expected = torch.cat([keys_of(f, 1) for f in (0, best, 12, 13, 14)])
    torch.testing.assert_close(seen.keys[0], expected)


def test_packs_keep_their_length_and_close_up() -> None:
    store = Store(Pack(frames=5, sink=1, recent=3, side=2, time=3), BLOCK, Rephased())
    advance(store, 0, 8)
    _, ask = read(store, 24)
    times = ask.stood[-1][:, 0].tolist()
    assert times[0] == 24 - 1 - 4 * 3 - 5, "a sink, four packs of three frames, five whole frames"
    assert times == sorted(times)


# ---------------------------------------------------------------- routed frames


@pytest.mark.parametrize("layer", range(LAYERS))
def test_the_frames_called_back_are_those_with_the_best_mean_key(layer: int) -> None:
    store = Store(Route(frames=5, recent=3, archive=30), BLOCK)
    advance(store, 0, 6)
    seen, ask = read(store, 18, layer, seed=4)
    assert seen is not None
    score = {f: float((ask.queries_BLHD[0].mean(0) * keys_of(f, layer).mean(0)).sum()) for f in range(15)}
    best = sorted(sorted(score, key=lambda f: -score[f])[:2])
    assert torch.equal(seen.keys[0], torch.cat([keys_of(f, layer) for f in (*best, 15, 16, 17)]))


def test_a_scene_that_returns_finds_its_frames_again() -> None:
    """Scenes A, B, A: when A is back, its old frames are called, which a window has lost."""
    scenes = torch.randn(2, SIZE, generator=torch.Generator().manual_seed(2)) * 3
    store, found = Store(Route(frames=6, recent=3, archive=24), BLOCK), 0
    order = [0] * 4 + [1] * 6 + [0]
    for index, scene in enumerate(order):
        keys = (memory(3 * index)[0][0] * 0.3 + scenes[scene]).expand(1, -1, HEADS, SIZE)
        if index == len(order) - 1:
            ask = Plain(keys, (keys, keys))
            view = store.view(Span(3 * index, 3 * index + 3))
            view.read(0, ask)
            found = sum(position < 12 for position in ask.stood[-1][:3].tolist())
        commit(store, 3 * index, ((keys, keys),) * LAYERS, keys)
    assert found == 3


def test_a_full_archive_loses_what_it_has_twice() -> None:
    def frame(number: int, key: Tensor) -> Piece:
        return Piece((number,), (), number, notes=(key.view(1, 1, -1),))

    keys = torch.eye(5)
    keys[3] = keys[1] + 0.1 * keys[0]
    kept = distinct([frame(n, key) for n, key in enumerate(keys)], 4)
    assert [piece.frames[0] for piece in kept] == [0, 1, 2, 4]


# ---------------------------------------------------------------- fine and coarse


@given(st.integers(1, 20))
def test_far_frames_cost_a_fraction_of_near_ones(blocks: int) -> None:
    store = Store(Coarse(frames=8, fine=5, side=2), BLOCK)
    advance(store, 0, blocks)
    seen, _ = read(store, blocks * BLOCK)
    frames = blocks * BLOCK
    assert seen is not None
    assert seen.keys.shape[1] == 16 * min(frames, 5) + 4 * min(max(0, frames - 5), 3 * 4)


def test_a_coarse_token_is_the_mean_of_its_patch_at_its_first_corner() -> None:
    store = Store(Coarse(frames=8, fine=3, side=2, mass=0.0), BLOCK)
    advance(store, 0, 2)
    seen, ask = read(store, 6)
    assert seen is not None and seen.bias is None
    picture = keys_of(2).view(*GRID, HEADS, SIZE)
    for n, (row, column) in enumerate(itertools.product((0, 2), (0, 2))):
        torch.testing.assert_close(seen.keys[0, 8 + n], picture[row : row + 2, column : column + 2].mean((0, 1)))
        assert ask.stood[-1][8 + n].tolist() == [2.0, row, column]


@given(st.integers(1, 7), st.integers(1, 7), st.integers(1, 4), st.integers(1, 3))
def test_cells_cover_every_token_also_where_the_grid_does_not_divide(
    rows: int, columns: int, side: int, time: int
) -> None:
    index = cells((rows, columns), side, time)
    assert index.shape == (math.ceil(rows / side) * math.ceil(columns / side), time * side * side)
    assert set(index.flatten().tolist()) == set(range(time * rows * columns))
    for group in index.tolist():
        places = {(i % (rows * columns) // columns // side, i % columns // side) for i in group}
        assert len(places) == 1


# ---------------------------------------------------------------- convolved


def test_the_published_slots() -> None:
    """Two references, two long, two short, a block of eight: 2..6 become one, 7..11 become one, 12 and 13 stay."""
    store = Store(Convolved(frames=6, sink=2, ratio=5), 8)
    commit(store, 0, constant([float(n) for n in range(8)]))
    before = [float(held[0][0][0, 0, 0, 0]) for held in store.snapshot().values()]
    assert before[:2] == [0, 1] and len(before) <= 6
    store = Store(Convolved(frames=6, sink=2, ratio=5), 8)
    commit(store, 0, constant([0.0, 1, 2, 3, 4, 5]))
    commit(store, 6, constant([6.0, 7, 8, 9, 10, 11, 12, 13]))
    slots = [float(held[0][0][0, 0, 0, 0]) for held in store.snapshot().values()]
    assert slots == pytest.approx([0, 1, 2, 7, 12, 13])


def test_flat_and_place_mix_other_tokens() -> None:
    frames = torch.arange(6 * TOKENS, dtype=torch.float32).view(1, -1, 1, 1).expand(1, -1, HEADS, SIZE)
    for mix, expected in {
        "flat": [float(4 * i) + 1.5 for i in range(TOKENS)],
        "place": [float(i) + 1.5 * TOKENS for i in range(TOKENS)],
    }.items():
        store = Store(Convolved(frames=4, sink=0, ratio=4, mix=mix), BLOCK)
        for start in (0, 3):
            part = frames[:, start * TOKENS : (start + 3) * TOKENS]
            commit(store, start, ((part, part),) * LAYERS)
        assert next(iter(store.snapshot().values()))[1][0][0, :, 0, 0].tolist() == expected


def test_the_first_block_fades_and_never_quite_goes() -> None:
    stores = [Store(Convolved(frames=4, sink=0, ratio=4), BLOCK) for _ in range(2)]
    shares = []
    for index in range(6):
        for number, store in enumerate(stores):
            commit(store, 3 * index, constant([float(number and index == 0)] * 3))
        one, other = (next(iter(store.snapshot().values()))[0][0] for store in stores)
        shares.append(float((other - one).abs().mean()))
    assert shares[1] == pytest.approx(3 / 4), "three of the four merged frames"
    assert all(later == pytest.approx(earlier / 4) for earlier, later in itertools.pairwise(shares[1:]))


# ---------------------------------------------------------------- trained merging


def test_merging_starts_as_the_average_and_learns(tmp_path: Path) -> None:
    merge = Merge(LAYERS, 12, HEADS * SIZE)
    plain, trained = (
        Store(Pack(frames=4, sink=0, recent=3, weights=weights), BLOCK) for weights in ("", merge)
    )  # fmt: skip
    for store in (plain, trained):
        advance(store, 0, 2)
    ours, expected = (read(store, 6, 1)[0] for store in (trained, plain))
    assert ours is not None and expected is not None
    torch.testing.assert_close(ours.keys, expected.keys)
    (ours.keys.square().sum() + ours.values.sum()).backward()
    grad = merge.weight.grad
    assert grad is not None
    assert grad[0].abs().sum() == 0 and (grad[1].abs().sum((1, 2)) > 0).all()
    with torch.no_grad():
        merge.weight.normal_(generator=torch.Generator().manual_seed(1))
    save_file(merge.state_dict(), tmp_path / "merge.safetensors")
    loaded = Store(Pack(frames=4, sink=0, recent=3, weights=str(tmp_path / "merge.safetensors")), BLOCK)
    again = Store(Pack(frames=4, sink=0, recent=3, weights=merge), BLOCK)
    for store in (loaded, again):
        advance(store, 0, 2)
    ours, expected = (read(store, 6, 1)[0] for store in (loaded, again))
    assert ours is not None and expected is not None
    assert torch.equal(ours.keys, expected.keys) and torch.equal(ours.values, expected.values)


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    store = Store(Coarse(frames=4, fine=2, weights=Merge(LAYERS, 9, HEADS * SIZE)), BLOCK)
    with pytest.raises(ValueError, match=r"groups of 4 tokens with 8 channels, merging weights for \(9, 8\)"):
        advance(store, 0, 1)
    (tmp_path / "a").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="holds no merging weights"):
        advance(Store(Coarse(frames=4, fine=2, weights=str(tmp_path / "a")), BLOCK), 0, 1)


# ---------------------------------------------------------------- one past per level


def test_every_step_reads_what_the_block_before_left_at_that_step() -> None:
    levels = [1.0, 0.8, 0.5]
    past = LevelStore(lambda: Store(Neighbour(frames=4, sink=1), BLOCK))
    twins = {level: Store(Convolved(frames=4, sink=1), BLOCK) for level in levels}
    for start in range(0, 15, BLOCK):
        span = Span(start, start + BLOCK)
        view = past.view(span)
        for number, level in enumerate(levels):
            pairs = memory(start + 100 * number)
            twin = twins[level].view(span)
            for layer, ask in enumerate(asks(start, pairs, level)):
                ours, expected = view.read(layer, ask), twin.read(layer, ask)
                assert (ours is None) == (expected is None) == (start == 0)
                assert ours is None or expected is None or torch.equal(ours.keys, expected.keys)
            twins[level].commit(span, pairs)
        past.commit(span, memory(start + 200))
    assert past.bytes == sum(twin.bytes for twin in twins.values()) == 3 * twins[1.0].bytes


def test_a_clean_commit_is_one_shared_past() -> None:
    """With a pass at level 0 for the commit there is one level, and every step reads it: a third of the bytes."""
    past, twin = (
        LevelStore(lambda: Store(Neighbour(frames=4, sink=1), BLOCK)),
        Store(Convolved(frames=4, sink=1), BLOCK),
    )
    for start in range(0, 12, BLOCK):
        walk = past.view(Span(start, start + BLOCK))
        for layer, ask in enumerate(asks(start, memory(start), 0.9)):
            walk.read(layer, ask)
        advance(past, start, 1)
        advance(twin, start, 1)
    assert past.bytes == twin.bytes
    noisy = asks(1, memory(1), 0.7)[0]
    ours, expected = (store.view(Span(12, 15)).read(0, noisy) for store in (past, twin))
    assert ours is not None and expected is not None
    assert torch.equal(ours[0], expected[0])


def test_a_level_that_is_new_begins_with_the_nearest_past() -> None:
    past = LevelStore(lambda: Store(Full(), BLOCK))
    for start, level in ((0, 0.8), (3, 0.75), (6, 0.1)):
        span = Span(start, start + BLOCK)
        view = past.view(span)
        for layer, ask in enumerate(asks(start, memory(start), level)):
            view.read(layer, ask)
        past.commit(span, memory(start))
    assert past.view(Span(9, 12)).frames == tuple(range(9))


def test_a_cut_holds_at_every_level() -> None:
    past = LevelStore(lambda: Store(Full(), BLOCK))
    advance(past, 0, 2)
    past.cut(frozenset({6}))
    assert not past.together(Span(3, 9)) and past.together(Span(9, 15))
    assert past.view(Span(6, 9)).places((6, 7, 8)).own == (48, 49, 50)
    assert past.view(Span(9, 12)).places((9, 10, 11)).own == (9, 10, 11)


def test_levels_are_not_guessed() -> None:
    past = LevelStore(lambda: Store(Full(), BLOCK))
    with pytest.raises(ValueError, match="no pass has read a view"):
        past.commit(Span(0, 3), memory(0))


# ---------------------------------------------------------------- identities


def shown(number: int, about: str, score: float) -> Piece:
    return Piece((number,), (), number, notes=(torch.tensor(score),), about=tuple(about))


@given(
    st.lists(st.tuples(st.text("abcd", max_size=3), st.integers(0, 9)), max_size=7), st.text("abcde", max_size=4),
    st.integers(1, 4),
)  # fmt: skip
def test_the_cover_is_as_good_as_greed_can_be(bank: list[tuple[str, int]], wanted: str, count: int) -> None:
    pieces = [shown(n, about, score) for n, (about, score) in enumerate(bank)]
    found = cover(pieces, wanted, count)
    assert len(found) == min(count, len(bank))
    reached = {name for piece in found for name in piece.about} & set(wanted)
    some = itertools.combinations([set(about) & set(wanted) for about, _ in bank], len(found))
    best = max(len(set().union(*names)) for names in some)
    assert len(reached) >= (1 - 1 / math.e) * best
    if not wanted:
        assert sorted(float(p.notes[0]) for p in found) == sorted(s for _, s in bank)[len(bank) - len(found) :]


def test_who_is_named_again_comes_back() -> None:
    """A, then B for long, then A again: A's frame is on view with B's, and A's is not while nobody names it."""
    store = Store(Bank(frames=6, sink=1, recent=3, bank=3, top=9), BLOCK)
    for index, name in enumerate("AABBBBBBBB"):
        store.hear(3 * index, (name,))
        advance(store, 3 * index, 1)
    about = [piece.about for piece in store.view(Span(30, 33))._past]
    assert ("A",) in about[1:-3], "the last frame of a name is not driven out by better ones"

    def brought(*names: str) -> list[float]:
        store.hear(30, names)
        _, ask = read(store, 30)
        return [t for t in ask.stood[-1].tolist() if 1 <= t < 27]

    assert min(brought("A", "B")) < 6
    assert len(brought("A", "B")) == 2


def test_each_head_reads_the_frames_that_answer_it() -> None:
    store = Store(Bank(frames=7, sink=2, recent=3, bank=4, top=2), BLOCK)
    advance(store, 0, 6)
    seen, ask = read(store, 18, 1, seed=2)
    assert seen is not None and seen.bias is not None
    frames = [int(t) for t in ask.stood[-1].tolist()]
    for head in range(HEADS):
        score = {f: float(ask.queries_BLHD[0, :, head].mean(0) @ keys_of(f, 1)[:, head].mean(0)) for f in frames[:4]}
        expected = {*sorted(score, key=lambda f: -score[f])[:2], *frames[4:]}
        visible = (seen.bias[head, 0].unflatten(0, (-1, TOKENS)) == 0).all(1)
        assert {f for f, on in zip(frames, visible.tolist(), strict=True) if on} == expected
