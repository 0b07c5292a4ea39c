"""The three laws on real tiny models: cached = dense, no future leak, streamed = whole."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from arvid.caches.full import Full
from arvid.caches.store import Policy, Store
from arvid.caches.window import Window
from arvid.models.tae import TAEConfig, TinyAutoencoder
from arvid.models.wan.transformer import CausalWan, WanConfig
from arvid.rollout.flow import FlowWalker
from arvid.rollout.judging import Routing
from arvid.rollout.loop import rollout
from arvid.rollout.routers import Target
from arvid.rollout.speculate import Speculator
from arvid.rollout.stage import Clock, Stage
from arvid.samplers.grids import few_step
from arvid.samplers.noise import SeededNoise
from arvid.samplers.plans import sequential
from arvid.samplers.steps import STEPS
from arvid.types import Block, Condition, Memory, Move, Noise, Rotate, Span

BLOCK, CHANNELS, SIDE = 3, 4, 4
SIGMAS = few_step(2)
POLICIES = [Full(), Window(3), Window(4, sink=2), Window(10**6)]


def model(layers: int = 2) -> CausalWan:
    torch.manual_seed(0)
    made = CausalWan(
        WanConfig(
            dim=24, ffn_dim=48, num_heads=2, num_layers=layers, text_dim=8, text_len=5, in_dim=CHANNELS,
            out_dim=CHANNELS, freq_dim=16,
        )
    )  # fmt: skip
    with torch.no_grad():
        for block in made.blocks:
            block.self_attn.norm_q.weight.mul_(3)  # sharp attention: who is seen shall matter
            block.self_attn.o.weight.mul_(3)
    return made.eval().requires_grad_(False)


def decoder() -> TinyAutoencoder:
    torch.manual_seed(1)
    config = TAEConfig(CHANNELS, (4, 4, 4), (4, 4, 4), (1, 1, 1), (1, 1, 1))
    return TinyAutoencoder(config).eval().requires_grad_(False)


def condition(seed: int = 7) -> Condition:
    return Condition("words", torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(seed)))


@dataclass(frozen=True)
class Always:
    """A conditioner that never changes its mind."""

    condition: Condition

    def at(self, span: Span) -> Condition:
        return self.condition


@dataclass(frozen=True)
class Disturbed:
    """Another noise from one block's point of view."""

    inner: Noise
    block: int

    def draw(self, block: int, step: int, shape: tuple[int, ...]) -> Tensor:
        return self.inner.draw(block + 1000 if block == self.block else block, step, shape)


@cache
def roll(policy: Policy, frames: int = 10, disturbed: int = -1, step: str = "renoise") -> tuple[Block, ...]:
    """The engine's own way: walker, store, loop."""
    clock, spec, noise = Clock(), Target(), Disturbed(SeededNoise(3), disturbed)
    walker = FlowWalker("target", model(), Store(policy, BLOCK), STEPS[step], clock)
    proposer = Speculator(spec, walker, None, (1, CHANNELS, SIDE, SIDE), clock)
    judge, stage = Routing(spec, None, clock), Stage(decoder(), clock)
    plan = sequential(frames, BLOCK, SIGMAS)
    with torch.no_grad():
        return tuple(rollout(plan, proposer, judge, Always(condition()), noise, stage))


# ---------------------------------------------------------------- the dense side, which knows no store


class Dense:
    """No past: all frames are in the pass, under a mask."""

    frames: tuple[int, ...] = ()

    def __init__(self, mask: Tensor) -> None:
        self._mask = mask

    def read(self, layer: int, rotate: Rotate) -> None:
        return None

    def mask(self, frames: tuple[int, ...]) -> Tensor:
        return self._mask


def may_look(frame: int, key: int, window: int, sink: int) -> bool:
    """In a pass over everything, a frame attends to what its block may see."""
    start = frame // BLOCK * BLOCK
    return key // BLOCK == frame // BLOCK or (key < start and (key >= start - window or key < sink))


def dense_roll(window: int, sink: int, frames: int, step: str) -> Tensor:
    """Every step of every block is one dense pass over the whole video so far."""
    network, said, done = model(), condition(), torch.zeros(1, 0, CHANNELS, SIDE, SIDE)
    for index, start in enumerate(range(0, frames, BLOCK)):
        stop = min(start + BLOCK, frames)
        noise = [SeededNoise(3).draw(index, n, (1, stop - start, CHANNELS, SIDE, SIDE)) for n in range(len(SIGMAS))]
        x = noise[0]
        mask = torch.tensor([[may_look(f, k, window, sink) for k in range(stop)] for f in range(stop)])
        for number, (sigma, following) in enumerate(pairwise(SIGMAS)):
            levels = torch.tensor([[0.0] * start + [sigma] * (stop - start)])
            flow = network(torch.cat([done, x], 1), levels, said, Dense(mask), Span(0, stop)).flow_BTCHW[:, start:]
            x0 = x - sigma * flow
            x = x + (following - sigma) * flow if step == "euler" else (1 - following) * x0
            if step == "renoise" and following > 0:
                x = x + following * noise[number + 1]
        done = torch.cat([done, x], 1)
    return done


@pytest.mark.parametrize("step", ["renoise", "euler"])
@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_cached_is_dense(policy: Policy, step: str) -> None:
    window, sink = (policy.frames, policy.sink) if isinstance(policy, Window) else (10**6, 0)
    latents = torch.cat([block.latents_BTCHW for block in roll(policy, step=step)], 1)
    with torch.no_grad():
        expected = dense_roll(window, sink, 10, step)
    torch.testing.assert_close(latents, expected, rtol=1e-5, atol=1e-5)


def test_an_unlimited_window_is_the_full_past_bit_for_bit_and_a_narrow_one_is_not() -> None:
    full, unlimited, narrow = (
        torch.cat([block.latents_BTCHW for block in roll(policy)], 1) for policy in (Full(), Window(10**6), Window(3))
    )
    assert torch.equal(full, unlimited)
    assert torch.equal(full[:, :6], narrow[:, :6])
    assert (full[:, 6:] - narrow[:, 6:]).abs().max() > 1e-3


# ---------------------------------------------------------------- catching up


def committed(policy: Policy, together: bool, level: float, same_prompt: bool = True) -> tuple[Memory, dict[str, int]]:
    """What block 4 reads of four pending blocks, written in one pass or one by one, and the passes that took."""
    clock, store, noise = Clock(), Store(policy, BLOCK), SeededNoise(2)
    walker = FlowWalker("target", model(), store, STEPS["euler"], clock)
    prompts = [condition(7), condition(8)]
    latents = torch.randn(1, 12, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(4))
    for index in range(4):
        span = Span(BLOCK * index, BLOCK * index + BLOCK)
        said = prompts[0 if same_prompt else index // 2]
        walker.remember(Move(index, span, SIGMAS, level), latents[:, span.start : span.stop], said)
        if not together:
            walker.catch_up(noise)
    walker.catch_up(noise)
    walker.catch_up(noise)
    view = store.view(Span(12, 15))
    read = [view.read(layer, lambda keys, frames: keys) for layer in range(2)]
    return tuple(pair for pair in read if pair is not None), clock.passes


@pytest.mark.parametrize("level", [0.0, 0.3])
@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_catching_up_in_one_pass_is_one_by_one(policy: Policy, level: float) -> None:
    with torch.no_grad():
        (once, passes), (singly, more) = committed(policy, True, level), committed(policy, False, level)
    assert len(once) == len(singly) == 2
    for ours, expected in zip(once, singly, strict=True):
        torch.testing.assert_close(ours[0], expected[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours[1], expected[1], rtol=1e-5, atol=1e-5)
    assert passes == more == {"target_commit": 4}


def test_blocks_of_two_prompts_are_not_written_under_one() -> None:
    with torch.no_grad():
        (mixed, _), (singly, _) = committed(Full(), True, 0.0, False), committed(Full(), False, 0.0, False)
    for ours, expected in zip(mixed, singly, strict=True):
        torch.testing.assert_close(ours[0], expected[0], rtol=1e-5, atol=1e-5)


def test_a_block_the_plan_does_not_remember_is_not_written() -> None:
    store = Store(Full(), BLOCK)
    walker = FlowWalker("target", model(), store, STEPS["euler"], Clock())
    walker.remember(Move(0, Span(0, 3), SIGMAS, None), torch.zeros(1, 3, CHANNELS, SIDE, SIDE), condition())
    walker.catch_up(SeededNoise(0))
    assert store.bytes == 0


# ---------------------------------------------------------------- no future leak


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_a_changed_block_leaves_earlier_blocks_as_they_were(policy: Policy) -> None:
    before, after = roll(policy), roll(policy, disturbed=2)
    for index, (one, other) in enumerate(zip(before, after, strict=True)):
        same = torch.equal(one.latents_BTCHW, other.latents_BTCHW)
        assert same == (index < 2), index
        assert torch.equal(one.frames_BTCHW, other.frames_BTCHW) == (index < 2)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_a_longer_rollout_keeps_its_own_past(policy: Policy) -> None:
    for short, long in zip(roll(policy, 6), roll(policy)[:2], strict=True):
        assert torch.equal(short.latents_BTCHW, long.latents_BTCHW)
        assert torch.equal(short.frames_BTCHW, long.frames_BTCHW)


@pytest.mark.parametrize("layers", [1, 2])
def test_a_frame_out_of_the_window_does_not_matter_to_the_layer_that_reads(layers: int) -> None:
    """One layer reads its window and no more; with two, the past on view has itself looked further back."""

    def last_flow(change: float) -> Tensor:
        network, store, said = model(layers), Store(Window(3), BLOCK), condition()
        latents = torch.randn(1, 9, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(4))
        latents[:, 2] += change
        for span in (Span(0, 3), Span(3, 6)):
            part = latents[:, span.start : span.stop]
            store.commit(span, network(part, torch.zeros(1, 3), said, store.view(span), span).memory)
        span = Span(6, 9)
        return network(latents[:, 6:], torch.full((1, 3), 0.5), said, store.view(span), span).flow_BTCHW

    with torch.no_grad():
        assert torch.equal(last_flow(0.0), last_flow(2.0)) == (layers == 1)


# ---------------------------------------------------------------- streamed = whole


def test_frames_that_come_out_block_by_block_are_those_of_one_decode() -> None:
    blocks = roll(Window(4, sink=1), 10)
    whole, _ = decoder().decode(torch.cat([block.latents_BTCHW for block in blocks], 1))
    assert [block.frames_BTCHW.shape[1] for block in blocks] == [9, 12, 12, 4]
    torch.testing.assert_close(torch.cat([block.frames_BTCHW for block in blocks], 1), whole, rtol=1e-5, atol=1e-5)


def test_a_stream_that_is_left_early_has_given_the_same_blocks() -> None:
    """The loop is a generator: nothing of a block is made before it is asked for."""
    clock = Clock()
    walker = FlowWalker("target", model(), Store(Full(), BLOCK), STEPS["euler"], clock)
    proposer = Speculator(Target(), walker, None, (1, CHANNELS, SIDE, SIDE), clock)
    stage = Stage(decoder(), clock)
    plan = sequential(30, BLOCK, SIGMAS)
    stream = rollout(plan, proposer, Routing(Target(), None, clock), Always(condition()), SeededNoise(3), stage)
    with torch.no_grad():
        first = [next(stream), next(stream)]
    stream.close()
    for ours, expected in zip(first, roll(Full(), 6, step="euler"), strict=True):
        assert torch.equal(ours.latents_BTCHW, expected.latents_BTCHW)


def test_a_rollout_carries_gradients_when_the_caller_wants_them() -> None:
    network, clock = model().requires_grad_(True), Clock()
    walker = FlowWalker("target", network, Store(Full(), BLOCK), STEPS["euler"], clock)
    proposer = Speculator(Target(), walker, None, (1, CHANNELS, SIDE, SIDE), clock)
    judge, stage = Routing(Target(), None, clock), Stage(decoder(), clock)
    plan = sequential(6, BLOCK, (1.0, 0.0))
    *_, last = rollout(plan, proposer, judge, Always(condition()), SeededNoise(3), stage)
    last.latents_BTCHW.square().sum().backward()
    key = network.get_parameter("blocks.0.self_attn.k.weight").grad
    assert key is not None
    assert key.abs().sum() > 0
