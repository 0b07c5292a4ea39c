"""The one loop: it walks a plan. Everything that makes video here calls it; nothing else walks blocks.

Knows: the order of the five seams (propose, judge, redo, commit, yield). Does not know: any model, policy, schedule,
router or past. It is a generator, batch is a consumer of it, and it carries no `no_grad`: the caller decides.
"""

from __future__ import annotations

from collections.abc import Iterator

from arvid.rollout.stage import Stage
from arvid.types import Block, Conditioner, Judge, Noise, Plan, Proposer

ACCEPT = "accept"


def rollout(
    plan: Plan, proposer: Proposer, judge: Judge, conditioner: Conditioner, noise: Noise, stage: Stage
) -> Iterator[Block]:
    """Blocks of `plan` in its order, each as soon as it is decided."""
    for move in plan:
        stage.begin(move)
        condition = conditioner.at(move.span)
        proposal = proposer.propose(move, condition, noise)
        verdict = judge.judge(move, proposal, stage.preview(proposal), condition)
        while verdict.decision != ACCEPT:
            rejected = stage.rejected(proposal, verdict)
            proposal = proposer.propose(move, condition, noise, rejected)
            verdict = judge.judge(move, proposal, stage.preview(proposal), condition)
        proposer.commit(move, proposal, condition)
        if move.emits:
            yield stage.emit(move, proposal, verdict)
