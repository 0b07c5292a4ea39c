"""One model as a walker: takes a block from any level to clean, and keeps its own past up to date lazily.

Knows: a denoiser, its past, a step rule, the queue of decided blocks its past has not seen yet and may still feel.
Does not know: routing, judges, decoders, other models (speculation puts two walkers together).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from arvid.rollout.devices import brought, device_of
from arvid.rollout.reach import Reach
from arvid.rollout.stage import Clock
from arvid.samplers.steps import Step, add_noise, clean
from arvid.types import Condition, Denoiser, Memory, Move, Noise, Past, Proposal, Span, View

COMMIT_STEP = 1000
"""Noise of a past that is written above level 0 is keyed by (block, COMMIT_STEP)."""
TOGETHER = 8
"""Most pending blocks that are written in one pass: its mask grows with their square."""
ROOM = 8
"""Pending blocks that are kept without asking who can still feel them."""
Pending = tuple[Move, Tensor, Condition]


def together(kind: str) -> int:
    """Pending blocks that a kind of device writes in one pass. On a GPU a pass of a large model is bound by its
    arithmetic, a mask costs it the fastest attention, and the keys of many blocks at once cost it more memory than all
    the rest of a run."""
    return TOGETHER if kind == "cpu" else 1


class FlowWalker:
    """Denoises blocks with one model. `name` labels its passes in the report. With `reach` it forgets pending blocks
    that can no longer act on any block to come; without, all of them wait. With `riding`, pending blocks that stand
    right before a block are written by that block's first pass, where the past allows it: one pass of twice the tokens
    instead of two, which pays where a pass costs more than its arithmetic (a small model, a CPU). At most `together`
    pending blocks are written in one pass."""

    def __init__(
        self, name: str, denoiser: Denoiser, past: Past, step: Step, clock: Clock, reach: Reach | None = None,
        riding: bool = False, together: int = TOGETHER,
    ) -> None:  # fmt: skip
        self.name, self._denoiser, self._past, self._step, self._clock = name, denoiser, past, step, clock
        self._reach, self._room, self._riding, self._together = reach, ROOM, riding, together
        self._pending: list[Pending] = []

    @property
    def past(self) -> Past:
        """What this model remembers of what was written."""
        return self._past

    @property
    def pending(self) -> tuple[Pending, ...]:
        """Decided blocks that are not written yet, the oldest first."""
        return tuple(self._pending)

    @property
    def blank(self) -> bool:
        """Whether the next block sees nothing before it: it begins a video or, behind a cut, a scene."""
        return not self._pending and not self._past.bytes

    def snapshot(self) -> tuple[Any, tuple[Pending, ...], int]:
        """The past and what is pending, as a value that `restore` brings back; copies no keys and no latents."""
        return self._past.snapshot(), self.pending, self._room

    def restore(self, snapshot: tuple[Any, tuple[Pending, ...], int]) -> None:
        """Go back to a snapshot."""
        held, pending, self._room = snapshot
        self._past.restore(held)
        self._pending = list(pending)

    def brought(self, snapshot: tuple[Any, tuple[Pending, ...], int]) -> tuple[Any, tuple[Pending, ...], int]:
        """A snapshot that was read at home, its keys and values where the model is."""
        held, *rest = snapshot
        return brought(held, device_of(self._denoiser)), *rest

    def rewrite(self, blocks: tuple[Pending, ...]) -> None:
        """Replace what is pending: by blocks that are to be written again, and perhaps some of those that were."""
        self._pending = list(blocks)

    def walk(
        self, move: Move, x_BTCHW: Tensor, sigmas: tuple[float, ...], condition: Condition, noise: Noise, key: int = 0
    ) -> Proposal:
        """From `x_BTCHW` at sigmas[0] down to sigmas[-1]; `key` is the noise key of the step before the first."""
        riders = self._settle(move, condition, noise)
        view = None if riders else self._past.view(move.span)
        trajectory = [x_BTCHW]
        memory: Memory = ()
        x0 = x_BTCHW
        for step, (sigma, following) in enumerate(pairwise(sigmas)):
            if view is None:
                flow, memory = self._ride(riders, x_BTCHW, sigma, move, noise)
                view = self._past.view(move.span)
            else:
                flow, memory = self._pass(x_BTCHW, sigma, condition, view, move.span)
            x0 = clean(x_BTCHW, flow, sigma)
            number = key + step + 1
            x_BTCHW = self._step(x_BTCHW, flow, sigma, following, _drawer(noise, move.index, number, x_BTCHW))
            trajectory.append(x_BTCHW)
        self._clock.count(self.name, len(sigmas) - 1)
        final = x_BTCHW if sigmas[-1] == 0 else x0
        return Proposal(final, tuple(trajectory), self.name, len(sigmas) - 1, memory)

    def remember(self, move: Move, block_BTCHW: Tensor, condition: Condition) -> None:
        """A decided block: written to the past before the next walk, not now (it may never be needed)."""
        self._pending.append((move, block_BTCHW, condition))
        if len(self._pending) >= self._room:
            self._forget()
            self._room = 2 * len(self._pending) + ROOM  # asked again when it has doubled, so the asking costs little

    def _forget(self) -> None:
        """Drop pending blocks that act on no block after the last of them."""
        if self._reach is not None and self._pending:
            spans = [move.span for move, _, _ in self._pending]
            felt = self._reach.felt(spans, spans[-1].stop)
            self._pending = [entry for entry, kept in zip(self._pending, felt, strict=True) if kept]

    def adopt(self, move: Move, memory: Memory) -> None:
        """A decided block whose keys and values are already at hand: those of the last pass of its walk, at the level
        that pass looked at (DiagDistill, 2603.09488, commits so). Costs no pass. The walk that made them has already
        written what was pending before."""
        self._past.commit(move.span, memory)

    def catch_up(self, noise: Noise) -> None:
        """Write all pending blocks that can still be felt: neighbours under one condition and level in one causal
        pass."""
        for group in self._groups():
            self._write(group, noise)

    def _groups(self) -> list[list[Pending]]:
        """What is pending and can still be felt, in groups that one pass can write; nothing is pending afterwards."""
        self._forget()
        groups: list[list[Pending]] = []
        for entry in self._pending:
            if groups and self._joins(groups[-1], entry):
                groups[-1].append(entry)
            else:
                groups.append([entry])
        self._pending = []
        return [group for group in groups if group[0][0].commit is not None]

    def _joins(self, group: list[Pending], following: Pending) -> bool:
        """Whether a pending block can be written in one pass with those before it. A past tells blocks apart by their
        length, so all are as long as the first; only the last may be shorter."""
        first, last = group[0], group[-1]
        return (
            len(group) < self._together
            and following[2] is last[2]
            and following[0].commit == last[0].commit
            and following[0].span.start == last[0].span.stop
            and len(following[0].span) <= len(last[0].span) == len(first[0].span)
            and self._past.together(Span(first[0].span.start, following[0].span.stop))
        )

    def _settle(self, move: Move, condition: Condition, noise: Noise) -> list[Pending]:
        """Write what is pending, except the blocks that may ride along with the first pass of `move`."""
        groups = self._groups()
        riders = groups.pop() if groups and self._rides(groups[-1], move, condition) else []
        for group in groups:
            self._write(group, noise)
        return riders

    def _rides(self, group: list[Pending], move: Move, condition: Condition) -> bool:
        """Whether pending blocks can be written in the first pass of a block under `condition`."""
        first, last = group[0], group[-1]
        return (
            self._riding
            and last[2] is condition
            and last[0].span.stop == move.span.start
            and len(move.span) <= len(last[0].span) == len(first[0].span)
            and not self._past.listens
            and self._past.together(Span(first[0].span.start, move.span.stop))
        )

    def _write(self, group: list[Pending], noise: Noise) -> None:
        span, x_BTCHW, level = self._clean(group, noise)
        _, memory = self._pass(x_BTCHW, level, group[0][2], self._past.view(span), span)
        self._clock.count(f"{self.name}_commit", len(group))
        self._past.commit(span, memory)

    def _ride(
        self, riders: list[Pending], x_BTCHW: Tensor, sigma: float, move: Move, noise: Noise
    ) -> tuple[Tensor, Memory]:
        """Write pending blocks and make the first pass of the block behind them, in one pass over both."""
        written, before_BTCHW, level = self._clean(riders, noise)
        span, both_BTCHW = Span(written.start, move.span.stop), torch.cat([before_BTCHW, x_BTCHW], 1)
        levels = torch.full(both_BTCHW.shape[:2], sigma, device=x_BTCHW.device)
        levels[:, : len(written)] = level
        estimate = self._denoiser(both_BTCHW, levels, riders[0][2], self._past.view(span), span)
        edge = estimate.memory[0][0].shape[1] // len(span) * len(written)
        self._clock.count(f"{self.name}_commit", len(riders))
        self._past.commit(written, tuple((k[:, :edge], v[:, :edge]) for k, v in estimate.memory))
        own = tuple((k[:, edge:], v[:, edge:]) for k, v in estimate.memory)
        return estimate.flow_BTCHW[:, len(written) :], own

    @staticmethod
    def _clean(group: list[Pending], noise: Noise) -> tuple[Span, Tensor, float]:
        """Span, latents and level of pending blocks as they are written."""
        level = group[0][0].commit or 0.0
        blocks = [
            add_noise(block, _drawer(noise, move.index, COMMIT_STEP, block)(), level) if level else block
            for move, block, _ in group
        ]
        return Span(group[0][0].span.start, group[-1][0].span.stop), torch.cat(blocks, 1), level

    def _pass(
        self, x_BTCHW: Tensor, sigma: float, condition: Condition, view: View, span: Span
    ) -> tuple[Tensor, Memory]:
        levels = torch.full(x_BTCHW.shape[:2], sigma, device=x_BTCHW.device)
        estimate = self._denoiser(x_BTCHW, levels, condition, view, span)
        return estimate.flow_BTCHW, estimate.memory


def _drawer(noise: Noise, block: int, step: int, like: Tensor) -> Callable[[], Tensor]:
    """Noise of the shape and on the device of `like`, drawn when asked for."""
    return lambda: noise.draw(block, step, tuple(like.shape)).to(like.device)
