"""Speculation: a drafter proposes, the target redoes or mends. A proposer made of two walkers, not a second loop.

Knows: who makes which block (a router's spec), how a draft reaches the target, to be verified or because it was sent
back, what each past is told, that a move may be several blocks. Does not know: models, decoders, scores (the judge has
them). After SDVG (2604.17397) and T-Stitch (2402.14167), with the target's past refreshed only when the target runs.

Both walkers start a block from the same initial noise and use the same re-noise, keyed by (seed, block, step). So
tau = -inf is `first`, tau = +inf is `target` bit for bit, and repair = 0 is a full redo; a verifying pass is the first
step of `refine` from its level, bit for bit where the past is whole frames (one that listens has heard less of a walk
that is gone on with).
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from arvid.rollout.flow import FlowWalker
from arvid.rollout.specs import DRAFT, MOST_STEPS, REFINED, REMEDY, REPAIRED, TARGET, VERIFIED, Check, Chooser, Spec
from arvid.rollout.stage import Clock
from arvid.rollout.starts import Shape, Starts
from arvid.rollout.verify import Checked
from arvid.samplers.grids import SHIFT, few_step
from arvid.samplers.noise import CANDIDATE, INITIAL, REFINE, InTurn
from arvid.types import Condition, Move, Noise, Proposal, Span


class Speculator:
    """A `Proposer` of two walkers; `shape` is (batch, channels, height, width) of the latents, which live where
    the condition lives. Without a drafter every block is the target's. A draft of a number of passes of its own walks
    the levels of `shift`, as the plan's do. A plan is known by its moves only: `propose` raises ValueError before the
    first draft that is shorter than the router's repair.

    Where the router asks for the best of several first blocks, they are made together in one batch and `choose` picks
    one: a search over noise (2501.09732), where it costs least (nothing is behind block 0, and a small batch fills a
    pass) and lasts longest (every later block goes on with it). They may be looked at before they are finished, as what
    they are about to become.

    What is made behind a past, or mended, begins from noise of `temperature` times the spread of training's, unless the
    router says otherwise; what opens a scene from all of it.

    A move of more than `block` frames (0: no move is) is made block after block, each with those before it in the past
    for as long as the move is made; a draft of it is looked at, mended and remembered as one. The target's pass over it
    keeps the blocks causal, so what it costs beyond the pass over one block is arithmetic alone."""

    def __init__(
        self, spec: Spec, target: FlowWalker, drafter: FlowWalker | None, shape: Shape, clock: Clock, seed: int = 0,
        shift: float = SHIFT, choose: Chooser | None = None, block: int = 0, temperature: float = 1.0,
    ) -> None:  # fmt: skip
        """Raises ValueError for a choice among several first blocks without anybody who chooses."""
        if spec.first_best > 1 and choose is None:
            raise ValueError(f"first_best={spec.first_best} needs a judge of blocks that reads latents; none is loaded")
        self._spec, self._target, self._drafter, self._clock, self._seed = spec, target, drafter, clock, seed
        self._shift, self._choose, self._block = shift, choose, block
        self._starts = Starts(shape, spec.temperature or temperature)

    def propose(self, move: Move, condition: Condition, noise: Noise, rejected: Proposal | None = None) -> Proposal:
        """A draft or the target's block, as the router picks; after a rejection the remedy."""
        if rejected is not None:
            return self._mend(move, condition, noise, rejected)
        pick = self._spec.pick(move.index, self._seed)
        if pick == TARGET or self._drafter is None:
            return self._from_noise(move, condition, noise)
        self._spec.check_repair(len(move.sigmas) - 1)
        draft = self._draft(self._drafter, move, condition, noise)
        if pick == REMEDY:
            return self._mend(move, condition, noise, draft)
        check = self._spec.check
        return self._verify(self._drafter, check, move, condition, noise, draft) if check else draft

    def _initial(self, move: Move, condition: Condition, noise: Noise, opens: bool, step: int = INITIAL) -> Tensor:
        """Where a move begins; of one that opens a scene the first block does, and the others go on from it."""
        drawn = [
            self._starts.initial(part, own, opens and part.span.start == move.span.start, step)
            for part, own in self._parts(move, noise)
        ]
        return torch.cat(drawn, 1).to(condition.text_BLD.device)

    def _made(
        self, walker: FlowWalker, source: str, move: Move, sigmas: tuple[float, ...], condition: Condition, noise: Noise
    ) -> Proposal:
        """A move from its initial noise; of a block that sees nothing before it as many as the router asks for, and the
        best of them."""
        chooses = self._spec.first_best > 1 and walker.blank and len(self._parts(move, noise)) == 1
        count = self._spec.first_best if chooses else 1
        with self._clock.measure(source):
            x_BTCHW = self._initial(move, condition, noise, walker.blank)
            if count == 1 or self._choose is None:
                return replace(self._in_turn(walker, move, x_BTCHW, sigmas, condition, noise), source=source)
            others = [self._initial(move, condition, noise, True, CANDIDATE + number) for number in range(1, count)]
            asked = replace(condition, text_BLD=condition.text_BLD.repeat(count, 1, 1))
            looked = min(self._spec.first_look or MOST_STEPS, len(sigmas) - 1)
            made = walker.walk(move, torch.cat([x_BTCHW, *others]), sigmas[: looked + 1], asked, noise)
        self._clock.count(walker.name, (count - 1) * made.passes)
        best = _one(made, self._choose(made.block_BTCHW, asked), len(x_BTCHW))
        best = replace(_adoptable(walker, best), source=source)
        if looked == len(sigmas) - 1:
            return best
        with self._clock.measure(source):
            rest = walker.walk(move, best.trajectory[-1], sigmas[looked:], condition, noise, key=looked)
        trajectory, passes = (*best.trajectory[:-1], *rest.trajectory), best.passes + rest.passes
        return replace(_adoptable(walker, rest), source=source, trajectory=trajectory, passes=passes)

    def _parts(self, move: Move, noise: Noise) -> list[tuple[Move, Noise]]:
        """The blocks of a move, each with noise of its own."""
        size, span = self._block or len(move.span), move.span
        spans = [Span(at, min(at + size, span.stop)) for at in range(span.start, span.stop, size)]
        return [(replace(move, span=part), InTurn(noise, number)) for number, part in enumerate(spans)]

    def _in_turn(
        self, walker: FlowWalker, move: Move, x_BTCHW: Tensor, sigmas: tuple[float, ...], condition: Condition,
        noise: Noise, key: int = 0,
    ) -> Proposal:  # fmt: skip
        """Walk the blocks of a move one after the other. The past is afterwards what it was before the move, but that
        all that was pending is written."""
        made: list[Proposal] = []
        held, written = None, move
        for part, own in self._parts(move, noise):
            if made:
                held = held or walker.snapshot()
                walker.remember(replace(written, commit=self._spec.commit_level), made[-1].block_BTCHW, condition)
            at, written = part.span.start - move.span.start, part
            made.append(walker.walk(part, x_BTCHW[:, at : at + len(part.span)], sigmas, condition, own, key))
        if held is None:
            return made[0]
        walker.restore(held)
        return _adoptable(walker, _joined(made))

    def _from_noise(self, move: Move, condition: Condition, noise: Noise) -> Proposal:
        return self._made(self._target, TARGET, move, move.sigmas, condition, noise)

    def _draft(self, drafter: FlowWalker, move: Move, condition: Condition, noise: Noise) -> Proposal:
        sigmas = few_step(self._spec.draft_steps, self._shift) if self._spec.draft_steps else move.sigmas
        return self._made(drafter, DRAFT, move, sigmas, condition, noise)

    def _verify(
        self, drafter: FlowWalker, check: Check, move: Move, condition: Condition, noise: Noise, draft: Proposal
    ) -> Checked:
        """The first step of a refinement, made before it is known whether there will be more."""
        levels = (*self._spec.refine, 0.0)
        with self._clock.measure("target"):
            x = self._starts.again(move, draft.block_BTCHW, levels[0], noise)
            made = self._target.walk(move, x, levels[:2], condition, noise, key=REFINE)
        rival = None
        if check.rival:
            with self._clock.measure("draft"):
                rival = drafter.walk(move, x, (levels[0], 0.0), condition, noise, key=REFINE).block_BTCHW
            draft = _adoptable(drafter, draft)
        made = replace(made, source=REFINED)
        kept, source = (made, VERIFIED) if check.estimate else (draft, DRAFT)
        passes = draft.passes + made.passes
        return Checked(kept.block_BTCHW, source=source, passes=passes, draft=draft, check=made, rival_BTCHW=rival)

    def _mend(self, move: Move, condition: Condition, noise: Noise, draft: Proposal) -> Proposal:
        """Redo from noise, resume from the draft's state after `repair` steps, or refine it."""
        spec = self._spec
        if not spec.remedies:
            return self._from_noise(move, condition, noise)
        with self._clock.measure("target"):
            if spec.refine:
                return replace(self._refine(move, condition, noise, draft), source=REFINED)
            if spec.repair == len(move.sigmas) - 1:
                return replace(draft, source=REPAIRED, memory=(), verdict=None)  # its keys are the drafter's
            x, sigmas = draft.trajectory[spec.repair], move.sigmas[spec.repair :]
            walked = self._in_turn(self._target, move, x, sigmas, condition, noise, key=spec.repair)
            return replace(walked, source=REPAIRED if spec.repair else TARGET)

    def _refine(self, move: Move, condition: Condition, noise: Noise, draft: Proposal) -> Proposal:
        """Re-noise a draft and walk down all levels, or the first of them when the verdict says that it is enough; walk
        on from the pass that verified it where there was one."""
        levels = self._spec.refine
        if isinstance(draft, Checked):
            if len(levels) == 1:
                return draft.check
            x, rest = draft.check.trajectory[-1], (*levels[1:], 0.0)
            return self._target.walk(move, x, rest, condition, noise, key=REFINE + 1)
        if draft.verdict is not None and draft.verdict.decision == "repair":
            levels = levels[:1]
        x = self._starts.again(move, draft.block_BTCHW, levels[0], noise)
        return self._target.walk(move, x, (*levels, 0.0), condition, noise, key=REFINE)

    def commit(self, move: Move, proposal: Proposal, condition: Condition) -> None:
        """Tell both pasts, unless the plan says that this block is not remembered. A walker that has looked at the
        block may keep the keys of its last pass (the router says when); nobody pays a pass before it walks again."""
        if move.commit is None:
            return
        made, drafted = proposal, proposal
        if isinstance(proposal, Checked):
            made, drafted = proposal.check, proposal.draft
        drafts = proposal.source == DRAFT
        looked = (made.source != DRAFT, made), (drafts, drafted)
        for walker, (own, last) in zip((self._target, self._drafter), looked, strict=True):
            if walker is None:
                continue
            if own and last.memory and self._spec.adopts(last.source):
                walker.adopt(move, last.memory)
            else:
                walker.remember(replace(move, commit=self._spec.commit_level), proposal.block_BTCHW, condition)


def _adoptable(walker: FlowWalker, made: Proposal) -> Proposal:
    """A proposal that is not what the walker's last walk made, or not all of it. A past that listens has heard that
    walk, so it is to have a clean pass over the block instead of the keys at hand."""
    return replace(made, memory=()) if walker.past.listens else made


def _one(made: Proposal, number: int, batch: int) -> Proposal:
    """One of several candidates that were made in one batch, `batch` videos each."""
    own = slice(number * batch, (number + 1) * batch)
    return replace(
        made, block_BTCHW=made.block_BTCHW[own], trajectory=tuple(x_BTCHW[own] for x_BTCHW in made.trajectory),
        memory=tuple((k_BLHD[own], v_BLHD[own]) for k_BLHD, v_BLHD in made.memory),
    )  # fmt: skip


def _joined(made: list[Proposal]) -> Proposal:
    """Blocks that one walker made one after the other, as one."""
    keys = zip(*(block.memory for block in made), strict=True)
    levels = zip(*(block.trajectory for block in made), strict=True)
    return replace(
        made[0], block_BTCHW=torch.cat([block.block_BTCHW for block in made], 1),
        trajectory=tuple(torch.cat(blocks, 1) for blocks in levels), passes=sum(block.passes for block in made),
        memory=tuple((torch.cat([k for k, _ in pairs], 1), torch.cat([v for _, v in pairs], 1)) for pairs in keys),
    )  # fmt: skip
