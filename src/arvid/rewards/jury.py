"""The jury: what several judges say of a block, weighed as drafts and an oracle have taught it.

Knows: what each witness says (the frame reward of the worst frame and of all, the latent judge, every term of the
reading judge, of latents and of pixels), one weight for each, the directory they are kept in. Does not know: how the
weights were found (`train.weighing`), the witnesses' networks, who asks.

A product of scores takes every judge at its word; a weighted sum of what they say knows how far each is to be believed
(stacking: Wolpert, 1992). The score is an estimate of the oracle's mark of the block, so it is calibrated where the
drafts are like those it was taught on.

Legend: B blocks, T frames, F pieces of evidence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from arvid.rewards import parts
from arvid.rewards.latent import LatentJudge
from arvid.rewards.reading import MARKS, ReadingJudge
from arvid.rewards.rereading import RereadingJudge
from arvid.types import BlockReward, Candidate, Reward

HEARD = ("latent", "reading", "rereading")
"""The judges it hears, beside the frame reward."""
FAINT = 1e-3
"""Scores below this count as this, so that a logarithm has an end."""
EVIDENCE = (
    "worst", "frames", "latent", "worst-log", "frames-log", "latent-log",
    *(f"{term}{kind}" for term in MARKS for kind in ("", "-root")),
    *(f"seen-{term}{kind}" for term in MARKS for kind in ("", "-root")),
)  # fmt: skip
"""Scores and their logarithms, and the terms of what is read and of what is seen, and their roots."""


@dataclass(frozen=True)
class JuryConfig:
    """The pieces of evidence that the weights belong to, in order."""

    evidence: tuple[str, ...] = EVIDENCE


class Jury(nn.Module):
    """Scores blocks (see `arvid.types.BlockReward`) by a logistic of the evidence of its witnesses, which are no part
    of its weights. `lookback` is that of the rereading judge."""

    lookback = 1

    def __init__(self, frames: Reward, latent: LatentJudge, reading: ReadingJudge, rereading: RereadingJudge) -> None:
        super().__init__()
        self.config = JuryConfig()
        self._witnesses = frames, latent, reading, rereading
        self.weigh = nn.Linear(len(EVIDENCE), 1)

    @torch.no_grad()
    def score_block(self, candidate: Candidate) -> Tensor:
        """Estimates [B] fp32 in [0, 1] of the oracle's marks of blocks."""
        logits: Tensor = self.weigh(self.evidence(candidate).to(self.weigh.weight))
        return torch.sigmoid(logits[:, 0].float())

    @torch.no_grad()
    def evidence(self, candidate: Candidate) -> Tensor:
        """The evidence [B, F], as EVIDENCE names it."""
        frames, latent, reading, rereading = self._witnesses
        shown_BT = frames.score(candidate.frames(), candidate.condition.prompt).float()
        said = torch.stack([shown_BT.amin(1), shown_BT.mean(1), latent.score_block(candidate).to(shown_BT)], 1)
        terms = torch.stack([*reading.terms(candidate).values(), *rereading.terms(candidate).values()], 1).to(said)
        both = torch.stack([terms, terms.clamp(min=0).sqrt()], 2).flatten(1)
        return torch.cat([said, said.clamp(min=FAINT).log(), both], 1)

    def save(self, directory: Path) -> None:
        """Write model.safetensors and config.json."""
        parts.save(self, self.config, directory)

    @classmethod
    def load(cls, directory: Path, frames: Reward | None, judges: Mapping[str, BlockReward]) -> Jury:
        """Read what `save` wrote, to hear these witnesses. Raises ValueError when it is missing, damaged or of other
        evidence, or a witness is missing."""
        for name in HEARD:
            if name not in judges:
                raise ValueError(f"the jury in {directory} hears the judge {name!r}, the family lacks it; remove one")
        if frames is None:
            raise ValueError(f"the jury in {directory} hears the frame reward, the family lacks it; remove one")
        latent, reading = cast(LatentJudge, judges["latent"]), cast(ReadingJudge, judges["reading"])
        rereading = cast(RereadingJudge, judges["rereading"])

        def make(raw: dict[str, object]) -> Jury:
            if raw != {"evidence": EVIDENCE}:
                raise ValueError("weights of other evidence than this version hears")
            return cls(frames, latent, reading, rereading)

        return parts.load("jury", make, directory)
