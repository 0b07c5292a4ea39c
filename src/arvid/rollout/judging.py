"""The judge of a rollout: puts a router's questions about a draft to those who can answer them, and remembers.

Knows: rewards and judges by name, the block before, the scores so far. Does not know: any router's rule, how blocks are
made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from arvid.rollout.specs import ACCEPTED, DRAFT, Chooser, Spec
from arvid.rollout.stage import Clock, Pace
from arvid.rollout.verify import Checked, agreement
from arvid.types import BlockReward, Candidate, Condition, Move, Proposal, Reward, Verdict

NO_JUDGES: Mapping[str, BlockReward] = MappingProxyType({})


class Evidence:
    """What can be learnt about one draft (see `rollout.specs.Scores`). All of it is made when it is asked for."""

    def __init__(
        self,
        proposal: Proposal,
        candidate: Candidate,
        clock: Clock,
        reward: Reward | None = None,
        judges: Mapping[str, BlockReward] = NO_JUDGES,
    ) -> None:
        self._proposal, self._candidate, self._clock = proposal, candidate, clock
        self._reward, self._judges = reward, judges

    @property
    def count(self) -> int:
        """Number of frames of the draft."""
        return self._candidate.frames().shape[1]

    def of(self, frames: list[int]) -> Tensor:
        """Scores [len(frames)] of some frames, in one batch. Raises ValueError when there is no reward model."""
        if self._reward is None:
            raise ValueError(
                "this router scores frames, but no reward model is loaded; give one or use first or stride"
            )
        pixels = self._candidate.frames()[:, frames]
        with self._clock.measure("score"):
            return self._reward.score(pixels, self._candidate.condition.prompt)[0].float()

    def whole(self, judge: str) -> tuple[float, int]:
        """The score of the block by the judge of that name, and how many of its frames it looked at.

        Raises ValueError when no such judge is loaded.
        """
        if judge not in self._judges:
            known = ", ".join(sorted(self._judges)) or "none"
            raise ValueError(f"by={judge} asks a judge of blocks that is not loaded; loaded: {known}; or use by=frame")
        chosen = self._judges[judge]
        frames = self.count if chosen.lookback else 0  # decoded here, so that decoding is not counted as scoring
        with self._clock.measure("score"):
            return float(chosen.score_block(self._candidate)[0]), frames

    def agreement(self, measure: str) -> float:
        """How far the target agrees with the draft. Raises ValueError when the target has not looked at it."""
        if not isinstance(self._proposal, Checked):
            raise ValueError("the target has made no pass over this draft; a router that verifies has one made")
        with self._clock.measure("score"):
            return float(agreement(self._proposal, measure)[0])

    @property
    def pace(self) -> Pace:
        """How fast the rollout is so far."""
        return self._clock.pace


def unseeing(judges: Mapping[str, BlockReward]) -> dict[str, BlockReward]:
    """Those who judge latents alone, so that nothing is decoded for them."""
    return {name: judge for name, judge in judges.items() if not judge.lookback}


def chooser(judges: Mapping[str, BlockReward], clock: Clock) -> Chooser | None:
    """Who picks the best of several first blocks, by the product of what all judges say that need no pixels: each sees
    what another misses, and one that is sure of a fault is enough. None without such judges."""
    able = unseeing(judges).values()

    def choose(blocks_NTCHW: Tensor, condition: Condition) -> int:
        candidate = Candidate(blocks_NTCHW, None, _unseen, None, condition)
        with clock.measure("score"):
            return int(torch.stack([judge.score_block(candidate).log() for judge in able]).sum(0).argmax())

    return choose if able else None


def _unseen() -> Tensor:
    raise RuntimeError("a judge that looks at no frames asked for pixels; its lookback says otherwise")


class Routing:
    """The judge of one rollout (see `arvid.types.Judge`): asks the spec, remembers scores and the block before.
    `reward` scores frames, `judges` score whole blocks, by the name that `by=` gives."""

    def __init__(
        self, spec: Spec, reward: Reward | None, clock: Clock, judges: Mapping[str, BlockReward] = NO_JUDGES
    ) -> None:
        self._spec, self._reward, self._clock, self._judges = spec, reward, clock, judges
        self._history: list[float] = []
        self._before: tuple[Tensor | None, Tensor | None] = (None, None)
        asked = [judges[name] for name in spec.asks if name in judges]
        self._remembers, self._lookback = bool(asked), max((judge.lookback for judge in asked), default=0)

    def snapshot(self) -> tuple[tuple[float, ...], tuple[Tensor | None, Tensor | None]]:
        """What is remembered, as a value that `restore` brings back."""
        return tuple(self._history), self._before

    def restore(self, snapshot: tuple[tuple[float, ...], tuple[Tensor | None, Tensor | None]]) -> None:
        """Go back to a snapshot."""
        history, self._before = snapshot
        self._history = list(history)

    def judge(self, move: Move, proposal: Proposal, frames: Callable[[], Tensor], condition: Condition) -> Verdict:
        """Only drafts are judged, the target's pass over them or not; what the target made is accepted."""
        verdict = ACCEPTED
        if proposal.source == DRAFT or isinstance(proposal, Checked):
            before = (None, None) if proposal.opens else self._before
            candidate = Candidate(proposal.block_BTCHW, before[0], frames, before[1], condition)
            evidence = Evidence(proposal, candidate, self._clock, self._reward, self._judges)
            verdict = self._spec.judge(evidence, self._history)
            if verdict.score is not None:
                self._history.append(verdict.score)
        if verdict.decision == "accept" and self._remembers:
            # Decoded now or when the block is emitted: once in any case.
            seen = frames()[:, -self._lookback :] if self._lookback else None
            self._before = proposal.block_BTCHW, seen
        return verdict
