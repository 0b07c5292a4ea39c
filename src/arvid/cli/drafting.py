"""Drafts beside the target's own rollout, seen by every judge there is: one run of `arvid bench judges`.

Knows: a family, the judges it has or is lent, how a draft gets a second opinion, the oracle. Does not know: arguments
(`cli.bench_judges`), what is made of the scores (`evals.judges`).

The target makes the video by the one loop. Before each of its blocks the drafter makes one after the same past, and
that draft is judged and forgotten: all judges see one set of drafts, none of which depends on a judge.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import typer
from torch import Tensor

from arvid import spec
from arvid.caches.policies import POLICIES, remember
from arvid.caches.positions import POSITIONS
from arvid.cli.report import Row, head
from arvid.evals import judges
from arvid.evals.judges import Drafted
from arvid.evals.speculation import draw_prompts
from arvid.pipeline import POSITIONS_AS_TRAINED, Family, Pipeline, Request, shift_of
from arvid.rollout.flow import FlowWalker
from arvid.rollout.judging import Routing, unseeing
from arvid.rollout.loop import rollout
from arvid.rollout.routers import Target
from arvid.rollout.specs import TARGET
from arvid.rollout.stage import Clock, Stage
from arvid.rollout.starts import Starts
from arvid.rollout.timeline import Director
from arvid.rollout.verify import MEASURES, RIVALS, Checked, agreement
from arvid.samplers.grids import few_step
from arvid.samplers.noise import REFINE, SeededNoise
from arvid.samplers.steps import STEPS
from arvid.types import BlockReward, Candidate, Condition, Denoiser, Move, Noise, Proposal
from arvid.video import to_bytes
from arvid.worlds import oracle
from arvid.worlds.oracle import WorldScore

RANDOM, FRAME, MEAN, PLAIN = "random", "frame", "frame-mean", "difference"
"""Judges that are always there, or wherever there is a frame reward; the last is the target's plain disagreement."""


@dataclass(frozen=True)
class Asked:
    """The options of a run: `levels` are those at which the target looks at drafts."""

    prompts: int
    grammar: tuple[int, ...]
    seconds: float
    draft_steps: int
    levels: tuple[float, ...]
    good: float
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Draft:
    """A drafted block that nobody has judged: latents and frames of it and of what came before (None: nothing), the
    target's and the drafter's passes over re-noised copies by level, and the seconds each of these took."""

    move: Move
    candidate: Candidate
    checks: Mapping[float, Checked]
    seconds: Mapping[str, float]


@dataclass(eq=False)
class Beside:
    """A `Proposer` that makes the target's blocks and keeps them (`own`), and a draft of each but the first."""

    family: Family
    target: FlowWalker
    drafter: FlowWalker
    asked: Asked
    stage: Stage
    starts: Starts
    drafts: list[Draft] = field(default_factory=list)
    own: list[Candidate] = field(default_factory=list)

    def propose(self, move: Move, condition: Condition, noise: Noise, rejected: Proposal | None = None) -> Proposal:
        """The target's block; nobody rejects it."""
        x_BTCHW = self.starts.initial(move, noise, self.target.blank).to(self.family.device)
        if move.index:
            self.drafts.append(self._draft(move, condition, noise, x_BTCHW))
        return self.target.walk(move, x_BTCHW, move.sigmas, condition, noise)

    def commit(self, move: Move, proposal: Proposal, condition: Condition) -> None:
        """Both go on from the target's block."""
        for walker in (self.target, self.drafter):
            walker.remember(move, proposal.block_BTCHW, condition)
        frames = self.stage.preview(proposal)()
        self.own.append(self._behind(proposal.block_BTCHW, frames, condition))

    def _draft(self, move: Move, condition: Condition, noise: Noise, x_BTCHW: Tensor) -> Draft:
        seconds: dict[str, float] = {}
        for walker in (self.target, self.drafter):
            walker.catch_up(noise)  # it is due in any case, so no judge is charged for it
        steps, shift = self.asked.draft_steps, shift_of(self.family.card)
        sigmas = few_step(steps, shift) if steps else move.sigmas
        draft = self.drafter.walk(move, x_BTCHW, sigmas, condition, noise)
        checks = {}
        for level in self.asked.levels:
            again = self.starts.again(move, draft.block_BTCHW, level, noise)
            took = []
            for walker in (self.target, self.drafter):
                begin = self._now()
                took.append(walker.walk(move, again, (level, 0.0), condition, noise, key=REFINE))
                seconds[f"{walker.name}@{level:g}"] = self._now() - begin
            check, rival = took
            checks[level] = Checked(draft.block_BTCHW, draft=draft, check=check, rival_BTCHW=rival.block_BTCHW)
        begin = self._now()
        frames, _ = self.family.decoder.decode(draft.block_BTCHW, self.stage.state)
        seconds["decode"] = self._now() - begin
        return Draft(move, self._behind(draft.block_BTCHW, frames, condition), checks, seconds)

    def _behind(self, block_BTCHW: Tensor, frames_BTCHW: Tensor, condition: Condition) -> Candidate:
        """A block that goes on from the target's last one, for judges."""
        last = self.own[-1] if self.own else None
        before, shown = (last.block_BTCHW, last.frames()) if last else (None, None)
        return Candidate(block_BTCHW, before, lambda: frames_BTCHW, shown, condition)

    def _now(self) -> float:
        return now(self.family.device)


def now(device: torch.device) -> float:
    """Seconds: of the processor on a CPU, so that other work there does not count, of the wall elsewhere."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


# ---------------------------------------------------------------- judging


Ask = Callable[[Draft], float]


def asking(family: Family, levels: Sequence[float], seed: int) -> dict[str, Ask]:
    """Every judge as a function of a draft, by name."""
    rng = random.Random(f"judges/{seed}")
    found: dict[str, Ask] = {RANDOM: lambda draft: rng.random()}
    if family.reward is not None:
        found[FRAME] = lambda draft: float(_frames(family, draft).min())
        found[MEAN] = lambda draft: float(_frames(family, draft).mean())
    for name, judge in family.judges.items():
        found[name] = _whole(judge)
    for jury in juries(family):
        found[jury] = _product([found[name] for name in jury.split("+")])
    for level in levels:
        found[f"{PLAIN}@{level:g}"] = _plain(level)
        for measure in MEASURES:
            found[f"{measure}@{level:g}"] = _agrees(level, measure)
    return found


def juries(family: Family) -> list[str]:
    """Judges that are asked together: those that need no pixels, and with them the frame reward."""
    blind = sorted(unseeing(family.judges))
    seeing = [FRAME] if family.reward is not None else []
    return ["+".join(jury) for jury in (blind, seeing + blind) if len(jury) > 1 and blind]


def _product(asks: Sequence[Ask]) -> Ask:
    return lambda draft: math.prod(ask(draft) for ask in asks)


def _frames(family: Family, draft: Draft) -> Tensor:
    assert family.reward is not None
    return family.reward.score(draft.candidate.frames(), draft.candidate.condition.prompt)[0].float()


def _whole(judge: BlockReward) -> Ask:
    return lambda draft: float(judge.score_block(_looked_back(draft.candidate, judge.lookback))[0])


def _looked_back(candidate: Candidate, lookback: int) -> Candidate:
    seen = candidate.frames_before_BTCHW
    seen = None if seen is None or not lookback else seen[:, -lookback:]
    return Candidate(candidate.block_BTCHW, candidate.before_BTCHW, candidate.frames, seen, candidate.condition)


def _plain(level: float) -> Ask:
    def ask(draft: Draft) -> float:
        check = draft.checks[level]
        gap = (check.draft.block_BTCHW - check.check.block_BTCHW).square().mean()
        return float(1 / (1 + gap))

    return ask


def _agrees(level: float, measure: str) -> Ask:
    return lambda draft: float(agreement(draft.checks[level], measure)[0])


def judged(
    draft: Draft, judges_of: Mapping[str, Ask], device: torch.device
) -> tuple[dict[str, float], dict[str, float]]:
    """Scores and seconds by judge; those of the target's passes are counted where they were needed."""
    scores, seconds = {}, {}
    for name, ask in judges_of.items():
        begin = now(device)
        scores[name] = ask(draft)
        seconds[name] = now(device) - begin
        kind, _, level = name.partition("@")
        if level:
            seconds[name] += draft.seconds[f"target@{level}"]
            seconds[name] += draft.seconds[f"drafter@{level}"] if kind in RIVALS else 0.0
    return scores, seconds


# ---------------------------------------------------------------- one run


@dataclass(frozen=True, eq=False)
class MarkedDraft:
    """A draft, and the oracle's marks of it and of the target's own block after the same past."""

    draft: Draft
    label: float
    own: float


@torch.inference_mode()
def marked(pipeline: Pipeline, asked: Asked, prompt: str, seed: int) -> Iterator[MarkedDraft]:
    """The drafted blocks of one prompt, as the oracle marks them. Raises ValueError for a family without a drafter."""
    beside = _made(pipeline, asked, prompt, seed)
    for draft, own, mark in zip(beside.drafts, beside.own[1:], _marks(beside, prompt)[1:], strict=True):
        yield MarkedDraft(draft, mark(draft.candidate).score, mark(own).score)


@torch.inference_mode()
def shown(pipeline: Pipeline, asked: Asked, prompt: str, seed: int) -> Iterator[tuple[Candidate, WorldScore]]:
    """All blocks of one prompt, the target's own and the drafts beside them, as the oracle marks them. Raises
    ValueError for a family without a drafter."""
    beside = _made(pipeline, asked, prompt, seed)
    marks = _marks(beside, prompt)
    drafts = [draft.candidate for draft in beside.drafts]
    for candidate, mark in (*zip(beside.own, marks, strict=True), *zip(drafts, marks[1:], strict=True)):
        yield candidate, mark(candidate)


def _made(pipeline: Pipeline, asked: Asked, prompt: str, seed: int) -> Beside:
    """The target's rollout of one prompt, over."""
    family, request = pipeline.family, Request(prompt, asked.seconds, seed, TARGET)
    if family.drafter is None:
        raise ValueError(f"family {family.card.name!r} has no drafter; there are no drafts to judge")
    _, plan = pipeline.check(request)
    stage = Stage(family.decoder, Clock())
    walkers = _walker("target", family.target, family), _walker("drafter", family.drafter, family)
    starts = Starts((1, *pipeline.latent_shape), family.card.spread(plan[-1].span.stop))
    beside = Beside(family, *walkers, asked, stage, starts)
    director = Director(
        pipeline.changes(request, plan), lambda said: family.text.encode([said]).to(family.device), family.card.block
    )
    judge = Routing(Target(), None, Clock())
    for _ in rollout(plan, beside, judge, director, SeededNoise(seed), stage):
        pass
    return beside


def _marks(beside: Beside, prompt: str) -> list[Callable[[Candidate], WorldScore]]:
    """What the oracle says of a block at each place of the video."""
    lengths = [candidate.frames().shape[1] for candidate in beside.own]

    def at(start: int) -> Callable[[Candidate], WorldScore]:
        return lambda candidate: oracle.judge(to_bytes(candidate.frames()[0]), prompt, start, sum(lengths))

    return [at(sum(lengths[:number])) for number in range(len(lengths))]


@torch.inference_mode()
def drafted(pipeline: Pipeline, asked: Asked, prompt: str, seed: int) -> Iterator[Drafted]:
    """The drafted blocks of one prompt, judged by all judges and by the oracle."""
    family = pipeline.family
    names = asking(family, asked.levels, seed)
    for found in marked(pipeline, asked, prompt, seed):
        scores, seconds = judged(found.draft, names, family.device)
        block, decode = found.draft.move.index, found.draft.seconds["decode"]
        yield Drafted(prompt, block, found.label, found.own, scores, seconds, decode)


def _walker(name: str, denoiser: Denoiser, family: Family) -> FlowWalker:
    policy = spec.build(family.card.past, POLICIES, "past")
    past = remember(policy, family.card.block, spec.build(POSITIONS_AS_TRAINED, POSITIONS, "positions"))
    return FlowWalker(name, denoiser, past, STEPS[family.card.step], Clock())


def run(pipeline: Pipeline, asked: Asked) -> Row:
    """The report; of the prompts that were finished, when it was interrupted. Raises ValueError for a family without a
    drafter."""
    family = pipeline.family
    prompts = draw_prompts(asked.prompts, asked.grammar, "judges")
    drafts: list[Drafted] = []
    interrupted = False
    try:
        for number, prompt in enumerate(prompts):
            drafts += list(drafted(pipeline, asked, prompt, asked.seed + number))
            typer.echo(f"{number + 1}/{len(prompts)} prompts, {len(drafts)} drafts", err=True)
    except KeyboardInterrupt:
        interrupted = True
    about = {**head("bench judges", str(family.device)), "config": _config(family, asked, interrupted)}
    if not drafts and interrupted:
        return {**about, "rows": []}
    pixels = {FRAME, MEAN, *(name for name, judge in family.judges.items() if judge.lookback)}
    names = drafts[0].scores if drafts else {}
    seeing = frozenset(name for name in names if not pixels.isdisjoint(name.split("+")))
    found = judges.rows(drafts, asked.good, seeing)
    return {
        **about, "drafts": judges.summary(drafts, asked.good), "rows": found,
        "blocks": [
            {"prompt": d.prompt, "block": d.block, "label": round(d.label, 6), "target": round(d.own, 6),
             "scores": {name: round(score, 6) for name, score in d.scores.items()}}
            for d in drafts
        ],
    }  # fmt: skip


def _config(family: Family, asked: Asked, interrupted: bool) -> Row:
    return {
        "model": family.card.name, "prompts": asked.prompts, "levels": list(asked.grammar), "seconds": asked.seconds,
        "draft_steps": asked.draft_steps or family.card.steps, "verify_levels": list(asked.levels), "good": asked.good,
        "hardly_worse": judges.HARDLY, "seed": asked.seed,
        "clock": "processor" if family.device.type == "cpu" else "wall", "interrupted": interrupted,
    }  # fmt: skip
