"""Self-Forcing: rollouts of the student itself, made by the one loop, that carry a gradient.

Knows: which window of which rollout is learned from, where walks end, which passes carry a gradient. Does not know:
what the window is compared with (a loss is given it), architectures, pixels. Source: Self-Forcing (2506.08009,
algorithm 1); Self-Forcing++ (2510.02283, algorithm 1).

One draw ends all walks of a rollout at the same part of their levels, and the clean estimate there is the block. The
gradient runs through that last pass of a block (or the last few) and through nothing else: what came before it in the
walk, and the past, which is written from detached blocks, are constants. The past is the rolling one of generation.

A window starts at any block of the longest rollout with the same probability. Since no block depends on a later one,
this is both the last frames of a rollout of random length (Self-Forcing) and a random window of a long one
(Self-Forcing++); the rollout ends where the window ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from arvid.caches.store import Policy, Store
from arvid.rollout.flow import FlowWalker
from arvid.rollout.loop import rollout
from arvid.rollout.stage import Clock, Stage
from arvid.samplers.noise import INITIAL, SeededNoise
from arvid.samplers.plans import sequential
from arvid.samplers.steps import Step, renoise
from arvid.train.flow import FlowModel, halved, lend
from arvid.types import Block, Condition, DecoderState, Estimate, Move, Noise, Plan, Proposal, Span, Verdict, View

LAST = 1 - 2**-20
"""The part of a walk that is all of it."""


@dataclass(frozen=True)
class Horizon:
    """How far a rollout may go and what is learned from it, in latent frames: windows of `frames` in rollouts of up to
    `total`. The first `lead` frames of a window that is not the video's beginning are context without gradient
    (Self-Forcing leaves out one block there)."""

    frames: int
    total: int
    block: int
    lead: int = 0

    def __post_init__(self) -> None:
        if self.frames < 1 or self.block < 1 or self.frames % self.block or self.total < self.frames:
            raise ValueError(
                f"windows of {self.frames} frames in rollouts of {self.total} with blocks of {self.block}; windows "
                "must be whole blocks and no longer than the rollout"
            )
        if self.lead % self.block or not 0 <= self.lead < self.frames:
            raise ValueError(
                f"lead of {self.lead} frames; it must be whole blocks of {self.block} and below {self.frames}"
            )

    @property
    def starts(self) -> range:
        """First frames of the windows there are."""
        return range(0, self.total - self.frames + 1, self.block)


@dataclass(frozen=True)
class Drawn:
    """What is random in one rollout: the frames to learn from, the part of the walk in [0, 1) it ends at, the noise."""

    window: Span
    part: float
    seed: int


class Student:
    """A `Proposer` of one walker whose last `deep` passes of a block carry the gradient, for blocks of `learned` only.
    `shape` is (batch, channels, height, width) of the latents, which live where the text lives."""

    def __init__(self, walker: FlowWalker, shape: tuple[int, int, int, int], learned: Span, deep: int = 1) -> None:
        self._walker, self._shape, self._learned, self._deep = walker, shape, learned, deep

    def propose(self, move: Move, condition: Condition, noise: Noise, rejected: Proposal | None = None) -> Proposal:
        """The block of a move; nobody rejects it."""
        batch, channels, height, width = self._shape
        late = max(len(move.sigmas) - 1 - self._deep, 0)
        early = move.sigmas[: late + 1]
        with torch.no_grad():
            self._walker.catch_up(noise)
            x_BTCHW = noise.draw(move.index, INITIAL, (batch, len(move.span), channels, height, width))
            x_BTCHW = x_BTCHW.to(condition.text_BLD.device)
            if len(early) > 1:
                x_BTCHW = self._walker.walk(move, x_BTCHW, early, condition, noise).trajectory[-1]
        learns = self._learned.start <= move.span.start and move.span.stop <= self._learned.stop
        with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
            return self._walker.walk(move, x_BTCHW, move.sigmas[late:], condition, noise, key=late)

    def commit(self, move: Move, proposal: Proposal, condition: Condition) -> None:
        """The block as a constant; it is written before the next walk."""
        self._walker.remember(move, proposal.block_BTCHW.detach(), condition)


class SelfForcing:
    """Windows of rollouts of the model that is trained. `policy`, `sigmas` and `step` are those of generation, `first`
    the levels of the first block if they are others, `shape` (channels, height, width) of a latent frame. The last
    `deep` passes of a block carry the gradient; all walks end at `part` of their levels (None: at a drawn one)."""

    def __init__(
        self, model: FlowModel, policy: Policy, horizon: Horizon, shape: tuple[int, int, int],
        sigmas: tuple[float, ...], first: tuple[float, ...] | None = None,
        step: Step = renoise, deep: int = 1, part: float | None = None,
    ) -> None:  # fmt: skip
        self.model, self.policy, self.horizon, self.shape = model, policy, horizon, shape
        self.sigmas, self.first, self.step, self.deep, self.part = sigmas, first, step, deep, part
        sequential(horizon.total, horizon.block, sigmas, first)

    def __call__(self, text_BSD: Tensor, generator: torch.Generator) -> Tensor:
        """Clean latents [B, frames, C, H, W] of a window, with a gradient unless the caller has switched it off."""
        drawn = self.draw(generator)
        blocks = [block for block in self.blocks(drawn, text_BSD) if block.move.span.start >= drawn.window.start]
        return torch.cat([block.latents_BTCHW for block in blocks], 1)

    def draw(self, generator: torch.Generator) -> Drawn:
        """Window, end and seed of the next rollout, each uniform."""
        starts = self.horizon.starts
        start = starts[int(torch.randint(len(starts), (), generator=generator))]
        drawn = float(torch.rand((), generator=generator, dtype=torch.float64))
        part = drawn if self.part is None else self.part
        seed = int(torch.randint(2**62, (), generator=generator))
        return Drawn(Span(start, start + self.horizon.frames), part, seed)

    def plan(self, drawn: Drawn) -> Plan:
        """Blocks up to the end of the window, their walks cut at the end that was drawn."""
        first = ended(self.first, drawn.part) if self.first else None
        return sequential(drawn.window.stop, self.horizon.block, ended(self.sigmas, drawn.part), first)

    def blocks(self, drawn: Drawn, text_BSD: Tensor) -> Iterator[Block]:
        """The rollout, block by block; those of the window carry gradients."""
        clock = Clock()
        past = Store(self.policy, self.horizon.block)
        walker = FlowWalker("student", _Reader(self.model, text_BSD), past, self.step, clock)
        late = self.horizon.lead if drawn.window.start else 0
        learned = Span(drawn.window.start + late, drawn.window.stop)
        proposer = Student(walker, (text_BSD.shape[0], *self.shape), learned, self.deep)
        conditioner = _Constant(Condition("", text_BSD))
        stage = Stage(_Undecoded(), clock)
        return rollout(self.plan(drawn), proposer, _Accepting(), conditioner, SeededNoise(drawn.seed), stage)


def ended(sigmas: tuple[float, ...], part: float) -> tuple[float, ...]:
    """Levels of a walk that ends, with its clean estimate, at `part` in [0, 1) of its passes (the whole walk: LAST)."""
    return (*sigmas[: int(part * (len(sigmas) - 1)) + 1], 0.0)


class _Reader:
    """The model as a `Denoiser` of one rollout: half-precision copies of its weights, and the text read once."""

    def __init__(self, model: FlowModel, text_BSD: Tensor) -> None:
        self._model, self._weights = model, halved(model.named_parameters())
        self._context = lend(model, self._weights, lambda: model.read_text(text_BSD))

    def __call__(self, z_BTCHW: Tensor, sigma_BT: Tensor, condition: Condition, view: View, span: Span) -> Estimate:
        frames = tuple(range(span.start, span.stop))
        return lend(
            self._model, self._weights, lambda: self._model.flow(z_BTCHW, sigma_BT, self._context, view, frames)
        )


class _Accepting:
    """A `Judge` who is pleased with everything."""

    def judge(self, move: Move, proposal: Proposal, frames: Callable[[], Tensor], condition: Condition) -> Verdict:
        return Verdict("accept")


class _Undecoded:
    """A `Decoder` that leaves latents as they are."""

    def decode(self, z_BTCHW: Tensor, state: DecoderState | None = None) -> tuple[Tensor, DecoderState]:
        return z_BTCHW, ()


@dataclass(frozen=True, eq=False)
class _Constant:
    """One condition from the first block to the last (a `Conditioner`)."""

    condition: Condition

    def at(self, span: Span) -> Condition:
        return self.condition
