"""The past against brute-force statements: who is on view, what is forgotten, what is held."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from arvid.caches.full import Full
from arvid.caches.policies import POLICIES
from arvid.caches.positions import Rephased
from arvid.caches.store import Policy, Store
from arvid.caches.window import Window
from arvid.spec import build
from arvid.types import Memory, Span

TOKENS, LAYERS = 2, 3


def memory(span: Span, mark: float = 0.0) -> Memory:
    """Keys that name their frame and layer, values that are their negative."""
    names = torch.tensor([float(frame) for frame in range(span.start, span.stop) for _ in range(TOKENS)])
    return tuple(
        ((100 * layer + names + mark).view(1, -1, 1, 1).expand(1, -1, 2, 4), -(names + mark).view(1, -1, 1, 1))
        for layer in range(LAYERS)
    )


def unrotated(keys_BLHD: Tensor, frames: tuple[int, ...]) -> Tensor:
    return keys_BLHD


def filled(policy: Policy, blocks: list[Span], block: int = 3) -> Store:
    store = Store(policy, block)
    for span in blocks:
        store.commit(span, memory(span))
    return store


@st.composite
def histories(draw: st.DrawFn) -> tuple[int, int, int, list[Span]]:
    """(block, window, sink, committed spans of one or several whole blocks each)."""
    block = draw(st.integers(1, 4))
    ends = [0]
    for blocks in draw(st.lists(st.integers(1, 3), min_size=1, max_size=6)):
        ends.append(ends[-1] + blocks * block)
    spans = [Span(a, b) for a, b in itertools.pairwise(ends)]
    return block, draw(st.integers(1, 12)), draw(st.integers(0, 5)), spans


@given(histories())
def test_on_view_is_the_window_and_the_sink_whatever_was_written_together(
    history: tuple[int, int, int, list[Span]],
) -> None:
    block, window, sink, spans = history
    store = filled(Window(window, sink), spans, block)
    end = spans[-1].stop
    expected = [f for f in range(end) if f < sink or end - f <= window]
    assert list(store.view(Span(end, end + block)).frames) == expected


@given(histories(), st.integers(1, 4))
def test_blocks_written_in_one_pass_see_what_they_would_see_one_by_one(
    history: tuple[int, int, int, list[Span]], blocks: int
) -> None:
    block, window, sink, spans = history
    store, end = filled(Window(window, sink), spans, block), spans[-1].stop
    span = Span(end, end + blocks * block)
    view, frames = store.view(span), tuple(range(end, end + blocks * block))
    mask = view.mask(frames)
    assert (mask is None) == (blocks == 1)
    keys = view.frames + frames
    seen = torch.ones(len(frames), len(keys), dtype=torch.bool) if mask is None else mask
    for row, frame in zip(seen.tolist(), frames, strict=True):
        start = frame - (frame - end) % block
        expected = {f for f in range(start) if f < sink or start - f <= window} | set(range(start, start + block))
        assert {key for key, on in zip(keys, row, strict=True) if on} == expected


@given(st.integers(1, 9), st.integers(0, 4), st.integers(0, 30), st.integers(0, 30))
def test_what_a_block_may_not_read_no_later_block_may_read(window: int, sink: int, start: int, later: int) -> None:
    policy = Window(window, sink)
    early, late = sorted((start, later))
    hidden = set(range(early)) - set(policy.visible(tuple(range(early)), early))
    assert not hidden & set(policy.visible(tuple(range(late)), late))


def test_full_and_an_unlimited_window_are_one() -> None:
    blocks = [Span(0, 3), Span(3, 9), Span(9, 10)]
    full, window = (filled(policy, blocks).view(Span(10, 13)) for policy in (Full(), Window(10**9)))
    assert full.frames == window.frames == tuple(range(10))


def test_reading_gives_each_layer_its_keys_and_values_in_the_order_of_frames() -> None:
    view = filled(Window(3, 1), [Span(0, 3), Span(3, 6)]).view(Span(6, 9))
    for layer in range(LAYERS):
        read = view.read(layer, unrotated)
        assert read is not None
        assert read[0][0, :, 0, 0].tolist() == [100 * layer + f for f in (0, 0, 3, 3, 4, 4, 5, 5)]
        assert read[1][0, :, 0, 0].tolist() == [-f for f in (0, 0, 3, 3, 4, 4, 5, 5)]


def test_an_empty_past_reads_as_nothing() -> None:
    view = Store(Full(), 3).view(Span(0, 3))
    assert view.frames == ()
    assert view.read(0, unrotated) is None
    assert view.mask((0, 1, 2)) is None


def test_keys_are_rotated_once_per_view_and_layer() -> None:
    store, calls = filled(Full(), [Span(0, 3)]), []

    def turn(keys_BLHD: Tensor, frames: tuple[int, ...]) -> Tensor:
        calls.append(frames)
        return keys_BLHD + 1000

    view = store.view(Span(3, 6))
    for _ in range(4):
        for layer in range(LAYERS):
            read = view.read(layer, turn)
            assert read is not None
            assert read[0][0, 0, 0, 0] == 100 * layer + 1000
    assert calls == [(0, 1, 2)] * LAYERS
    again = store.view(Span(3, 6)).read(0, unrotated)
    assert again is not None
    assert again[0][0, 0, 0, 0] == 0, "what is stored stays unrotated"


def test_a_view_does_not_change_with_later_commits() -> None:
    store = filled(Window(3), [Span(0, 3)])
    view = store.view(Span(3, 6))
    store.commit(Span(3, 6), memory(Span(3, 6)))
    store.commit(Span(6, 9), memory(Span(6, 9)))
    read = view.read(0, unrotated)
    assert read is not None
    assert read[0][0, :, 0, 0].tolist() == [0, 0, 1, 1, 2, 2]


def test_snapshot_and_restore() -> None:
    store = filled(Window(4, 1), [Span(0, 3), Span(3, 6)])
    before, held = store.snapshot(), store.bytes
    kept = {frame: tuple(k.clone() for k, _ in entry) for frame, entry in before.items()}
    for start in (6, 9):
        store.commit(Span(start, start + 3), memory(Span(start, start + 3)))
    assert store.view(Span(12, 15)).frames == (0, 8, 9, 10, 11)
    for _ in range(2):
        store.restore(before)
        assert store.view(Span(6, 9)).frames == (0, 2, 3, 4, 5)
        assert store.bytes == held
        store.commit(Span(6, 9), memory(Span(6, 9), 0.5))
    assert all(torch.equal(k, kept[frame][i]) for frame, entry in before.items() for i, (k, _) in enumerate(entry))


def test_committing_a_span_again_overwrites_it_and_drops_what_was_made_on_it() -> None:
    store = filled(Full(), [Span(0, 3), Span(3, 6), Span(6, 9)])
    store.commit(Span(3, 6), memory(Span(3, 6), 0.5))
    view = store.view(Span(6, 9))
    read = view.read(0, unrotated)
    assert view.frames == tuple(range(6))
    assert read is not None
    assert read[0][0, ::TOKENS, 0, 0].tolist() == [0, 1, 2, 3.5, 4.5, 5.5]


@pytest.mark.parametrize("together", [True, False])
def test_bytes_are_what_the_memory_really_holds(together: bool) -> None:
    """Frames on hold do not keep the tensors of a whole pass alive."""
    spans = [Span(0, 12)] if together else [Span(start, start + 3) for start in range(0, 12, 3)]
    store = filled(Window(4, 1), spans)
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for entry in store.snapshot().values()
        for pair in entry
        for tensor in pair
    }
    frames = 5
    assert store.bytes == frames * LAYERS * TOKENS * (2 * 4 + 1) * 4 == sum(storages.values())
    assert Store(Full(), 3).bytes == 0


def test_a_cut_holds_for_its_own_block_however_late_it_is_written() -> None:
    store = filled(Full(), [Span(0, 3)])
    store.cut(frozenset({3, 9}))
    own = {start: store.view(Span(start, start + 3)).places(tuple(range(start, start + 3))).own for start in (3, 6, 9)}
    assert own == {3: (45, 46, 47), 6: (6, 7, 8), 9: (51, 52, 53)}
    together = [store.together(Span(start, start + 6)) for start in (0, 3, 6, 9, 12)]
    assert together == [False, False, False, False, True]
    store.cut(frozenset())
    assert store.together(Span(0, 12))
    assert not Store(Full(), 3, Rephased()).together(Span(0, 6))


def test_whole_frames_only() -> None:
    with pytest.raises(ValueError, match=r"6 tokens do not divide into the 4 frames"):
        Store(Full(), 3).commit(Span(0, 4), memory(Span(0, 3)))


def test_policies_by_name() -> None:
    assert build("window:frames=9,sink=3", POLICIES, "past") == Window(9, 3)
    assert build("full", POLICIES, "past") == Full()
    for bad in ("window:frames=0", "window:frames=3,sink=-1"):
        with pytest.raises(ValueError, match="needs frames >= 1 and sink >= 0"):
            build(bad, POLICIES, "past")
