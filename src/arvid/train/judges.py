"""Training judges of whole blocks: true blocks against drafts, wrong prompts and broken motion.

Knows: how rivals of a true block are made, which target each has, the loss. Does not know: the judges' networks, where
clips come from (a callable), pixels' codec (passed in), nor the oracle, which must stay an outsider.

A target is the part of a block that is true: 1 for the block that really followed, 0 for a draft, a wrong prompt or
broken motion, between them for mixtures of truth and draft and for faded blocks, so that the judge learns a scale.
Cross-entropy makes probabilities of the scores. A router has to tell apart what could follow the same past, so each
rival is also ranked against the truth it stands for (the pairwise logistic loss of 1706.03741, eq. 1).

Legend: N blocks, B clips, T frames, C channels, H height, W width, L tokens, D width; latents z_BTCHW.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from arvid.caches.store import Policy, Store
from arvid.rollout.flow import FlowWalker
from arvid.rollout.stage import Clock
from arvid.samplers.noise import INITIAL, SeededNoise
from arvid.samplers.steps import Step
from arvid.types import Condition, Denoiser, Move, Span

TRUE, DRAFTED, PROMPT = "true", "drafted", "prompt"
MOTION = ("frozen", "shuffled", "reversed", "jump")
RIVALS = (DRAFTED, PROMPT, *MOTION, "faded")
UNSEEN_ALONE = frozenset({"jump"})
"""Rivals that cannot be told from a true block by who does not see the block before."""
ALONE = 0.1
"""How often a batch comes without the blocks before."""
SAME = 0.02
"""Broken motion that changes less than this part of a block's variance (nothing moves) is no rival."""

Clips = Callable[[int], tuple[Tensor, Tensor]]
"""A step to whole clips z_BTCHW and the embeddings [B, L, D] of their prompts, a pure function of it."""
DraftOf = Callable[[Tensor, Tensor, int, int], Tensor]
"""(clips z_BTCHW, embeddings, first frame, seed) to drafts of the blocks that begin there, given the true past."""


class JudgeBatch(NamedTuple):
    """Blocks, the blocks before them (None: not shown), both [N, T, C, H, W], latents or pixels; embeddings [N, L, D];
    targets [N] in [0, 1]; which rows stand for the same true block [N], and what each row is."""

    block_NTCHW: Tensor
    before_NTCHW: Tensor | None
    text_NLD: Tensor
    target_N: Tensor
    group_N: Tensor
    kinds: tuple[str, ...]


class Judge(Protocol):
    """What is trained here: a module whose call gives logits [N]."""

    def __call__(self, block_NTCHW: Tensor, before_NTCHW: Tensor | None, text_NLD: Tensor) -> Tensor:
        """Logits [N] of blocks after the blocks before them."""
        ...


class Codec(Protocol):
    """The autoencoder, as far as it matters here."""

    def decode(self, z_BTCHW: Tensor) -> tuple[Tensor, object]:
        """Frames in [-1, 1] of latents: one of the first latent frame, equally many of each other."""
        ...


# ---------------------------------------------------------------- batches


@dataclass(frozen=True)
class Drafts:
    """Drafts of a drafter that reads the true past (see `DraftOf`)."""

    drafter: Denoiser
    policy: Policy
    block: int
    sigmas: tuple[float, ...]
    step: Step

    @torch.no_grad()
    def __call__(self, z_BTCHW: Tensor, text_BLD: Tensor, start: int, seed: int) -> Tensor:
        """Drafts [B, T, C, H, W] of the blocks that begin at `start`."""
        walker = FlowWalker("drafter", self.drafter, Store(self.policy, self.block), self.step, Clock())
        said, noise = Condition("", text_BLD), SeededNoise(seed)
        moves = [
            Move(n, Span(n * self.block, (n + 1) * self.block), self.sigmas) for n in range(start // self.block + 1)
        ]
        for move in moves[:-1]:
            walker.remember(move, z_BTCHW[:, move.span.start : move.span.stop], said)
        shape = (len(z_BTCHW), self.block, *z_BTCHW.shape[2:])
        x_BTCHW = noise.draw(moves[-1].index, INITIAL, shape).to(z_BTCHW.device)
        return walker.walk(moves[-1], x_BTCHW, self.sigmas, said, noise).block_BTCHW


class Rivals:
    """Batches of true blocks and `rivals` rivals of each, a pure function of (seed, step). `draft` makes drafts; all
    blocks of a batch begin at the same frame, at the second block or later.

    Raises ValueError for clips of fewer than three blocks, or when no kind of rival is named.
    """

    def __init__(
        self,
        clips: Clips,
        draft: DraftOf,
        block: int,
        rivals: int = 2,
        kinds: tuple[str, ...] = RIVALS,
        seed: int = 0,
    ) -> None:
        unknown = [kind for kind in kinds if kind not in RIVALS]
        if unknown or not kinds or rivals < 1:
            raise ValueError(f"{rivals} rivals of the kinds {kinds}; expected at least 1 of {', '.join(RIVALS)}")
        self.clips, self.draft, self.block, self.rivals = clips, draft, block, rivals
        self.kinds, self.seed = kinds, seed

    def __call__(self, step: int) -> JudgeBatch:
        """The batch of a step."""
        rng = random.Random(f"judges/{self.seed}/{step}")
        z_BTCHW, text_BLD = self.clips(step)
        blocks = z_BTCHW.shape[1] // self.block
        if blocks < 3:
            raise ValueError(f"clips of {z_BTCHW.shape[1]} latent frames; at least {3 * self.block} are needed")
        start = self.block * rng.randrange(1, blocks - 1)
        alone = rng.random() < ALONE
        truth, before, later = (
            z_BTCHW[:, start + shift : start + shift + self.block] for shift in (0, -self.block, self.block)
        )
        drafted = self.draft(z_BTCHW, text_BLD, start, rng.getrandbits(30))
        usable = [kind for kind in self.kinds if not (alone and kind in UNSEEN_ALONE)] or [DRAFTED]
        rows = [(n, TRUE, truth[n], text_BLD[n], 1.0) for n in range(len(truth))]
        for n in range(len(truth)):
            others = [m for m in range(len(truth)) if not torch.equal(text_BLD[m], text_BLD[n])]
            for _ in range(self.rivals):
                kind = rng.choice(usable)
                made, target = _spoilt(kind, truth[n], before[n], later[n], drafted[n], rng)
                if kind in MOTION and _alike(made, truth[n]):
                    kind, made = PROMPT, truth[n]
                if kind == PROMPT and not others:
                    kind, made = DRAFTED, drafted[n]
                rows.append((n, kind, made, text_BLD[rng.choice(others) if kind == PROMPT else n], target))
        groups = torch.tensor([row[0] for row in rows])
        return JudgeBatch(
            torch.stack([row[2] for row in rows]),
            None if alone else before[groups],
            torch.stack([row[3] for row in rows]),
            torch.tensor([row[4] for row in rows], device=z_BTCHW.device),
            groups,
            tuple(row[1] for row in rows),
        )


def _spoilt(
    kind: str, truth: Tensor, before: Tensor, later: Tensor, drafted: Tensor, rng: random.Random
) -> tuple[Tensor, float]:
    """A rival [T, C, H, W] of a true block, and its target."""
    if kind == DRAFTED:
        amount = 1.0 if rng.random() < 0.5 else rng.uniform(0.2, 1.0)
        return truth + amount * (drafted - truth), 1 - amount
    if kind == "faded":
        amount = rng.uniform(0.2, 0.8)
        return truth + amount * (truth.mean((-2, -1), keepdim=True) - truth), 1 - amount
    if kind == "frozen":
        return before[-1:].expand_as(truth), 0.0
    if kind == "shuffled":
        return truth.roll(rng.randrange(1, max(2, len(truth))), 0), 0.0
    if kind == "reversed":
        return truth.flip(0), 0.0
    return (later if kind == "jump" else truth), 0.0


def _alike(made: Tensor, truth: Tensor) -> bool:
    """Whether a rival is too much like the truth to be called wrong."""
    return bool((made - truth).square().mean() < SAME * truth.var())


class Decoded:
    """The batches of `source` in pixels, for judges that look at frames: `block` latent frames and the frames of the
    block before, decoded together from there."""

    def __init__(self, source: Callable[[int], JudgeBatch], codec: Codec) -> None:
        self.source, self.codec = source, codec

    @torch.no_grad()
    def __call__(self, step: int) -> JudgeBatch:
        """The batch of a step."""
        batch = self.source(step)
        if batch.before_NTCHW is None:
            return batch._replace(block_NTCHW=self.codec.decode(batch.block_NTCHW)[0].float())
        film = torch.cat([batch.before_NTCHW, batch.block_NTCHW], 1)
        v_NTCHW = self.codec.decode(film)[0].float()
        own = (v_NTCHW.shape[1] - 1) // (film.shape[1] - 1) * batch.block_NTCHW.shape[1]
        return batch._replace(block_NTCHW=v_NTCHW[:, -own:], before_NTCHW=v_NTCHW[:, :-own])


# ---------------------------------------------------------------- objective


class Ranking:
    """Cross-entropy between a judge's probability and the target, plus `weight` times the pairwise logistic loss of
    each rival against the truth it stands for, a rival counting for what it lacks."""

    def __init__(self, model: Judge, weight: float = 1.0) -> None:
        self.model, self.weight = model, weight

    def __call__(self, batch: JudgeBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """The loss, its parts in nats, and the share of rivals that score below their truth; `generator` is not drawn
        from."""
        logits = self.model(batch.block_NTCHW, batch.before_NTCHW, batch.text_NLD)
        fit = F.binary_cross_entropy_with_logits(logits, batch.target_N)
        true = torch.tensor([kind == TRUE for kind in batch.kinds])
        best = torch.empty(int(batch.group_N.max()) + 1, device=logits.device)
        best = best.index_put((batch.group_N[true],), logits[true])
        gap, lack = best[batch.group_N[~true]] - logits[~true], 1 - batch.target_N[~true]
        ranks = (F.softplus(-gap) * lack).sum() / lack.sum().clamp_min(1e-6)
        right = (gap > 0).float().mean()
        return {"loss": fit + self.weight * ranks, "fit": fit.detach(), "ranks": ranks.detach(), "right": right}


class Marked(NamedTuple):
    """Probabilities and targets [N] of blocks, and what each was."""

    score_N: Tensor
    target_N: Tensor
    kinds: tuple[str, ...]


@torch.no_grad()
def mark(model: Judge, source: Callable[[int], JudgeBatch], steps: range) -> Marked:
    """What a judge says of the batches of some steps, for whoever draws curves of it."""
    rows = [source(step) for step in steps]
    scores = [torch.sigmoid(model(row.block_NTCHW, row.before_NTCHW, row.text_NLD)).cpu() for row in rows]
    targets, kinds = [row.target_N.cpu() for row in rows], tuple(kind for row in rows for kind in row.kinds)
    return Marked(torch.cat(scores), torch.cat(targets), kinds)
