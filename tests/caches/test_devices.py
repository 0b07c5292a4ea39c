"""Policies on a GPU, told on a CPU: no operation mixes devices, what is read is what would be read here, and little is
moved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from arvid.caches.merging import Merge
from arvid.caches.pieces import Held
from arvid.caches.policies import POLICIES
from arvid.caches.positions import POSITIONS
from arvid.caches.store import Store
from arvid.spec import build
from arvid.types import Memory, Seen, Span
from oracles.asking import BLOCK, HEADS, LAYERS, SIZE, Plain, asks, memory
from oracles.elsewhere import Elsewhere, Far, far, tensors

SPECS = [
    "full", "window:frames=4,sink=2", "sink:frames=6,sink=2", "random:frames=6", "deep:frames=6,sink=1,recent=2",
    "headwise:frames=6", "pack:frames=6,sink=1,recent=3", "pack:frames=6,sink=0,recent=4,side=4,capacity=32",
    "route:frames=5,recent=3,archive=7", "coarse:frames=6,fine=3", "conv:frames=5,sink=1",
    "bank:frames=6,sink=1,recent=3,bank=4,top=2", "headwise:frames=6,profile={folder}/heads.json",
    "coarse:frames=6,fine=3,weights={folder}/4.safetensors", "conv:frames=5,sink=1,weights={folder}/4.safetensors",
    "pack:frames=6,sink=1,recent=3,weights={folder}/12.safetensors",
]  # fmt: skip
ABOUT = ("circle", "star", "")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("files")
    (made / "heads.json").write_text(json.dumps({"static": [[], [1]]}))
    for group in (4, 12):
        save_file(Merge(LAYERS, group, HEADS * SIZE).state_dict(), made / f"{group}.safetensors")
    return made


def asked(pairs: Memory, seed: int, there: bool) -> list[Plain]:
    """What the layers of a pass bring."""
    found = asks(seed, pairs)
    for ask in found if there else ():
        ask.queries_BLHD, ask.text = far(ask.queries_BLHD), far(ask.text)
    return found


@torch.no_grad()
def film(past: Store, there: bool, blocks: int = 9) -> list[Seen]:
    """What every layer of every block read."""
    found = []
    for first in range(0, blocks * BLOCK, BLOCK):
        span, pairs = Span(first, first + BLOCK), far(memory(first)) if there else memory(first)
        past.hear(first, (ABOUT[first // BLOCK % len(ABOUT)],))
        view = past.view(span)
        read = [view.read(layer, ask) for layer, ask in enumerate(asked(pairs, first, there))]
        found += [seen for seen in read if seen is not None]
        past.commit(span, pairs)
    return found


@pytest.mark.parametrize("positions", ["absolute", "decay", "rephase"])
@pytest.mark.parametrize("spec", SPECS)
def test_no_policy_mixes_devices(folder: Path, spec: str, positions: str) -> None:
    policy = build(spec.format(folder=folder), POLICIES, "past")
    past, past_there = (Store(policy, BLOCK, build(positions, POSITIONS, "positions")) for _ in range(2))
    here = film(past, False)
    with Elsewhere():
        there = film(past_there, True)
    assert len(there) == len(here) > 2 * LAYERS
    for one, other in zip(there, here, strict=True):
        assert (one.bias is None) == (other.bias is None)
        for x, wanted in zip(tensors(one), tensors(other), strict=True):
            assert isinstance(x, Far) and torch.equal(x.as_subclass(torch.Tensor), wanted)
    for held in past_there.snapshot().values():
        assert isinstance(held, Held)
        assert all(isinstance(x, Far) for x in tensors(list(vars(held.piece).values())))


@pytest.mark.parametrize("positions", ["absolute", "decay"])
@pytest.mark.parametrize("spec", [spec for spec in SPECS if not spec.startswith(("headwise", "pack", "route", "bank"))])
def test_what_a_layer_reads_is_not_moved_again_for_the_next(folder: Path, spec: str, positions: str) -> None:
    """Moving something to a GPU waits for the GPU. Where all layers read as many tokens of the same frames, the first
    one has brought all that is about them."""
    past = Store(build(spec.format(folder=folder), POLICIES, "past"), BLOCK, build(positions, POSITIONS, "positions"))
    with Elsewhere() as device:
        film(past, True)
        view = past.view(Span(27, 30))
        moved = []
        for layer, ask in enumerate(asked(far(memory(27)), 27, True)):
            view.read(layer, ask)
            moved.append(device.moved)
    assert moved[0] == moved[-1], spec
