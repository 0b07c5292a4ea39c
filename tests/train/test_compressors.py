"""Merging weights that are trained on a frozen model: they begin as the average, come nearer to the full past, and fit
the pasts they are for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from arvid.caches.coarse import Coarse
from arvid.caches.convolved import Convolved
from arvid.caches.full import Full
from arvid.caches.merging import Merge
from arvid.caches.packed import Pack
from arvid.caches.policies import POLICIES
from arvid.caches.profile import read_profile
from arvid.caches.store import Store
from arvid.pipeline import Pipeline, Request, load
from arvid.recipes import compressors
from arvid.recipes.compressors import KINDS, STAGES, Clips, Compressing, Sizes, flow, held_out, write
from arvid.spec import build
from arvid.types import Span
from oracles import toy_family
from oracles.tiny_rollout import BLOCK, CHANNELS, HEADS, LAYERS, SIDE, model

WIDTH = 12 * HEADS
PLAIN = {
    "pack": Pack(frames=9, sink=3, recent=3), "coarse": Coarse(frames=9, fine=6),
    "conv": Convolved(frames=9, sink=3, ratio=4),
}  # fmt: skip


def clips(count: int, frames: int = 15, seed: int = 0) -> Clips:
    """Moving averages of noise: neighbouring frames are alike, as those of films are."""
    draw = torch.randn(count, frames + 4, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    text = torch.randn(count, 5, 8, generator=torch.Generator().manual_seed(seed + 100))
    return Clips(torch.stack([draw[:, i : i + 5].mean(1) for i in range(frames)], 1) * 2, text)


def behind(store: Store, some: Clips, x: Tensor, sigma: float) -> Tensor:
    """Flow of the last block behind a past."""
    return flow(model(), store, write(model(), [store], some, BLOCK), x, sigma, 12)


def objective(name: str) -> Compressing:
    kind = KINDS[name]
    return Compressing(model(), kind, Merge(LAYERS, kind.group, WIDTH), BLOCK, (1.0, 0.6))


@pytest.mark.parametrize("name", KINDS)
def test_untrained_weights_are_the_average_and_merging_is_felt(name: str) -> None:
    some, one = clips(2), objective(name)
    noise = torch.randn(2, BLOCK, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(5))
    found = one.distance(some, noise, 0.6)
    x = 0.4 * some.z_BTCHW[:, -BLOCK:] + 0.6 * noise
    ours = behind(Store(PLAIN[name], BLOCK, KINDS[name].positions), some, x, 0.6)
    full = behind(Store(Full(), BLOCK), some, x, 0.6)
    torch.testing.assert_close(found, (ours - full).square().mean(), rtol=1e-4, atol=1e-7)
    assert found > 1e-6


def test_the_flow_behind_the_full_past_is_that_of_one_block_after_the_other() -> None:
    some = clips(1)
    noise = torch.randn(1, BLOCK, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(6))
    store, context = Store(Full(), BLOCK), model().read_text(some.text_BSD)
    for start in range(0, 12, BLOCK):
        frames = tuple(range(start, start + BLOCK))
        span = Span(start, start + BLOCK)
        part = some.z_BTCHW[:, start : start + BLOCK]
        store.commit(span, model().flow(part, torch.zeros(1, BLOCK), context, store.view(span), frames).memory)
    view = store.view(Span(12, 15))
    expected = model().flow(noise, torch.ones(1, BLOCK), context, view, (12, 13, 14)).flow_BTCHW
    torch.testing.assert_close(behind(Store(Full(), BLOCK), some, noise, 1.0), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_weights_learn_and_the_model_does_not(name: str) -> None:
    some, one = clips(4), objective(name)
    before = {key: value.clone() for key, value in model().state_dict().items()}
    steps, generator = torch.optim.Adam(one.merge.parameters(), 0.01), torch.Generator().manual_seed(0)
    start = held_out(one, some)
    assert start["trained"] == pytest.approx(start["average"])
    for _ in range(15):
        steps.zero_grad()
        one(some, generator)["loss"].backward()
        steps.step()
    end = held_out(one, some)
    assert end["average"] == start["average"]
    assert end["trained"] < 0.98 * start["trained"]
    assert all(torch.equal(value, before[key]) for key, value in model().state_dict().items())
    assert all(p.grad is None for p in model().parameters())


def test_stages_leave_weights_and_a_profile_that_pasts_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compressors, "EMBEDDED", toy_family.write(tmp_path / "toy"))
    sizes = Sizes(clips=2, held=1, pack_steps=1, coarse_steps=1, conv_steps=1, batch=1, profiled=1)
    rows: list[dict[str, float]] = []
    with pytest.raises(ValueError, match=r"no clips in .*; make them by `arvid train compressors --stage clips`"):
        STAGES["pack"](tmp_path, sizes, rows.append)
    for stage in STAGES.values():
        stage(tmp_path, sizes, rows.append)
    folder = tmp_path / "compressors"
    assert {"average", "trained"} <= set().union(*rows)
    assert load_file(folder / "clips.safetensors")["train"].shape == (2, 21, 16, 8, 8)
    pipeline = Pipeline(load(tmp_path / "toy"))
    for name in KINDS:
        spec = f"{name}:frames=9,weights={folder / name}.safetensors"
        assert build(spec, POLICIES, "past").room > 0
        pipeline.generate(Request("a red circle moves right", 3.0, router="target", past=spec))
    static = read_profile(str(folder / "heads.json"), 2, 2)
    assert len(static) == 2
