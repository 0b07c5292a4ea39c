"""Heads of two kinds, against sets of tokens written out head by head; and the profile that tells them apart."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from arvid.caches.headwise import Headwise
from arvid.caches.profile import Profiling, read_profile, write_profile
from arvid.caches.store import Store
from arvid.types import Memory, Span
from oracles.asking import BLOCK, HEADS, LAYERS, SIZE, TOKENS, advance, asks, memory, read
from oracles.tiny_rollout import model, roll


@pytest.fixture
def profile(tmp_path: Path) -> str:
    """Head 0 of layer 1 is static."""
    write_profile((frozenset(), frozenset({0})), tmp_path / "heads.json")
    return str(tmp_path / "heads.json")


def tokens_read(store: Store, start: int, layer: int) -> list[set[tuple[int, int]]]:
    """Per head the (frame, token) that it reads, named by their keys."""
    seen, ask = read(store, start, layer)
    assert seen is not None
    places = ask.stood[-1]
    if places.ndim == 1:
        places = torch.tensor([[t, i // 4, i % 4] for t in places.tolist() for i in range(TOKENS)])
    named = [(int(t), int(4 * row + column)) for t, row, column in places.tolist()]
    hidden = torch.zeros(HEADS, len(named)) if seen.bias is None else seen.bias[:, 0].expand(HEADS, -1)
    return [{name for name, bias in zip(named, row.tolist(), strict=True) if bias == 0} for row in hidden]


def moving(start: int, still: torch.Tensor, places: dict[int, slice]) -> Memory:
    """A block of equal frames, but for tokens that are new in some frames."""
    frames = []
    for frame in range(start, start + BLOCK):
        picture = still.clone()
        if frame in places:
            part = picture[places[frame]]
            picture[places[frame]] = torch.randn(part.shape, generator=torch.Generator().manual_seed(frame))
        frames.append(picture)
    keys = torch.cat(frames)[None]
    return ((keys, keys),) * LAYERS


def test_static_heads_read_ends_and_dynamic_ones_also_what_changed(profile: str) -> None:
    """Sink 0, last 8; of frames 5, 6 and 7 the four of twelve segments that are least like the frame after."""
    store = Store(Headwise(frames=6, sink=1, recent=1, segments=4, profile=profile), BLOCK)
    advance(store, 0, 3)
    whole = {f: {(f, i) for i in range(TOKENS)} for f in range(9)}
    assert tokens_read(store, 9, 0) == [set.union(*(whole[f] for f in (0, 4, 5, 6, 7, 8)))] * HEADS
    alike = {}
    frames = {f: memory(f // 3 * 3)[1][0][0, f % 3 * TOKENS : (f % 3 + 1) * TOKENS].flatten(1) for f in range(5, 9)}
    for f in (5, 6, 7):
        for segment in range(4):
            part = slice(4 * segment, 4 * segment + 4)
            alike[f, segment] = float(torch.cosine_similarity(frames[f][part], frames[f + 1][part], dim=1).mean())
    least = sorted(alike, key=lambda place: alike[place])[:4]
    changed = {(f, 4 * segment + i) for f, segment in least for i in range(4)}
    assert tokens_read(store, 9, 1) == [whole[0] | whole[8], whole[0] | changed | whole[8]]


def test_a_moving_patch_is_what_is_kept() -> None:
    store = Store(Headwise(frames=6, segments=4), BLOCK)
    still = torch.randn(TOKENS, HEADS, SIZE)
    patch = {f: slice(4 * (f % 4), 4 * (f % 4) + 4) for f in range(6, 9)}
    for start in (0, 3, 6):
        pairs = moving(start, still, patch)
        view = store.view(Span(start, start + BLOCK))
        for layer, ask in enumerate(asks(start, pairs)):
            view.read(layer, ask)
        store.commit(Span(start, start + BLOCK), pairs)
    dynamic = tokens_read(store, 9, 1)[0]
    bank = {(f, i) for f, i in dynamic if f not in (0, 8)}
    changed = {(5, i) for i in range(8, 12)} | {(6, i) for i in range(8, 16)} | {(7, i) for i in range(12, 16)}
    assert bank <= changed | {(7, i) for i in range(0, 4)}
    assert len(bank) == TOKENS


def test_of_equal_segments_the_first_are_kept() -> None:
    store = Store(Headwise(frames=6, segments=4), BLOCK)
    still = torch.randn(TOKENS, HEADS, SIZE)
    for start in (0, 3):
        pairs = moving(start, still, {})
        view = store.view(Span(start, start + BLOCK))
        for layer, ask in enumerate(asks(start, pairs)):
            view.read(layer, ask)
        store.commit(Span(start, start + BLOCK), pairs)
    assert {(f, i) for f, i in tokens_read(store, 6, 1)[0] if f not in (0, 5)} == {(2, i) for i in range(TOKENS)}


def test_static_heads_hold_fewer_bytes(profile: str) -> None:
    held = []
    for path in ("", profile):
        store = Store(Headwise(frames=6, profile=path), BLOCK)
        advance(store, 0, 5)
        held.append(store.bytes)
    frame = 2 * HEADS * SIZE * TOKENS * 4
    assert held == [frame * (6 + 3), frame * (6 + 2) + frame // 2]


def test_without_segments_to_share_a_frame_is_one_segment() -> None:
    store = Store(Headwise(frames=4, segments=1), BLOCK)
    advance(store, 0, 2)
    assert len(tokens_read(store, 6, 1)[0]) == 3 * TOKENS


def test_the_profile_of_a_rollout_names_heads_that_look_at_the_last_frames() -> None:
    """A head whose keys are all alike spreads its mass: never static. One threshold of 0 makes all static."""
    watched = Profiling(last=2, skip=1)
    with torch.no_grad():
        roll(Store(watched, BLOCK), 4, network=model())
    none, every = watched.static(1.01), watched.static(0.0)
    assert none == (frozenset(),) * 2
    assert every == (frozenset({0, 1}),) * 2
    assert all(some <= all_ for some, all_ in zip(watched.static(0.5), every, strict=True))


def test_the_mass_of_a_profile_is_that_of_attention_written_out() -> None:
    watched = Profiling(last=1, skip=1)
    store = Store(watched, BLOCK)
    advance(store, 0, 1)
    _, ask = read(store, 3, 1, seed=5)
    keys = torch.cat([memory(0)[1][0], ask.pair[0]], 1)[0]
    near, total = torch.zeros(HEADS), torch.zeros(HEADS)
    for head in range(HEADS):
        weights = (ask.queries_BLHD[0, :, head] @ keys[:, head].T / SIZE**0.5).softmax(-1).mean(0)
        near[head], total[head] = weights[2 * TOKENS : 3 * TOKENS].sum(), weights[TOKENS : 3 * TOKENS].sum()
    share = near / total
    border = float(share.mean())
    expected = frozenset((share >= border).nonzero()[:, 0].tolist())
    assert watched._mass.keys() == {1}
    assert watched.static(border) == (expected,)


def test_profiles_that_do_not_fit_are_refused(tmp_path: Path, profile: str) -> None:
    assert read_profile(profile, 2, 2) == (frozenset(), frozenset({0}))
    with pytest.raises(ValueError, match=r"profiles 2 layers and heads up to 0, the model has 3 layers of 2 heads"):
        read_profile(profile, 3, 2)
    (tmp_path / "a").write_text("[]")
    with pytest.raises(ValueError, match="is no head profile"):
        read_profile(str(tmp_path / "a"), 2, 2)
    with pytest.raises(ValueError, match="no block had more than 5 frames before it"):
        Profiling().static()
