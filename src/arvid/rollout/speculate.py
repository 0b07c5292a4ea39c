"""Speculation: a drafter proposes, the target redoes or mends. A proposer made of two walkers, not a second loop.

Knows: who makes which block (a router's spec), how a rejected draft reaches the target, what each past is told.
Does not know: models, decoders, scores (the judge has them). After SDVG (2604.17397) and T-Stitch (2402.14167), with
the target's past refreshed only when the target runs.

Both walkers start a block from the same initial noise and use the same re-noise, keyed by (seed, block, step). So
tau = -inf is `first`, tau = +inf is `target` bit for bit, and repair = 0 is a full redo.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from arvid.rollout.flow import FlowWalker
from arvid.rollout.routers import DRAFT, REMEDY, TARGET, Spec
from arvid.rollout.stage import Clock
from arvid.samplers.grids import few_step
from arvid.samplers.noise import INITIAL, REFINE
from arvid.samplers.steps import add_noise
from arvid.types import Condition, Move, Noise, Proposal

Shape = tuple[int, int, int, int]


class Speculator:
    """A `Proposer` of two walkers; `shape` is (batch, channels, height, width) of the latents, which live where
    the condition lives. Without a drafter every block is the target's."""

    def __init__(
        self, spec: Spec, target: FlowWalker, drafter: FlowWalker | None, shape: Shape, clock: Clock, seed: int = 0
    ) -> None:
        self._spec, self._target, self._drafter, self._clock, self._seed = spec, target, drafter, clock, seed
        self._shape = shape

    def propose(self, move: Move, condition: Condition, noise: Noise, rejected: Proposal | None = None) -> Proposal:
        """A draft or the target's block, as the router picks; after a rejection the remedy."""
        if rejected is not None:
            return self._mend(move, condition, noise, rejected)
        pick = self._spec.pick(move.index, self._seed)
        if pick == TARGET or self._drafter is None:
            return self._from_noise(move, condition, noise)
        draft = self._draft(self._drafter, move, condition, noise)
        return self._mend(move, condition, noise, draft) if pick == REMEDY else draft

    def _initial(self, move: Move, condition: Condition, noise: Noise) -> Tensor:
        batch, channels, height, width = self._shape
        x_BTCHW = noise.draw(move.index, INITIAL, (batch, len(move.span), channels, height, width))
        return x_BTCHW.to(condition.text_BLD.device)

    def _from_noise(self, move: Move, condition: Condition, noise: Noise) -> Proposal:
        with self._clock.measure("target"):
            x = self._initial(move, condition, noise)
            return replace(self._target.walk(move, x, move.sigmas, condition, noise), source=TARGET)

    def _draft(self, drafter: FlowWalker, move: Move, condition: Condition, noise: Noise) -> Proposal:
        sigmas = few_step(self._spec.draft_steps) if self._spec.draft_steps else move.sigmas
        with self._clock.measure("draft"):
            x = self._initial(move, condition, noise)
            return replace(drafter.walk(move, x, sigmas, condition, noise), source=DRAFT)

    def _mend(self, move: Move, condition: Condition, noise: Noise, draft: Proposal) -> Proposal:
        """Redo from noise, resume from the draft's state after `repair` steps, or re-noise and refine it."""
        spec = self._spec
        if not spec.remedies:
            return self._from_noise(move, condition, noise)
        with self._clock.measure("target"):
            if spec.refine:
                eps = noise.draw(move.index, REFINE, tuple(draft.block_BTCHW.shape)).to(draft.block_BTCHW.device)
                x = add_noise(draft.block_BTCHW, eps, spec.refine[0])
                walked = self._target.walk(move, x, (*spec.refine, 0.0), condition, noise, key=REFINE)
                return replace(walked, source="refined")
            if spec.repair >= len(move.sigmas) - 1:
                return replace(draft, source="repaired", memory=())  # the keys at hand are the drafter's
            x, sigmas = draft.trajectory[spec.repair], move.sigmas[spec.repair :]
            walked = self._target.walk(move, x, sigmas, condition, noise, key=spec.repair)
            return replace(walked, source="repaired" if spec.repair else TARGET)

    def commit(self, move: Move, proposal: Proposal, condition: Condition) -> None:
        """Tell both pasts, unless the plan says that this block is not remembered. Who made the block may keep the keys
        of its last pass (`commit=last`); nobody pays a pass before it walks again."""
        if move.commit is None:
            return
        for walker, made in ((self._target, proposal.source != DRAFT), (self._drafter, proposal.source == DRAFT)):
            if walker is None:
                continue
            if made and self._spec.commit == "last" and proposal.memory:
                walker.adopt(move, proposal.memory)
            else:
                walker.remember(replace(move, commit=self._spec.level), proposal.block_BTCHW, condition)
