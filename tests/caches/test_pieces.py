"""Slabs: who may share a tensor, what is read without a copy, what comes back from disk."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from arvid.caches.pieces import Held, joined
from arvid.caches.sink import Sink
from arvid.caches.store import Frames, Store
from arvid.caches.window import Window
from arvid.rollout.state import Packer, Unpacker
from arvid.types import Memory, Span

TOKENS, LAYERS, BLOCK = 2, 2, 3


def memory(span: Span, batch: int = 1) -> Memory:
    names = torch.tensor([float(frame) for frame in range(span.start, span.stop) for _ in range(TOKENS)])
    whole = names.view(1, -1, 1, 1).expand(batch, -1, 2, 4)
    return tuple((whole + 100 * layer, -whole) for layer in range(LAYERS))


def advance(store: Store, start: int, blocks: int) -> None:
    for first in range(start, start + blocks * BLOCK, BLOCK):
        store.view(Span(first, first + BLOCK))
        store.commit(Span(first, first + BLOCK), memory(Span(first, first + BLOCK)))


def marks(snapshot: Frames) -> list[float]:
    return [float(piece[0][0][0, 0, 0, 0]) for piece in snapshot.values()]


def places_of(store: Store) -> set[int]:
    return {k.untyped_storage().data_ptr() for piece in store.snapshot().values() for k, _ in piece}


@pytest.mark.parametrize("policy", [Window(6), Window(7, sink=2), Sink(9, 3)], ids=str)
def test_room_is_made_once_and_used_for_ever(policy: Window) -> None:
    store = Store(policy, BLOCK)
    advance(store, 0, 4)
    held, places = store.reserved, places_of(store)
    advance(store, 12, 200)
    assert store.reserved == held == store.bytes
    assert places_of(store) == places
    assert marks(store.snapshot()) == [float(f) for f in policy.visible(tuple(range(612)), 612)]


def test_a_window_that_lies_in_one_piece_is_read_without_a_copy() -> None:
    store = Store(Window(9), BLOCK)
    advance(store, 0, 6)
    pieces = [held.piece for held in store.snapshot().values() if isinstance(held, Held)]
    with torch.no_grad():
        keys = joined(pieces, 1, 0)
    assert keys.untyped_storage().data_ptr() == pieces[0].pairs[1][0].untyped_storage().data_ptr()
    assert keys[0, :, 0, 0].tolist() == [100.0 + f for f in range(9, 18) for _ in range(TOKENS)]


@pytest.mark.parametrize("blocks", range(1, 9))
@pytest.mark.parametrize("batch", [1, 2])
def test_reading_joins_what_lies_apart_in_order(blocks: int, batch: int) -> None:
    store = Store(Sink(6, 2), BLOCK)
    for index in range(blocks):
        span = Span(3 * index, 3 * index + 3)
        store.commit(span, memory(span, batch))
    read = store.view(Span(3 * blocks, 3 * blocks + 3)).read(1, lambda keys, positions: keys)
    assert read is not None
    kept = [f for f in range(3 * blocks) if f < 2 or f >= 3 * blocks - 4]
    assert read[0][batch - 1, ::TOKENS, 1, 3].tolist() == [100.0 + f for f in kept]
    assert read[1][batch - 1, ::TOKENS, 1, 3].tolist() == [-float(f) for f in kept]


def test_a_snapshot_keeps_its_numbers_while_the_store_goes_on() -> None:
    store = Store(Window(6), BLOCK)
    advance(store, 0, 3)
    before = store.snapshot()
    advance(store, 9, 5)
    assert marks(before) == [3, 4, 5, 6, 7, 8]
    assert marks(store.snapshot()) == [18, 19, 20, 21, 22, 23]
    store.restore(before)
    advance(store, 9, 1)
    assert marks(before) == [3, 4, 5, 6, 7, 8]
    assert marks(store.snapshot()) == [6, 7, 8, 9, 10, 11]


def test_two_branches_of_one_snapshot_do_not_touch_each_other() -> None:
    first, second = Store(Window(6), BLOCK), Store(Window(6), BLOCK)
    advance(first, 0, 2)
    second.restore(first.snapshot())
    advance(first, 6, 3)
    assert marks(second.snapshot()) == [0, 1, 2, 3, 4, 5]
    advance(second, 6, 1)
    assert marks(first.snapshot()) == [9, 10, 11, 12, 13, 14]


def test_a_store_filled_in_inference_mode_goes_on_outside_and_gradients_stay_right() -> None:
    store = Store(Window(3), BLOCK)
    with torch.inference_mode():
        advance(store, 0, 2)
    weight = torch.ones(1, requires_grad=True)
    total = torch.zeros(())
    for start in (6, 9):
        read = store.view(Span(start, start + BLOCK)).read(0, lambda keys, positions: keys)
        assert read is not None
        total = total + (read[1] * weight).sum()
        advance(store, start, 1)
    total.backward()
    assert weight.grad is not None
    assert float(weight.grad) == -sum(f * TOKENS * 8 for f in range(3, 9))


def test_memory_that_carries_gradients_is_not_written_over() -> None:
    store, source = Store(Window(3), BLOCK), torch.ones(1, requires_grad=True)
    reads = []
    for start in range(0, 9, 3):
        span = Span(start, start + BLOCK)
        read = store.view(span).read(0, lambda keys, positions: keys)
        reads += [] if read is None else [read[0].square().sum()]
        store.commit(span, tuple((k * source, v * source) for k, v in memory(span)))
    sum(reads[1:], reads[0]).backward()
    assert float(source.grad) == 2 * sum(f**2 for f in range(6)) * TOKENS * 8


def test_only_what_is_named_is_kept() -> None:
    store = Store(Window(9), BLOCK)
    store.keep(frozenset({0}))
    assert store.view(Span(0, 3)).frames == ()
    advance(store, 0, 3)
    store.keep(frozenset({0, 7, 8, 30}))
    assert store.view(Span(9, 12)).frames == (0, 7, 8)
    store.keep(frozenset())
    assert store.bytes == 0


def through_the_packer(value: Any) -> Any:
    """What a saved state gives back."""
    packer = Packer()
    packed = packer.pack(value)
    return Unpacker(packer.tensors, packer.orders, packer.nouns).unpack(packed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_past_is_plain_data_that_comes_back_bit_for_bit(dtype: torch.dtype) -> None:
    store = Store(Sink(6, 2), BLOCK)
    for start in range(0, 12, 3):
        span = Span(start, start + BLOCK)
        store.commit(span, tuple((k.to(dtype) / 3, v.to(dtype) / 7) for k, v in memory(span)))
    again = Store(Sink(6, 2), BLOCK)
    again.restore(through_the_packer(store.snapshot()))
    assert again.bytes == store.bytes
    for other in (store, again):
        other.commit(Span(12, 15), memory(Span(12, 15)))
    assert list(again.snapshot()) == list(store.snapshot()) == [0, 1, 11, 12, 13, 14]
    for ours, theirs in zip(again.snapshot().values(), store.snapshot().values(), strict=True):
        for (k, v), (other_k, other_v) in zip(ours, theirs, strict=True):
            assert torch.equal(k, other_k)
            assert torch.equal(v, other_v)
