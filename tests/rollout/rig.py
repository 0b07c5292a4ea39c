"""A tiny real family under a router, and everything around a rollout that a test may look at."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from arvid.caches.full import Full
from arvid.caches.policies import POLICIES, remember
from arvid.caches.policy import Policy
from arvid.models.tae import TAEConfig, TinyAutoencoder
from arvid.models.wan.transformer import CausalWan, WanConfig
from arvid.rollout.flow import FlowWalker
from arvid.rollout.judging import NO_JUDGES, Routing
from arvid.rollout.loop import rollout
from arvid.rollout.reach import Reach
from arvid.rollout.routers import ROUTERS
from arvid.rollout.specs import Chooser
from arvid.rollout.speculate import Speculator
from arvid.rollout.stage import Clock, Stage
from arvid.samplers.grids import few_step
from arvid.samplers.noise import SeededNoise
from arvid.samplers.plans import sequential
from arvid.samplers.steps import STEPS
from arvid.spec import build
from arvid.types import Block, BlockReward, Condition, DecoderState, Estimate, Memory, Noise, Past, Span, View

BLOCK, CHANNELS, SIDE, STEPS_EACH, FRAMES = 2, 4, 4, 3, 9
SIGMAS = few_step(STEPS_EACH)
SHAPE = (1, CHANNELS, SIDE, SIDE)
BLOCKS = -(-FRAMES // BLOCK)
FULL = Full()
CONDITION = Condition("words", torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(7)))


@cache
def model(heads: int, layers: int, seed: int) -> CausalWan:
    torch.manual_seed(seed)
    config = WanConfig(12 * heads, 24 * heads, heads, layers, 8, 5, CHANNELS, CHANNELS, 16)
    return CausalWan(config).eval().requires_grad_(False)


@cache
def autoencoder() -> TinyAutoencoder:
    torch.manual_seed(1)
    config = TAEConfig(CHANNELS, (4, 4, 4), (4, 4, 4), (1, 1, 1), (1, 1, 1))
    return TinyAutoencoder(config).eval().requires_grad_(False)


@dataclass
class Watched:
    """A denoiser, and every pass that was asked of it: (first frame, level, input)."""

    inner: CausalWan
    passes: list[tuple[int, float, Tensor]] = field(default_factory=list)

    def __call__(self, z_BTCHW: Tensor, sigma_BT: Tensor, condition: Condition, view: View, span: Span) -> Estimate:
        self.passes.append((span.start, float(sigma_BT[0, 0]), z_BTCHW))
        return self.inner(z_BTCHW, sigma_BT, condition, view, span)


@dataclass
class CountedDecoder:
    """A decoder that counts."""

    inner: TinyAutoencoder
    calls: int = 0

    def decode(self, z_BTCHW: Tensor, state: DecoderState | None = None) -> tuple[Tensor, DecoderState]:
        self.calls += 1
        return self.inner.decode(z_BTCHW, state)


@dataclass
class WatchedNoise:
    """Noise, and the names under which it was asked for."""

    inner: Noise
    asked: list[tuple[int, int]] = field(default_factory=list)

    def draw(self, block: int, step: int, shape: tuple[int, ...]) -> Tensor:
        self.asked.append((block, step))
        return self.inner.draw(block, step, shape)


class Whim:
    """A reward in [0, 1] that depends on every pixel and on nothing else."""

    def score(self, v_BTCHW: Tensor, prompt: str) -> Tensor:
        hashes = [[zlib.crc32(frame.numpy().tobytes()) for frame in clip] for clip in v_BTCHW]
        return torch.tensor(hashes, dtype=torch.float64) / 2**32


class Run:
    """One rollout under a router, and everything around it that a test may look at."""

    def __init__(
        self,
        text: str,
        step: str = "renoise",
        frames: int = FRAMES,
        drafter: bool = True,
        past: Policy = FULL,
        layers: int = 0,
        judges: Mapping[str, BlockReward] = NO_JUDGES,
        now: Callable[[], float] = time.perf_counter,
        choose: Chooser | None = None,
        noise: Noise | None = None,
        riding: bool = False,
    ) -> None:
        """`layers`: how far back pending blocks are kept (0: all of them); `riding`: see `FlowWalker`."""
        spec, clock = build(text, ROUTERS, "router"), Clock(now)
        self.target, self.drafter = Watched(model(2, 2, 0)), Watched(model(1, 1, 5))
        self.decoder = CountedDecoder(autoencoder())
        self.pasts = remember(past, BLOCK), remember(past, BLOCK)
        self.stage = Stage(self.decoder, clock)
        self.noise = WatchedNoise(noise or SeededNoise(3))
        self.walkers = tuple(
            FlowWalker(name, watched, store, STEPS[step], clock, Reach(past, layers) if layers else None, riding)
            for name, watched, store in zip(
                ("target", "drafter"), (self.target, self.drafter), self.pasts, strict=True
            )
        )  # fmt: skip
        proposer = Speculator(
            spec,
            self.walkers[0],
            self.walkers[1] if drafter else None,
            SHAPE,
            clock,
            seed=3,
            choose=choose,
            block=BLOCK,
        )
        plan, judge = sequential(frames, BLOCK, SIGMAS, ahead=spec.ahead), Routing(spec, Whim(), clock, judges)
        self.blocks: list[Block] = []
        self.decodes: list[int] = []
        with torch.no_grad():
            for block in rollout(plan, proposer, judge, self, self.noise, self.stage):
                self.blocks.append(block)
                self.decodes.append(self.decoder.calls)

    def at(self, span: Span) -> Condition:
        return CONDITION

    @property
    def latents(self) -> Tensor:
        return torch.cat([block.latents_BTCHW for block in self.blocks], 1)

    @property
    def frames(self) -> Tensor:
        return torch.cat([block.frames_BTCHW for block in self.blocks], 1)

    @property
    def sources(self) -> list[str]:
        return [block.source for block in self.blocks]

    def passes(self, name: str) -> list[int]:
        return [block.passes.get(name, 0) for block in self.blocks]

    def remembered(self) -> tuple[Memory, ...]:
        """What both pasts hold once all that is pending is written."""
        held = []
        with torch.no_grad():
            for walker, past in zip(self.walkers, self.pasts, strict=True):
                walker.catch_up(self.noise)
                held += list(past.snapshot().values())
        return tuple(held)


@cache
def run(text: str, step: str = "renoise") -> Run:
    return Run(text, step)


LISTENING = [
    "pack:frames=4,sink=0,recent=3",
    "deep:frames=4,sink=1,recent=2",
    "coarse:frames=4,fine=2",
    "headwise:frames=4,sink=1,recent=1,segments=2",
    "neighbour:frames=4,sink=1,ratio=2",
]
"""Pasts that take down what a pass tells its view, each small enough to have dropped something in a run."""


def written(model: CausalWan, blocks: list[Tensor], past: Past, start: int = 0) -> Past:
    """A past behind clean passes over blocks that begin at `start`, one pass each."""
    with torch.no_grad():
        for z_BTCHW in blocks:
            span = Span(start, start + z_BTCHW.shape[1])
            view = past.view(span)
            past.commit(span, model(z_BTCHW, torch.zeros(z_BTCHW.shape[:2]), CONDITION, view, span).memory)
            start = span.stop
    return past


def fresh(text: str) -> Past:
    """An empty past by the name of its policy."""
    return remember(build(text, POLICIES, "past"), BLOCK)


def assert_alike(ours: Any, theirs: Any) -> None:
    """Two snapshots of pasts hold the same, to rounding."""
    assert type(ours) is type(theirs)
    if isinstance(ours, Tensor):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            assert_alike(value, theirs[key])
    elif isinstance(ours, tuple):
        for one, other in zip(ours, theirs, strict=True):
            assert_alike(one, other)
    else:
        assert ours == theirs


def same(one: Run, other: Run) -> bool:
    return torch.equal(one.latents, other.latents) and torch.equal(one.frames, other.frames)
