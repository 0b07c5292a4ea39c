"""Judges of latents that look at frames: a block is decoded, encoded again, and judged as that.

Knows: how frames become latents again, the mean of what is read and what is seen. Does not know: networks, what is
read, who asks.

A generator that learned from what its latents read as (`train.feedback`) makes some that read well and decode badly;
a reader of latents is fooled by exactly what it taught. Pixels are not: a block that was decoded and encoded again has
lost what no eye sees.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from arvid.rewards.reading import MARKS, ReadingJudge, distance
from arvid.types import BlockReward, Candidate

Encode = Callable[[Tensor], Tensor]
"""Latents [B, 1 + T, C, h, w] of frames [B, 1 + 4 T, 3, H, W] in [-1, 1]."""


def seen(candidate: Candidate, encode: Encode) -> Candidate:
    """A candidate whose latents are those of its frames, encoded behind the frame before them."""
    frames, before = candidate.frames(), candidate.frames_before_BTCHW
    if before is None:
        again = encode(frames.clamp(-1, 1))
    else:
        again = encode(torch.cat([before[:, -1:], frames], 1).clamp(-1, 1))[:, 1:]
    return replace(candidate, block_BTCHW=again.to(candidate.block_BTCHW))


class RereadingJudge:
    """Scores blocks (see `arvid.types.BlockReward`): the geometric mean of what the reading judge says of a block's
    latents and of those of its frames. It has no weights of its own."""

    lookback = 1

    def __init__(self, reading: ReadingJudge, encode: Encode) -> None:
        self._reading, self._encode = reading, encode

    @torch.no_grad()
    def score_block(self, candidate: Candidate) -> Tensor:
        """Scores [B] fp32 in (0, 1]. Raises ValueError for latents of another number of channels."""
        both = (distance(terms, MARKS) for terms in (self._reading.terms(candidate), self.terms(candidate)))
        return (-sum(both, torch.zeros(())) / 2).exp()

    @torch.no_grad()
    def terms(self, candidate: Candidate) -> dict[str, Tensor]:
        """The terms [B] of the distance of what is seen from what was asked (see `reading.Asking`)."""
        return self._reading.terms(seen(candidate, self._encode))


class Seeing:
    """A judge of latents that is shown those of a block's frames (see `arvid.types.BlockReward`)."""

    lookback = 1

    def __init__(self, judge: BlockReward, encode: Encode) -> None:
        self._judge, self._encode = judge, encode

    @torch.no_grad()
    def score_block(self, candidate: Candidate) -> Tensor:
        """What the judge says [B] of the frames. Raises ValueError for latents of another number of channels."""
        return self._judge.score_block(seen(candidate, self._encode))
