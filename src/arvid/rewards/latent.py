"""The latent judge: how far a block continues the one before it and shows its prompt, told from latents alone.

Knows: a small network over the latents of two blocks, and the directory it is kept in. Does not know: the autoencoder,
pixels, how it was trained (`train.judges`), who asks. It answers before anything is decoded, so a rejected draft costs
no decoding.

Legend: B blocks, T latent frames, C channels, H height, W width, L tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from arvid.rewards import parts
from arvid.types import Candidate


@dataclass(frozen=True)
class LatentJudgeConfig:
    """Latents of `channels`, looked at `frames` at a time and as many before; `width` of the maps, `blocks` residual
    blocks on them, `rounds` in which the cells look at the words."""

    channels: int = 16
    frames: int = 3
    text_width: int = 128
    width: int = 96
    blocks: int = 3
    rounds: int = 2
    heads: int = 3


class LatentJudge(nn.Module):
    """Scores blocks (see `arvid.types.BlockReward`). Any height and width; a shorter block is seen with more of what
    came before."""

    lookback = 0

    def __init__(self, config: LatentJudgeConfig | None = None) -> None:
        super().__init__()
        self.config = config or LatentJudgeConfig()
        seen = 2 * self.config.frames * (self.config.channels + 1)
        self.stem = nn.Conv2d(seen, self.config.width, 3, padding=1)
        self.body = nn.Sequential(*(parts.Residual(self.config.width) for _ in range(self.config.blocks)))
        self.compared = parts.Compared(self.config.width, self.config.text_width, self.config.heads, self.config.rounds)

    def forward(self, block_BTCHW: Tensor, before_BTCHW: Tensor | None, text_BLD: Tensor) -> Tensor:
        """Logits [B] fp32 of blocks after `before_BTCHW` (None: after nothing) against embeddings, zero where there is
        no token. sigmoid(logit) is the probability that the block is a true one.

        Raises ValueError for latents of another number of channels.
        """
        if block_BTCHW.ndim != 5 or block_BTCHW.shape[2] != self.config.channels:
            raise ValueError(
                f"latents of shape {[*block_BTCHW.shape]} to judge; expected [B, T, {self.config.channels}, H, W]"
            )
        film = block_BTCHW if before_BTCHW is None else torch.cat([before_BTCHW, block_BTCHW], 1)
        film = film[:, -2 * self.config.frames :].to(self.stem.weight.dtype)
        film = F.pad(film, (0, 0, 0, 0, 0, 1), value=1.0)  # one more channel tells frames from none
        missing = 2 * self.config.frames - film.shape[1]
        film = F.pad(film, (0, 0, 0, 0, 0, 0, missing, 0))
        return self.compared(self.body(F.relu(self.stem(film.flatten(1, 2)))), text_BLD)

    @torch.no_grad()
    def score_block(self, candidate: Candidate) -> Tensor:
        """Probabilities [B] fp32 in [0, 1] that a block is true to the block before it and to its prompt."""
        where = self.stem.weight.device
        before = None if candidate.before_BTCHW is None else candidate.before_BTCHW.to(where)
        return torch.sigmoid(self(candidate.block_BTCHW.to(where), before, candidate.condition.text_BLD.to(where)))

    def save(self, directory: Path) -> None:
        """Write model.safetensors and config.json."""
        parts.save(self, self.config, directory)

    @classmethod
    def load(cls, directory: Path) -> LatentJudge:
        """Read what `save` wrote. Raises ValueError when it is missing, damaged or of another configuration."""
        return parts.load("latent judge", lambda raw: cls(LatentJudgeConfig(**raw)), directory)
